"""The report's chapters on compared methods, and on records that no other chapter judges."""

from __future__ import annotations

from collections.abc import Sequence

from edgeuda.records.comparison import ComparedMethod, OverSeeds
from engines.report import plots
from engines.report.parts import Chapter, Grid
from engines.report.records import Records
from engines.report.text import DASH, flatten, signed


def comparisons(records: Records) -> Chapter | None:
    """Return the chapter on methods that were compared over seeds."""
    if not records.comparisons:
        return None
    text = [
        "Every method was trained anew with each seed, and scored on the same labelled images. "
        "The gain is against the first method with the same seed. A method is above it in every "
        "seed, or the difference is within what another training changes.",
        "These networks were trained for the comparison. None of them is the one that was "
        "benchmarked, unless its checksum says so.",
    ]
    svgs = [
        plots.methods(record, f"mIoU of the methods of {name}, one dot per seed")
        for name, record in records.comparisons
    ]
    grids = []
    for name, record in records.comparisons:
        seeds = ", ".join(map(str, record.seeds))
        place = f"{name}, {record.images} images"
        columns = ["method", "trains on", "mIoU, %", "gain, points", "above in", f"seeds {seeds}"]
        rows = [_method(method) for method in record.methods]
        grids.append(Grid(f"Methods compared: {place}", columns, rows))
        classes = [
            [method.name, *(_mean(method.iou[found]) for found in record.classes)]
            for method in record.methods
        ]
        grids.append(
            Grid(f"IoU per class, mean over the seeds: {place}", ["method", *record.classes],
                 classes)
        )  # fmt: skip
    return Chapter("comparison", "Methods compared", text, svgs=svgs, grids=grids)


def _method(method: ComparedMethod) -> list[str]:
    gains = method.gain.known
    above = sum(value > 0 for value in gains)
    return [
        method.name, method.trains_on, _spread(method.miou), _spread(method.gain, sign=True),
        f"{above} of {len(gains)}" if any(gains) else DASH,
        ", ".join("failed" if v is None else f"{v:.1f}" for v in method.miou.runs),
    ]  # fmt: skip


def _spread(values: OverSeeds, *, sign: bool = False) -> str:
    if values.mean is None:
        return DASH
    mean = signed(values.mean) if sign else f"{values.mean:.1f}"
    return mean if values.stdev is None else f"{mean} ± {values.stdev:.1f}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.1f}" if known else DASH


def others(records: Records) -> Chapter | None:
    """Return the facts of records that were named and that no other chapter is about."""
    if not records.others:
        return None
    grids = []
    for name, record in records.others:
        facts = flatten({key: value for key, value in record.items() if key != "schema"})
        rows = [[key.replace("_", " "), value] for key, value in facts.items()]
        grids.append(Grid(f"{name}, {record['schema']}", ["fact", "value"], rows))
    text = [
        "They were named for this report. Nothing above takes them into account; this is what they "
        "hold."
    ]
    return Chapter("others", "Other records", text, grids=grids)
