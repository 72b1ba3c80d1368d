"""Plots of latency: against mIoU, its distribution, its course over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engines.report.plots import (
    COLORS,
    LEAST_POINTS,
    LINES,
    MARKERS,
    at_least,
    legend_below,
    short,
    svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]
Panel = tuple[Values, Mapping[str, Values]]
"""A time axis in seconds and channels on it."""
DEADLINE = "#A53F00"
DRAWN_POINTS = 600
"""Points of a line; beyond that, each stands for the slowest of its neighbours."""


@dataclass(frozen=True)
class Point:
    """A model in the trade-off plot.

    Attributes:
        name: What the legend calls it.
        latency: Median milliseconds.
        interval: Confidence interval of the median in milliseconds.
        accuracy: 0 to 1.
        front: Whether no other point is both faster and more accurate.
        tail: Latency of the percentile that the budget is held against.
        accuracy_interval: Confidence interval of the accuracy.
        chosen: Whether it is the one to take.
    """

    name: str
    latency: float
    interval: tuple[float, float] | None
    accuracy: float
    front: bool
    tail: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    chosen: bool = False


def tradeoff(
    points: Sequence[Point],
    label: str,
    measure: str = "mIoU",
    budget_ms: float | None = None,
    least: float | None = None,
) -> str:
    """Plot accuracy against latency, the Pareto front joined, the budget's limits dashed.

    Args:
        points: The models.
        label: Text for screen readers.
        measure: What accuracy is.
        budget_ms: Largest latency.
        least: Least accuracy, 0 to 1.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        front = sorted((p.latency, 100 * p.accuracy) for p in points if p.front)
        axes.plot(*zip(*front, strict=True), color="#777777", lw=1, label="Pareto front")
        for index, p in enumerate(points):
            low, high = p.interval or (p.latency, p.latency)
            high = max(high, p.tail or high)
            below, above = p.accuracy_interval or (p.accuracy, p.accuracy)
            color = COLORS[index % len(COLORS)]
            axes.errorbar(
                p.latency, 100 * p.accuracy, xerr=[[p.latency - low], [high - p.latency]],
                yerr=[[100 * (p.accuracy - below)], [100 * (above - p.accuracy)]],
                # After one round of colours, other markers go with them.
                fmt=MARKERS[(index + index // len(COLORS)) % len(MARKERS)],
                ms=8, capsize=2, elinewidth=0.9, color=color, mfc=color if p.front else "white",
                label=short(p.name) + (" (chosen)" if p.chosen else ""),
            )  # fmt: skip
            if p.chosen:
                axes.plot(
                    p.latency, 100 * p.accuracy, "o", ms=17, mfc="none", mec="#000000", mew=1.4
                )
        if budget_ms is not None:
            axes.axvline(budget_ms, color=DEADLINE, ls="--", lw=1.2, label="latency budget")
        if least is not None:
            axes.axhline(100 * least, color=DEADLINE, ls=":", lw=1.2, label=f"least {measure}")
        axes.set(xlabel="latency of a frame in ms (left is better)", ylabel=f"{measure} in %")
        axes.margins(0.12, 0.18)
        axes.set_xlim(left=0)
        at_least(axes, LEAST_POINTS)
        axes.grid(visible=True)
        legend_below(axes, 2)

    return svg(
        draw, 3.2 + 0.2 * (len(points) + (budget_ms is not None) + (least is not None)), label
    )


def latency_ecdf(samples: Mapping[str, Values], label: str, limit: float | None = None) -> str:
    """Plot the share of frames done within a time, per model; all in milliseconds."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, values) in enumerate(samples.items()):
            ordered = np.sort(np.asarray(values, np.float64))
            n = len(ordered)
            # A few hundred points draw the same curve; the slowest are all kept.
            kept = np.unique([*np.linspace(0, n - 1, 300).round(), *range(max(0, n - 40), n)])
            at = kept.astype(int)
            axes.step(
                ordered[at], 100 * (at + 1) / n, where="post", lw=1.8, label=short(name),
                # After one round of colours, other lines go with them.
                ls=LINES[(index + index // len(COLORS)) % len(LINES)],
                color=COLORS[index % len(COLORS)],
            )  # fmt: skip
        everything = np.concatenate([np.asarray(v, np.float64) for v in samples.values()])
        if everything.min() > 0 and everything.max() > 8 * everything.min():
            _logarithmic(axes)
        _deadline(axes, limit, vertical=True)
        axes.set(xlabel="latency of a frame in ms", ylabel="frames done in %", ylim=(0, 102))
        axes.grid(visible=True)
        legend_below(axes, 2)

    return svg(draw, 3.0 + 0.2 * len(samples), label)


def latency_histogram(samples: Mapping[str, Values], label: str, limit: float | None = None) -> str:
    """Plot how many frames took how long, per model, counts on a logarithmic axis.

    The counts' axis is logarithmic so that a single slow frame can be seen.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        everything = np.concatenate(list(samples.values()))
        low, high = float(everything.min()), float(everything.max())
        wide = low > 0 and high > 8 * low
        edges = np.geomspace(low, high, 61) if wide else np.linspace(low, high, 61)
        if high <= low:
            edges = np.linspace(low - 0.5, low + 0.5, 61)
        for index, (name, values) in enumerate(samples.items()):
            axes.stairs(
                np.histogram(values, edges)[0], edges, lw=1.5, label=short(name),
                ls=LINES[index % len(LINES)], color=COLORS[index % len(COLORS)],
            )  # fmt: skip
        if wide:
            _logarithmic(axes)
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
        _deadline(axes, limit, vertical=True)
        axes.set(xlabel="latency of a frame in ms", ylabel="frames")
        axes.grid(visible=True)
        legend_below(axes, 2)

    return svg(draw, 3.0 + 0.2 * len(samples), label)


def course(
    series: Mapping[str, tuple[Values, Values]],
    panels: Mapping[str, Panel],
    limit: float | None,
    label: str,
) -> str:
    """Plot latencies over the time of the run, and the machine's state below, on one time axis.

    Args:
        series: Start of each frame in seconds, and its milliseconds, by model.
        panels: What else was measured, by heading.
        limit: Deadline in milliseconds.
        label: Text for screen readers.
    """

    def draw(figure: Figure) -> None:
        heights = [2.0] + [1.0] * len(panels)
        grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[
            :, 0
        ]
        for index, (name, (start, values)) in enumerate(series.items()):
            at, slowest = _thinned(start, values)
            grid[0].plot(
                at, slowest, ".", ms=2.5, color=COLORS[index % len(COLORS)], label=short(name)
            )
        _deadline(grid[0], limit, vertical=False)
        grid[0].set(ylabel="latency, ms", ylim=(0, None))
        for axes, (title, (time, channels)) in zip(grid[1:], panels.items(), strict=True):
            for index, (name, values) in enumerate(channels.items()):
                axes.plot(
                    time, values, lw=1, color=COLORS[(index + 4) % len(COLORS)],
                    ls=LINES[index % len(LINES)], label=short(name.partition(".")[2], 16),
                )  # fmt: skip
            axes.set_title(title, loc="left", fontsize=9)
            axes.legend(
                fontsize=7, loc="upper right", frameon=True, framealpha=0.8, edgecolor="none"
            )
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        for axes in grid:
            axes.grid(visible=True)
        grid[-1].set_xlabel("seconds of the run")
        legend_below(grid[0], 2, markers=3)

    return svg(draw, 2.5 + 0.2 * len(series) + 1.1 * len(panels), label)


def _thinned(start: Values, values: Values) -> tuple[Values, Values]:
    """Return at most `DRAWN_POINTS` points, each the slowest of its stretch: no peak is lost."""
    if len(values) <= DRAWN_POINTS:
        return start, values
    stretches = np.array_split(np.arange(len(values)), DRAWN_POINTS)
    slowest = np.array([stretch[np.argmax(values[stretch])] for stretch in stretches])
    return start[slowest], values[slowest]


def _deadline(axes: Axes, limit: float | None, *, vertical: bool) -> None:
    if limit is not None:
        line = axes.axvline if vertical else axes.axhline
        line(limit, color=DEADLINE, ls="--", lw=1.2, label=f"deadline {limit:.4g} ms")


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
