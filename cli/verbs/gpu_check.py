"""Try all that can be done on this machine's GPU."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.verbs.shared import console, say, wrote
from edgeuda.files import require_absent

if TYPE_CHECKING:
    from edgeuda.records.gpu_check import Row


def gpu_check(
    model: options.OnnxModel,
    target: options.Target,
    out: options.Out,
    frames: Annotated[int, typer.Option(min=2, help="Number of frames to compare on.")] = 16,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Check that is left out, where * stands for anything (repeatable)."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Duration of the last check in seconds.")
    ] = 60.0,
    threads: options.Threads = None,
) -> None:
    """Try devices, kernel, engines and providers against the CPU; exit code 10 if one fails.

    Exit code 7 means that nothing failed and something is not installed.
    """
    require_absent(out)
    from calibration.forms import write_forms
    from edgeuda.data.frames import frame_folder
    from edgeuda.data.treatment import applied_to
    from engines.gpu_check import gpu_check as run
    from engines.gpu_check import require_passed
    from engines.onnx.metadata import read_spec

    geometry = read_spec(model).preprocessing.geometry
    footage = frame_folder(target, geometry)
    chosen = footage.sample(frames)
    with tempfile.TemporaryDirectory(prefix="edgeuda-gpu-check-") as folder:
        forms = write_forms(model, chosen, Path(folder) / "models", threads=threads)
        record = run(
            forms, chosen, Path(folder) / "engines", skip=skip or (), seconds=seconds, say=_say
        )
    replace(record, **applied_to(chosen, geometry), **footage.noted()).write(out)
    console.print(", ".join(f"{count} {status}" for status, count in record.counted.items()))
    wrote(out)
    require_passed(record)


def _say(row: Row) -> None:
    figures = {k: v for k, v in row.figures.items() if isinstance(v, (int, float, str))}
    words = row.found or ", ".join(f"{key} {value}" for key, value in figures.items())
    say(f"{row.status:<13} {row.name}: {words}")
