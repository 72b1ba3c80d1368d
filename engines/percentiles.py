"""Latency statistics that claim no more than the number of samples supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeuda.errors import DataError

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
"""The percentiles that are reported where the sample supports them."""


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
        median_ci: Interval that holds the true median with at least 95 % confidence, if successive
            samples are independent; None below six samples, where there is none.
    """

    n: int
    min: float
    mean: float
    percentiles: dict[str, float]
    max: float
    jitter: float
    median_ci: tuple[float, float] | None


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
        median_ci=median_interval(samples_ms),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the order statistics that enclose the median with at least 95 % confidence.

    Distribution-free: the number of samples below the median is binomial with p = 0.5. None if even
    the smallest and largest value do not reach that confidence, which is so below six values.
    """
    n = len(values)
    outside, rank = 0.0, 0  # P(fewer than `rank + 1` samples lie below the median)
    while True:
        outside += math.exp(
            math.lgamma(n + 1) - math.lgamma(rank + 1) - math.lgamma(n - rank + 1) - n * math.log(2)
        )
        if outside > 0.025:
            break
        rank += 1
    if rank == 0:
        return None
    ordered = sorted(values)
    return float(ordered[rank - 1]), float(ordered[n - rank])
