"""Export to ONNX."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, require_inputs, wrote
from edgeuda.errors import require
from edgeuda.records.names import Head


def export(
    model: options.RunModel,
    target: options.Target,
    out: options.Out,
    head: Annotated[Head, typer.Option(help="What the graph returns.")] = "labels",
    frames: options.Frames = 8,
) -> None:
    """Export to ONNX: uint8 image in, uint8 labels out, checked against torch on target frames."""
    require_inputs([model], [target])
    require("torch", "train")
    from engines.api import export as run

    record = run(model, target, out, head=head, frames=frames)
    console.print(
        f"agreement with torch on {record.frames} frames: {record.pixels_equal:.4%} of the pixels"
    )
    int8 = out.with_name(f"{out.stem}-int8.onnx")
    wrote(
        out,
        then=options.command("calibrate", model=out, target=target, out=int8),
    )
