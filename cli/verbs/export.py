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
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Also return how sure the network is, at the size of its scores, and its pooled "
            "features.",
        ),
    ] = False,
) -> None:
    """Export to ONNX: uint8 image in, uint8 labels out, checked against torch on target frames."""
    require_inputs([model], [target])
    require("torch", "train")
    from engines.api import export as run

    record = run(model, target, out, head=head, frames=frames, confidence=confidence)
    console.print(
        f"agreement with torch on {record.frames} frames: {record.pixels_equal:.4%} of the pixels"
    )
    if confidence:
        from engines.onnx.confidence import confidence_of
        from engines.onnx.metadata import read_metadata

        note = confidence_of(read_metadata(out), str(out))
        assert note is not None
        console.print(
            f"confidence {note.rows} x {note.columns}: {note.within_one:.4%} of the places within "
            f"one level of torch, largest difference {note.difference}; "
            + (f"{note.features.channels} features" if note.features else "no pooled features")
        )
    int8 = out.with_name(f"{out.stem}-int8.onnx")
    wrote(
        out,
        then=options.command("calibrate", model=out, target=target, out=int8),
    )
