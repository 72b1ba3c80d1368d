"""Build a TensorRT engine where it will run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, say, wrote
from edgeuda.errors import ConfigError
from edgeuda.records.names import LibraryName


def build(
    model: options.OnnxModel,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Folder of engines; one that was built before is reused.",
            **options.WRITTEN,
        ),
    ],
    library: Annotated[
        LibraryName, typer.Option(help="Which library builds: TensorRT, or TensorRT for RTX.")
    ] = "tensorrt",
    batch: Annotated[
        str, typer.Option(help="Images per inference: one number, or smallest,usual,largest.")
    ] = "1",
    half: Annotated[
        bool,
        typer.Option(
            "--half", help="Let the builder use FP16, which TensorRT takes as a flag before 10.12."
        ),
    ] = False,
    workspace: Annotated[
        int | None,
        typer.Option(min=1, help="Largest workspace of the builder in MiB; by default its own."),
    ] = None,
    level: Annotated[
        int | None,
        typer.Option(
            min=0, max=5, help="Optimisation level of the builder, 0 to 5; by default its own."
        ),
    ] = None,
    dla_core: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Core of the deep learning accelerator to build for, with --half or --calibrate.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Folder of frames for INT8 by TensorRT's own calibrator, which 8.6 to 10.11 have.",
            **options.READ,
        ),
    ] = None,
    calibration_frames: Annotated[
        int, typer.Option(min=1, help="Number of frames of --calibrate, spread evenly.")
    ] = 512,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="Let later versions of TensorRT load the engine."
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Let later GPUs load the engine.")
    ] = False,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of the builder's timings, which is read and written.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="GPU to compile for without having it, such as SM86, by tensorrt_rtx (repeatable)."
        ),
    ] = None,
) -> None:
    """Build a model's engine, unless the same one is there already."""
    from edgeuda.records.build import BuildOptions
    from engines.bundle_model import model_file
    from engines.tensorrt.cache import cached_engine, record_path
    from engines.tensorrt.library import load_tensorrt

    settings = BuildOptions(
        batch=_batch(batch),
        workspace_mib=workspace,
        level=level,
        half=half,
        dla_core=dla_core,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        timing_cache=timing_cache,
        compute_capabilities=tuple(compute_capability or ()),
    )
    trt = load_tensorrt(library, device=not compute_capability)
    with model_file(model, "tensorrt") as file:
        if calibrate is None:
            engine = cached_engine(trt, file, settings, out)
        else:
            from calibration.calibrated_engine import calibrated_engine
            from edgeuda.data.frames import frame_folder
            from engines.onnx.metadata import read_spec

            geometry = read_spec(file).preprocessing.geometry
            frames = frame_folder(calibrate, geometry).sample(calibration_frames)
            engine = calibrated_engine(trt, file, frames, settings, out)
    record = engine.record
    console.print(
        f"{trt.title}, {record.precision}, {record.plan_bytes / 1e6:.2f} MB"
        + (": reused" if engine.reused else f", built in {record.seconds:.1f} s")
    )
    if dla := record.dla_layers:
        console.print(
            f"deep learning accelerator: {dla.layers} of {dla.of} layers, the rest on the GPU"
        )
    for severity, text in record.messages[:5]:
        say(f"{severity}: {text}")
    wrote(engine.path, record_path(engine.path))


def _batch(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(parts) not in (1, 3):
        msg = f"--batch: expected one number or smallest,usual,largest, found {text!r}"
        raise ConfigError(msg)
    numbers = [int(part) for part in parts]
    low, usual, high = numbers * 3 if len(numbers) == 1 else numbers
    return low, usual, high
