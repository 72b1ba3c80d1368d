"""What the records of a report say, in plain words: decisions, figures, open questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.decision import MAX_DROP, NOISE, change_of, judge_int8, overlap
from edgeuda.records.bench import MachineState, ModelLatency, Ratio
from edgeuda.records.comparison import ORACLE, ComparisonRecord
from edgeuda.records.percentiles import LatencySummary
from edgeuda.records.tradeoff import Change, Figure, TradeoffRecord
from engines.report.networks import float_form_of, network_of, network_of_row, pairs_of
from engines.report.records import Bench, Records
from engines.report.text import (
    as_ms,
    as_percent,
    as_points,
    data_of,
    signed,
)
from engines.report.trust import KEPT, camera_rate, disturbances, falls_behind, missed
from engines.report.words import int8_on_a_machine, times

UNRECORDED = "INT8, not recorded"
"""Topic of a verdict that only says which records are missing."""

Status = Literal["good", "bad", "even", "accepted", "unknown", "stated", "kept", "late", "reading"]
SIGNS: Mapping[Status, tuple[str, str]] = {
    "good": ("▲", "better"),
    "bad": ("▼", "worse"),
    "even": ("=", "no difference beyond noise"),
    "accepted": ("▽", "worse, within the limit"),
    "unknown": ("?", "unknown"),
    "stated": ("", ""),
    "kept": ("▲", "keeps the pace"),
    "late": ("▼", "too late"),
    "reading": ("?", "a reading, no verdict"),
}
"""Sign and word beside the colour, which not everyone sees; ``stated`` is without a judgement."""
AS_STATUS: Mapping[Change, Status] = {
    "better": "good", "worse": "bad", "noise": "even", "unknown": "unknown",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One statement of the summary, computed from the records."""

    topic: str
    status: Status
    headline: str
    text: str = ""


def verdicts(records: Records) -> list[Finding]:
    """Return the decisions, in plain words: whether to take the adapted model, and INT8."""
    found = [_adaptation_verdict(records, *pair) for pair in adaptation_pairs(records)]
    # A sweep holds every variant against its alternatives; a second voice beside it confuses.
    if not records.tradeoffs:
        int8 = [v for model in int8_models(records) for v in _int8_verdicts(model)]
        # Beside a verdict, what was not recorded of other models is uncertain, and said there.
        judged = [v for v in int8 if v.topic != UNRECORDED]
        found += judged or int8
    if not found and not records.tradeoffs and not records.updates:
        text = "The records hold no pair of models to compare, so there is nothing to decide on."
        found.append(Finding("Verdict", "unknown", text))
    return found


def evidence(records: Records) -> list[Finding]:
    """Return the figures the decisions rest on."""
    found = []
    for pair in adaptation_pairs(records):
        found += [_adaptation_gain(records, *pair), *_lost_by_adaptation(*pair)]
    found += [_compared(name, record) for name, record in records.comparisons]
    if not records.evaluations:
        found += _label_free(records)
    for model in _outside_sweeps(records):
        found += [_int8_change(*pair) for pair in model.scores]
        if not model.scores and not records.tradeoffs:
            found.append(_int8_unscored(model))
        found += [_int8_speed(b, r) for b, r in model.timings if b is not None and r is not None]
    found += [_latency(bench) for bench in records.benches if bench.models]
    return found + [
        Finding(
            "Watched drive",
            "stated",
            str(record.watch),
            f"{name}; {record.watch.per_hour:g} false alarms in an hour were accepted.",
        )
        for name, record in records.drives
        if record.watch is not None
    ]


def _outside_sweeps(records: Records) -> list[Int8Model]:
    """Return the INT8 models that no sweep has judged beside all their alternatives."""
    rows = [row for record in records.tradeoffs for row in record.variants]
    swept = {row.name for row in rows} | {row.sha256 for row in rows}
    return [m for m in int8_models(records) if not swept & {m.name, m.key}]


def _untimed(model: Int8Model) -> bool:
    return all(ratio is None for _, ratio in model.timings)


def _label_free(records: Records) -> list[Finding]:
    """Say how far the networks agree with themselves, where no labels say more."""
    taken = [(t, line) for t in records.stages for line in t.signals if line.chosen]
    idle = [
        Finding("Self-training that hardly trains", "bad", f"{t.name}: {remark}")
        for t in records.stages
        for remark in t.remarks
    ]
    alarms = idle + [
        Finding("Collapse alarm", "bad", f"{t.name}, step {line.step}: {line.alarm}")
        for t in records.stages
        for line in t.signals
        if line.alarm
    ]
    if not taken:
        return alarms
    first, (stage, last) = taken[0][0].signals[0], taken[-1]
    headline = (
        f"Predictions on the mirror image agree on {as_percent(last.flip_agreement)} of the "
        f"pixels, {as_percent(first.flip_agreement)} before adaptation"
    )
    text = (
        f"{stage.name}, step {last.step}; IoU of clean and recoloured view "
        f"{as_percent(first.view_agreement)} before, "
        f"{as_percent(last.view_agreement)} after. Without labels this shows "
        "consistency, not accuracy."
    )
    return [Finding("Without labels", "stated", headline, text), *alarms]


def unknowns(records: Records) -> list[str]:
    """Return what a reader may expect but the records do not tell, the gravest first."""
    return [
        *_unknown_accuracy(records),
        *_unknown_networks(records),
        *_unknown_int8(records),
        *_unknown_latency(records),
    ]


def _unknown_accuracy(records: Records) -> list[str]:
    found = []
    labelled = [record for record in records.tradeoffs if record.measure == "mIoU"]
    if labelled:
        found.append(
            "Another drive or another training: the intervals of mIoU cover the choice of "
            "images on these drives only."
        )
    if not records.evaluations and not labelled:
        text = "Accuracy: no evaluation on labelled images is among the records."
        if records.tradeoffs:
            text += " What the sweep compares is agreement with FP32."
        elif records.comparisons:
            text += " A comparison's mIoU is of its own networks."
        elif any(one.old.with_labels or one.new.with_labels for _, one in records.updates):
            text += " An update's mIoU is of its last and next network."
        found.append(text)
    elif not adaptation_pairs(records) and not any(map(_both_networks, labelled)):
        found.append(
            "Gain from adaptation: a source-only and an adapted FP32 model, scored on the same "
            "labels, are not both among the records."
        )
    if records.evaluations and not labelled:
        found.append(
            "Uncertainty of mIoU: a record holds one confusion matrix, so there is no interval. "
            f"By convention this report calls a change below {100 * NOISE:.1f} points noise."
        )
    return found


def _both_networks(record: TradeoffRecord) -> bool:
    """Whether a sweep holds the network before adaptation beside an adapted one."""
    return bool(pairs_of([network_of_row(row) for row in record.variants]))


def _unknown_int8(records: Records) -> list[str]:
    swept = any(row.precision == "int8" for t in records.tradeoffs for row in t.variants)
    swept = swept or any(one.int8 for _, one in records.updates)
    models = _outside_sweeps(records)
    if not models:
        return [] if swept else ["INT8: no INT8 model was evaluated or benchmarked."]
    if records.tradeoffs:
        names = ", ".join(dict.fromkeys(model.name for model in models))
        return [f"{names}: not a variant of the sweep, so the choice does not weigh it."]
    untimed = [model.name for model in models if _untimed(model)]
    unscored = [model.name for model in models if model.worst is None]
    found = [f"Speed of {', '.join(untimed)}: not measured beside FP32."] if untimed else []
    if unscored:
        found.append(f"mIoU of {', '.join(unscored)}: not scored beside FP32 on the same labels.")
    return found


def _unknown_latency(records: Records) -> list[str]:
    found = []
    if not records.benches:
        if not records.tradeoffs:
            return ["Latency: no benchmark is among the records."]
        found.append(
            "The machine's state while the sweep was timed: its benchmark is not among the records."
        )
    else:
        found += _unknown_timing(records.benches)
    names = sorted(
        {bench.machine_name for bench in records.benches}
        or {record.machine["cpu"] for record in records.tradeoffs}
    )
    found.append(f"Latency on any machine other than {', '.join(names)}.")
    budgets = [record.budget.latency_ms for record in records.tradeoffs]
    if not any(m.deadline for bench in records.benches for m in bench.models) and not any(budgets):
        found.append("Frame budget: none is in the records, so no deadline was checked.")
    return found


def _unknown_timing(benches: Sequence[Bench]) -> list[str]:
    found = []
    paced = [bench for bench in benches if camera_rate(bench) is not None]
    followed = {key for bench in paced for m in bench.models for key in (m.sha256, m.name)}
    loops = [bench for bench in benches if "closed" in bench.method.arrival]
    only = dict.fromkeys(
        m.name for b in loops for m in b.models if not {m.sha256, m.name} & followed
    )
    if only:
        names = ", ".join(only) if len(only) < 4 else f"{len(only)} models"
        which = f" of {names}" if paced else ""
        found.append(
            f"Behaviour{which} at a camera's frame rate: frames were fed back to back (closed "
            "loop)."
        )
    once = [bench.origin for bench in benches if bench.noise is None]
    if once:
        found.append(
            f"Variation between runs in {', '.join(once)}: a model was run fewer than three "
            "times. The intervals cover the frames of one run only."
        )
    missing = sorted({kind for bench in benches for kind in bench.state.not_available})
    if missing or any(bench.state == MachineState() for bench in benches):
        listed = ", ".join(missing) or "power, temperature"
        found.append(f"State of the machine: not available in every benchmark: {listed}.")
    return found


@dataclass(frozen=True)
class Int8Model:
    """An INT8 model with its (FP32 or None, INT8) scores and its timings, either may be absent.

    ``key`` is the checksum of its file, or its name where there is none.
    """

    name: str
    key: str
    scores: Sequence[tuple[Evaluation | None, Evaluation]]
    timings: Sequence[tuple[Bench | None, Ratio | None]]
    agreement: float | None

    @property
    def worst(self) -> float | None:
        """The greatest mIoU drop over the label sets, 0 to 1; None if none is known."""
        drops = [before.miou - after.miou for before, after in self.scores if before]
        return max((d for d in drops if not math.isnan(d)), default=None)


def int8_models(records: Records) -> list[Int8Model]:
    """Collect the INT8 models, joined over the records by checksum."""
    names = {e.model_sha256: e.name for e in records.evaluations if e.precision == "int8"}
    for bench in records.benches:
        for m in bench.models:
            if m.precision == "int8":
                names.setdefault(m.sha256 or m.name, m.name)
    agreements = [record.agreement for _, record in records.calibrations]
    found = []
    for key, name in names.items():
        timings: list[tuple[Bench | None, Ratio | None]] = []
        bases = set()
        for bench in records.benches:
            for m in bench.models:
                if (m.sha256 or m.name) == key:
                    fp32 = {x.name: x.sha256 for x in bench.models if x.precision == "fp32"}
                    ratio = next(
                        (r for r in bench.ratios if r.candidate == m.name and r.baseline in fp32),
                        None,
                    )
                    timings.append((bench, ratio))
                    bases |= {fp32[ratio.baseline]} if ratio else set()
        scores = [
            (None if (at := float_form_of(e, group, bases)) is None else group[at], e)
            for group in records.comparable()
            for e in group
            if e.model_sha256 == key and e.precision == "int8"
        ]
        agreement = agreements[0] if len(agreements) == len(names) == 1 else None
        found.append(Int8Model(name, key, scores, timings or [(None, None)], agreement))
    return found


def adaptation_pairs(records: Records) -> list[tuple[Evaluation, Evaluation]]:
    """Return (before adaptation, last after it) FP32 evaluations of the same labels and protocol.

    See `engines.report.networks.pairs_of`.
    """
    pairs = []
    for group in records.comparable():
        for protocol in dict.fromkeys(e.protocol for e in group):
            fp32 = [e for e in group if e.precision == "fp32" and e.protocol == protocol]
            pairs += [(fp32[i], fp32[j]) for i, j in pairs_of([network_of(e) for e in fp32])]
    return pairs


def _unknown_networks(records: Records) -> list[str]:
    """Say which scores are not judged, or judged by a title, for want of an identity."""
    pairs = adaptation_pairs(records)
    paired = {id(e) for pair in pairs for e in pair}
    found = [
        f"{before.name} and {after.name} are taken for the network before and after adaptation by "
        "their titles: a record does not say which network was scored."
        for before, after in pairs
        if network_of(before).by_title or network_of(after).by_title
    ]
    others = [
        e.name
        for e in records.evaluations
        if e.precision == "fp32" and network_of(e).role is None and id(e) not in paired
    ]
    if others:
        found.append(
            f"{', '.join(dict.fromkeys(others))}: no record says whether that network was adapted. "
            "Its mIoU is stated, not judged."
        )
    return found


def _overlap(records: Records, before: Evaluation, after: Evaluation) -> str:
    """Say that a sweep's intervals of two models overlap; nothing if they do not or are unknown."""
    known = {
        row.sha256: row.accuracy
        for record in records.tradeoffs
        if record.measure == "mIoU"
        for row in record.variants
    }
    a, b = known.get(before.model_sha256), known.get(after.model_sha256)
    if not a or not b:
        return ""
    each = a.interval, b.interval
    if not overlap(*each):
        return ""
    spans = [f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in each]
    return f"the 95 % intervals overlap, {spans[0]} and {spans[1]} %"


def _adaptation_verdict(records: Records, before: Evaluation, after: Evaluation) -> Finding:
    gain, place = after.miou - before.miou, f"on {after.data_folder}"
    status = _status(gain)
    overlap = _overlap(records, before, after)
    if status == "unknown":
        text = f"Whether adaptation helps {place} is unknown: no labelled pixel was counted."
    elif status == "even" or overlap:
        status = "even"
        text = f"Adaptation makes no difference beyond noise {place}: {as_points(gain)} points mIoU"
        text += f"; {overlap}." if overlap else "."
    else:
        verb = "raises" if gain > 0 else "lowers"
        text = (
            f"Adaptation {verb} mIoU {place} by {100 * abs(gain):.1f} points, "
            f"from {as_percent(before.miou)} to {as_percent(after.miou)}."
        )
    return Finding("Adaptation", status, text)


def _adaptation_gain(records: Records, before: Evaluation, after: Evaluation) -> Finding:
    gain = after.miou - before.miou
    overlap = _overlap(records, before, after)
    text = (
        f"{before.name} {as_percent(before.miou)}, {after.name} {as_percent(after.miou)}, "
        f"{data_of(after)}. {_class_changes(before, after)}"
    )
    if overlap:
        text += f" {overlap.capitalize()}."
    status: Status = "even" if overlap else _status(gain)
    topic = "mIoU, adapted against source-only"
    return Finding(topic, status, f"{as_points(gain)} points", text)


def _int8_verdicts(model: Int8Model) -> list[Finding]:
    """Say once per machine whether INT8 is worth it.

    A record without a ratio, of one model at a camera's rate, has no say beside one that has it.
    """
    by_machine: dict[str, list[tuple[Bench | None, Ratio | None]]] = {}
    for bench, ratio in model.timings:
        by_machine.setdefault(bench.machine_name if bench else "", []).append((bench, ratio))
    found = []
    for timings in by_machine.values():
        paired = [(bench, ratio) for bench, ratio in timings if bench and ratio]
        quiet = [(bench, ratio) for bench, ratio in paired if not disturbances(bench)]
        said = [_int8_verdict(model, b, r) for b, r in quiet or paired[:1] or timings[:1]]
        if len({finding.status for finding in said}) > 1:
            read = "; ".join(f"{_times(r)} in {b.origin}" for b, r in quiet if b and r)
            text = (
                f"Whether INT8 is worth it{_on(quiet[0][0])} is unknown: benchmarks contradict "
                f"each other, inference runs at {read}. Model: {model.name}."
            )
            said = [Finding("INT8", "unknown", text)]
        found.append(said[0])
    return found


def _on(bench: Bench | None) -> str:
    return f" on {bench.machine_name}" if bench else ""


def _int8_verdict(model: Int8Model, bench: Bench | None, ratio: Ratio | None) -> Finding:
    """Say whether INT8 is worth it, see `edgeuda.decision.judge_int8`.

    What was timed while the machine was busy or drifting is a reading, not a reason.
    """
    place, troubles = _on(bench), disturbances(bench) if bench and ratio else []
    speed = None if ratio is None or troubles else _speed(ratio)
    accuracy = None if model.worst is None else Figure(-model.worst)  # over all label sets
    verdict = judge_int8(speed, accuracy)
    if troubles and ratio and verdict.status == "unknown":
        text = (
            f"Whether INT8 is worth it{place} is unknown: {'; '.join(troubles)}. Inference read "
            f"{_times(ratio)} the speed of {ratio.baseline}; measure again on a machine that does "
            f"nothing else. Model: {model.name}."
        )
        return Finding("INT8", "unknown", text)
    text = int8_on_a_machine(verdict, place, ratio.baseline if ratio else "FP32", model.name)
    if verdict.status == "unknown":
        return Finding(UNRECORDED, "unknown", text)
    return Finding("INT8", "good" if verdict.status == "worth it" else "bad", text)


def _speed(ratio: Ratio) -> Figure:
    return Figure(ratio.inference_median, (ratio.low, ratio.high))


def _int8_change(before: Evaluation | None, after: Evaluation) -> Finding:
    topic = f"mIoU, {after.name} against FP32"
    if before is None:
        text = f"{after.name} {as_percent(after.miou)}, {data_of(after)}; no FP32 score there."
        return Finding(topic, "unknown", "unknown", text)
    gain = after.miou - before.miou
    status = _status(gain)
    if status == "bad" and -gain <= MAX_DROP:
        status = "accepted"
    return Finding(
        topic, status, f"{as_points(gain)} points",
        f"{before.name} {as_percent(before.miou)}, {after.name} {as_percent(after.miou)}, "
        f"{data_of(after)}. {_class_changes(before, after)}",
    )  # fmt: skip


def _int8_unscored(model: Int8Model) -> Finding:
    text = f"{model.name} was not scored on labelled images."
    if model.agreement is not None:
        text += (
            f" It gives the class of FP32 on {as_percent(model.agreement)} of the calibration "
            "record's pixels, which is agreement, not accuracy."
        )
    return Finding("mIoU, INT8 against FP32", "unknown", "unknown", text)


def _int8_speed(bench: Bench, ratio: Ratio) -> Finding:
    topic = f"Inference speed, INT8 against FP32, on {bench.machine_name} ({bench.origin})"
    status: Status = "good" if ratio.low > 1 else "bad" if ratio.high < 1 else "even"
    text = (
        f"Inference time of {ratio.baseline} over that of {ratio.candidate}: median "
        f"{_times(ratio)}."
    )
    if status == "even":
        text += " The interval includes 1: the difference is within noise."
    if troubles := disturbances(bench):
        status = "reading"
        text += f" No verdict: {'; '.join(troubles)}."
    return Finding(topic, status, f"{ratio.inference_median:.2f}x", text)


def _latency(bench: Bench) -> Finding:
    every = "\n".join(_model_line(bench, m) for m in bench.models)
    rate = camera_rate(bench)
    if rate is not None:
        return _at_a_rate(bench, rate, every)
    if bench.method.arrival == "offline":
        best = max(bench.models, key=lambda m: m.frames_per_second)
        topic = f"Throughput on {bench.machine_name} ({bench.origin})"
        done = f"{best.frames_per_second:.1f} frames/s"
        return Finding(topic, "stated", done, f"{best.name}.\n{every}")
    fastest = min(bench.models, key=lambda m: m.end_to_end.median)
    which = f"{fastest.name}, the fastest of {len(bench.models)}"
    if len(bench.models) == 1:
        which = fastest.name
    notes = [f"That is {which}.", every, "No higher percentile is recorded."]
    if troubles := disturbances(bench):
        notes.insert(1, f"No verdict: {'; '.join(troubles)}.")
    return Finding(
        f"Latency of a frame on {bench.machine_name} ({bench.origin})",
        "reading" if troubles else "stated",
        _median_and_tail(fastest.end_to_end),
        "\n".join(notes),
    )


def _at_a_rate(bench: Bench, rate: float, every: str) -> Finding:
    """Say which models keep a camera's pace; at that load no latency alone says so."""
    topic = f"At {rate:g} frames/s on {bench.machine_name} ({bench.origin})"
    in_time = [
        m
        for m in bench.models
        if not falls_behind(bench, m) and (not m.deadline or m.deadline.share <= 1 - KEPT)
    ]
    troubles = disturbances(bench)
    text = f"{every}\nNo verdict: {'; '.join(troubles)}." if troubles else every
    if not in_time:
        whole = "no model is" if len(bench.models) > 1 else f"{bench.models[0].name} is not"
        return Finding(topic, "reading" if troubles else "late", f"{whole} in time", text)
    names = ", ".join(m.name for m in in_time)
    are = "is" if len(in_time) == 1 else "are"
    return Finding(topic, "reading" if troubles else "kept", f"{names} {are} in time", text)


def _model_line(bench: Bench, model: ModelLatency) -> str:
    parts = [f"{model.name}: {_median_and_tail(model.end_to_end)}, n = {model.end_to_end.n}"]
    parts += [text for text in (missed(model), falls_behind(bench, model)) if text]
    return "; ".join(parts) + "."


def _compared(name: str, record: ComparisonRecord) -> Finding:
    """Say which of a comparison's methods stands above its first one, and whether by chance."""
    first, *others = record.methods
    fair = [(m.gain.mean, m) for m in others if m.trains_on != ORACLE and m.gain.mean is not None]
    topic = f"Methods compared in {name}"
    seeds = len(record.seeds)
    if not fair:
        return Finding(topic, "stated", f"{len(record.methods)} methods", f"{seeds} seeds.")
    gain, best = max(fair, key=lambda pair: pair[0])
    runs = best.gain.known
    above = sum(value > 0 for value in runs)
    status: Status = "even"
    if seeds >= 3 and above in (0, len(runs)) and abs(gain) >= 100 * NOISE:
        status = "good" if gain > 0 else "bad"
    text = (
        f"{best.name} has the best mean of {len(fair)} methods: mIoU {best.miou.mean:.1f} "
        f"%, {first.name} {first.miou.mean:.1f} %; above it in {above} of {len(runs)} "
        f"trainings, {record.images} images."
    )
    if seeds < 3:
        text += " Fewer than three seeds claim nothing."
    return Finding(topic, status, f"{signed(gain)} points", text)


def _median_and_tail(timing: LatencySummary) -> str:
    tail = timing.tail
    more = f", p{tail} {as_ms(timing.percentiles[tail])} ms" if tail != "50" else ""
    return f"{as_ms(timing.median)} ms median{more}"


def _class_changes(before: Evaluation, after: Evaluation) -> str:
    """Name the class that gained most and every class that lost a point or more."""
    changes = _changes(before, after)
    if not changes:
        return ""
    most, name = changes[-1]
    gained = f"Largest gain: {name} {as_points(most)}. " if most > 0 else ""
    lost = ", ".join(_lost(before, after)) or "none"
    return gained + f"Classes that lost a point or more: {lost}."


def _changes(before: Evaluation, after: Evaluation) -> list[tuple[float, str]]:
    """Return each class's change of IoU, the greatest loss first."""
    return sorted(
        (float(change), name)
        for change, name in zip(after.iou - before.iou, after.label_space.classes, strict=True)
        if not math.isnan(change)
    )


def _lost(before: Evaluation, after: Evaluation) -> list[str]:
    return [
        f"{name} {as_points(change)}"
        for change, name in _changes(before, after)
        if round(100 * change, 1) <= -1
    ]


def _lost_by_adaptation(before: Evaluation, after: Evaluation) -> list[Finding]:
    """Name the classes that adaptation costs, which a mean over the classes hides."""
    lost = _lost(before, after)
    if not lost:
        return []
    topic = "IoU of classes that adaptation costs a point or more"
    text = f"{before.name} to {after.name}, {data_of(after)}."
    return [Finding(topic, "bad", f"{', '.join(lost)} points", text)]


def _times(ratio: Ratio) -> str:
    return times(_speed(ratio))


def _status(gain: float) -> Status:
    return AS_STATUS[change_of(Figure(gain))]
