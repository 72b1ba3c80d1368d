"""How far mIoU would differ on other images of the same kind: a block bootstrap.

Neighbouring frames of a drive are alike, so blocks of successive images are drawn with replacement
(Künsch, "The Jackknife and the Bootstrap for General Stationary Observations", Annals of
Statistics 17(3), 1989). The interval covers the choice of images on this drive. It does not
cover another drive, or another training of the network.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeuda.errors import DataError
from edgeuda.records.tradeoff import Estimate

BLOCK = 10
RESAMPLES = 1000
TAILS = (2.5, 97.5)

Counts = npt.NDArray[np.int64]
"""``[N, K, K]`` confusion matrices of images in their order, rows truth."""


def miou_interval(images: Counts, seed: int = 0) -> Estimate:
    """Return mIoU, 0 to 1, of images with its interval.

    Raises:
        DataError: If there are no images, or no labelled pixel.
    """
    draws, whole = _draws(images, seed)
    return _estimate(_miou(whole, whole), _miou(draws, whole))


def miou_difference(images: Counts, reference: Counts, seed: int = 0) -> Estimate:
    """Return the mIoU of one model less that of another on the same images, with its interval.

    Both are scored on the same draws, so what makes an image hard for both cancels.

    Raises:
        DataError: If the images are not the same in number and truth.
    """
    if images.shape != reference.shape or (images.sum(2) != reference.sum(2)).any():
        msg = (
            f"Expected two models' counts of the same labelled images, found {list(images.shape)} "
            f"and {list(reference.shape)}, or other labels"
        )
        raise DataError(msg)
    ours, whole = _draws(images, seed)
    theirs, other = _draws(reference, seed)
    value = _miou(whole, whole) - _miou(other, other)
    return _estimate(value, _miou(ours, whole) - _miou(theirs, other))


def _draws(images: Counts, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return ``[RESAMPLES, K, K]`` summed counts of draws, and ``[1, K, K]`` of all images."""
    if not len(images) or not images.sum():
        msg = "Expected at least one image with a labelled pixel, found none"
        raise DataError(msg)
    n, k = images.shape[:2]
    block = max(1, min(BLOCK, n // 5))  # five blocks at least, or there is nothing to draw from
    flat = images.reshape(n, k * k).astype(np.float64)
    around = np.cumsum(np.concatenate([np.zeros((1, k * k)), flat, flat[: block - 1]]), axis=0)
    blocks = around[block:] - around[:-block]  # of each start, over the end to the beginning
    starts = np.random.default_rng(seed).multinomial(
        -(-n // block), np.full(n, 1 / n), size=RESAMPLES
    )
    return (starts @ blocks).reshape(-1, k, k), flat.sum(0).reshape(1, k, k)


def _miou(
    counts: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return ``[n]`` mIoU over the classes that have a true pixel among all images."""
    present = whole[0].sum(1) > 0
    hits = np.diagonal(counts, axis1=1, axis2=2)[:, present]
    union = (counts.sum(1) + counts.sum(2))[:, present] - hits
    with np.errstate(invalid="ignore"):
        iou = hits / union
    return np.asarray(np.nanmean(iou, axis=1), np.float64)  # a draw may miss a class


def _estimate(value: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(draws, TAILS)
    return Estimate(float(value[0]), float(low), float(high))
