"""Which variant to take: the Pareto front of latency and mIoU, and a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeuda.accuracy.uncertainty import Estimate

WITHIN_NOISE = 0.005
"""mIoU differences below this are noise by convention, where no interval says more."""


@dataclass(frozen=True)
class Candidate:
    """A measured variant.

    Attributes:
        name: What tables call it.
        precision: ``fp32``, ``fp16`` or ``int8``.
        network: The network it is a form of; variants of one network are compared.
        latency_ms: Median of a frame, memory to label map.
        tail_ms: The percentile that the budget is held against.
        accuracy: mIoU, or agreement with FP32 where there are no labels, 0 to 1.
    """

    name: str
    precision: str
    network: str
    latency_ms: float
    tail_ms: float
    accuracy: float


@dataclass(frozen=True)
class Budget:
    """What is allowed.

    Attributes:
        latency_ms: Largest tail latency; None for any.
        min_accuracy: Least mIoU, 0 to 1; None for any.
    """

    latency_ms: float | None = None
    min_accuracy: float | None = None

    def allows(self, one: Candidate) -> bool:
        """Whether a variant keeps both."""
        return self.fast(one) and self.accurate(one)

    def fast(self, one: Candidate) -> bool:
        """Whether it keeps the deadline."""
        return self.latency_ms is None or one.tail_ms <= self.latency_ms

    def accurate(self, one: Candidate) -> bool:
        """Whether it is accurate enough."""
        return self.min_accuracy is None or one.accuracy >= self.min_accuracy


@dataclass(frozen=True)
class Choice:
    """The decision.

    Attributes:
        name: The variant; None if none keeps the budget.
        why: In words.
        int8: Whether INT8 is worth it, in words; None if no INT8 variant was measured.
    """

    name: str | None
    why: str
    int8: str | None


def dominators(points: Sequence[tuple[float, float]]) -> list[int | None]:
    """Return for each (latency, accuracy) the index of a point that makes it pointless, if any.

    That is one as good in both and better in one. Points with None form the Pareto front.
    """
    return [
        next((i for i, (a, b) in enumerate(points) if a <= x and b >= y and (a, b) != (x, y)), None)
        for x, y in points
    ]


Standing = Literal["chosen", "too slow", "too inaccurate", "on the front", "dominated"]


def standing(row: Mapping[str, Any], chosen: str | None) -> Standing:
    """Return where a variant of an ``edgeuda.tradeoff/1`` record stands, the gravest first."""
    if row["name"] == chosen:
        return "chosen"
    if not row["keeps_deadline"]:
        return "too slow"
    if not row["accurate_enough"]:
        return "too inaccurate"
    return "on the front" if row["dominated_by"] is None else "dominated"


Difference = Callable[[str, str], Estimate | None]
"""Accuracy of the first variant less that of the second, or None where no interval is known."""


def choose(
    candidates: Sequence[Candidate],
    budget: Budget,
    tail: str,
    measure: str = "mIoU",
    difference: Difference = lambda _a, _b: None,
) -> Choice:
    """Choose the most accurate variant within the budget; of equals within noise, the fastest.

    Args:
        candidates: What was measured, at least one.
        budget: What is allowed.
        tail: Name of the percentile, for example ``"p99"``.
        measure: What accuracy is.
        difference: See `Difference`.
    """
    allowed = [one for one in candidates if budget.allows(one)]
    if not allowed:
        return Choice(None, _why_none(candidates, budget, tail, measure), None)
    best = max(allowed, key=lambda one: one.accuracy)
    equals = [one for one in allowed if _equal(one, best, difference)]
    taken = min(equals, key=lambda one: one.latency_ms)
    parts = [
        f"{_figures(taken, tail, measure)}; {len(allowed)} of {len(candidates)} variants keep "
        f"{_limits(budget, tail, measure)}"
    ]
    if taken is not best:
        more = f"{100 * (best.accuracy - taken.accuracy):.1f}"
        accurate = "as accurate to a tenth of a point"
        if more != "0.0":
            accurate = f"{more} points more accurate, which is within noise,"
        parts.append(
            f"{best.name} is {accurate} and takes "
            f"{best.latency_ms / taken.latency_ms:.2f} times as long"
        )
    better = [o for o in candidates if o.accuracy > best.accuracy and not budget.allows(o)]
    if better:
        lead = max(better, key=lambda one: one.accuracy)
        parts.append(
            f"{lead.name} is more accurate ({100 * lead.accuracy:.1f} %) but misses the deadline "
            f"({tail} {lead.tail_ms:.1f} ms)"
        )
    return Choice(taken.name, ". ".join(parts) + ".", _about_int8(taken, candidates, budget, tail))


def _equal(one: Candidate, best: Candidate, difference: Difference) -> bool:
    lost = best.accuracy - one.accuracy
    known = difference(one.name, best.name)
    return lost < WITHIN_NOISE or (known is not None and known.none and lost < 2 * WITHIN_NOISE)


def _about_int8(
    taken: Candidate, candidates: Sequence[Candidate], budget: Budget, tail: str
) -> str | None:
    int8 = [one for one in candidates if one.precision == "int8"]
    floats = [one for one in candidates if one.precision != "int8"]
    if not int8 or not floats:
        return None
    if taken.precision == "int8":
        slower = [one for one in floats if one.network == taken.network]
        rival = max(slower or floats, key=lambda one: (budget.allows(one), one.accuracy))
        return (
            f"INT8 is worth it: {taken.name} takes "
            f"{taken.latency_ms / rival.latency_ms:.2f} of the time of {rival.name} and "
            f"changes accuracy by {_signed(100 * (taken.accuracy - rival.accuracy))} points."
        )
    rival = max(
        int8, key=lambda one: (budget.allows(one), one.network == taken.network, one.accuracy)
    )
    lost = 100 * (taken.accuracy - rival.accuracy)
    if rival.latency_ms >= taken.latency_ms:
        both = f"{rival.latency_ms:.1f} against {taken.latency_ms:.1f} ms"
        why = f"{rival.name} is not faster ({both})"
    elif not budget.accurate(rival):
        why = f"{rival.name} is not accurate enough ({100 * rival.accuracy:.1f} %)"
    elif not budget.fast(rival):
        why = f"{rival.name} misses the deadline ({tail} {rival.tail_ms:.1f} ms)"
    else:
        why = f"{rival.name} loses {lost:.1f} points, and {taken.name} is fast enough without"
    return f"INT8 is not worth it here: {why}."


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _why_none(candidates: Sequence[Candidate], budget: Budget, tail: str, measure: str) -> str:
    fastest = min(candidates, key=lambda one: one.tail_ms)
    best = max(candidates, key=lambda one: one.accuracy)
    return (
        f"No variant keeps {_limits(budget, tail, measure)}. "
        f"Fastest: {_figures(fastest, tail, measure)}. "
        f"Most accurate: {_figures(best, tail, measure)}."
    )


def _figures(one: Candidate, tail: str, measure: str) -> str:
    return f"{one.name}: {tail} {one.tail_ms:.1f} ms, {measure} {100 * one.accuracy:.1f} %"


def _limits(budget: Budget, tail: str, measure: str) -> str:
    limits = []
    if budget.latency_ms is not None:
        limits.append(f"{tail} of {budget.latency_ms:g} ms")
    if budget.min_accuracy is not None:
        limits.append(f"{measure} of {100 * budget.min_accuracy:g} %")
    return " and ".join(limits) or "the budget (none was given)"
