"""Measure latency."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from cli import options
from cli.verbs.shared import console, milliseconds, refuse_together, wrote
from edgeuda.files import require_absent
from edgeuda.records.names import Arrival, PresetName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from edgeuda.records.bench import BenchRecord


ARRIVALS: dict[str, Arrival] = {
    "closed": "closed loop",
    "rate": "frame rate",
    "offline": "offline",
}
"""What load patterns are called on the command line."""


def bench(
    model: Annotated[
        list[Path],
        typer.Option(
            "--model", help="ONNX file or .engine; several are measured in turns (repeatable)."
        ),
    ],
    target: options.Target,
    out: options.Out,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="What tables call the models, in their order (repeatable)."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=11, help="Frames timed per model: 662 support p99, 6636 support p99.9."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="Shortest duration of the measurement in seconds; by default none."
        ),
    ] = None,
    arrival: Annotated[
        str | None,
        typer.Option(
            parser=options.one_of(ARRIVALS),
            metavar=options.shown(ARRIVALS),
            help="How frames come: back to back, models taking turns (closed, the default), at a "
            "camera's --fps (rate), or in batches for throughput (offline).",
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Frames per second of each camera, which makes the arrival rate."),
    ] = None,
    cameras: Annotated[
        int | None,
        typer.Option(min=1, help="Number of cameras that are triggered together; by default 1."),
    ] = None,
    drop: Annotated[
        bool,
        typer.Option(
            "--drop", help="Let a newer frame replace one that waits, instead of a queue."
        ),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images per inference with --arrival offline; by default 1."),
    ] = None,
    preset: Annotated[
        PresetName | None,
        typer.Option(
            help="Measure by the rules of MLPerf Automotive, which takes from ten minutes to hours."
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            help="Longest latency allowed, for example 33ms; by default the camera's period."
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Number of independent runs; by default 3, with --preset 1."),
    ] = None,
    graphs: options.Graphs = True,
    threads: options.Threads = None,
    device: options.RunDevice = "cpu",
) -> None:
    """Measure latency and, beside it, power, clocks and temperature."""
    require_absent(out)
    from edgeuda.data.frames import frame_folder
    from edgeuda.records.bench import samples_path
    from edgeuda.records.percentiles import samples_needed
    from engines.bench.load import Load
    from engines.bench.load import preset as rules_of
    from engines.bench.measure import bench as run

    if preset is not None:
        refuse_together(
            f"--preset {preset}", ("--arrival", arrival), ("--fps", fps),
            ("--cameras", cameras), ("--drop", drop), ("--batch", batch),
        )  # fmt: skip
        load = rules_of(preset)
    else:
        if arrival not in (None, "rate"):
            refuse_together(f"--arrival {arrival}", ("--fps", fps))
        pattern = arrival or ("closed" if fps is None else "rate")
        load = Load(ARRIVALS[pattern], fps=fps, cameras=cameras or 1, drop=drop, batch=batch or 1)
    if samples is not None:
        load = replace(load, samples=samples)
    if repeats is None:  # fewer where the samples do not suffice for three medians
        repeats = 1 if preset is not None else max(1, min(3, load.samples // samples_needed(50)))
    if seconds is not None:
        load = replace(load, seconds=seconds)
    limit = None if deadline is None else milliseconds("--deadline", deadline)
    require_absent(samples_path(out))
    frames = frame_folder(target, learnt=True)  # each model's own geometry is seen to below
    with Progress(transient=True) as bar:
        task = bar.add_task("bench", total=None)
        record = run(
            model, frames, out, load=load, threads=threads, device=device, names=name,
            repeats=repeats, deadline_ms=limit, graphs=graphs,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    console.print(_table(record))
    for line in record.warnings:
        console.print(line, style="yellow", soft_wrap=True)
    wrote(out, samples_path(out), then=f"edgeuda report {options.typed(out)} --out report.html")


def _table(record: BenchRecord) -> Table:
    from rich.table import Table

    from engines.bench.frame_path import STAGES

    method, models = record.method, record.models
    table = Table("ms", title=f"Medians, batch {method.batch}, {method.threads} thread(s)")
    for model in models:
        table.add_column(model.name, justify="right")

    def row(title: str, values: Iterable[float | None], form: str = ".2f") -> None:
        table.add_row(title, *("-" if v is None else format(v, form) for v in values))

    for stage in STAGES:
        if any(stage in model.stages for model in models):
            found = (m.stages.get(stage) for m in models)
            row(stage, (None if s is None else s.percentiles["50"] for s in found))
    table.add_section()
    totals = [model.stages["total"] for model in models]
    for percentile in totals[0].percentiles:
        row(f"total p{percentile}", (t.percentiles.get(percentile) for t in totals))
    row("total max", (t.max for t in totals))
    row("frames/s", (m.frames_per_second for m in models), ".1f")
    if models[0].deadline is not None:
        missed = (m.deadline.share if m.deadline else None for m in models)
        row(f"over {models[0].deadline.limit_ms:.4g} ms", missed, ".2%")
    lines = [
        f"{ratio.candidate}: inference {ratio.inference_median:.2f} times as fast as "
        f"{ratio.baseline} ({ratio.low:.2f} to {ratio.high:.2f})"
        for ratio in record.ratios
    ]
    if record.noise is not None:
        lines.append(f"Medians of {method.repeats} runs differ by up to {record.noise:.1%}")
    table.caption = "\n".join(lines)
    return table
