"""The page of one calibration: verdict, worst frames, sensitivity, ranges and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration.frame_choice import enough
from calibration.frames import FrameFiles
from calibration.observe import Observer
from calibration.range_file import RangeFile
from calibration.ranges import Histogram
from calibration.source import load_fp32
from edgeuda import schemas
from edgeuda.data.treatment import read_frame
from edgeuda.errors import require
from edgeuda.labels import hex_color
from edgeuda.records.calibration import Acceptance, Assignment, CalibrationRecord, Range
from engines.report import plots
from engines.report.findings import Finding
from engines.report.page import Page, write_page
from engines.report.parts import Chapter, Grid, Picture, Strip
from engines.report.text import DASH, as_percent, signed

SCHEMA = schemas.CALIBRATION_PAGE
BARS = 48
"""Bars of a small histogram."""


def build_calibration_page(
    record: CalibrationRecord,
    model: Path,
    quantized: Path,
    judged: Sequence[Path],
    ranges: Path,
    out: Path,
) -> list[Path]:
    """Write a calibration as an HTML page, with its data as JSON and a Markdown form beside it.

    Args:
        record: What `calibrate` returned.
        model: The FP32 model it was made from.
        quantized: The INT8 model.
        judged: The frames by which it was judged.
        ranges: The file of histograms.
        out: Name of the page, ending in ``.html``.

    Returns:
        The files written: HTML, JSON, Markdown.
    """
    found = record.acceptance
    assert found is not None
    sections = [
        _frames(found, model, quantized, judged),
        _classes(found),
        *([] if record.assignment is None else [_sensitivity(record.assignment)]),
        *([_ranges(record, RangeFile.read(ranges).histograms)] if ranges.exists() else []),
        _layers(record),
    ]
    page = Page(
        f"INT8 of {record.model} for {record.runtime}",
        f"Ranges by rule {record.rule} from {len(record.frames)} frames; judged on "
        f"{len(found.frames)} target frames, without labels.",
        _verdicts(record, found),
        sections,
    )
    merged = {**record.to_record(), "schema": SCHEMA, "created": page.created}
    return write_page(page, merged, [out, out.with_suffix(".json"), out.with_suffix(".md")])


def _verdicts(record: CalibrationRecord, found: Acceptance) -> list[Finding]:
    kept = f"{as_percent(found.agreement)} of the pixels keep their class"
    limits = (
        f"Wanted: at least {as_percent(found.limits.agreement)} of the pixels, and for every class "
        f"on 0.1 % of them an IoU with FP32 of {as_percent(found.limits.class_agreement)}. "
        "Agreement is not accuracy: a pixel that changes may become right."
    )
    verdicts = [
        Finding("INT8", "good", f"INT8 is accepted: {kept}", limits)
        if found.accepted
        else Finding("INT8", "bad", f"INT8 is not accepted: {'; '.join(found.reasons)}", limits)
    ]
    if record.scores is not None:
        drop = 100 * (record.scores["int8"] - record.scores["fp32"])
        verdicts.append(
            Finding(
                "mIoU",
                "stated",
                f"On {record.scores['images']:.0f} labelled images INT8 scores "
                f"{as_percent(record.scores['int8'])}, {signed(drop)} points to FP32",
            )
        )
    if record.assignment is not None:
        kept_float = record.assignment.kept_float
        verdicts.append(
            Finding(
                "Mixed precision",
                "good" if record.assignment.met else "bad",
                ("Float stay: " + ", ".join(kept_float))
                if kept_float
                else "No block has to stay float",
                f"Budget: {100 * record.assignment.max_drop:g} points of "
                f"{record.assignment.measure}.",
            )
        )
    return verdicts


def _frames(found: Acceptance, model: Path, quantized: Path, judged: Sequence[Path]) -> Chapter:
    fp32, spec = load_fp32(model)
    size = spec.preprocessing
    paths = [judged[position] for position in found.worst]
    frames = FrameFiles.of(paths, size)
    onnx = require("onnx", "quantize")
    before, after = Observer(fp32), Observer(onnx.load(quantized))
    strips = []
    for number, (position, path) in enumerate(zip(found.worst, paths, strict=True)):
        image = read_frame(path, size.geometry)
        one, two = before(frames[number]).labels, after(frames[number]).labels
        changed = np.where(one == two, 255, two).astype(np.uint8)
        pictures = [
            Picture(name, plots.overlay(image, labels, spec.label_space, width=420), alt)
            for name, labels, alt in (
                ("FP32", one, "Classes in FP32"),
                ("INT8", two, "Classes in INT8"),
                ("changed", changed, "INT8's class where it differs from FP32"),
            )
        ]
        strips.append(
            Strip(f"{path.name}: {as_percent(found.frame_agreement[position])} agree", pictures)
        )
    rows = [[f"{100 * value:.1f}" for value in row] for row in found.regions]
    agreements = np.array(found.frame_agreement)
    text = [
        f"Frames agree by {as_percent(float(agreements.min()))} to "
        f"{as_percent(float(agreements.max()))}, median "
        f"{as_percent(float(np.median(agreements)))}. Mean confidence of FP32 is "
        f"{as_percent(found.confidence)}, INT8's is {signed(100 * found.confidence_shift)} points "
        f"from it; the class probabilities diverge by {found.divergence:.4f} nats.",
    ]
    return Chapter(
        "frames",
        "Where INT8 differs",
        text,
        grids=[Grid("Agreement by part of the image, %, top row first", ["", "", "", ""], rows)],
        strips=strips,
        legend=[
            (hex_color(color), name)
            for name, color in zip(spec.label_space.classes, spec.label_space.palette, strict=True)
        ],
        selector=False,
    )


def _classes(found: Acceptance) -> Chapter:
    rows = [
        [
            name,
            f"{100 * entry.share:.2f}",
            DASH if entry.iou is None else f"{100 * entry.iou:.1f}",
            entry.became or DASH,
        ]
        for name, entry in found.classes.items()
    ]
    columns = ["class", "% of pixels in FP32", "IoU with FP32, %", "lost pixels mostly become"]
    return Chapter("classes", "Classes", grids=[Grid("FP32 against INT8", columns, rows)])


def _sensitivity(assignment: Assignment) -> Chapter:
    kept = set(assignment.kept_float)
    rows = [
        [
            effect.group,
            "float" if effect.group in kept else "INT8",
            str(len(effect.convs)),
            f"{100 * effect.share:.1f}",
            f"{100 * effect.disagreement:.2f}",
            f"{effect.divergence:.5f}",
        ]
        for effect in assignment.effects
    ]
    columns = [
        "block", "chosen", "convolutions", "% of multiplications", "% of pixels changed",
        "divergence, nats",
    ]  # fmt: skip
    curve = [(100 * step.int8_share, 100 * step.drop) for step in assignment.curve]
    text = [
        "Each block was quantized alone. Blocks return to float in this order, the most divergence "
        "per multiplication first, until the budget is kept."
    ]
    svg = plots.drop_curve(
        curve, 100 * assignment.max_drop, assignment.measure, "Drop against INT8 share"
    )
    return Chapter(
        "sensitivity",
        "Sensitivity",
        text,
        svgs=[svg],
        grids=[Grid("One block in INT8", columns, rows)],
    )


def _ranges(record: CalibrationRecord, histograms: dict[str, Histogram]) -> Chapter:
    rows = []
    panels = []
    for name, limits in record.ranges.items():
        histogram = histograms[name]
        rows.append(
            [
                name,
                f"{histogram.low:.4g}",
                f"{histogram.high:.4g}",
                f"{limits.low:.4g}",
                f"{limits.high:.4g}",
                f"{100 * _outside(histogram, limits):.4f}",
            ]
        )
        counts = np.add.reduceat(histogram.counts, np.arange(BARS) * len(histogram.counts) // BARS)
        panels.append(
            (name, histogram.low, histogram.high, counts.tolist(), (limits.low, limits.high))
        )
    columns = ["activation", "lowest", "highest", "from", "to", "% saturated"]
    svgs = [
        plots.convergence(record.convergence, "Share of the ranges that the first frames show"),
        plots.histograms(panels, "Histograms of the activations with their ranges"),
    ]
    text = [
        f"{enough(record.convergence)} of {len(record.frames)} frames show 98 % of the ranges, "
        "averaged over activations and orders of the frames. Grey areas saturate."
    ]
    return Chapter(
        "ranges",
        "Ranges",
        text,
        svgs=svgs,
        grids=[Grid("Activations", columns, rows)],
    )


def _outside(histogram: Histogram, limits: Range) -> float:
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    out = (centres < min(limits.low, 0)) | (centres > max(limits.high, 0))
    return float(histogram.counts[out].sum() / max(histogram.counts.sum(), 1))


def _layers(record: CalibrationRecord) -> Chapter:
    rows = [
        [
            layer.weight,
            "INT8" if layer.int8 else "float",
            "integers" if layer.compiled else "float",
        ]
        for layer in record.layers
    ]
    text = [
        f"{sum(layer.int8 for layer in record.layers)} of {len(record.layers)} convolutions are "
        f"placed in INT8. ONNX Runtime runs {record.int8_convs} of {record.convs} in integers on "
        "this machine's CPU; what another runtime does is seen on that runtime only."
    ]
    return Chapter(
        "layers",
        "Layers",
        text,
        grids=[Grid("Convolutions", ["weight", "placed in", "run in, here"], rows)],
    )
