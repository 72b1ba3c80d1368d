"""The FP16 form of an exported model."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, wrote


def half(
    model: options.OnnxModel,
    target: options.Target,
    out: options.Out,
    frames: options.Frames = 16,
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Least share of the pixels that keep their class, in percent."
        ),
    ] = 99,
    threads: options.Threads = None,
) -> None:
    """Write a model's FP16 form as TensorRT 11 takes it: typed, image and gates in float32."""
    from calibration.api import half as run

    found = run(
        model, target, out, frames=frames, min_agreement=min_agreement / 100, threads=threads
    )
    console.print(f"{found:.3%} of the pixels of the frames keep their class")
    wrote(out)
