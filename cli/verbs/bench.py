"""Measure latency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from cli import options
from cli.verbs.shared import console, wrote
from edgeuda.files import require_absent

if TYPE_CHECKING:
    from rich.table import Table

    from engines.bench import BenchRecord


def bench(
    model: Annotated[
        list[Path],
        typer.Option("--model", help="ONNX file or .engine; repeat to measure them side by side."),
    ],
    target: options.Target,
    out: options.Out,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Names of the models, in their order.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=11, help="Rounds; 662 support p99, 6636 p99.9.")
    ] = 700,
    threads: options.Threads = None,
    device: options.RunDevice = options.DeviceName.cpu,
) -> None:
    """Measure latency end to end: preprocess, inference, postprocess. Models take turns."""
    require_absent(out)
    from edgeuda.data.folders import readable_frames
    from engines.bench import bench as run

    frames = readable_frames(target)
    with Progress(transient=True) as bar:
        task = bar.add_task("bench", total=samples)
        record = run(
            model, frames, out, threads=threads, device=device.value, samples=samples, names=name,
            progress=lambda done, _total: bar.update(task, completed=done),
        )  # fmt: skip
    console.print(_table(record))
    wrote(out, then=f"edgeuda report {out} --out report.html")


def _table(record: BenchRecord) -> Table:
    from rich.table import Table

    highest = max(record.models[0].stages["total"].percentiles)
    table = Table(title=f"Latency in ms, batch 1, {record.method.threads} thread(s)")
    for column in (
        "model",
        "preprocess",
        "inference",
        "postprocess",
        "total",
        f"p{highest}",
        "max",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in record.models:
        medians = [stage.percentiles["50"] for stage in model.stages.values()]
        total = model.stages["total"]
        values = (*medians, total.percentiles[highest], total.max)
        table.add_row(model.name, *(f"{value:.2f}" for value in values))
    for ratio in record.ratios:
        table.caption = (table.caption or "Medians. ") + (
            f"{ratio.candidate} is {ratio.inference_median:.2f} times as fast as {ratio.baseline} "
            f"({ratio.low:.2f} to {ratio.high:.2f}). "
        )
    return table
