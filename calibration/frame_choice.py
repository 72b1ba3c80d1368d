"""Which frames to calibrate on, and whether they were enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from calibration.ranges import Histogram
from edgeuda.camera import CameraGeometry
from edgeuda.data.folders import parallel, spread
from edgeuda.data.images import scaled
from edgeuda.data.treatment import read_frame
from edgeuda.errors import ConfigError
from edgeuda.records.names import FrameRule

CANDIDATES = 8
"""Frames looked at per frame wanted."""
THUMBNAIL = 8
"""Rows and columns of what is compared."""
ENOUGH = 0.98
"""Share of the final range at which more frames count as not needed."""
ORDERS = 20


def candidates(frames: Sequence[Path], count: int) -> list[Path]:
    """Return the frames, evenly spread over time, among which ``count`` are chosen."""
    return list(spread(frames, CANDIDATES * count))


def diverse(
    frames: Sequence[Path], count: int, seed: int = 0, geometry: CameraGeometry | None = None
) -> list[Path]:
    """Choose frames that differ most in colour and layout, in their order.

    Thumbnails in CIELAB are clustered by k-means; of each cluster the frame nearest to its centre
    is taken, so that an odd frame does not stand for many.

    Args:
        frames: Images, see `candidates`.
        count: How many to choose.
        seed: Of the clustering.
        geometry: Of the model's spec: frames are compared as the model is shown them.
    """
    if len(frames) <= count:
        return list(frames)
    features = np.stack(parallel(partial(_thumbnail, geometry=geometry), list(frames)))
    cv2.setRNGSeed(seed)
    _, labels, centres = cv2.kmeans(
        features,
        count,
        np.empty(0, np.int32),
        (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 30, 1e-3),
        3,
        cv2.KMEANS_PP_CENTERS,
    )
    distance = np.linalg.norm(features - centres[labels.ravel()], axis=1)
    chosen = {
        int(np.flatnonzero(labels.ravel() == cluster)[distance[labels.ravel() == cluster].argmin()])
        for cluster in np.unique(labels)
    }
    # Copies leave clusters empty: what was nearly chosen fills up.
    for index in np.argsort(-distance, kind="stable"):
        if len(chosen) == count:
            break
        chosen.add(int(index))
    return [frames[index] for index in sorted(chosen)]


def covering(shares: npt.NDArray[np.float64], count: int) -> list[int]:
    """Choose images so that every class is seen as evenly as they allow.

    Each step takes the image that adds most to the sum over classes of the square root of the
    pixels gathered: a second image full of road is worth less than a first pole.

    Args:
        shares: ``[images, classes]`` float64, share of each image's pixels by predicted class.
        count: How many to choose.

    Returns:
        Positions of the chosen images, ascending.
    """
    gathered = np.zeros(shares.shape[1])
    left = list(range(len(shares)))
    chosen = []
    for _ in range(min(count, len(shares))):
        gains = np.sqrt(gathered + shares[left]).sum(1)
        best = left.pop(int(gains.argmax()))
        gathered += shares[best]
        chosen.append(best)
    return sorted(chosen)


def convergence(histograms: Mapping[str, Histogram], seed: int = 0) -> list[float]:
    """Return how much of the final ranges ``1 .. n`` frames show: the mean over the activations.

    The mean over random orders of the frames, so that a drive's order does not matter.

    Args:
        histograms: With the range of every frame.
        seed: Of the orders.
    """
    ranges = np.stack([h.frame_ranges for h in histograms.values()]).astype(np.float64)
    spans = ranges[:, :, 1].max(1) - ranges[:, :, 0].min(1)
    ranges = ranges[spans > 0]
    if not len(ranges):
        return [1.0] * len(next(iter(histograms.values())).frame_ranges)
    rng = np.random.default_rng(seed)
    curve = np.zeros(ranges.shape[1])
    for _ in range(ORDERS):
        own = ranges[:, rng.permutation(ranges.shape[1])]
        seen = np.maximum.accumulate(own[:, :, 1], 1) - np.minimum.accumulate(own[:, :, 0], 1)
        curve += (seen / spans[spans > 0, None]).mean(0)
    return [float(value) for value in curve / ORDERS]


def enough(curve: Sequence[float]) -> int:
    """Return the number of frames from which on `ENOUGH` of the final ranges is seen."""
    return next((n for n, share in enumerate(curve, 1) if share >= ENOUGH), len(curve))


def choose(
    name: FrameRule, frames: Sequence[Path], count: int, geometry: CameraGeometry | None = None
) -> list[Path]:
    """Choose by a rule that needs no network; ``geometry`` as in `diverse`.

    Raises:
        ConfigError: If there is no such rule; ``classes`` takes predictions, see `covering`.
    """
    if name == "uniform":
        return list(spread(frames, count))
    if name == "diverse":
        return diverse(candidates(frames, count), count, geometry=geometry)
    msg = f"Expected uniform or diverse, found {name!r}"
    raise ConfigError(msg)


def _thumbnail(path: Path, geometry: CameraGeometry | None) -> npt.NDArray[np.float32]:
    small = scaled(read_frame(path, geometry), THUMBNAIL, THUMBNAIL)
    return cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32).reshape(-1)
