"""Compare what two forms of a model say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, wrote
from edgeuda.files import require_absent


def diff(
    first: Annotated[
        Path, typer.Argument(help="ONNX file, or BUNDLE.edgeuda/models/NAME.onnx inside a bundle.")
    ],
    second: Annotated[Path, typer.Argument(help="The other one, likewise.")],
    target: options.Target,
    out: options.Out,
    frames: options.Frames = 32,
    threads: options.Threads = None,
) -> None:
    """Compare two models or bundles on frames: classes, confidence, and the scores behind them."""
    require_absent(out)
    from calibration.comparison import diff as run

    found = run(first, second, target, frames=frames, threads=threads)
    found.write(out)
    console.print(str(found))
    wrote(out)
