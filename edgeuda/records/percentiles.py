"""Latency statistics that claim no more than the number of samples supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeuda.errors import DataError

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
"""The percentiles that are reported where the sample supports them."""
TAIL = 0.025
"""Probability on each side of an interval."""


@dataclass(frozen=True)
class LatencySummary:
    """Statistics of successive latencies; nothing is removed as an outlier.

    Attributes:
        n: Number of samples.
        min: In milliseconds, as all below.
        mean: Arithmetic mean.
        percentiles: Observed latencies by percentile (``"50"``, ``"99.9"``); supported ones only.
        max: Largest sample.
        jitter: Standard deviation of the differences between successive samples.
        intervals: By percentile, the interval that holds the true one with at least 95 %
            confidence, if successive samples are independent. See `percentile_interval`.
    """

    n: int
    min: float
    mean: float
    percentiles: dict[str, float]
    max: float
    jitter: float
    intervals: dict[str, tuple[float, float]]

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentiles["50"]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The median's interval; None if so few samples have none."""
        return self.intervals.get("50")

    @property
    def tail(self) -> str:
        """The highest percentile there is, for example ``"99"``."""
        return max(self.percentiles, key=float)


def samples_needed(percentile: float) -> int:
    """Return how many samples a percentile needs before it is reported.

    The rule behind MLPerf's query counts: the smallest n for which at most one of n samples exceeds
    the percentile with a probability of 1 % or less. 50: 11, 90: 64, 95: 130, 99: 662, 99.9: 6636.
    """
    p = percentile / 100
    n = 2
    while p**n + n * p ** (n - 1) * (1 - p) > 0.01:
        n += 1
    return n


def supported(n: int) -> tuple[float, ...]:
    """Return those of `PERCENTILES` that ``n`` samples support."""
    return tuple(p for p in PERCENTILES if n >= samples_needed(p))


def summarise(samples_ms: Sequence[float]) -> LatencySummary:
    """Summarise latencies in the order in which they were measured, in milliseconds.

    A percentile is the smallest sample that at least this share of samples does not exceed.

    Raises:
        DataError: If there are fewer than two samples.
    """
    if len(samples_ms) < 2:
        msg = f"Expected at least 2 latencies to summarise, found {len(samples_ms)}"
        raise DataError(msg)
    values = np.asarray(samples_ms, np.float64)
    ordered = np.sort(values)
    intervals = {p: _order_statistics(ordered, p) for p in supported(len(values))}
    return LatencySummary(
        n=len(values),
        min=float(values.min()),
        mean=float(values.mean()),
        percentiles={
            # In whole tenths: 99.9 / 100 is not exact, and one rank of the tail is a lot.
            f"{p:g}": float(ordered[math.ceil(round(10 * p) * len(values) / 1000) - 1])
            for p in supported(len(values))
        },
        max=float(values.max()),
        jitter=float(np.diff(values).std()),
        intervals={f"{p:g}": found for p, found in intervals.items() if found is not None},
    )


def percentile_interval(values: Sequence[float], percentile: float) -> tuple[float, float] | None:
    """Return the order statistics that enclose a percentile with at least 95 % confidence.

    Distribution-free: the number of samples below the percentile is binomial. None if even the
    smallest and the largest value do not reach that confidence; for the median that is so below
    six values.
    """
    return _order_statistics(np.sort(np.asarray(values, np.float64)), percentile)


def _order_statistics(
    ordered: npt.NDArray[np.float64], percentile: float
) -> tuple[float, float] | None:
    n, p = len(ordered), percentile / 100
    if n == 0:
        return None
    k = np.arange(n + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_mass = factorials[n] - factorials[k] - factorials[n - k] + k * math.log(p)
    below = np.cumsum(np.exp(log_mass + (n - k) * math.log1p(-p)))  # P(at most k lie below)
    # The percentile lies below sample i (from 1) if fewer than i do: P = below[i - 1].
    low = int(np.searchsorted(below, TAIL, side="right"))
    high = int(np.searchsorted(below, 1 - TAIL, side="left")) + 1
    if low == 0 or high > n:
        return None
    return float(ordered[low - 1]), float(ordered[high - 1])


@dataclass(frozen=True)
class Drift:
    """The last third of a run against its first.

    Attributes:
        first: Median of the first third, in milliseconds.
        last: Of the last.
        ratio: ``last / first``.
        significant: Whether the 95 % intervals of the two medians do not overlap.
    """

    first: float
    last: float
    ratio: float
    significant: bool


def drift(samples_ms: Sequence[float]) -> Drift | None:
    """Compare the first third of successive latencies with the last; None below 33 samples."""
    third = len(samples_ms) // 3
    if third < samples_needed(50):
        return None
    ends = samples_ms[:third], samples_ms[-third:]
    first, last = (float(np.median(end)) for end in ends)
    (low, high), (lower, higher) = (_enclosed(end) for end in ends)
    return Drift(first, last, last / first, significant=high < lower or higher < low)


def _enclosed(values: Sequence[float]) -> tuple[float, float]:
    interval = percentile_interval(values, 50)
    assert interval is not None  # 11 values have one
    return interval
