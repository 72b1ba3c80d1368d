"""The report's chapter on drives: what `edgeuda run` segmented, noticed, and adapted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeuda.records.stream_adaptation import StreamAdaptation, StreamReason
from edgeuda.records.watch import WatchRecord
from engines.report.parts import Chapter, Grid
from engines.report.plots import legend_below, svg
from engines.report.records import Records
from engines.report.text import DASH, flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"light": "#E69F00", "blur": "#0072B2", "covered": "#CC79A7", "scene": "#D55E00"}
"""Colour of each kind of alarm."""
HIDDEN = {"schema", "course", "watch", "adaptation"}
WHY: dict[StreamReason, str] = {
    "too few frames": "the drive showed too few frames",
    "too short": "the drive was too short",
    "replaced": "another network is current by now",
    "less alike": "it calls too much of the drive something else than the network that ran",
    "forgets": "it no longer says of the acceptance frames what was said when it was installed",
    "INT8 differs": "its INT8 form is farther from its FP32 form than that of the network that ran",
}


def drives(records: Records) -> Chapter | None:
    """Return the chapter on what `edgeuda run` segmented."""
    if not records.drives:
        return None
    text = [
        "Frames as they came. A camera is never held up: what could not be segmented in time was "
        "dropped and counted. Latency goes from a frame's arrival to its label map."
    ]
    grids, svgs = [], []
    for name, record in records.drives:
        facts = flatten({k: v for k, v in record.to_record().items() if k not in HIDDEN})
        rows = [[key.replace("_", " "), value] for key, value in facts.items()]
        grids.append(Grid(f"Drive {name}", ["fact", "value"], rows))
        if record.watch is not None:
            grids += _watched(name, record.watch)
            if record.watch.timeline:
                svgs.append(timeline(record.watch, f"How far drive {name} was from normal"))
        if record.adaptation is not None:
            grids.append(_adapted(name, record.adaptation))
    if any(record.adaptation is not None for _, record in records.drives):
        text.append(
            "A network that was adapted to a drive has other batch-norm statistics. It is judged "
            "without labels, on frames of the drive that it was not estimated on and on the "
            "acceptance frames of its bundle: that it changes little, not that it is better."
        )
    if svgs:
        text.append(
            "The timeline shows each window of a watched drive: the figure that is farthest from "
            "what was normal when the model was calibrated, as a part of its limit. Above 1 it is "
            "an alarm, and shaded until windows were normal again."
        )
    return Chapter("drives", "Drives", text, svgs=svgs, grids=grids)


def timeline(record: WatchRecord, label: str) -> str:
    """Plot how far windows were from normal, and the alarms.

    Args:
        record: What a watch saw.
        label: Text for screen readers.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        seconds = [one.seconds for one in record.timeline]
        axes.plot(seconds, [one.ratio for one in record.timeline], color="#333333", lw=1.2)
        axes.axhline(1, color="#A53F00", ls="--", lw=1.2, label="limit")
        named = set()
        for one in record.alarms:
            end = seconds[-1] if one.until is None else one.until
            # An alarm in the last window has no length yet.
            end = max(end, one.at + 0.005 * (seconds[-1] - seconds[0]))
            hint = None if one.kind in named else f"alarm: {one.kind}"
            named.add(one.kind)
            axes.axvspan(one.at, end, color=KINDS[one.kind], alpha=0.3, lw=0, label=hint)
        axes.set(xlabel="seconds of the drive", ylabel="farthest figure, of its limit")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True)
        legend_below(axes, 3)

    return svg(draw, 2.6, label)


def _watched(name: str, record: WatchRecord) -> list[Grid]:
    rows = [
        [
            one.kind, f"{one.at:.0f}", DASH if one.until is None else f"{one.until:.0f}",
            ", ".join(f"{column} {far:+.1f}" for column, far in one.apart.items()),
        ]
        for one in record.alarms
    ]  # fmt: skip
    untested = [one.name for one in record.limits if one.limit is None]
    facts = [
        ["false alarms accepted in an hour", f"{record.per_hour:g}"],
        ["seconds of a window", f"{record.window:g}"],
        ["windows tested", str(record.tested)],
        ["windows with too few frames", str(record.untested)],
        ["figures of which the reference says too little to test", ", ".join(untested) or "none"],
    ]
    found = [Grid(f"Watch of drive {name}", ["fact", "value"], facts)]
    if rows:
        columns = ["kind", "from, s", "until, s", "deviations from normal"]
        found.append(Grid(f"Alarms of drive {name}", columns, rows))
    return found


def _adapted(name: str, record: StreamAdaptation) -> Grid:
    sample, shift = record.sample, record.shift
    why = [WHY[one] for one in record.reasons] + [record.error] * (record.error is not None)
    rows = [
        ["decision", record.decision],
        ["why", "; ".join(map(str, why)) or DASH],
        ["frames: estimated on, judged on", f"{sample.estimating}, {sample.judging}"],
        ["drawn from", f"{sample.seen} frames from {sample.began} to {sample.ended}"],
        ["frames that the old statistics count for", f"{record.prior:g}"],
    ]
    if shift is not None:
        rows += [
            ["pixels of the drive called alike by both", f"{100 * shift.agreement:.1f} %"],
            ["pixels of the acceptance frames called as before", f"{100 * shift.acceptance:.1f} %"],
            ["mean confidence before, after", _pair([100 * one for one in shift.confidence], " %")],
            ["mean entropy before, after", _pair(shift.entropy, " nats")],
            ["distance of the class shares, 0 to 1", f"{shift.class_distance:.3f}"],
        ]
    if record.int8_agreement is not None:
        alike = _pair([100 * one for one in record.int8_agreement], " %")
        rows.append(["pixels alike in INT8 and FP32 before, after", alike])
    rows.append(["seconds after the drive", f"{record.seconds:.1f}"])
    return Grid(f"Adapting to drive {name}", ["fact", "value"], rows)


def _pair(values: Sequence[float], unit: str) -> str:
    return ", ".join(f"{value:.2f}{unit}" for value in values)
