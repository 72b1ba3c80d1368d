"""What the figures of variants say: noise, INT8 against its float form, the Pareto front, a choice.

Everything here is a value: a status, names, numbers. `engines.report.words` makes sentences of
them, and nothing reads a decision back from a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from edgeuda.accuracy.uncertainty import Estimate

NOISE = 0.005
"""mIoU differences below this are noise by convention, whatever an interval says."""
MAX_DROP = 0.01
"""mIoU that speed may cost: INT8 that loses more, or what is called equal with an interval that
holds zero, has lost."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A ratio or a difference.

    Attributes:
        value: The figure.
        interval: Lower and upper end; None if none is known.
    """

    value: float
    interval: Interval | None = None

    @classmethod
    def of(cls, estimate: Estimate | None) -> Figure | None:
        """Return an estimate as a figure."""
        if estimate is None:
            return None
        return cls(estimate.value, (estimate.low, estimate.high))

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value; without one, whether the figure is that value."""
        low, high = self.interval or (self.value, self.value)
        return low <= value <= high

    @classmethod
    def from_record(cls, record: Any) -> Figure | None:
        """Read `dataclasses.asdict`'s form; raises TypeError, KeyError or ValueError."""
        if record is None:
            return None
        interval = record["interval"]
        if interval is not None:
            low, high = interval
            interval = float(low), float(high)
        return cls(float(record["value"]), interval)


Change = Literal["better", "worse", "noise", "unknown"]


def change_of(accuracy: Figure, each: tuple[Interval, Interval] | None = None) -> Change:
    """Judge a difference of accuracy: the one rule of what is noise.

    It is noise below `NOISE`; if its interval holds zero; and, where only the intervals of the two
    scores are known, if these overlap.

    Args:
        accuracy: The difference, with its interval where there is one.
        each: Intervals of the two scores.
    """
    if math.isnan(accuracy.value):
        return "unknown"
    chance = accuracy.interval is not None and accuracy.holds(0)
    if accuracy.interval is None and each is not None:
        chance = overlap(*each)
    if chance or abs(accuracy.value) < NOISE:
        return "noise"
    return "better" if accuracy.value > 0 else "worse"


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two intervals have a value in common."""
    return a[0] <= b[1] and b[0] <= a[1]


Int8Status = Literal["worth it", "not worth it", "unknown"]
Int8Reason = Literal[
    "faster", "slower", "not faster", "not accurate enough", "misses the deadline",
    "costs accuracy", "not needed", "not recorded",
]  # fmt: skip


@dataclass(frozen=True)
class Need:
    """What a budget makes of an INT8 form and its float form.

    Attributes:
        fast: Whether INT8 keeps the deadline.
        accurate: Whether INT8 is accurate enough.
        float_in_time: Whether the float form keeps the deadline; None if none was given, or if
            INT8 was chosen all the same.
    """

    fast: bool = True
    accurate: bool = True
    float_in_time: bool | None = None


@dataclass(frozen=True)
class Int8Verdict:
    """INT8 against its float form.

    Attributes:
        status: The verdict.
        reason: What decided it.
        speed: Time of the float form over that of INT8; None if it was not measured.
        accuracy: Accuracy of INT8 less that of the float form, 0 to 1; None if it was not scored.
        change: What that difference is, see `change_of`.
        max_drop: What INT8 was allowed to lose.
    """

    status: Int8Status
    reason: Int8Reason
    speed: Figure | None
    accuracy: Figure | None
    change: Change
    max_drop: float = MAX_DROP

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Int8Verdict:
        """Read `dataclasses.asdict`'s form; raises TypeError, KeyError or ValueError."""
        for key, known in (("status", Int8Status), ("reason", Int8Reason), ("change", Change)):
            if record[key] not in get_args(known):
                raise ValueError(key, record[key])
        return cls(
            record["status"],
            record["reason"],
            Figure.from_record(record["speed"]),
            Figure.from_record(record["accuracy"]),
            record["change"],
            float(record["max_drop"]),
        )


def judge_int8(
    speed: Figure | None,
    accuracy: Figure | None,
    need: Need = Need(),
    max_drop: float = MAX_DROP,
) -> Int8Verdict:
    """Judge INT8 against its float form; one known reason against it is enough.

    Args:
        speed: Time of the float form over that of INT8, with its interval where there is one. An
            interval that holds 1 is no gain.
        accuracy: Accuracy of INT8 less that of the float form, 0 to 1, likewise.
        need: What a budget says. Where the float form misses the deadline, INT8 may lose what the
            budget allows; where it keeps it, INT8 must lose nothing beyond noise.
        max_drop: What it may lose otherwise, 0 to 1.
    """
    if accuracy is not None and math.isnan(accuracy.value):
        accuracy = None
    change: Change = "unknown" if accuracy is None else change_of(accuracy)
    low, high = (math.inf, math.inf) if speed is None else speed.interval or (speed.value,) * 2
    reason: Int8Reason
    if high < 1:
        reason = "slower"
    elif low <= 1:
        reason = "not faster"
    elif not need.accurate:
        reason = "not accurate enough"
    elif not need.fast:
        reason = "misses the deadline"
    elif change == "worse" and need.float_in_time:
        reason = "not needed"
    elif accuracy and need.float_in_time is not False and round(-accuracy.value, 9) > max_drop:
        reason = "costs accuracy"
    elif speed is None or accuracy is None:
        return Int8Verdict("unknown", "not recorded", speed, accuracy, change, max_drop)
    else:
        return Int8Verdict("worth it", "faster", speed, accuracy, change, max_drop)
    return Int8Verdict("not worth it", reason, speed, accuracy, change, max_drop)


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
        form: What INT8 has in common with its float form besides the network: size, head, runtime.
        latency_interval: Of the median; None if it is not known.
    """

    name: str
    precision: str
    network: str
    latency_ms: float
    tail_ms: float
    accuracy: float
    form: str = ""
    latency_interval: Interval | None = None


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
class Measured:
    """A variant's figures, as a decision names them.

    Attributes:
        name: What tables call it.
        latency_ms: Median of a frame.
        tail_ms: The percentile that the budget is held against.
        accuracy: 0 to 1.
    """

    name: str
    latency_ms: float
    tail_ms: float
    accuracy: float

    @classmethod
    def of(cls, one: Candidate) -> Measured:
        """Return a candidate's figures."""
        return cls(one.name, one.latency_ms, one.tail_ms, one.accuracy)

    @classmethod
    def from_record(cls, record: Any) -> Measured | None:
        """Read `dataclasses.asdict`'s form; raises TypeError, KeyError or ValueError."""
        if record is None:
            return None
        figures = (float(record[key]) for key in ("latency_ms", "tail_ms", "accuracy"))
        return cls(str(record["name"]), *figures)


@dataclass(frozen=True)
class Int8Choice:
    """Whether a sweep's INT8 is worth it.

    Attributes:
        verdict: The verdict.
        int8: The INT8 variant.
        rival: The float variant that it was held against.
        taken: Whether INT8 was chosen.
    """

    verdict: Int8Verdict
    int8: Measured
    rival: Measured
    taken: bool


@dataclass(frozen=True)
class Choice:
    """A sweep's decision.

    Attributes:
        name: The variant; None if none keeps the budget.
        taken: Its figures.
        allowed: Variants that keep the budget.
        measured: Variants in all.
        equal: A more accurate variant within the budget that is equal within noise, and slower.
        beyond: The most accurate of the variants that are more accurate and miss the deadline.
        fastest: The fastest of all, where none keeps the budget.
        best: The most accurate of all, where none keeps the budget.
        int8: Whether INT8 is worth it; None if there is no choice, or INT8 or float was not
            measured.
    """

    name: str | None
    taken: Measured | None
    allowed: int
    measured: int
    equal: Measured | None = None
    beyond: Measured | None = None
    fastest: Measured | None = None
    best: Measured | None = None
    int8: Int8Choice | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Choice:
        """Read `to_record`'s form; raises TypeError, KeyError or ValueError if it is damaged."""
        int8, name = record["int8"], record["name"]
        if int8 is not None:
            pair = (Measured.from_record(int8[key]) for key in ("int8", "rival"))
            one, rival = pair
            if one is None or rival is None:
                raise ValueError(int8)
            verdict = Int8Verdict.from_record(int8["verdict"])
            int8 = Int8Choice(verdict, one, rival, bool(int8["taken"]))
        taken, equal, beyond, fastest, best = (
            Measured.from_record(record[key])
            for key in ("taken", "equal", "beyond", "fastest", "best")
        )
        if (name is None) is not (taken is None) or (
            name is None and (fastest is None or best is None)
        ):
            raise ValueError(name)
        return cls(
            None if name is None else str(name), taken, int(record["allowed"]),
            int(record["measured"]), equal, beyond, fastest, best, int8,
        )  # fmt: skip


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
    """Return where a variant of a trade-off's record stands, the gravest first."""
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
    difference: Difference = lambda _a, _b: None,
) -> Choice:
    """Choose the most accurate variant within the budget; of equals within noise, the fastest.

    Args:
        candidates: What was measured, at least one.
        budget: What is allowed.
        difference: See `Difference`.
    """
    allowed = [one for one in candidates if budget.allows(one)]
    if not allowed:
        return Choice(
            None, None, 0, len(candidates),
            fastest=Measured.of(min(candidates, key=lambda one: one.tail_ms)),
            best=Measured.of(max(candidates, key=lambda one: one.accuracy)),
        )  # fmt: skip
    best = max(allowed, key=lambda one: one.accuracy)
    equals = [one for one in allowed if _equal(one, best, difference)]
    taken = min(equals, key=lambda one: one.latency_ms)
    better = [o for o in candidates if o.accuracy > best.accuracy and not budget.allows(o)]
    beyond = max(better, key=lambda one: one.accuracy, default=None)
    return Choice(
        taken.name,
        Measured.of(taken),
        len(allowed),
        len(candidates),
        equal=None if taken is best else Measured.of(best),
        beyond=None if beyond is None else Measured.of(beyond),
        int8=_about_int8(taken, candidates, budget, difference),
    )


def _equal(one: Candidate, best: Candidate, difference: Difference) -> bool:
    if one is best:
        return True
    lost = one.accuracy - best.accuracy
    known = Figure.of(difference(one.name, best.name)) or Figure(lost)
    return change_of(known) in ("noise", "better") and -lost < MAX_DROP


def _about_int8(
    taken: Candidate, candidates: Sequence[Candidate], budget: Budget, difference: Difference
) -> Int8Choice | None:
    int8 = [one for one in candidates if one.precision == "int8"]
    floats = [one for one in candidates if one.precision != "int8"]
    if not int8 or not floats:
        return None
    one = taken
    if taken.precision != "int8":
        one = max(int8, key=lambda x: (budget.allows(x), x.network == taken.network, x.accuracy))
    rival = _float_form(one, taken, floats, budget)
    in_time = None if budget.latency_ms is None else budget.fast(rival)
    need = Need(
        budget.fast(one), budget.accurate(one), None if in_time and one is taken else in_time
    )
    accuracy = Figure.of(difference(one.name, rival.name))
    accuracy = accuracy or Figure(one.accuracy - rival.accuracy)
    verdict = judge_int8(_speed(one, rival), accuracy, need)
    return Int8Choice(verdict, Measured.of(one), Measured.of(rival), one is taken)


def _float_form(
    int8: Candidate, taken: Candidate, floats: Sequence[Candidate], budget: Budget
) -> Candidate:
    """Return what INT8 is held against.

    The chosen variant, where INT8 was allowed and not chosen or is a form of the same; else its own
    float form, or the nearest thing to it.
    """
    same = [x for x in floats if x.network == int8.network]
    own = [x for x in same if x.form == int8.form] or same or floats
    if taken.precision != "int8" and (budget.allows(int8) or taken in own):
        return taken
    return max(own, key=lambda x: (budget.allows(x), x.accuracy))


def _speed(int8: Candidate, rival: Candidate) -> Figure:
    value = rival.latency_ms / int8.latency_ms
    if int8.latency_interval is None or rival.latency_interval is None:
        return Figure(value)
    (low, high), (least, most) = rival.latency_interval, int8.latency_interval
    return Figure(value, (low / most, high / least))
