"""The report's chapter on the trade-off: variants, front, budget, choice."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeuda.decision import change_of, dominators, overlap
from edgeuda.records.tradeoff import Change, Estimate, Figure, TradeoffRecord, VariantRow
from engines.report import latency_plots as plots
from engines.report.findings import AS_STATUS, Finding, Status
from engines.report.networks import network_of_row, pairs_of
from engines.report.parts import Chapter, Grid
from engines.report.records import Bench, Records
from engines.report.text import (
    DASH,
    as_estimate,
    as_interval,
    as_ms,
    as_percent,
    as_points,
    as_time,
    data_of,
)
from engines.report.trust import KEPT, at_load, camera_rate, disturbances, falls_behind, missed
from engines.report.words import said_of


def choice_verdicts(records: Records) -> list[Finding]:
    """Return what sweeps decided, as far as what was measured bears it."""
    found = []
    for record in records.tradeoffs:
        said, place = said_of(record), _which(record, records.tradeoffs)
        troubles = _troubles(record, records.benches)
        late = _late_at_a_rate(record, records.benches)
        name, why = said.name, said.why
        status: Status = "good"
        if not name:
            status, headline = "bad", f"{place}No variant keeps the budget."
        elif late:
            headline = f"{place}{name} keeps the budget frame by frame, but not at a camera's pace."
            status, why = "bad", f"{late} {why}"
        else:
            headline = f"{place}Take {name}."
            why = " ".join([why, *_behind_at_a_rate(record, records.benches)])
        if troubles:
            status = "unknown"
            headline = f"{headline.removesuffix('.')}: provisional, not a verdict."
            why = (
                f"Its times were taken while the machine was busy or drifting ("
                f"{' and '.join(troubles)}). Time the sweep again on a machine that does nothing "
                f"else. {why}"
            )
        found.append(Finding("Choice", status, headline, why))
        if said.int8 is not None:
            text = said.int8
            if troubles:
                text = f"Whether INT8 is worth it is unknown. It read: {said.reading}"
            status = "good" if said.status == "worth it" else "even"
            if troubles or said.status == "unknown":
                status = "unknown"
            found.append(Finding("INT8", status, f"{place}{text}"))
    return found


def choice_figures(records: Records) -> list[Finding]:
    """Return what the chosen variants cost: time, accuracy, and what adaptation gave."""
    found = []
    for record in records.tradeoffs:
        tail, measure, budget = record.tail, record.measure, record.budget.latency_ms
        place = record.machine["cpu"]
        row = next((row for row in record.variants if row.name == record.taken), None)
        if row is not None:
            allowed = "" if budget is None else f" of {budget:g} ms allowed"
            text = f"{row.name}, median {as_ms(row.total_ms['50'])} ms."
            headline = f"{as_ms(row.total_ms[tail])} ms{allowed}"
            status: Status = "reading" if _troubles(record, records.benches) else "stated"
            found.append(Finding(f"p{tail} of a frame on {place}", status, headline, text))
            headline = as_estimate(row.accuracy, " %")
            found.append(Finding(f"{measure}, 95 % interval", "stated", headline, row.name))
            if row.change_from_fp32 is not None:
                topic = f"{row.precision.upper()} against FP32"
                found.append(_change(topic, row.name, row.change_from_fp32))
        if measure == "mIoU" and not records.evaluations:
            found += _gain(record.variants)
    return found


def _troubles(record: TradeoffRecord, benches: Sequence[Bench]) -> list[str]:
    """Return what disturbed the benchmarks that timed a sweep."""
    return [
        f"{bench.origin}: {'; '.join(reasons)}"
        for bench in benches
        if _timed_by(record, bench) and (reasons := disturbances(bench))
    ]


def _change(topic: str, name: str, change: Estimate) -> Finding:
    text = f"{name}, 95 % interval {as_points(change.low)} to {as_points(change.high)}"
    return Finding(topic, AS_STATUS[_judged(change)], f"{as_points(change.value)} points", text)


def _judged(change: Estimate) -> Change:
    return change_of(Figure(change.value, change.interval))


def _gain(rows: Sequence[VariantRow]) -> list[Finding]:
    """Hold the last adapted network of a sweep against the one before adaptation, in FP32."""
    forms: dict[tuple[object, ...], list[VariantRow]] = {}
    for row in rows:
        if row.precision == "fp32":
            forms.setdefault((row.head, row.size, row.runtime), []).append(row)
    alike = []
    for group in forms.values():
        ordered = sorted(group, key=lambda row: network_of_row(row).order)
        pairs = pairs_of([network_of_row(row) for row in ordered])
        alike += [(ordered[i], ordered[j]) for i, j in pairs]
    if not alike:
        return []
    first, last = alike[0]
    a, b = first.accuracy, last.accuracy
    each = a.interval, b.interval
    change = change_of(Figure(b.value - a.value), each)
    text = f"{first.name} {as_percent(a.value)}, {last.name} {as_percent(b.value)}."
    if overlap(*each):
        text += " The intervals overlap."
    headline = f"{as_points(b.value - a.value)} points"
    return [Finding("mIoU, adapted against source-only", AS_STATUS[change], headline, text)]


def _which(record: TradeoffRecord, sweeps: Sequence[TradeoffRecord]) -> str:
    """Name a sweep among several, to begin a sentence with."""
    if len(sweeps) < 2:
        return ""
    return f"Sweep of {as_time(record.created)} on {record.machine['cpu']}: "


def _timed_by(record: TradeoffRecord, bench: Bench) -> bool:
    """Whether a benchmark is the one that timed a sweep's variants."""
    files = {row.sha256 for row in record.variants}
    return len(bench.models) > 0 and files == {m.sha256 for m in bench.models}


def _behind_at_a_rate(record: TradeoffRecord, benches: Sequence[Bench]) -> list[str]:
    """Say at which camera's rates the chosen file falls behind, whatever the budget."""
    files = {row.sha256 for row in record.variants if row.name == record.taken}
    return [
        f"At {rate:g} frames/s it falls behind: {behind} ({bench.origin})."
        for bench in benches
        if (rate := camera_rate(bench)) is not None
        for m in bench.models
        if m.sha256 in files and (behind := falls_behind(bench, m))
    ]


def _late_at_a_rate(record: TradeoffRecord, benches: Sequence[Bench]) -> str:
    """Say where the chosen file misses, at a camera's rate, a deadline that the budget allows."""
    budget = record.budget.latency_ms
    files = {row.sha256 for row in record.variants if row.name == record.taken}
    if budget is None:
        return ""
    for bench in benches:
        for m in bench.models:
            if m.sha256 not in files or not m.deadline or camera_rate(bench) is None:
                continue
            if m.deadline.share > 1 - KEPT and m.deadline.limit_ms >= 0.98 * budget:
                return f"{m.name} {at_load(bench)} {missed(m)} ({bench.origin})."
    return ""


def tradeoff(records: Records) -> Chapter | None:
    """Return the chapter on accuracy against latency."""
    svgs = [_sweep_plot(record) for record in records.tradeoffs]
    grids = [_sweep_grid(record) for record in records.tradeoffs]
    text = [
        "A filled marker lies on the Pareto front: no other model is faster and at least as "
        "accurate, or as fast and more accurate."
    ]
    if records.tradeoffs:
        measure = records.tradeoffs[0].measure
        text.append(
            f"Bars to the right reach the tail latency that the budget is held against; upright "
            f"ones are 95 % intervals of {measure}: {records.tradeoffs[0].intervals}."
        )
    else:
        if not (records.evaluations and records.benches):
            return None
        svgs, grids, names = _joined(records)
        text[:0] = ["Models are joined by the checksum of their file."]
        if names:
            text.append(
                "Not shown, because no file of that checksum was both evaluated and benchmarked: "
                f"{', '.join(dict.fromkeys(names))}."
            )
    if svgs:
        text.append("The first plot is in the summary.")
    return Chapter(
        "tradeoff", "Accuracy against latency", text, svgs=svgs[1:], grids=grids, hero=svgs[:1]
    )


def _sweep_plot(record: TradeoffRecord) -> str:
    points = [
        plots.Point(
            row.name, row.total_ms["50"], None, row.accuracy.value, row.dominated_by is None,
            row.total_ms[record.tail], row.accuracy.interval, row.name == record.taken,
        )
        for row in record.variants
    ]  # fmt: skip
    chosen = record.taken or "none"
    return plots.tradeoff(
        points,
        f"{record.measure} against latency of {len(points)} variants; chosen: {chosen}",
        record.measure,
        record.budget.latency_ms,
        record.budget.min_accuracy,
    )


def _sweep_grid(record: TradeoffRecord) -> Grid:
    tail, measure, choice = record.tail, record.measure, record.taken
    rows = []
    for row in record.variants:
        total, change = row.total_ms, row.change_from_fp32
        where = row.standing(choice)
        words = {
            "too slow": f"misses the deadline at p{tail}",
            "too inaccurate": "not accurate enough",
            "dominated": f"{row.dominated_by} is better",
        }
        rows.append(
            [
                row.name, f"{row.width:g}", row.precision, row.head, row.runtime,
                as_estimate(row.accuracy),
                _percent(row.boundary_miou), _percent(row.agreement_with_fp32),
                DASH
                if change is None
                else as_points(change.value)
                + (" (noise)" if _judged(change) == "noise" else ""),
                as_ms(total["50"]), as_ms(total[tail]), words.get(where, where),
            ]
        )  # fmt: skip
    columns = [
        "variant", "width", "precision", "head", "runs on", f"{measure}, % [95 %]",
        "boundary mIoU, %", "as FP32, %", "against FP32, points", "median ms", f"p{tail} ms",
        "verdict",
    ]  # fmt: skip
    strong = frozenset(i for i, row in enumerate(record.variants) if row.name == choice)
    data = record.data
    place = f", {data.images} images of {data.folder}" if data else ", without labels"
    return Grid(f"Variants on {record.machine['cpu']}{place}", columns, rows, strong)


def _percent(value: float | None) -> str:
    return DASH if value is None else as_percent(value, "")


def _joined(records: Records) -> tuple[list[str], list[Grid], list[str]]:
    """Return plots, tables and the names left over of evaluations joined with benchmarks."""
    svgs, grids = [], []
    joined: set[str] = set()
    for bench in records.benches:
        for group in records.comparable():
            both = [
                (e, m)
                for e in group
                for m in bench.models
                if m.sha256 and m.sha256 == e.model_sha256
            ]
            both = [(e, m) for e, m in both if not math.isnan(e.miou)]
            if not both:
                continue
            joined |= {e.model_sha256 for e, _ in both}
            better = dominators([(m.end_to_end.median, e.miou) for e, m in both])
            points = [
                plots.Point(e.name, m.end_to_end.median, m.end_to_end.interval, e.miou, by is None)
                for (e, m), by in zip(both, better, strict=True)
            ]
            place = f"{bench.machine_name}, {data_of(group[0])}"
            svgs.append(plots.tradeoff(points, f"mIoU against end-to-end latency on {place}"))
            rows = [
                [
                    e.name, m.precision, m.backend, as_percent(e.miou),
                    as_ms(m.end_to_end.median) + as_interval(m.end_to_end.interval),
                    "yes" if by is None else f"no, {both[by][0].name} is better",
                ]
                for (e, m), by in zip(both, better, strict=True)
            ]  # fmt: skip
            columns = [
                "model", "precision", "backend", "mIoU", "median ms [interval]", "on the front",
            ]  # fmt: skip
            best_rows = frozenset(i for i, by in enumerate(better) if by is None)
            grids.append(Grid(f"Measured on {place}", columns, rows, best_rows))
    names = [e.name for e in records.evaluations if e.model_sha256 not in joined]
    names += [m.name for bench in records.benches for m in bench.models if m.sha256 not in joined]
    return svgs, grids, names
