"""Latencies of hours in the memory of one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeuda.records.percentiles import supported


class LatencyHistogram:
    """Counts of latencies in bins of one percent, from 10 microseconds to 1000 seconds.

    Hours of frames take the memory of one. A percentile is a bin's upper end.
    """

    LOW, GROWTH = 1e-2, 1.01

    def __init__(self) -> None:
        bins = int(np.ceil(np.log(1e6 / self.LOW) / np.log(self.GROWTH)))
        self.counts: npt.NDArray[np.int64] = np.zeros(bins + 1, np.int64)
        self.max = 0.0

    def add(self, milliseconds: float) -> None:
        """Count a latency."""
        place = np.ceil(np.log(max(milliseconds, self.LOW) / self.LOW) / np.log(self.GROWTH))
        self.counts[min(int(place), len(self.counts) - 1)] += 1
        self.max = max(self.max, milliseconds)

    def percentiles(self) -> dict[str, float]:
        """Return the supported percentiles in milliseconds, 1 % too high at most."""
        n = int(self.counts.sum())
        below = np.cumsum(self.counts)
        found = {}
        for percentile in supported(n):
            rank = int(np.ceil(round(10 * percentile) * n / 1000))
            place = int(np.searchsorted(below, rank))
            found[f"{percentile:g}"] = min(self.LOW * self.GROWTH**place, self.max)
        return found
