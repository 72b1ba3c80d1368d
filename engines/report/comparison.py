"""The report's chapters on compared methods, and on records that no other chapter judges."""

from __future__ import annotations

from collections.abc import Sequence

from edgeuda.records.comparison import ComparedMethod, ComparisonRecord, OverSeeds
from engines.report import plots
from engines.report.parts import Chapter, Grid
from engines.report.records import Records
from engines.report.text import DASH, flatten, signed

SHOWN = (0.5, 0.8, 0.95)
"""Confidences whose labels the table counts."""
LABELS_WORTH = (
    "A network's own labels teach what they hold: the plot and the tables below say how many of "
    "them were right on the labelled images, by confidence and by class. A class of which many "
    "labels are wrong is where learning from them goes astray."
)


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
        if any(method.labels_kept() for method in record.methods):
            text += [] if LABELS_WORTH in text else [LABELS_WORTH]
            title = f"How many confident labels of {name} there are, and how many are right"
            svgs.append(plots.confidence(record, title))
            grids += _trust(record, place)
    return Chapter(
        "comparison", "Methods compared", list(dict.fromkeys(text)), svgs=svgs, grids=grids
    )


def _trust(record: ComparisonRecord, place: str) -> list[Grid]:
    """Return the tables of what labels are worth, by method and by the class they name."""
    rows, by_class = [], []
    for method in record.methods:
        found = method.trusted
        if not found:
            continue
        error = _mean([_percent(one.calibration_error) for one in found])
        kept = {one.above: one for one in method.labels_kept()}
        row = [method.name, error]
        for above in SHOWN:
            one = kept.get(above)
            shares = (None, None) if one is None else (one.share, one.accuracy)
            row += [_mean([_percent(share)]) for share in shares]
        rows.append(row)
        by_class.append([method.name, *(
            _mean([_percent(one.by_class[name].accuracy) for one in found if name in one.by_class])
            for name in record.classes
        )])  # fmt: skip
    heads = [text for above in SHOWN for text in (f"above {above:g}, %", "of them right, %")]
    return [
        Grid(
            f"Labels by confidence, mean over the seeds: {place}",
            ["method", "calibration error, points", *heads],
            rows,
        ),
        Grid(
            f"Labels that are right, in % of those that name the class: {place}",
            ["method", *record.classes],
            by_class,
        ),
    ]


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


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


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
