"""The report's chapter on the trade-off: variants, front, budget, choice."""

from __future__ import annotations

import math
from typing import Any

from engines import latency_plots as plots
from engines.pareto import dominators, standing
from engines.report_findings import Finding
from engines.report_parts import Grid, Section
from engines.report_records import Records
from engines.report_text import DASH, as_interval, as_ms, as_percent, as_points, data_of


def choice_verdicts(records: Records) -> list[Finding]:
    """Return what sweeps decided."""
    found = []
    for record in records.tradeoffs:
        choice = record["choice"]
        headline = f"Take {choice['name']}." if choice["name"] else "No variant keeps the budget."
        found.append(
            Finding("Choice", "good" if choice["name"] else "bad", headline, choice["why"])
        )
        if choice["int8"]:
            worth = choice["int8"].startswith("INT8 is worth")
            found.append(Finding("INT8", "good" if worth else "even", choice["int8"]))
    return found


def tradeoff(records: Records) -> Section | None:
    """Return the chapter on accuracy against latency."""
    svgs = [_sweep_plot(record) for record in records.tradeoffs]
    grids = [_sweep_grid(record) for record in records.tradeoffs]
    text = [
        "A filled marker lies on the Pareto front: no other model is faster and at least as "
        "accurate, or as fast and more accurate."
    ]
    if records.tradeoffs:
        measure = records.tradeoffs[0]["measure"]
        text.append(
            f"Bars to the right reach the tail latency that the budget is held against; upright "
            f"ones are 95 % intervals of {measure}: {records.tradeoffs[0]['intervals']}."
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
        text.append("The first plot is on the first screen.")
    return Section(
        "tradeoff", "Accuracy against latency", text, svgs=svgs[1:], grids=grids, hero=svgs[:1]
    )


def _sweep_plot(record: dict[str, Any]) -> str:
    tail, budget = record["tail"], record["budget"]
    points = [
        plots.Point(
            row["name"], row["total_ms"]["50"], None, row["accuracy"]["value"],
            row["dominated_by"] is None, row["total_ms"][tail],
            (row["accuracy"]["low"], row["accuracy"]["high"]),
            row["name"] == record["choice"]["name"],
        )
        for row in record["variants"]
    ]  # fmt: skip
    chosen = record["choice"]["name"] or "none"
    return plots.tradeoff(
        points,
        f"{record['measure']} against latency of {len(points)} variants; chosen: {chosen}",
        record["measure"],
        budget["latency_ms"],
        budget["min_accuracy"],
    )


def _sweep_grid(record: dict[str, Any]) -> Grid:
    tail, measure, choice = record["tail"], record["measure"], record["choice"]["name"]
    rows = []
    for row in record["variants"]:
        accuracy, total, change = row["accuracy"], row["total_ms"], row["change_from_fp32"]
        where = standing(row, choice)
        words = {
            "too slow": f"misses the deadline at p{tail}",
            "too inaccurate": "not accurate enough",
            "dominated": f"{row['dominated_by']} is better",
        }
        rows.append(
            [
                row["name"], f"{row['width']:g}", row["precision"], row["head"], row["backend"],
                f"{100 * accuracy['value']:.1f} "
                f"[{100 * accuracy['low']:.1f} {100 * accuracy['high']:.1f}]",
                _percent(row["boundary_miou"]), _percent(row["agreement_with_fp32"]),
                DASH
                if change is None
                else as_points(change["value"])
                + (" (noise)" if change["low"] <= 0 <= change["high"] else ""),
                as_ms(total["50"]), as_ms(total[tail]), words.get(where, where),
            ]
        )  # fmt: skip
    columns = [
        "variant", "width", "precision", "head", "runs on", f"{measure}, % [95 %]",
        "boundary mIoU, %", "as FP32, %", "against FP32, points", "median ms", f"p{tail} ms",
        "verdict",
    ]  # fmt: skip
    strong = frozenset(i for i, row in enumerate(record["variants"]) if row["name"] == choice)
    data = record["data"]
    place = f", {data['images']} images of {data['folder']}" if data else ", without labels"
    return Grid(f"Variants on {record['machine']['cpu']}{place}", columns, rows, strong)


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
