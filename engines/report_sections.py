"""The chapters of a report: tables, plots and overlays of its records."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeuda.data.images import LabelMap, read_image, read_label
from edgeuda.errors import DataError
from edgeuda.labels import LabelSpace
from engines import plots
from engines.pareto import dominators
from engines.report_findings import adaptation_pairs, int8_models
from engines.report_records import SIGNALS, Bench, Records
from engines.report_text import (
    DASH,
    MINUS,
    as_interval,
    as_ms,
    as_percent,
    as_points,
    as_text,
    as_time,
    data_of,
    distinct,
    flatten,
    signed,
)

MAX_FRAMES = 6
NUMBER = re.compile(rf"[+{MINUS}]?\d[\d.]{{0,11}}( %| MB)?( \[.*\])?|{DASH}")


@dataclass(frozen=True)
class Grid:
    """A table of the report; ``strong`` are the indices of emphasised rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()

    @property
    def numeric(self) -> list[bool]:
        """Per column, whether it holds numbers only and is set to the right."""
        return [
            all(NUMBER.fullmatch(row[i]) or not row[i] for row in self.rows)
            for i in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Picture:
    """An image: what made it, its data URI, and a description for those who cannot see it."""

    name: str
    uri: str
    alt: str


@dataclass(frozen=True)
class Strip:
    """One camera frame, plain and under each prediction."""

    frame: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """A chapter of the report; ``lead`` are small tables that belong to the text.

    With ``selector``, readers choose which of a strip's pictures they see.
    """

    anchor: str
    title: str
    text: Sequence[str] = ()
    lead: Sequence[Grid] = ()
    svgs: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    strips: Sequence[Strip] = ()
    legend: Sequence[tuple[str, str]] = ()
    selector: bool = True

    @property
    def views(self) -> list[str]:
        """The names of the pictures in the strips, each once."""
        return list(dict.fromkeys(p.name for strip in self.strips for p in strip.pictures))


def sections_of(records: Records) -> list[Section]:
    """Return the chapters that the records have something for, in reading order."""
    makers = (
        _tradeoff, _accuracy, _timings, _overlays, _adaptation, _label_free, _calibration,
        _machines,
    )  # fmt: skip
    found = [section for make in makers if (section := make(records)) is not None]
    return [*found, _artefacts(records)]


def _tradeoff(records: Records) -> Section | None:
    if not records.evaluations or not records.benches:
        return None
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
                "model",
                "precision",
                "backend",
                "mIoU",
                "median ms [interval]",
                "on the front",
            ]
            best_rows = frozenset(i for i, by in enumerate(better) if by is None)
            grids.append(Grid(f"Measured on {place}", columns, rows, best_rows))
    names = [e.name for e in records.evaluations if e.model_sha256 not in joined]
    names += [m.name for bench in records.benches for m in bench.models if m.sha256 not in joined]
    text = [
        "Models are joined by the checksum of their file. A filled marker lies on "
        "the Pareto front: no other model is faster and at least as accurate, or as fast and more "
        "accurate."
    ]
    if names:
        text.append(
            "Not shown, because no file of that checksum was both evaluated and benchmarked: "
            f"{', '.join(dict.fromkeys(names))}."
        )
    return Section("tradeoff", "Accuracy against latency", text, svgs=svgs, grids=grids)


def _accuracy(records: Records) -> Section | None:
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
        columns = ["class", "% of pixels", *names, *(name for name, _, _ in changes)]
        rows = [
            [
                name, f"{100 * share[k]:.2f}",
                *(as_percent(float(e.iou[k]), "") for e in group),
                *(as_points(float(b.iou[k] - a.iou[k])) for _, a, b in changes),
            ]
            for k, name in enumerate(classes)
        ]  # fmt: skip
        for name, attribute in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy")):
            scores = [as_percent(getattr(e, attribute), "") for e in group]
            differences = [
                as_points(getattr(b, attribute) - getattr(a, attribute)) for _, a, b in changes
            ]
            rows.append([name, "", *scores, *differences])
        caption = f"IoU in percent, changes in points, {data}"
        grids.append(Grid(caption, columns, rows, frozenset({len(classes)})))
    if not grids:
        return None
    text = [
        "IoU is counted over all pixels of all images together. mIoU is the mean over the classes "
        "that occur in the labels; ignored pixels do not count. A dash is a class that is neither "
        "in the labels nor predicted."
    ]
    return Section("accuracy", "Accuracy per class", text, lead, svgs, grids)


def _timings(records: Records) -> Section | None:
    svgs, grids = [], []
    for bench in records.benches:
        samples = {
            name: m.samples[m.end_to_end_stage]
            for name, m in zip(distinct([m.name for m in bench.models]), bench.models, strict=True)
            if m.end_to_end_stage in m.samples
        }
        place = bench.machine_name
        if samples:
            label = f"Share of frames done within a time on {place}: {', '.join(samples)}"
            svgs.append(plots.latency_ecdf(samples, label))
        if bench.models:
            grids.append(_latency_grid(bench))
        if bench.ratios:
            rows = [
                [
                    r.candidate, r.baseline, f"{r.speedup:.3f}", f"{r.low:.3f} to {r.high:.3f}",
                    "faster" if r.low > 1 else "slower" if r.high < 1 else "within noise",
                ]
                for r in bench.ratios
            ]  # fmt: skip
            columns = ["model", "against", "speed-up", "interval", "reading"]
            grids.append(
                Grid(f"Inference speed-up, median of the ratios, on {place}", columns, rows)
            )
    if not grids:
        return None
    text = [
        "Milliseconds. Brackets hold the confidence interval of the median. Every sample counts, "
        "none was removed as an outlier; a dash is a percentile that the number of samples does "
        "not support, or a value that was not recorded. Drift is the median of the last third of "
        "the samples against the first third. Stages do not add up to the total's median or "
        "percentiles, because each is ordered by itself."
    ]
    return Section("latency", "Latency", text, svgs=svgs, grids=grids)


def _latency_grid(bench: Bench) -> Grid:
    percents = sorted({p for m in bench.models for t in m.stages.values() for p in t.percentiles})
    columns = [
        "model",
        "stage",
        "n",
        "min",
        "mean",
        *(f"p{p:g}" for p in percents),
        "max",
        "jitter",
    ]
    rows: list[list[str]] = []
    strong = set()
    for m in bench.models:
        for stage, t in m.stages.items():
            if stage == m.end_to_end_stage:
                strong.add(len(rows))
            values = [
                as_ms(t.percentiles[p]) + (as_interval(t.interval) if p == 50 else "")
                if p in t.percentiles
                else DASH
                for p in percents
            ]
            ends = (
                [as_ms(x) for x in (t.minimum, t.mean)],
                [as_ms(x) for x in (t.maximum, t.jitter)],
            )
            drift = _drift(m.samples.get(stage, ()))
            rows.append([m.name, stage, str(t.n), *ends[0], *values, *ends[1], drift])
    caption = f"Latency on {bench.machine_name}, measured {as_time(bench.created)}"
    return Grid(caption, [*columns, "drift"], rows, frozenset(strong))


def _drift(samples: Sequence[float]) -> str:
    third = len(samples) // 3
    if third < 10:
        return DASH
    first, last = np.median(samples[:third]), np.median(samples[-third:])
    return signed(100 * (last / first - 1)) + " %" if first > 0 else DASH


def _overlays(records: Records) -> Section | None:
    sets = records.predictions
    if not sets:
        return None
    counts: dict[Path, int] = {}
    for frame in (frame for s in sets for frame in s.labels):
        counts[frame] = counts.get(frame, 0) + 1
    shared = [frame for frame, count in counts.items() if count == max(counts.values())]
    # Spread over the list: neighbours in a video look alike.
    chosen = np.unique(np.linspace(0, len(shared) - 1, MAX_FRAMES).round().astype(int))
    strips = []
    for frame in (shared[i] for i in (chosen if shared else [])):
        try:
            image = read_image(frame)
        except DataError as err:
            records.notes.append(f"A frame is not shown. {err}")
            continue
        pictures = [Picture("camera", plots.overlay(image), f"Camera frame {frame.name}")]
        for s in (s for s in sets if frame in s.labels):
            try:
                label = read_label(s.labels[frame])
            except DataError as err:
                records.notes.append(f"A prediction is not shown. {err}")
                continue
            alt = f"{frame.name} with the classes of {s.name}: {_content(label, s.space)}"
            pictures.append(Picture(s.name, plots.overlay(image, label, s.space), alt))
        strips.append(Strip(frame.name, pictures))
    legend = dict.fromkeys(
        ("#" + bytes(color).hex(), name)
        for s in sets
        for name, color in zip(s.space.classes, s.space.palette, strict=True)
    )
    text = [
        f"{len(strips)} of {len(counts)} frames, the same for every model, spread over the list. "
        "They illustrate; they do not measure. Choose one model to see it large; the arrow keys "
        "then switch between models in place."
    ]
    return Section(
        "frames", "The same frames before and after", text, strips=strips, legend=list(legend)
    )


def _content(label: LabelMap, space: LabelSpace) -> str:
    """Describe a label map in words: its three largest classes."""
    counts = np.bincount(label.ravel(), minlength=256)[: len(space)]
    order = [k for k in np.argsort(-counts, kind="stable")[:3] if counts[k]]
    return ", ".join(f"{space.classes[k]} {100 * counts[k] / label.size:.0f} %" for k in order)


def _adaptation(records: Records) -> Section | None:
    if not records.trainings:
        return None
    columns = ["stage", "method", "steps", "seconds", "seed", "recipe sha256"]
    svgs = [
        plots.curves(
            t.curve, f"Loss, kept pixels and thresholds over the steps of {t.name}", t.name
        )
        for t in records.trainings
        if t.curve
    ]
    grid = Grid("Stages of adaptation", columns, [t.cells for t in records.trainings])
    return Section("adaptation", "Adaptation", svgs=svgs, grids=[grid])


def _label_free(records: Records) -> Section | None:
    watched = [t for t in records.trainings if t.signals]
    if not watched:
        return None
    columns = ["stage", "step", *(title for title, _ in SIGNALS.values()), "alarm"]
    rows = [
        [
            t.name,
            f"{line['step']}{', taken' if line['chosen'] else ''}",
            *(f"{factor * line[key]:.1f}" for key, (_, factor) in SIGNALS.items()),
            line["alarm"] or "none",
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
    first = watched[0]
    if len(first.classes) == len(first.source_shares):
        taken = [(t.name, x["histogram"]) for t in watched for x in t.signals if x["chosen"]]
        shown = [("source labels", first.source_shares), ("start", first.signals[0]["histogram"])]
        shown += taken
        shares = [
            [name, *(f"{100 * values[index]:.2f}" for _, values in shown)]
            for index, name in enumerate(first.classes)
        ]
        heads = ["class", *(head for head, _ in shown)]
        grids.append(
            Grid("Share of the pixels, %: source labels, predictions on target", heads, shares)
        )
    title = "What the networks say without labels"
    return Section("label-free", title, text, svgs=svgs, grids=grids)


def _calibration(records: Records) -> Section | None:
    if not records.calibrations:
        return None
    named = [
        (name.removesuffix(".calibration.json"), record) for name, record in records.calibrations
    ]
    columns = [
        "model", "for", "rule", "ranges from", "agreement, %", "worst frame, %",
        "confidence, points", "mIoU, points", "convolutions in INT8", "verdict",
    ]  # fmt: skip
    rows = [_calibration_row(name, record) for name, record in named]
    grids = [Grid("Calibrations compared", columns, rows)]
    for name, record in named:
        hidden = {"schema", "acceptance", "assignment", "convergence"}
        facts = {key: value for key, value in record.items() if key not in hidden}
        if record.get("assignment"):
            facts["kept float"] = record["assignment"]["kept_float"]
        if record.get("acceptance"):
            facts["reasons"] = record["acceptance"]["reasons"]
        grids.append(
            Grid(f"Calibration {name}", ["fact", "value"], list(map(list, flatten(facts).items())))
        )
        if record.get("acceptance"):
            classes = [
                [
                    found, f"{100 * entry['share']:.2f}",
                    DASH if entry["iou"] is None else f"{100 * entry['iou']:.1f}",
                    entry["became"] or DASH,
                ]
                for found, entry in record["acceptance"]["classes"].items()
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
    return Section("calibration", "INT8 calibration", text, grids=grids)


def _calibration_row(name: str, record: dict[str, Any]) -> list[str]:
    """Return a row; a record of an earlier version lacks some of it."""
    found, scores = record.get("acceptance"), record.get("scores")
    layers, folders = record.get("layers", ()), record.get("folders", {})
    return [
        name,
        as_text(record.get("target")),
        as_text(record.get("rule")),
        ", ".join(f"{count} of {folder}" for folder, count in folders.items())
        or str(len(record.get("frames", ()))),
        as_percent(record.get("agreement", math.nan), ""),
        DASH if not found else f"{100 * min(found['frame_agreement']):.1f}",
        DASH if not found else signed(100 * found["confidence_shift"]),
        DASH if not scores else signed(100 * (scores["int8"] - scores["fp32"])),
        f"{sum(layer['int8'] for layer in layers)} of {len(layers)}" if layers else DASH,
        DASH if not found else "accepted" if found["accepted"] else "not accepted",
    ]


def _machines(records: Records) -> Section | None:
    if not records.benches:
        return None
    grids = []
    for bench in records.benches:
        for what, facts in (("Machine", bench.machine), ("Method", bench.method)):
            rows = [[key.replace("_", " "), value] for key, value in facts.items()]
            caption = f"{what} of {bench.origin}, {as_time(bench.created)}"
            grids.append(Grid(caption, ["fact", "value"], rows or [["not recorded", DASH]]))
    return Section("machine", "Machine and method of measurement", grids=grids)


def _artefacts(records: Records) -> Section:
    models: dict[str, list[str]] = {}
    for m in (m for bench in records.benches for m in bench.models):
        size = DASH if m.size_bytes is None else f"{m.size_bytes / 1e6:.2f} MB"
        row = [m.name, m.precision, m.file, m.input, size, m.sha256 or DASH]
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
    return Section("artefacts", "Artefacts", grids=[grid for grid in grids if grid.rows])
