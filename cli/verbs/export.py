"""Export to ONNX."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, wrote
from edgeuda.errors import require
from edgeuda.files import require_absent


class Head(str, Enum):
    """What the graph returns."""

    labels = "labels"
    logits = "logits"
    scores = "scores"
    labels_low = "labels_low"


def export(
    model: options.RunModel,
    target: options.Target,
    out: options.Out,
    head: Annotated[Head, typer.Option(help="What the graph returns.")] = Head.labels,
    frames: options.Frames = 8,
) -> None:
    """Export to ONNX: uint8 image in, uint8 labels out, checked against torch on target frames."""
    require("torch", "train")
    require_absent(out)
    from edgeuda.data.folders import readable_frames, spread
    from edgeuda.data.treatment import read_frame
    from edgeuda.models.checkpoint import load_model
    from engines.export import export_onnx

    network, spec = load_model(model)
    geometry = spec.preprocessing.geometry
    chosen = spread(readable_frames(target, geometry), frames)
    images = [read_frame(path, geometry) for path in chosen]
    record = export_onnx(network, spec, out, head=head.value, frames=images)
    console.print(
        f"agreement with torch on {len(images)} frames: {record.pixels_equal:.4%} of the pixels"
    )
    int8 = out.with_name(f"{out.stem}-int8.onnx")
    wrote(
        out,
        then=options.command("calibrate", model=out, target=target, out=int8),
    )
