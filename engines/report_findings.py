"""What the records of a report say, in plain words: decisions, figures, open questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeuda.evaluation import Evaluation
from engines.report_records import Bench, Ratio, Records, Timing, stage_rank
from engines.report_text import as_ms, as_percent, as_points, as_ratio, data_of

MIOU_NOISE = 0.005
"""A convention, said in the report: one confusion matrix has no interval to compare with."""
MAX_INT8_DROP = 0.01
"""More than one mIoU point lost makes INT8 not worth it."""

Status = Literal["good", "bad", "even", "accepted", "unknown", "stated"]
SIGNS: Mapping[Status, tuple[str, str]] = {
    "good": ("▲", "better"),
    "bad": ("▼", "worse"),
    "even": ("=", "no difference beyond noise"),
    "accepted": ("▽", "worse, within the limit"),
    "unknown": ("?", "unknown"),
    "stated": ("", ""),
}
"""Sign and word beside the colour, which not everyone sees; ``stated`` is without a judgement."""


@dataclass(frozen=True)
class Finding:
    """One statement of the summary, computed from the records."""

    topic: str
    status: Status
    headline: str
    text: str = ""


def verdicts(records: Records) -> list[Finding]:
    """Return the decisions, in plain words: whether to take the adapted model, and INT8."""
    found = [_adaptation_verdict(*pair) for pair in adaptation_pairs(records)]
    for model in _judged_here(records):
        found += [_int8_verdict(model, bench, ratio) for bench, ratio in model.timings]
    if not found and not records.tradeoffs:
        text = "The records hold no pair of models to compare, so there is nothing to decide on."
        found.append(Finding("Verdict", "unknown", text))
    return found


def evidence(records: Records) -> list[Finding]:
    """Return the figures the decisions rest on."""
    found = [_adaptation_gain(*pair) for pair in adaptation_pairs(records)]
    if not records.evaluations:
        found += _label_free(records)
    for model in _judged_here(records):
        found += [_int8_change(*pair) for pair in model.scores] or [_int8_unscored(model)]
        found += [_int8_speed(b, r) for b, r in model.timings if b is not None]
    return found + [_latency(bench) for bench in records.benches if bench.models]


def _judged_here(records: Records) -> list[Int8Model]:
    """Return the INT8 models that no sweep has judged beside all their alternatives.

    Beside a sweep, one that was never timed has no say.
    """
    swept = {row["name"] for record in records.tradeoffs for row in record["variants"]}
    return [
        model
        for model in int8_models(records)
        if model.name not in swept and not (swept and _untimed(model))
    ]


def _untimed(model: Int8Model) -> bool:
    return all(ratio is None for _, ratio in model.timings)


def _label_free(records: Records) -> list[Finding]:
    """Say how far the networks agree with themselves, where no labels say more."""
    taken = [(t, line) for t in records.trainings for line in t.signals if line["chosen"]]
    idle = [
        Finding("Self-training that hardly trains", "bad", f"{t.name}: {remark}")
        for t in records.trainings
        for remark in t.remarks
    ]
    alarms = idle + [
        Finding("Collapse alarm", "bad", f"{t.name}, step {line['step']}: {line['alarm']}")
        for t in records.trainings
        for line in t.signals
        if line["alarm"]
    ]
    if not taken:
        return alarms
    first, (stage, last) = taken[0][0].signals[0], taken[-1]
    headline = (
        f"Predictions on the mirror image agree on {as_percent(last['flip_agreement'])} of the "
        f"pixels, {as_percent(first['flip_agreement'])} before adaptation"
    )
    text = (
        f"{stage.name}, step {last['step']}; IoU of clean and recoloured view "
        f"{as_percent(first['view_agreement'])} before, "
        f"{as_percent(last['view_agreement'])} after. Without labels this shows "
        "consistency, not accuracy."
    )
    return [Finding("Without labels", "stated", headline, text), *alarms]


def unknowns(records: Records) -> list[str]:
    """Return what a reader may expect but the records do not tell."""
    found = []
    if not records.evaluations:
        found.append("Accuracy: no evaluation on labelled images is among the records.")
    elif not adaptation_pairs(records):
        found.append(
            "Gain from adaptation: a source-only and an adapted FP32 model, scored on the same "
            "labels, are not both among the records."
        )
    if records.evaluations and not records.tradeoffs:
        found.append(
            "Uncertainty of mIoU: a record holds one confusion matrix, so there is no interval. "
            f"By convention this report calls a change below {100 * MIOU_NOISE:.1f} points noise."
        )
    models = int8_models(records)
    if not models:
        found.append("INT8: no INT8 model was evaluated or benchmarked.")
    if untimed := [model.name for model in models if _untimed(model)]:
        found.append(f"Speed of {', '.join(untimed)}: not measured beside FP32.")
    if not records.benches:
        found.append("Latency: no benchmark is among the records.")
        return found
    if any(bench.noise is None for bench in records.benches):
        found.append(
            "Variation between runs: a model was run fewer than three times. The intervals cover "
            "the frames of one run only."
        )
    names = sorted({bench.machine_name for bench in records.benches})
    found.append(f"Latency on any machine other than {', '.join(names)}.")
    budgets = [record["budget"]["latency_ms"] for record in records.tradeoffs]
    if not any(m.deadline for bench in records.benches for m in bench.models) and not any(budgets):
        found.append("Frame budget: none is in the records, so no deadline was checked.")
    found += [f"{bench.origin}: {line}." for bench in records.benches for line in bench.warnings]
    if any("closed" in bench.method.get("arrival", "") for bench in records.benches):
        found.append(
            "Behaviour at a camera's frame rate: frames were fed back to back (closed loop)."
        )
    missing = sorted(
        {kind for bench in records.benches for kind in bench.state.get("not_available") or {}}
    )
    if missing or not all(bench.state for bench in records.benches):
        listed = ", ".join(missing) or "power, temperature"
        found.append(f"State of the machine: not available in every benchmark: {listed}.")
    return found


@dataclass(frozen=True)
class Int8Model:
    """An INT8 model with its (FP32 or None, INT8) scores and its timings, either may be absent."""

    name: str
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
    agreements = [
        float(c["agreement"])
        for _, c in records.calibrations
        if isinstance(c.get("agreement"), int | float)
    ]
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
            (_baseline(group, e, bases), e)
            for group in records.comparable()
            for e in group
            if e.model_sha256 == key and e.precision == "int8"
        ]
        agreement = agreements[0] if len(agreements) == len(names) == 1 else None
        found.append(Int8Model(name, scores, timings or [(None, None)], agreement))
    return found


def _baseline(group: Sequence[Evaluation], int8: Evaluation, bases: set[str]) -> Evaluation | None:
    """Return the FP32 evaluation to hold an INT8 one against.

    One of the same stage, else the benchmark's baseline, else the last stage; of several, the
    benchmark's baseline before others and an exported graph before a checkpoint.
    """

    def fit(e: Evaluation) -> tuple[bool, bool, int, bool]:
        rank = stage_rank(e.name)
        same = rank == stage_rank(int8.name) < 99
        return same, e.model_sha256 in bases, rank if rank < 99 else -1, e.model_kind == "onnx"

    return max((e for e in group if e.precision == "fp32"), key=fit, default=None)


def adaptation_pairs(records: Records) -> list[tuple[Evaluation, Evaluation]]:
    """Return (source-only, last adapted) FP32 evaluations for every set of labels that has both."""
    pairs = []
    for group in records.comparable():
        fp32 = [e for e in group if e.precision == "fp32"]
        source = [e for e in fp32 if stage_rank(e.name) == 0]
        adapted = [e for e in fp32 if 0 < stage_rank(e.name) < 99]
        if source and adapted:
            pairs.append((source[0], adapted[-1]))
    return pairs


def _adaptation_verdict(before: Evaluation, after: Evaluation) -> Finding:
    gain, place = after.miou - before.miou, f"on {after.data_folder}"
    status = _status(gain)
    if status == "unknown":
        text = f"Whether adaptation helps {place} is unknown: no labelled pixel was counted."
    elif status == "even":
        text = (
            f"Adaptation makes no difference beyond noise {place}: {as_points(gain)} points mIoU."
        )
    else:
        verb = "raises" if gain > 0 else "lowers"
        text = (
            f"Adaptation {verb} mIoU {place} by {100 * abs(gain):.1f} points, "
            f"from {as_percent(before.miou)} to {as_percent(after.miou)}."
        )
    return Finding("Adaptation", status, text)


def _adaptation_gain(before: Evaluation, after: Evaluation) -> Finding:
    gain = after.miou - before.miou
    return Finding(
        "mIoU, adapted against source-only", _status(gain), f"{as_points(gain)} points",
        f"{before.name} {as_percent(before.miou)}, {after.name} {as_percent(after.miou)}, "
        f"{data_of(after)}. {_class_changes(before, after)}",
    )  # fmt: skip


def _int8_verdict(model: Int8Model, bench: Bench | None, ratio: Ratio | None) -> Finding:
    """Say whether INT8 is worth it; one known reason against it is enough."""
    place = f" on {bench.machine_name}" if bench else ""
    drop = model.worst  # over all label sets
    if ratio and ratio.high < 1:
        why = f"it is slower, inference runs at {_times(ratio)} the speed of {ratio.baseline}"
    elif ratio and ratio.low <= 1:
        why = f"inference runs at {_times(ratio)} the speed, an interval that includes 1"
    elif drop is not None and drop > MAX_INT8_DROP:
        why = f"it costs {100 * drop:.2f} points mIoU, more than {100 * MAX_INT8_DROP:.0f}"
    elif ratio is None or drop is None:
        lacks = [
            text
            for text, absent in (
                ("its speed-up over FP32", ratio is None),
                ("its mIoU beside FP32 on the same labels", drop is None),
            )
            if absent
        ]
        text = f"Whether INT8 is worth it{place} is unknown. Not recorded: {' and '.join(lacks)}."
        return Finding("INT8", "unknown", f"{text} Model: {model.name}.")
    else:
        limit = "within noise" if abs(drop) < MIOU_NOISE else "within the limit of 1 point lost"
        text = (
            f"INT8 is worth it{place}: inference runs at {_times(ratio)} the speed, and mIoU "
            f"changes by {as_points(-drop)} points, {limit}. Model: {model.name}."
        )
        return Finding("INT8", "good", text)
    return Finding("INT8", "bad", f"INT8 is not worth it{place}: {why}. Model: {model.name}.")


def _int8_change(before: Evaluation | None, after: Evaluation) -> Finding:
    topic = "mIoU, INT8 against FP32"
    if before is None:
        text = f"{after.name} {as_percent(after.miou)}, {data_of(after)}; no FP32 score there."
        return Finding(topic, "unknown", "unknown", text)
    gain = after.miou - before.miou
    status = _status(gain)
    if status == "bad" and -gain <= MAX_INT8_DROP:
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


def _int8_speed(bench: Bench, ratio: Ratio | None) -> Finding:
    topic = f"Inference speed, INT8 against FP32, on {bench.machine_name}"
    if ratio is None:
        return Finding(topic, "unknown", "unknown", f"{bench.origin} compares no pair with INT8.")
    status: Status = "good" if ratio.low > 1 else "bad" if ratio.high < 1 else "even"
    text = (
        f"Inference time of {ratio.baseline} over that of {ratio.candidate}: median "
        f"{_times(ratio)}."
    )
    if status == "even":
        text += " The interval includes 1: the difference is within noise."
    return Finding(topic, status, f"{ratio.speedup:.2f}x", text)


def _latency(bench: Bench) -> Finding:
    fastest = min(bench.models, key=lambda m: m.end_to_end.median)
    every = "\n".join(
        f"{m.name}: {_median_and_tail(m.end_to_end)}, n = {m.end_to_end.n}." for m in bench.models
    )
    return Finding(
        f"Latency of a frame on {bench.machine_name}",
        "stated",
        _median_and_tail(fastest.end_to_end),
        f"That is {fastest.name}, the fastest.\n{every}\nNo higher percentile is recorded.",
    )


def _median_and_tail(timing: Timing) -> str:
    tail = max(timing.percentiles)
    more = f", p{tail:g} {as_ms(timing.percentiles[tail])} ms" if tail > 50 else ""
    return f"{as_ms(timing.median)} ms median{more}"


def _class_changes(before: Evaluation, after: Evaluation) -> str:
    """Name the class that gained most and every class that lost a point or more."""
    changes = sorted(
        (float(change), name)
        for change, name in zip(after.iou - before.iou, after.label_space.classes, strict=True)
        if not math.isnan(change)
    )
    if not changes:
        return ""
    lost = [
        f"{name} {as_points(change)}" for change, name in changes if round(100 * change, 1) <= -1
    ]
    most, name = changes[-1]
    gained = f"Largest gain: {name} {as_points(most)}. " if most > 0 else ""
    return gained + f"Classes that lost a point or more: {', '.join(lost) or 'none'}."


def _times(ratio: Ratio) -> str:
    return as_ratio(ratio.speedup, ratio.low, ratio.high)


def _status(gain: float) -> Status:
    if math.isnan(gain):
        return "unknown"
    return "even" if abs(gain) < MIOU_NOISE else "good" if gain > 0 else "bad"
