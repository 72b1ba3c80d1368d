"""Score a model on labelled images."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import (
    cluster_of,
    console,
    parse_size,
    require_inputs,
    shown,
    space_or_none,
    wrote,
)
from edgeuda.errors import ConfigError, require
from edgeuda.files import require_absent, write_json


def evaluate(
    model: options.AnyModel,
    data: options.Data,
    out: options.Out,
    name: options.Name = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    native: Annotated[
        bool,
        typer.Option(
            "--native", help="Enlarge class scores, and not label maps, to the size of the frame."
        ),
    ] = False,
    scales: Annotated[
        str,
        typer.Option(
            help="Scales of the frame to average over, relative to the input: 0.75,1,1.25."
        ),
    ] = "1",
    flip: Annotated[
        bool, typer.Option("--flip", help="Average over the frame and its mirror image.")
    ] = False,
    window: Annotated[
        bool, typer.Option("--window", help="Slide a window over frames at native resolution.")
    ] = False,
    window_size: Annotated[
        str | None,
        typer.Option(
            help="Rows and columns of the window, 1024x1024; by default those of the input."
        ),
    ] = None,
    stride: Annotated[
        float, typer.Option(help="Step from one window to the next, as a share of its side.")
    ] = 5 / 6,
    boundary: Annotated[
        float | None,
        typer.Option(help="Width for boundary IoU as a share of the diagonal, for example 0.005."),
    ] = None,
    tables: Annotated[
        bool, typer.Option("--csv", help="Write CSV tables beside --out, per class and per image.")
    ] = False,
    threads: options.Threads = None,
    device: options.RunDevice = "cpu",
    graphs: options.Graphs = True,
    ray: options.Ray = None,
) -> None:
    """Score a checkpoint or an ONNX file: per-class IoU, mIoU, pixel accuracy."""
    from edgeuda.accuracy.scoring import table_paths

    written = [out]
    if tables:
        written += table_paths(out)
    for path in written:
        require_absent(path)
    from edgeuda.accuracy.evaluation import table
    from edgeuda.cluster import discard, shards_folder

    title = name or model.stem
    stored = space_or_none(label_space)
    if model.suffix in (".onnx", ".engine", ".edgeuda"):
        from engines.scoring import score_exported

        if native or flip or window or window_size or scales != "1":
            msg = (
                f"{model}: an exported model gives labels, not scores. --native, --scales, "
                "--flip, --window and --window-size need the checkpoint"
            )
            raise ConfigError(msg)
        with shown("evaluate", ray is not None) as progress:
            scored = score_exported(
                model, data, title, threads=threads, device=device, graphs=graphs, stored=stored,
                ignore_unmapped=ignore_unmapped, boundary=boundary, progress=progress,
                cluster=cluster_of(ray, threads, model, device), shards=shards_folder(out),
            )  # fmt: skip
    else:
        if ray is not None:
            msg = (
                f"{model}: a checkpoint is scored in one process, found --ray. Export it, or leave "
                "--ray out"
            )
            raise ConfigError(msg)
        if device != "cpu":
            msg = (
                f"{model}: a checkpoint is scored on the CPU, found --device {device}. "
                "Export it, or leave --device out"
            )
            raise ConfigError(msg)
        require_inputs([model], [data])
        require("torch", "train")
        from edgeuda.accuracy.scoring import score
        from edgeuda.models.predictor import TestTime
        from edgeuda.models.subject import subject_of

        size = None if window_size is None else parse_size("--window-size", window_size)
        how = TestTime(_scales(scales), flip, window, native, size, stride)
        scored = score(
            subject_of(model, how, threads), data, title, stored=stored,
            ignore_unmapped=ignore_unmapped, boundary=boundary,
        )  # fmt: skip
    write_json(out, scored.to_record())
    if tables:
        scored.write_tables(out)
    if ray is not None:
        discard(out)
    console.print(table([scored.evaluation]))
    if scored.boundary_miou is not None:
        console.print(
            f"boundary mIoU, {boundary:g} of the diagonal: {100 * scored.boundary_miou:.1f}"
        )
    wrote(*written, then=f"edgeuda report {options.typed(out)} --out report.html")


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(scale) for scale in text.split(","))
    except ValueError as err:
        msg = f"--scales: expected numbers between commas, found {text!r}"
        raise ConfigError(msg) from err
