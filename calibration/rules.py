"""From a histogram to the range that is quantized; values outside saturate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from calibration.ranges import Histogram
from edgeuda.errors import ConfigError

RuleName = Literal["max", "percentile"]


class Range(NamedTuple):
    """Smallest and largest value that are represented."""

    low: float
    high: float


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


def by_name(name: RuleName, percent: float) -> Rule:
    """Return a rule by name; ``percent`` (above 50, at most 100) matters to ``percentile`` only.

    Raises:
        ConfigError: If the name is unknown or ``percent`` is out of range.
    """
    if name == "max":
        return maximum
    if name != "percentile" or not 50 < percent <= 100:
        msg = (
            "Expected rule 'max', or 'percentile' with a value above 50 and at most 100, "
            f"found {name!r} with {percent}"
        )
        raise ConfigError(msg)
    return lambda histogram: percentile(histogram, percent)
