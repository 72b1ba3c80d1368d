"""The chapters of a report: tables, plots and overlays of its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeuda.data.images import LabelMap, read_image, read_label
from edgeuda.errors import DataError
from edgeuda.labels import LabelSpace
from edgeuda.records.calibration import CalibrationRecord
from engines.report import plots
from engines.report.choice import tradeoff
from engines.report.comparison import comparisons, others
from engines.report.drives import drives
from engines.report.findings import adaptation_pairs, int8_models
from engines.report.latency import machine_state, machines, side_by_side, timings
from engines.report.networks import TRUTH
from engines.report.parts import Chapter, Grid, Picture, Strip
from engines.report.records import Records
from engines.report.text import (
    DASH,
    MINUS,
    as_percent,
    as_points,
    as_size,
    as_text,
    data_of,
    distinct,
    flatten,
    signed,
)
from engines.report.updates import updates

MAX_FRAMES = 6


def sections_of(records: Records) -> list[Chapter]:
    """Return the chapters that the records have something for, in reading order."""
    makers = (
        _overlays, tradeoff, updates, _accuracy, comparisons, timings, side_by_side, drives,
        _adaptation,
        _label_free, _calibration, machine_state, machines, others,
    )  # fmt: skip
    found = [section for make in makers if (section := make(records)) is not None]
    return [*found, _artefacts(records)]


def _accuracy(records: Records) -> Chapter | None:
    lead, svgs, grids = [], [], []
    pairs = adaptation_pairs(records)
    quantized = [pair for model in int8_models(records) for pair in model.scores if pair[0]]
    for group in records.comparable():
        classes, data = group[0].label_space.classes, data_of(group[0])
        names = distinct([e.name for e in group])
        svgs.append(
            plots.class_bars(
                classes,
                {name: e.iou for name, e in zip(names, group, strict=True)},
                {name for name, e in zip(names, group, strict=True) if e.precision == "int8"},
                f"IoU per class of {', '.join(names)}, {data}; the figures are in the table",
            )
        )
        changes = [(f"{b.name} {MINUS} {a.name}", a, b) for a, b in pairs if b in group]
        changes += [
            (f"{b.name} {MINUS} {a.name}", a, b)
            for a, b in quantized
            if a is not None and b in group
        ]
        lead.append(
            Grid(
                f"mIoU in percent, {data}",
                ["model", "precision", "mIoU", "pixel accuracy"],
                [
                    [name, e.precision, as_percent(e.miou, ""), as_percent(e.pixel_accuracy, "")]
                    for name, e in zip(names, group, strict=True)
                ],
            )
        )
        truth = group[0].confusion.sum(1)
        share = truth / max(1, int(truth.sum()))
        rows = [
            [name, f"{100 * share[k]:.2f}", *(as_percent(float(e.iou[k]), "") for e in group)]
            for k, name in enumerate(classes)
        ]
        differences = [
            [name, *(as_points(float(b.iou[k] - a.iou[k])) for _, a, b in changes)]
            for k, name in enumerate(classes)
        ]
        for name, attribute in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy")):
            rows.append([name, "", *(as_percent(getattr(e, attribute), "") for e in group)])
            differences.append(
                [name]
                + [as_points(getattr(b, attribute) - getattr(a, attribute)) for _, a, b in changes]
            )
        for subset, counted in group[0].subsets().items():
            title = f"mIoU of {subset}: {len(counted)} of {len(classes)} classes"
            rows.append([title, "", *(as_percent(e.miou_over(counted), "") for e in group)])
            differences.append(
                [title]
                + [as_points(b.miou_over(counted) - a.miou_over(counted)) for _, a, b in changes]
            )
        strong = frozenset({len(classes)})
        columns = ["class", "% of pixels", *names]
        grids.append(Grid(f"IoU in percent, {data}", columns, rows, strong))
        if changes:
            columns = ["class", *(name for name, _, _ in changes)]
            grids.append(Grid(f"Changes of IoU in points, {data}", columns, differences, strong))
        looked_at = [
            [name, *_pass(one)]
            for name, e in zip(names, group, strict=True)
            for one in e.passes or ()
        ]
        if looked_at:
            columns = ["model", "frames", "frame", "scale", "resized to", "window", "windows"]
            grids.append(Grid(f"How the frames were looked at, {data}", columns, looked_at))
    if not grids:
        return None
    text = [
        "IoU is counted over all pixels of all images together. mIoU is the mean over the classes "
        "that occur in the labels; ignored pixels do not count. A dash is a class that is neither "
        "in the labels nor predicted."
    ]
    return Chapter("accuracy", "Accuracy per class", text, lead, svgs, grids)


def _pass(record: dict[str, Any]) -> list[str]:
    """Return the cells of one pass of an evaluation; sizes are width x height."""
    frame, seen, window = (f"{record[k][1]} x {record[k][0]}" for k in ("frame", "seen", "window"))
    count, scale = as_text(record.get("frames")), as_text(record["scale"])
    return [count, frame, scale, seen, window, as_text(record["windows"])]


def _overlays(records: Records) -> Chapter | None:
    sets = records.predictions
    if not sets:
        return None
    counts: dict[Path, int] = {}
    notes = {frame: note for s in sets for frame, note in s.notes.items()}
    for frame in (frame for s in sets for frame in s.labels):
        counts[frame] = counts.get(frame, 0) + 1
    shared = [frame for frame, count in counts.items() if count == max(counts.values())]
    # Spread over the list: neighbours in a video look alike.
    chosen = np.unique(np.linspace(0, len(shared) - 1, MAX_FRAMES).round().astype(int))
    strips = []
    for frame in (shared[i] for i in (chosen if shared else [])):
        try:
            own = [s.shown.get(frame, frame) for s in sets if frame in s.labels]
            images = {path: read_image(path) for path in dict.fromkeys(own)}
            image = images[own[0]]
        except DataError as err:
            records.leave_out(f"A frame is not shown. {err}")
            continue
        pictures = [Picture("camera", plots.overlay(image), f"Camera frame {frame.name}")]
        for s in (s for s in sets if frame in s.labels):
            try:
                label = read_label(s.labels[frame])
            except DataError as err:
                records.leave_out(f"A prediction is not shown. {err}")
                continue
            alt = f"{frame.name} with the classes of {s.name}: {_content(label, s.space)}"
            pictures.append(
                Picture(
                    s.name, plots.overlay(images[s.shown.get(frame, frame)], label, s.space), alt
                )
            )
        title = f"{frame.name}: {notes[frame]}" if frame in notes else frame.name
        strips.append(Strip(title, pictures))
    legend = dict.fromkeys(
        ("#" + bytes(color).hex(), name)
        for s in sets
        for name, color in zip(s.space.classes, s.space.palette, strict=True)
    )
    text = [
        f"{len(strips)} of {len(counts)} frames, the same for every model"
        + (
            ": some on which the chosen model is worst, some typical ones."
            if notes
            else ", spread over the list."
        )
        + " They illustrate; they do not measure. Choose one model to see it large; the arrow "
        "keys then switch between models in place. The slider draws one over another."
    ]
    return Chapter(
        "frames", "The same frames before and after", text, strips=strips, legend=list(legend),
        slider=_before_and_after(strips),
    )  # fmt: skip


def _before_and_after(strips: Sequence[Strip]) -> tuple[int, int] | None:
    """Return which two pictures of the strips the slider begins with; None without two."""
    if not strips or len({tuple(p.name for p in s.pictures) for s in strips}) > 1:
        return None
    names = [picture.name for picture in strips[0].pictures]
    models = [i for i, name in enumerate(names) if name not in ("camera", TRUTH)] or list(
        range(len(names))
    )
    return models[0] if len(models) > 1 else 0, models[-1]


def before_and_after(sections: Sequence[Chapter]) -> tuple[Strip, Sequence[tuple[str, str]]] | None:
    """Return one frame under the first and the last network, and its colours; None without one.

    A single network is held against the bare camera frame. A typical frame speaks for more of the
    drive than one of the worst, which all follow below.
    """
    frames = next((s for s in sections if s.anchor == "frames"), None)
    if frames is None:
        return None
    for strip in sorted(frames.strips, key=lambda strip: "typical" not in strip.frame):
        pair = _before_and_after([strip])
        if pair is not None and pair[0] != pair[1]:
            pictures = [strip.pictures[i] for i in pair]
            return Strip(strip.frame, pictures), frames.legend
    return None


def _content(label: LabelMap, space: LabelSpace) -> str:
    """Describe a label map in words: its three largest classes."""
    counts = np.bincount(label.ravel(), minlength=256)[: len(space)]
    order = [k for k in np.argsort(-counts, kind="stable")[:3] if counts[k]]
    return ", ".join(f"{space.classes[k]} {100 * counts[k] / label.size:.0f} %" for k in order)


SIGNALS: Mapping[str, tuple[str, float]] = {
    "flip_agreement": ("mirror image, %", 100),
    "view_agreement": ("recoloured, IoU %", 100),
    "start_agreement": ("as at the start, %", 100),
    "confidence": ("confidence, %", 100),
    "entropy": ("entropy, %", 100),
    "neighbourhood_density": ("density", 1),
    "divergence": ("divergence, %", 100),
}
"""Label-free signals of an adaptation's networks: what tables call them, and their factor there."""


def _adaptation(records: Records) -> Chapter | None:
    stages = records.stages
    if not stages:
        return None
    columns = ["stage", "method", "steps", "seconds", "seed", "recipe sha256"]
    svgs = [
        plots.curves(
            t.curve, f"Loss, kept pixels and thresholds over the steps of {t.name}", t.name
        )
        for t in stages
        if t.curve.drawn
    ]
    rows = [
        [
            t.name, t.method, as_text(t.steps), DASH if t.seconds is None else f"{t.seconds:.0f}",
            as_text(t.seed), as_text(t.recipe_sha256),
        ]
        for t in stages
    ]  # fmt: skip
    grid = Grid("Stages of adaptation", columns, rows)
    return Chapter("adaptation", "Adaptation", svgs=svgs, grids=[grid])


def _label_free(records: Records) -> Chapter | None:
    watched = [t for t in records.stages if t.signals]
    if not watched:
        return None
    columns = ["stage", "step", *(title for title, _ in SIGNALS.values()), "alarm"]
    rows = [
        [
            t.name,
            f"{line.step}{', taken' if line.chosen else ''}",
            *(f"{factor * getattr(line, key):.1f}" for key, (_, factor) in SIGNALS.items()),
            line.alarm or "none",
        ]
        for t in watched
        for line in t.signals
    ]
    text = [
        "Measured on a few target frames, without labels. These figures show whether a network "
        "agrees with itself and whether its classes stay in proportion. A network can be sure, "
        "consistent and wrong: they are no substitute for mIoU."
    ]
    svgs = [
        plots.signals(t.signals, f"Label-free signals over the steps of {t.name}", t.name)
        for t in watched
        if len(t.signals) > 1
    ]
    grids = [Grid("Label-free signals", columns, rows)]
    first = next(record for record in records.adaptations if any(t.signals for t in record.stages))
    if len(first.classes) == len(first.source_shares):
        shown: list[tuple[str, Sequence[float]]] = [
            ("source labels", first.source_shares),
            ("start", watched[0].signals[0].histogram),
        ]
        shown += [(t.name, x.histogram) for t in watched for x in t.signals if x.chosen]
        shares = [
            [name, *(f"{100 * values[index]:.2f}" for _, values in shown)]
            for index, name in enumerate(first.classes)
        ]
        heads = ["class", *(head for head, _ in shown)]
        grids.append(
            Grid("Share of the pixels, %: source labels, predictions on target", heads, shares)
        )
    title = "What the networks say without labels"
    return Chapter("label-free", title, text, svgs=svgs, grids=grids)


def _calibration(records: Records) -> Chapter | None:
    if not records.calibrations:
        return None
    named = [
        (name.removesuffix(".calibration.json"), record) for name, record in records.calibrations
    ]
    columns = [
        "model", "runtime", "rule", "ranges from", "agreement, %", "worst frame, %",
        "confidence, points", "mIoU, points", "convolutions in INT8", "verdict",
    ]  # fmt: skip
    rows = [_calibration_row(name, record) for name, record in named]
    grids = [Grid("Calibrations compared", columns, rows)]
    for name, record in named:
        hidden = {"schema", "acceptance", "assignment", "convergence"}
        facts = {key: value for key, value in record.to_record().items() if key not in hidden}
        if record.assignment is not None:
            facts["kept float"] = list(record.assignment.kept_float)
        if record.acceptance is not None:
            facts["reasons"] = list(record.acceptance.reasons)
        grids.append(
            Grid(f"Calibration {name}", ["fact", "value"], list(map(list, flatten(facts).items())))
        )
        if record.acceptance is not None:
            classes = [
                [
                    found, f"{100 * entry.share:.2f}",
                    DASH if entry.iou is None else f"{100 * entry.iou:.1f}", entry.became or DASH,
                ]
                for found, entry in record.acceptance.classes.items()
            ]  # fmt: skip
            grids.append(
                Grid(
                    f"Classes of {name}, FP32 against INT8",
                    ["class", "% of pixels", "IoU, %", "lost pixels mostly become"],
                    classes,
                )
            )
    text = [
        "Agreement is the share of pixels on which INT8 and FP32 give the same class. "
        "It needs no labels and is not accuracy."
    ]
    svgs = [svg for name, record in named for svg in _calibration_curves(name, record)]
    if svgs:
        text.append(
            "The curves show how much of the final ranges the first frames show, and what mixed "
            "precision loses at each share of INT8."
        )
    return Chapter("calibration", "INT8 calibration", text, svgs=svgs, grids=grids)


def _calibration_curves(name: str, record: CalibrationRecord) -> list[str]:
    """Return plots of what the ranges and the budget of a calibration came to."""
    found = []
    if len(record.convergence) > 1:
        label = f"Share of the final ranges that the first frames of {name} show"
        found.append(plots.convergence(record.convergence, label, name))
    chosen = record.assignment
    if chosen is not None and len(chosen.curve) > 1:
        points = [(100 * step.int8_share, 100 * step.drop) for step in chosen.curve]
        label = f"Drop of {name} against its INT8 share"
        found.append(plots.drop_curve(points, 100 * chosen.max_drop, chosen.measure, label))
    return found


def _calibration_row(name: str, record: CalibrationRecord) -> list[str]:
    found, scores, layers = record.acceptance, record.scores, record.layers
    return [
        name,
        record.runtime,
        record.rule,
        ", ".join(f"{count} of {folder}" for folder, count in record.folders.items())
        or str(len(record.frames)),
        as_percent(record.agreement, ""),
        DASH if found is None else f"{100 * min(found.frame_agreement):.1f}",
        DASH if found is None else signed(100 * found.confidence_shift),
        DASH if not scores else signed(100 * (scores["int8"] - scores["fp32"])),
        f"{sum(layer.int8 for layer in layers)} of {len(layers)}" if layers else DASH,
        DASH if found is None else "accepted" if found.accepted else "not accepted",
    ]


def _artefacts(records: Records) -> Chapter:
    models: dict[str, list[str]] = {}
    for m in (m for bench in records.benches for m in bench.models):
        size = f"{m.size_bytes / 1e6:.2f} MB"
        row = [m.name, m.precision, m.file, as_size(m.input), size, m.sha256 or DASH]
        models.setdefault(m.sha256 or m.name, row)
    for e in records.evaluations:
        row = [e.name, e.precision, e.model_file, DASH, DASH, e.model_sha256]
        models.setdefault(e.model_sha256, row)
    columns = ["model", "precision", "file", "input", "size", "sha256"]
    labels = {
        e.labels_sha256: [e.data_folder, str(e.images), e.label_space.name, e.labels_sha256]
        for e in records.evaluations
    }
    files = [[r["record"]["schema"], r["file"], r["sha256"]] for r in records.raw]
    grids = [
        Grid("Models", columns, list(models.values())),
        Grid("Labels", ["folder", "images", "label space", "sha256"], list(labels.values())),
        Grid("Records in this report", ["schema", "file", "sha256"], files),
    ]
    return Chapter("artefacts", "Artefacts", grids=[grid for grid in grids if grid.rows])
