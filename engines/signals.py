"""What one frame says without labels: how sure the model is, what it sees, how the image looks.

The same for the frames that a reference is made of and for those that are held against it later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.data.folders import class_counts
from edgeuda.records.reference import BINS, COLUMNS
from engines.onnx.confidence import LEVELS
from engines.runner import FrameSignals

GRID = (4, 4)
"""Rows and columns of the regions."""
Number = TypeVar("Number", bound=np.generic)
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FrameStatistics:
    """One frame; R regions by rows from the top, and the whole image after them.

    Attributes:
        confidence: ``[R + 1, BINS]`` int64 places by confidence.
        classes: ``[R + 1, K]`` int64 pixels by class.
        brightness: ``[R + 1]`` float64 means of the grey image, 0 to 255.
        sharpness: ``[R + 1]`` float64 variances of its Laplacian.
        values: ``[columns]`` float64, see `edgeuda.records.reference.COLUMNS`.
        features: ``[C]`` float32; None if the model gives none.
    """

    confidence: Counts
    classes: Counts
    brightness: Floats
    sharpness: Floats
    values: Floats
    features: npt.NDArray[np.float32] | None


def statistics(seen: FrameSignals, classes: int) -> FrameStatistics:
    """Count and measure a frame.

    Brightness, sharpness and colour are of the image as the network was fed it.

    Args:
        seen: The frame.
        classes: Number of classes, K.
    """
    grey = cv2.cvtColor(seen.fed, cv2.COLOR_RGB2GRAY)
    edges = cv2.Laplacian(grey, cv2.CV_16S)
    step = (LEVELS + 1) // BINS
    brightness, sharpness = _with_whole(grey), _with_whole(edges)
    light = np.array([float(part.mean()) for part in brightness])
    sharp = np.array([float(part.var(dtype=np.float64)) for part in sharpness])
    mean, spread = cv2.meanStdDev(seen.fed)
    sure = float(seen.confidence.mean()) / LEVELS
    values = np.array([sure, light[-1], sharp[-1], *mean.ravel(), *spread.ravel()])
    assert len(values) == len(COLUMNS)
    return FrameStatistics(
        class_counts([part // step for part in _with_whole(seen.confidence)], BINS),
        class_counts(_with_whole(seen.labels), classes),
        light,
        sharp,
        values,
        seen.features,
    )


def class_distance(found: npt.NDArray[Any], usual: npt.NDArray[Any]) -> float:
    """Return how far classes are from the usual ones, 0 to 1.

    Source: Endres and Schindelin, "A new metric for probability distributions", IEEE Transactions
    on Information Theory, 2003; with logarithms to base 2.

    Args:
        found: ``[R, K]`` pixels by region and class; regions without any are left out.
        usual: ``[R, K]`` likewise, or shares.
    """
    p, q = _shares(found, usual)
    middle = (p + q) / 2
    apart = (_divergence(p, middle) + _divergence(q, middle)) / 2
    return float(np.sqrt(np.clip(apart, 0, 1)).mean()) if len(p) else 0.0


def confidence_distance(found: npt.NDArray[Any], usual: npt.NDArray[Any]) -> float:
    """Return how far confidence is from the usual one: mean of Kolmogorov-Smirnov's distances.

    Args:
        found: ``[R, BINS]`` places by region and confidence; regions without any are left out.
        usual: ``[R, BINS]`` likewise.
    """
    p, q = _shares(found, usual)
    return float(np.abs(np.cumsum(p - q, axis=1)).max(1).mean()) if len(p) else 0.0


def _shares(found: npt.NDArray[Any], usual: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Return rows divided by their sums, of those that have any in both."""
    kept = (found.sum(1) > 0) & (usual.sum(1) > 0)
    p, q = (
        np.asarray(one[kept] / one[kept].sum(1, keepdims=True), np.float64)
        for one in (found, usual)
    )
    return p, q


def _divergence(p: Floats, q: Floats) -> Floats:
    """Return Kullback and Leibler's divergence of rows in bits; where ``q`` is 0, ``p`` must be."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log2(ratio)).sum(1), np.float64)


def _with_whole(values: npt.NDArray[Number]) -> list[npt.NDArray[Number]]:
    """Return the regions of a map, and the map itself; some are empty where it is smaller."""
    rows = np.array_split(values, GRID[0], axis=0)
    return [*(part for row in rows for part in np.array_split(row, GRID[1], axis=1)), values]
