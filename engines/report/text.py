"""Numbers and records of the report as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.records.tradeoff import Estimate

DASH = "–"  # noqa: RUF001 - a dash, as is the minus below
"""Stands for a value that does not exist."""
MINUS = "−"  # noqa: RUF001


def distinct(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once, so that each keeps its own bar and column."""
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def printable(text: object) -> str:
    """Return text that can be written as UTF-8; file names may hold bytes that are none."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def data_of(e: Evaluation) -> str:
    """Say on how many images of which folder a score was counted."""
    return f"on {e.images} {'image' if e.images == 1 else 'images'} of {e.data_folder}"


def as_percent(value: float, unit: str = " %") -> str:
    """Return a fraction, 0 to 1 or NaN, in percent with one decimal."""
    return DASH if math.isnan(value) else f"{100 * value:.1f}{unit}"


def as_estimate(one: Estimate, unit: str = "") -> str:
    """Return a fraction in percent with its interval in brackets."""
    return f"{as_percent(one.value, unit)} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def as_points(value: float) -> str:
    """Return a difference of fractions in signed percentage points with one decimal."""
    return DASH if math.isnan(value) else signed(100 * value)


def signed(value: float, decimals: int = 1) -> str:
    """Return a number with its sign; what rounds to zero has none."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def as_ms(value: float | None) -> str:
    """Return milliseconds with about three digits."""
    if value is None:
        return DASH
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def as_size(size: tuple[int, int]) -> str:
    """Return rows and columns."""
    return f"{size[0]} x {size[1]}"


def as_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval of milliseconds in brackets, to append to a value."""
    return "" if interval is None else " [{}, {}]".format(*map(as_ms, interval))


def as_ratio(middle: float, low: float, high: float) -> str:
    """Return a ratio with its interval; a third decimal shows on which side of 1 it ends."""
    return f"{middle:.2f}x (interval {low:.3f} to {high:.3f})"


def as_time(created: str) -> str:
    """Return an ISO 8601 time in UTC for people to read; anything else as it is."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[:.\d]*(\+00:00|Z)$", r"\1 \2 UTC", created)


def as_text(value: object) -> str:
    """Return a JSON scalar as text."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested values into text by dotted name; what is long becomes its length."""
    flat: dict[str, str] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and len(value) > 12:
            flat[name] = f"{len(value)} entries"
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, list) and (
            len(value) > 8 or any(isinstance(x, list | dict) for x in value)
        ):
            flat[name] = f"{len(value)} entries"
        elif isinstance(value, list):
            flat[name] = ", ".join(map(as_text, value)) or DASH
        else:
            flat[name] = as_text(value)
    return flat
