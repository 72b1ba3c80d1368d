"""Pictures of the report: plots as inline SVG, overlays as data URIs."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeuda.data.images import Image, LabelMap, encode_jpeg, paint, resize_label, scaled
from edgeuda.labels import LabelSpace
from edgeuda.records.comparison import ORACLE, ComparisonRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edgeuda.records.adaptation import MeasuredNetwork, StageCurve

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
"""Okabe and Ito's colour-blind-safe palette without its yellow, which is too pale on white."""
MARKERS = "os^DvPX"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
WIDTH = 4.6
"""Inches. Narrow on purpose: text keeps a readable size when the plot fills a phone's width."""
LEGEND_LENGTH = 48
"""Characters that fit beside each other below a plot."""
LEAST_POINTS = 5.0
"""Points of mIoU that an axis spans at least: ten times what is called noise."""
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeuda",  # the same data gives the same file
    "text.parse_math": False,  # names are shown as they are, also with a dollar sign
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


def class_bars(
    classes: Sequence[str],
    rows: Mapping[str, npt.NDArray[np.float64]],
    hatched: set[str],
    label: str,
) -> str:
    """Plot grouped bars of IoU per class.

    Args:
        classes: Names by id.
        rows: ``[K]`` IoU, 0 to 1 or NaN, by model name in drawing order.
        hatched: Names drawn with hatching, which tells INT8 from FP32 without colour.
        label: Text for screen readers.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        size = 0.84 / len(rows)
        for index, (name, iou) in enumerate(rows.items()):
            axes.barh(
                np.arange(len(classes)) + (index - (len(rows) - 1) / 2) * size,
                np.nan_to_num(100 * iou),
                height=size * 0.92,
                color=COLORS[index % len(COLORS)],
                hatch="////" if name in hatched else None,
                edgecolor="white",
                linewidth=0,
                label=short(name),
            )
        axes.set_yticks(range(len(classes)), [short(name, 18) for name in classes])
        axes.set(xlim=(0, 100), ylim=(len(classes) - 0.45, -0.55), xlabel="IoU in %")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True, axis="x")
        legend_below(axes, 2)

    height = 1.1 + 0.12 * len(rows) + len(classes) * (0.1 * len(rows) + 0.1)
    return svg(draw, height, label)


def curves(curve: StageCurve, label: str, title: str) -> str:
    """Plot what one stage of training recorded.

    Args:
        curve: See `StageCurve.drawn`.
        label: Text for screen readers.
        title: Heading of the figure.
    """
    titles = {"loss": "loss", "keep": "kept pixels in %", "threshold": "class thresholds"}
    shown = [key for key in titles if getattr(curve, key)]

    def draw(figure: Figure) -> None:
        step = np.asarray(curve.step, np.float64)
        grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)
        for axes, key in zip(grid[:, 0], shown, strict=True):
            values = np.asarray(getattr(curve, key), np.float64) * (100 if key == "keep" else 1)
            if key == "threshold":
                axes.fill_between(step, values.min(1), values.max(1), color="#56B4E9", alpha=0.35)
                axes.plot(step, np.median(values, axis=1), color=COLORS[0])
            else:
                axes.plot(step, values, color=COLORS[0], lw=1.2)
            axes.set_title(
                titles[key] + (" (median, all within the band)" if key == "threshold" else ""),
                loc="left", fontsize=10,
            )  # fmt: skip
            axes.grid(visible=True)
            if key == "keep":
                axes.set_ylim(0, 100)
        grid[-1, 0].set_xlabel("step")
        figure.suptitle(short(title), x=0.01, ha="left", fontsize=11, fontweight="bold")

    return svg(draw, 0.9 + 1.3 * len(shown), label)


def signals(lines: Sequence[MeasuredNetwork], label: str, title: str) -> str:
    """Plot label-free signals of a stage over its steps.

    Args:
        lines: The networks that were measured.
        label: Text for screen readers.
        title: Heading of the figure.
    """
    shown = {
        "flip_agreement": "mirror image",
        "view_agreement": "recoloured view, IoU",
        "start_agreement": "network at the start",
        "confidence": "mean confidence",
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        steps = [line.step for line in lines]
        for index, (key, name) in enumerate(shown.items()):
            axes.plot(
                steps, [100 * getattr(line, key) for line in lines], color=COLORS[index],
                marker=MARKERS[index], ms=4, ls=LINES[index], label=name,
            )  # fmt: skip
        for line in lines:
            if line.chosen:
                axes.axvline(line.step, color="#555555", lw=0.8, ls=":")
        axes.set(xlabel="step (dotted: the network that was taken)", ylim=(0, 100))
        axes.set_title("agreement and confidence in %", loc="left", fontsize=10)
        axes.grid(visible=True)
        figure.suptitle(short(title), x=0.01, ha="left", fontsize=11, fontweight="bold")
        legend_below(axes, 2)

    return svg(draw, 3.3, label)


def comparison(record: ComparisonRecord) -> str:
    """Plot a comparison, see `methods`, as a complete SVG file."""
    return _file(methods(record, "mIoU of the methods, one dot per seed"))


def confidence_file(record: ComparisonRecord) -> str:
    """Plot a comparison, see `confidence`, as a complete SVG file."""
    return _file(confidence(record, "How many confident labels there are, and how many are right"))


def _file(drawn: str) -> str:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return drawn.replace("<svg", f"<svg {spaces}", 1)


def confidence(record: ComparisonRecord, label: str) -> str:
    """Plot the share of labels above several confidences against the share that is right.

    Each method has a line, the mean over its seeds; its points are confidences, the lowest on the
    right. What teachers choose labels by is as good as its line is high.
    """
    known = [(method.name, method.labels_kept()) for method in record.methods]
    lines = [(name, kept) for name, kept in known if kept]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (name, kept) in enumerate(lines):
            axes.plot(
                [100 * one.share for one in kept],
                [100 * one.accuracy for one in kept if one.accuracy is not None],
                color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)],
                ls=LINES[number // len(COLORS) % len(LINES)], ms=4, lw=1.2, label=short(name),
            )  # fmt: skip
        axes.set(xlabel="labels above a confidence, % of the pixels", ylabel="of them right, %")
        above = ", ".join(f"{one.above:g}" for one in reversed(lines[0][1]))
        axes.set_title(f"confidence above {above}", loc="left", fontsize=10)
        axes.grid(visible=True)
        at_least(axes, LEAST_POINTS)
        legend_below(axes, 2)

    return svg(draw, 2.8 + 0.1 * len(lines), label)


def methods(record: ComparisonRecord, label: str) -> str:
    """Plot a comparison: each seed's mIoU as a dot, the mean as a bar."""
    rows = record.methods

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, method in enumerate(rows):
            runs = method.miou.known
            color = COLORS[1] if method.trains_on == ORACLE else COLORS[0]
            axes.barh(row, method.miou.mean or 0, height=0.6, color=color, alpha=0.35, lw=0)
            axes.plot(runs, [row] * len(runs), "o", color=color, ms=4, alpha=0.9)
        axes.axvline(rows[0].miou.mean or 0, color="#555555", lw=0.8, ls="--")
        axes.set_yticks(range(len(rows)), [short(method.name) for method in rows])
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, None), xlabel="mIoU in %")
        axes.set_title("bar: mean, dots: seeds", loc="left", fontsize=10)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True, axis="x")

    return svg(draw, 0.9 + 0.28 * len(rows), label)


def share_bars(classes: Sequence[str], rows: Mapping[str, Sequence[float]], label: str) -> str:
    """Plot grouped bars of each class's share of the pixels, 0 to 1, on a logarithmic axis."""
    from matplotlib.ticker import StrMethodFormatter

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        size = 0.84 / len(rows)
        for index, (name, shares) in enumerate(rows.items()):
            axes.barh(
                np.arange(len(classes)) + (index - (len(rows) - 1) / 2) * size,
                100 * np.asarray(shares, np.float64),
                height=size * 0.92,
                color=COLORS[index % len(COLORS)],
                label=short(name),
            )
        axes.set_yticks(range(len(classes)), [short(name, 18) for name in classes])
        axes.set(xscale="log", xlim=(1e-3, 100), ylim=(len(classes) - 0.45, -0.55))
        axes.set_xlabel("share of the labelled pixels in %")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True, axis="x")
        legend_below(axes, 2)

    return svg(draw, 1.1 + len(classes) * (0.1 * len(rows) + 0.12), label)


def lightness(rows: Mapping[str, Sequence[int]], label: str) -> str:
    """Plot how many images have which mean lightness: counts in equal bins from 0 to 100."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, counts) in enumerate(rows.items()):
            edges = np.linspace(0, 100, len(counts) + 1)
            share = 100 * np.asarray(counts, np.float64) / max(1, sum(counts))
            axes.stairs(
                share, edges, lw=1.8, label=short(name), ls=LINES[index % len(LINES)],
                color=COLORS[index % len(COLORS)],
            )  # fmt: skip
        axes.set(xlim=(0, 100), ylim=(0, None), xlabel="mean lightness (CIELAB)")
        axes.set_ylabel("images in %")
        axes.grid(visible=True)
        legend_below(axes, 3)

    return svg(draw, 2.9, label)


def drop_curve(
    points: Sequence[tuple[float, float]], budget: float, measure: str, label: str
) -> str:
    """Plot what mixed-precision assignments lose.

    Args:
        points: Percent of the multiplications in INT8, and points lost.
        budget: Points that may be lost.
        measure: What the points are of.
        label: Text for screen readers.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        share, drop = zip(*points, strict=True)
        axes.plot(share, drop, "o-", color=COLORS[0], lw=1.2, ms=4)
        axes.axhline(budget, color=COLORS[3], ls="--", lw=1)
        axes.annotate(
            "budget", (0, budget), xycoords=("axes fraction", "data"), va="bottom", fontsize=9,
            color=COLORS[3],
        )  # fmt: skip
        axes.set_xlabel("INT8, % of the multiplications")
        axes.set_ylabel(f"{measure}, points")
        at_least(axes, LEAST_POINTS)
        axes.grid(visible=True)

    return svg(draw, 2.9, label)


def convergence(shares: Sequence[float], label: str, title: str = "") -> str:
    """Plot the share of the final ranges, 0 to 1, that 1, 2, ... frames show, under a title."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(range(1, len(shares) + 1), 100 * np.asarray(shares), color=COLORS[0], lw=1.4)
        axes.set_xlabel("frames")
        axes.set_ylabel("% of the final ranges")
        axes.set_title(short(title, 44), loc="left", fontsize=10)
        axes.set_ylim(min(90, 100 * min(shares) - 1), 101)
        axes.grid(visible=True)

    return svg(draw, 2.4, label)


def histograms(
    panels: Sequence[tuple[str, float, float, Sequence[int], tuple[float, float]]], label: str
) -> str:
    """Plot small histograms, counts on a logarithmic scale.

    Args:
        panels: Name, lowest and highest value, counts of equal bins, and the range that is
            represented; what lies outside is grey.
        label: Text for screen readers.
    """
    columns = 3
    rows = -(-len(panels) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, (name, low, high, counts, limits) in zip(grid.flat, panels, strict=False):
            edges = np.linspace(low, high if high > low else low + 1, len(counts) + 1)
            axes.set_axis_on()
            axes.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, color=COLORS[0])
            axes.set_yscale("log")
            for start, stop in ((low, limits[0]), (limits[1], high)):
                if stop > start:
                    axes.axvspan(start, stop, color="#999999", alpha=0.45, lw=0)
            axes.set_yticks([])
            axes.minorticks_off()
            axes.tick_params(labelsize=6, pad=1, length=2)
            axes.locator_params(axis="x", nbins=3)
            axes.set_title(short(name, 22), fontsize=7, loc="left", pad=2)

    return svg(draw, 0.3 + 0.75 * rows, label)


def overlay(
    image: Image,
    label: LabelMap | None = None,
    space: LabelSpace | None = None,
    *,
    width: int = 560,
) -> str:
    """Return a camera frame, with its classes painted over it if given, as a JPEG data URI.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        label: ``[h, w]`` uint8 ids of any size; pixels with 255 stay as they are.
        space: Gives the colours; needed with ``label``.
        width: Greatest width in pixels.
    """
    height = max(1, round(image.shape[0] * min(width, image.shape[1]) / image.shape[1]))
    small = scaled(image, height, min(width, image.shape[1]))
    if label is not None and space is not None:
        small = paint(small, resize_label(label, *small.shape[:2]), space.colors())
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(small, 82)).decode()


def svg(draw: Any, height: float, label: str) -> str:
    """Draw on a figure of its own and return an ``<svg>`` element fit for an HTML page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    stream = StringIO()
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # HTML needs no namespaces, and several plots on one page must not share ids.
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text, count=2)
    prefix = "p" + hashlib.sha256(f"{label}{text}".encode()).hexdigest()[:8] + "-"
    text = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{prefix}", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def at_least(axes: Axes, span: float) -> None:
    """Widen the vertical axis to a span: what is noise must not fill a plot."""
    low, high = axes.get_ylim()
    if high - low < span:
        middle = (low + high) / 2
        axes.set_ylim(middle - span / 2, middle + span / 2)


def legend_below(axes: Axes, columns: int, markers: float = 1) -> None:
    """Put the figure's legend below it, in at most so many columns: long names need one.

    Args:
        axes: Whose names it has.
        columns: Columns at most.
        markers: Size of its markers relative to the plot's.
    """
    handles, names = axes.get_legend_handles_labels()
    if max(map(len, names), default=0) > LEGEND_LENGTH // columns:
        columns = 1
    axes.figure.legend(
        handles, names, loc="outside lower left", ncols=columns, fontsize=9, markerscale=markers
    )


def short(name: str, limit: int = 34) -> str:
    """Cut a name for a legend, and keep matplotlib from hiding one that starts with "_"."""
    cut = name if len(name) <= limit else name[: limit - 1] + "…"
    return f"\u200b{cut}" if cut.startswith("_") else cut
