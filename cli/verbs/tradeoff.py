"""Sweep deployable variants and choose one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cli import options
from cli.verbs.shared import (
    console,
    milliseconds,
    parse_size,
    require_inputs,
    say,
    space_or_none,
    wrote,
)
from edgeuda.errors import ConfigError, require
from edgeuda.records.names import Head, Precision, SweepRuntime

if TYPE_CHECKING:
    from rich.table import Table

    from edgeuda.records.tradeoff import TradeoffRecord


def tradeoff(
    model: Annotated[
        list[Path],
        typer.Option("--model", help="Run folder or .safetensors file of a network (repeatable)."),
    ],
    target: options.Target,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder of the sweep; an interrupted one goes on.", **options.WRITTEN
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder of labelled target images; without them FP32 counts as the truth.",
            **options.READ,
        ),
    ] = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="What tables call the networks, in their order (repeatable)."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Input size in pixels, 512x1024; by default the network's own (repeatable)."
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        options.several(
            Precision, "Arithmetic of a variant; by default fp32 and int8 (repeatable)."
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        options.several(
            Head,
            "What a variant's graph returns; by default scores for a BiSeNet on a CPU, else "
            "labels, which are the same (repeatable).",
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        options.several(SweepRuntime, "What runs a variant; by default cpu (repeatable)."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Largest latency allowed at the highest percentile measured, for example 33ms."
        ),
    ] = None,
    min_miou: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Least mIoU allowed in percent, for example 60."),
    ] = None,
    frames: Annotated[int, typer.Option(min=8, help="Number of frames to calibrate on.")] = 128,
    samples: Annotated[
        int, typer.Option(min=33, help="Number of frames timed per variant: 662 support p99.")
    ] = 700,
    repeats: Annotated[int, typer.Option(min=1, help="Number of independent runs.")] = 3,
    threads: options.Threads = None,
    backend: Annotated[list[str] | None, options.renamed("--backend")] = None,
) -> None:
    """Make, score and time variants on the same images; name the one to take, and why."""
    from edgeuda.records.tradeoff import Budget

    if min_miou is not None and 0 < min_miou <= 1:
        msg = f"--min-miou {min_miou:g}: expected percent, as all figures here are: {min_miou:.0%}"
        raise ConfigError(msg)
    least = None if min_miou is None else min_miou / 100
    limits = Budget(None if budget is None else milliseconds("--budget", budget), least)
    names = [path.stem for path in model] if name is None else name
    if len(names) != len(model):
        msg = f"--name: expected {len(model)} names, one for each --model, found {len(names)}"
        raise ConfigError(msg)
    require_inputs(model, (target, data))
    require("torch", "train")
    from calibration.api import sweep
    from engines.report.words import said_of

    chosen = options.now("--runtime", runtime, "--backend", backend)
    record = sweep(
        model, target, out, names=names, data=data, stored=space_or_none(label_space),
        ignore_unmapped=ignore_unmapped,
        sizes=[parse_size("--size", text) for text in size or ()],
        precisions=cast("list[Precision]", precision or ["fp32", "int8"]),
        heads=cast("list[Head]", head or []),
        runtimes=cast("list[SweepRuntime]", chosen or ["cpu"]),
        budget=limits, frames=frames, samples=samples, repeats=repeats, threads=threads,
        say=console.print,
    )  # fmt: skip
    console.print(_table(record))
    said = said_of(record)
    for text in (said.why, said.int8):
        if text is not None:
            say(text)
    wrote(out / "tradeoff.json", then=f"edgeuda report {options.typed(out)} --out report.html")


def _table(record: TradeoffRecord) -> Table:
    from rich.table import Table

    tail = record.tail
    table = Table(title="Trade-off")
    for column in ("variant", f"{record.measure} [95 %]", "p50 ms", f"p{tail} ms", "verdict"):
        table.add_column(column, justify="left" if column in ("variant", "verdict") else "right")
    for row in record.variants:
        estimate, total = row.accuracy, row.total_ms
        where = row.standing(record.taken)
        table.add_row(
            row.name,
            f"{100 * estimate.value:.1f} "
            rf"\[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]",
            f"{total['50']:.2f}", f"{total[tail]:.2f}", "" if where == "dominated" else where,
        )  # fmt: skip
    return table
