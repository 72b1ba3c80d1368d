"""Calibrate to INT8 on target frames."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, wrote


class Backend(str, Enum):
    """Runtime that will run the model."""

    ort_x86 = "ort-x86"
    tensorrt = "tensorrt"


class Rule(str, Enum):
    """How a tensor's range follows from its values."""

    max = "max"
    percentile = "percentile"
    mse = "mse"
    entropy = "entropy"


def calibrate(
    model: options.OnnxModel,
    target: options.Target,
    out: options.Out,
    backend: Annotated[
        Backend, typer.Option(help="Runtime the INT8 model is for.")
    ] = Backend.ort_x86,
    rule: Annotated[
        Rule, typer.Option(help="How a range follows from the values.")
    ] = Rule.percentile,
    percentile: Annotated[
        float, typer.Option(min=50, max=100, help="Percentile of that rule.")
    ] = 99.99,
    frames: options.Frames = 128,
) -> None:
    """Collect ranges on target frames and write an INT8 model for a runtime."""
    from calibration.quantize import calibrate as run
    from edgeuda.data.folders import readable_frames, spread

    record = run(
        model,
        spread(readable_frames(target), frames),
        out,
        target=backend.value,
        rule=rule.value,
        percentile=percentile,
    )
    console.print(
        f"agreement with FP32 on {len(record.frames)} target frames: "
        f"{record.agreement:.2%} of the pixels"
    )
    wrote(
        out, then=f"edgeuda bench --model {model} --model {out} --target {target} --out bench.json"
    )
