"""From a histogram to the range that is quantized; values outside saturate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import numpy.typing as npt

from calibration.ranges import Histogram
from edgeuda.errors import ConfigError
from edgeuda.records.calibration import Range
from edgeuda.records.names import RuleName

LEVELS = 255
"""Steps from one end of an 8-bit range to the other; a symmetric one goes from -127 to 127."""
PERCENTILES: dict[RuleName, float] = {"percentile": 99.99, "frame-percentile": 90.0}
"""Rules that take a percentage, and what it is when none is given."""
ENTROPY_LEVELS = 128
"""Magnitudes that rule ``entropy`` distinguishes, as TensorRT's calibrator does."""


Rule = Callable[[Histogram], Range]


def maximum(histogram: Histogram) -> Range:
    """Represent every value that was seen."""
    return Range(histogram.low, histogram.high)


def percentile(histogram: Histogram, percent: float) -> Range:
    """Cut off the ``100 - percent`` percent largest values, and as many of the smallest.

    The result is within one bin of the exact percentiles of all values.
    """
    seen = np.cumsum(histogram.counts)
    beyond = seen[-1] * (100 - percent) / 100
    first = int(np.searchsorted(seen, beyond, side="right"))
    last = int(np.searchsorted(seen, seen[-1] - beyond, side="left"))
    edges = np.linspace(histogram.low, histogram.high, len(seen) + 1)
    return Range(float(edges[first]), float(edges[last + 1]))


def frame_percentile(histogram: Histogram, percent: float) -> Range:
    """Take the percentile of the frames' largest values, and of their smallest.

    One glaring frame among many does not widen the range; a value that most frames reach stays in.
    """
    low, high = histogram.frame_ranges.T.astype(np.float64)
    return Range(float(np.percentile(low, 100 - percent)), float(np.percentile(high, percent)))


def mse(histogram: Histogram, symmetric: bool = False) -> Range:
    """Choose the range with the least mean squared error of rounding and saturation together.

    Rounding errs by a twelfth of a step squared, saturation by the distance to the range's end.
    All pairs of bin edges compete; for a symmetric range, all magnitudes.

    Args:
        histogram: Of the activation.
        symmetric: Whether zero is in the middle of what is represented, as in TensorRT.
    """
    counts = histogram.counts.astype(np.float64)
    edges = np.linspace(histogram.low, histogram.high, len(counts) + 1)
    if histogram.high <= histogram.low:
        return maximum(histogram)
    centres = (edges[:-1] + edges[1:]) / 2
    if symmetric:
        width = edges[1] - edges[0]
        magnitudes = _folded(counts, centres, width)
        ends = width * np.arange(1, len(magnitudes) + 1)
        errors = _saturated(magnitudes, ends - width / 2, ends)
        inside = np.cumsum(magnitudes)
        errors += inside * (2 * ends / (LEVELS - 1)) ** 2 / 12
        best = float(ends[errors.argmin()])
        return Range(max(histogram.low, -best), min(histogram.high, best))
    above = _saturated(counts, centres, edges[1:])  # by the upper end
    below = _saturated(counts[::-1], -centres[::-1], -edges[:-1][::-1])[::-1]
    beyond = counts.sum() - np.cumsum(counts)
    before = np.cumsum(counts) - counts
    step = (edges[None, 1:] - edges[:-1, None]) / LEVELS
    mass = counts.sum() - before[:, None] - beyond[None]
    errors = below[:, None] + above[None] + mass * step**2 / 12
    errors[step <= 0] = np.inf
    # Zero has to be represented: padding and what ReLU leaves is zero.
    errors[edges[:-1] > max(0.0, histogram.low), :] = np.inf
    errors[:, edges[1:] < min(0.0, histogram.high)] = np.inf
    low, high = np.unravel_index(int(errors.argmin()), errors.shape)
    return Range(float(edges[low]), float(edges[high + 1]))


def entropy(histogram: Histogram) -> Range:
    """Choose the magnitude at which 8 bits lose least of the distribution's information.

    Saturated values are added to the last bin of the reference, the bins up to the magnitude are
    averaged in `ENTROPY_LEVELS` groups, and the Kullback-Leibler divergence between both is least.
    Zeros, which are exact in any range, count as often as the smallest magnitudes.
    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    counts = histogram.counts.astype(np.float64)
    if histogram.high <= histogram.low:
        return maximum(histogram)
    edges = np.linspace(histogram.low, histogram.high, len(counts) + 1)
    width = edges[1] - edges[0]
    magnitudes = _folded(counts, (edges[:-1] + edges[1:]) / 2, width)
    if len(magnitudes) <= ENTROPY_LEVELS:
        return maximum(histogram)
    magnitudes[0] = magnitudes[1]  # the zeros that ReLU leaves would decide alone
    divergences = [
        _divergence(magnitudes, size) for size in range(ENTROPY_LEVELS, len(magnitudes) + 1)
    ]
    best = width * (ENTROPY_LEVELS + int(np.argmin(divergences)))
    return Range(max(histogram.low, -best), min(histogram.high, best))


def _folded(
    counts: npt.NDArray[np.float64], centres: npt.NDArray[np.float64], width: float
) -> npt.NDArray[np.float64]:
    """Return the histogram of magnitudes, in bins of ``width`` from zero."""
    places = np.floor(np.abs(centres) / width).astype(np.int64)
    return np.bincount(places, weights=counts).astype(np.float64)


def _saturated(
    counts: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    ends: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return the squared error of cutting off at each end: the sum of ``(value - end)^2`` above."""

    def above(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(weights.sum() - np.cumsum(weights), np.float64)

    first, second = above(counts * values), above(counts * values**2)
    return np.asarray(np.maximum(second - 2 * ends * first + ends**2 * above(counts), 0.0))


def _divergence(magnitudes: npt.NDArray[np.float64], size: int) -> float:
    """Return the divergence of the quantized from the saturated distribution below ``size``."""
    inside = magnitudes[:size]
    reference = inside.copy()
    reference[-1] += magnitudes[size:].sum()
    starts = np.arange(ENTROPY_LEVELS) * size // ENTROPY_LEVELS
    filled = (inside > 0).astype(np.float64)
    sums, numbers = np.add.reduceat(inside, starts), np.add.reduceat(filled, starts)
    means = np.divide(sums, numbers, out=np.zeros_like(sums), where=numbers > 0)
    quantized = np.repeat(means, np.diff(np.append(starts, size))) * filled
    if quantized.sum() == 0:
        return float("inf")
    present = reference > 0
    p = reference[present] / reference.sum()
    # A bin that only saturation fills has none in the quantized one: keep it finite.
    q = np.maximum(quantized[present] / quantized.sum(), 1e-12)
    return float((p * np.log(p / q)).sum())


def by_name(name: RuleName, percent: float, symmetric: bool = False) -> Rule:
    """Return a rule by name.

    Args:
        name: See `RuleName`.
        percent: Above 50, at most 100; of the two percentiles.
        symmetric: Whether the runtime's range has zero in its middle; matters to ``mse``.

    Raises:
        ConfigError: If the name is unknown or ``percent`` is out of range.
    """
    if name not in get_args(RuleName) or not 50 < percent <= 100:
        msg = (
            f"Expected a rule of {', '.join(get_args(RuleName))}, and a percentile above 50 and at "
            f"most 100, found {name!r} with {percent}"
        )
        raise ConfigError(msg)
    if name == "percentile":
        return partial(percentile, percent=percent)
    if name == "frame-percentile":
        return partial(frame_percentile, percent=percent)
    if name == "mse":
        return partial(mse, symmetric=symmetric)
    return maximum if name == "max" else entropy
