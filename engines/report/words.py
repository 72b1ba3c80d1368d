"""Sentences of the decisions in `edgeuda.decision`; no other place makes them."""

from __future__ import annotations

from dataclasses import dataclass

from edgeuda.records.tradeoff import (
    Budget,
    Choice,
    Figure,
    Int8Choice,
    Int8Status,
    Int8Verdict,
    Measured,
    TradeoffRecord,
)
from edgeuda.records.update import Compared, UpdateRecord
from engines.report.old_records import old_choice
from engines.report.text import as_percent, as_points, as_ratio


@dataclass(frozen=True)
class Said:
    """What is said of a sweep's choice.

    Attributes:
        name: The chosen variant; None if none keeps the budget.
        why: Why that one, or why none.
        int8: Whether INT8 is worth it; None if nothing is said of it.
        status: The verdict on INT8; None likewise.
        reading: What is left of ``int8`` where its figures are no ground for a verdict.
    """

    name: str | None
    why: str
    int8: str | None = None
    status: Int8Status | None = None
    reading: str = ""


def said_of(record: TradeoffRecord) -> Said:
    """Return what a sweep decided, in words."""
    if record.said is not None:
        old = old_choice(record.said)
        return Said(old.name, old.why, old.int8, old.status, old.reading)
    choice, tail = record.choice, f"p{record.tail}"
    assert choice is not None
    why = why_chosen(choice, record.budget, tail, record.measure)
    if choice.int8 is None:
        return Said(choice.name, why)
    reading = int8_reading(choice.int8, tail)
    return Said(
        choice.name, why, int8_in_a_sweep(choice.int8, tail), choice.int8.verdict.status, reading
    )


def why_chosen(choice: Choice, budget: Budget, tail: str, measure: str = "mIoU") -> str:
    """Say why a variant was chosen, or why none.

    Args:
        choice: The decision.
        budget: What was allowed.
        tail: Name of the percentile, for example ``"p99"``.
        measure: What accuracy is.
    """
    limits = _limits(budget, tail, measure)
    if choice.taken is None:
        assert choice.fastest is not None
        assert choice.best is not None
        return (
            f"No variant keeps {limits}. "
            f"Fastest: {_figures(choice.fastest, tail, measure)}. "
            f"Most accurate: {_figures(choice.best, tail, measure)}."
        )
    parts = [
        f"{_figures(choice.taken, tail, measure)}; {choice.allowed} of {choice.measured} variants "
        f"keep {limits}"
    ]
    if choice.equal is not None:
        more = f"{100 * (choice.equal.accuracy - choice.taken.accuracy):.1f}"
        accurate = "as accurate to a tenth of a point"
        if more != "0.0":
            accurate = f"{more} points more accurate, which is within noise,"
        parts.append(
            f"{choice.equal.name} is {accurate} and takes "
            f"{choice.equal.latency_ms / choice.taken.latency_ms:.2f} times as long"
        )
    if choice.beyond is not None:
        parts.append(
            f"{choice.beyond.name} is more accurate ({100 * choice.beyond.accuracy:.1f} %) but "
            f"misses the deadline ({tail} {choice.beyond.tail_ms:.1f} ms)"
        )
    return ". ".join(parts) + "."


def int8_in_a_sweep(choice: Int8Choice, tail: str) -> str:
    """Say whether a sweep's INT8 is worth it.

    Args:
        choice: The verdict and whom it is about.
        tail: Name of the percentile that the budget is held against.
    """
    reading = int8_reading(choice, tail)
    if choice.verdict.status == "worth it":
        return f"INT8 is worth it: {reading}"
    return f"INT8 is not worth it here: {reading}"


def int8_reading(choice: Int8Choice, tail: str) -> str:
    """Say what a sweep read of INT8, without the verdict."""
    verdict, int8, rival = choice.verdict, choice.int8, choice.rival
    lost = f"{100 * (rival.accuracy - int8.accuracy):.1f}"
    if verdict.reason == "faster":
        text = (
            f"{int8.name} takes {int8.latency_ms / rival.latency_ms:.2f} of the time of "
            f"{rival.name} and changes accuracy by {as_points(int8.accuracy - rival.accuracy)} "
            "points."
        )
        if not choice.taken:
            text += f" It was not chosen, because no deadline asks for it and {rival.name} is more "
            text += "accurate."
        return text
    slow = f"{int8.name} is not faster ({int8.latency_ms:.1f} against {rival.latency_ms:.1f} ms"
    chance = ", an interval that includes 1" if int8.latency_ms < rival.latency_ms else ""
    return {
        "slower": f"{slow})",
        "not faster": f"{slow}{chance})",
        "not accurate enough": f"{int8.name} is not accurate enough ({100 * int8.accuracy:.1f} %)",
        "misses the deadline": f"{int8.name} misses the deadline ({tail} {int8.tail_ms:.1f} ms)",
        "costs accuracy": f"{int8.name} loses {lost} points, more than {_points(verdict.max_drop)}",
        "not needed": f"{int8.name} loses {lost} points, and {rival.name} is fast enough without",
        "not recorded": f"{int8.name} was not measured beside {rival.name}",
    }[verdict.reason] + "."


def int8_on_a_machine(verdict: Int8Verdict, place: str, baseline: str, model: str) -> str:
    """Say whether an INT8 model is worth it by a benchmark and scores beside FP32.

    Args:
        verdict: The verdict.
        place: `` on MACHINE``, or nothing where no benchmark says.
        baseline: Name of the FP32 model that was timed.
        model: Name of the INT8 model.
    """
    if verdict.status == "unknown":
        lacks = " and ".join(
            text
            for text, absent in (
                ("its speed-up over FP32", verdict.speed is None),
                ("its mIoU beside FP32 on the same labels", verdict.accuracy is None),
            )
            if absent
        )
        return f"Whether INT8 is worth it{place} is unknown. Not recorded: {lacks}. Model: {model}."
    if verdict.status == "worth it":
        assert verdict.speed is not None
        assert verdict.accuracy is not None
        limit = f"within the limit of {_points(verdict.max_drop)} lost"
        if verdict.change == "noise":
            limit = "within noise"
        return (
            f"INT8 is worth it{place}: inference runs at {times(verdict.speed)} the speed, and "
            f"mIoU changes by {as_points(verdict.accuracy.value)} points, {limit}. Model: {model}."
        )
    why = f"it costs {_lost(verdict)} points mIoU, more than {100 * verdict.max_drop:.0f}"
    if verdict.speed is not None and verdict.reason == "slower":
        why = f"it is slower, inference runs at {times(verdict.speed)} the speed of {baseline}"
    elif verdict.speed is not None and verdict.reason == "not faster":
        why = f"inference runs at {times(verdict.speed)} the speed, an interval that includes 1"
    return f"INT8 is not worth it{place}: {why}. Model: {model}."


def times(speed: Figure) -> str:
    """Return a ratio of speeds with its interval."""
    if speed.interval is None:
        return f"{speed.value:.2f}x"
    return as_ratio(speed.value, *speed.interval)


def _lost(verdict: Int8Verdict) -> str:
    return "" if verdict.accuracy is None else f"{-100 * verdict.accuracy.value:.2f}"


def _points(share: float) -> str:
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"


def _figures(one: Measured, tail: str, measure: str) -> str:
    return f"{one.name}: {tail} {one.tail_ms:.1f} ms, {measure} {100 * one.accuracy:.1f} %"


def _limits(budget: Budget, tail: str, measure: str) -> str:
    limits = []
    if budget.latency_ms is not None:
        limits.append(f"{tail} of {budget.latency_ms:g} ms")
    if budget.min_accuracy is not None:
        limits.append(f"{measure} of {100 * budget.min_accuracy:g} %")
    return " and ".join(limits) or "the budget (none was given)"


def said_of_update(record: UpdateRecord) -> tuple[str, str]:
    """Say whether to take the next network, and why, in two texts.

    Args:
        record: The update.
    """
    verdict = record.verdict
    points = 100 * verdict.most_forgotten
    allowed = f"{points:g} point{'s' * (points != 1)} may be lost there"
    facts = [
        text
        for what, part in (("old", record.old), ("new", record.new))
        if (text := _changed(what, part, allowed if what == "old" else ""))
    ]
    if verdict.status == "taken":
        headline = "Take the next network."
    elif verdict.status == "not judged":
        headline = "The next network is not judged: what it has forgotten is not known."
        alike = as_percent(record.old.without_labels.agreement)
        facts.append(
            f"Old frames have no labels. The last network and the next one give {alike} of their "
            "pixels the same class, which does not say who is right."
        )
    else:
        because = {
            "forgets": "it has forgotten too much",
            "worse on new frames": "it is worse on the frames that it was made for",
            "INT8 not accepted": "a form in INT8 is not the same network any more",
        }[verdict.reason]
        headline = f"Do not take the next network: {because}."
        facts += [f"{one.file}: {'. '.join(one.reasons)}." for one in record.int8 if one.reasons]
        if record.overridden:
            facts.append("Its bundle was written all the same, as somebody asked for it.")
        else:
            facts.append("Its bundle was not written.")
    return headline, " ".join(facts)


def _changed(what: str, part: Compared, limit: str) -> str:
    """Say what became of accuracy on the frames of a part; nothing without labels."""
    if part.with_labels is None:
        return ""
    one, count = part.with_labels.change, part.with_labels.data.images
    text = (
        f"On {count} labelled {what} frames mIoU changes by {as_points(one.value)} points "
        f"({as_points(one.low)} to {as_points(one.high)})"
    )
    if part.with_labels.in_source:
        text += f", {part.with_labels.in_source} of which it learned from"
    return f"{text}; {limit}." if limit else f"{text}."
