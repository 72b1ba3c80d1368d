"""What figures say: noise, INT8 against its float form, the Pareto front, a choice, a candidate.

Everything here is a value: a status, names, numbers. `engines.report.words` makes sentences of
them, and nothing reads a decision back from a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeuda.records.stream_adaptation import StreamReason, StreamSample, StreamShift
from edgeuda.records.tradeoff import (
    Budget,
    Change,
    Choice,
    Estimate,
    Figure,
    Int8Choice,
    Int8Reason,
    Int8Verdict,
    Interval,
    Measured,
)
from edgeuda.records.update import UpdateReason, UpdateStatus, UpdateVerdict

NOISE = 0.005
"""mIoU differences below this are noise by convention, whatever an interval says."""
MAX_DROP = 0.01
"""mIoU that speed may cost: INT8 that loses more, or what is called equal with an interval that
holds zero, has lost."""

MOST_FORGOTTEN = 0.01
"""mIoU that the next network may lose on frames that the last one was made for."""


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


def judge_update(
    old: Figure | None,
    new: Figure | None,
    most_forgotten: float = MOST_FORGOTTEN,
    *,
    int8_accepted: bool = True,
) -> UpdateVerdict:
    """Judge the next network by the last one; one known reason against it is enough.

    Args:
        old: mIoU of the next network less that of the last one on old frames, 0 to 1, with its
            interval; None where they have no labels.
        new: The same on new frames. To lose nothing there beyond noise is enough.
        most_forgotten: What may be lost on old frames, 0 to 1. The difference itself counts, not
            its interval: few images would excuse any loss.
        int8_accepted: Whether all forms in INT8 may replace their float forms.
    """
    old_change, new_change = ("unknown" if one is None else change_of(one) for one in (old, new))
    status: UpdateStatus = "refused"
    reason: UpdateReason
    if old is not None and round(-old.value, 9) > most_forgotten:
        reason = "forgets"
    elif new_change == "worse":
        reason = "worse on new frames"
    elif not int8_accepted:
        reason = "INT8 not accepted"
    elif old is None or math.isnan(old.value):
        status, reason = "not judged", "no labels"
    else:
        status, reason = "taken", "kept"
    return UpdateVerdict(status, reason, old, new, old_change, new_change, most_forgotten)


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


def _figures(one: Candidate) -> Measured:
    return Measured(one.name, one.latency_ms, one.tail_ms, one.accuracy)


def dominators(points: Sequence[tuple[float, float]]) -> list[int | None]:
    """Return for each (latency, accuracy) the index of a point that makes it pointless, if any.

    That is one as good in both and better in one. Points with None form the Pareto front.
    """
    return [
        next((i for i, (a, b) in enumerate(points) if a <= x and b >= y and (a, b) != (x, y)), None)
        for x, y in points
    ]


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
            fastest=_figures(min(candidates, key=lambda one: one.tail_ms)),
            best=_figures(max(candidates, key=lambda one: one.accuracy)),
        )  # fmt: skip
    best = max(allowed, key=lambda one: one.accuracy)
    equals = [one for one in allowed if _equal(one, best, difference)]
    taken = min(equals, key=lambda one: one.latency_ms)
    better = [o for o in candidates if o.accuracy > best.accuracy and not budget.allows(o)]
    beyond = max(better, key=lambda one: one.accuracy, default=None)
    return Choice(
        taken.name,
        _figures(taken),
        len(allowed),
        len(candidates),
        equal=None if taken is best else _figures(best),
        beyond=None if beyond is None else _figures(beyond),
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
    return Int8Choice(verdict, _figures(one), _figures(rival), one is taken)


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


@dataclass(frozen=True)
class StreamDemands:
    """What a drive has to show, and what a network adapted to it has to keep, to be taken.

    Attributes:
        frames: Least number of frames to estimate on, and as many to judge on.
        seconds: Least length of the drive.
        agreement: Least share of the judged frames' pixels that both networks call the same, 0 to
            1.
        acceptance: Least share of the acceptance frames' pixels that are called as they were by the
            network that was installed, 0 to 1.
        int8: By how much fewer of the judged pixels its INT8 form may call as its FP32 form does,
            than that of the network that runs, 0 to 1.
    """

    frames: int = 16
    seconds: float = 60.0
    agreement: float = 0.9
    acceptance: float = 0.97
    int8: float = MAX_DROP


def enough_seen(sample: StreamSample, demands: StreamDemands) -> tuple[StreamReason, ...]:
    """Return why a drive shows too little to adapt to; empty if it shows enough.

    Args:
        sample: Its frames.
        demands: What it has to show.
    """
    reasons: list[StreamReason] = []
    if min(sample.estimating, sample.judging) < demands.frames:
        reasons.append("too few frames")
    if sample.seconds < demands.seconds:
        reasons.append("too short")
    return tuple(reasons)


def judge_stream(
    shift: StreamShift, demands: StreamDemands, int8: tuple[float, float] | None = None
) -> tuple[StreamReason, ...]:
    """Return why a network that was adapted on a vehicle is not taken; empty if it is.

    Nothing here knows whether it is better. What is refused are changes so large that chance, a
    covered lens or frames that are all alike explain them sooner than another light.

    Args:
        shift: The candidate beside the network that runs.
        demands: What it has to keep.
        int8: Share of the judged pixels that INT8 and FP32 call alike, of the network that runs
            and of the candidate; None where FP32 runs.
    """
    reasons: list[StreamReason] = []
    if shift.agreement < demands.agreement:
        reasons.append("less alike")
    if shift.acceptance < demands.acceptance:
        reasons.append("forgets")
    if int8 is not None and int8[1] < int8[0] - demands.int8:
        reasons.append("INT8 differs")
    return tuple(reasons)
