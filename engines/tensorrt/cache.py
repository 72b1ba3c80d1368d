"""Engines on disk: built once for what they depend on, and checked before they are loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeuda.errors import DataError, ModelError
from edgeuda.files import sha256, sha256_of, short_name, write_bytes
from edgeuda.records.build import BuildOptions, BuildRecord
from engines.cuda.driver import gpu_title
from engines.tensorrt.builder import build_engine, engine_layers
from engines.tensorrt.library import Library

BUILDER = "2"
"""Counts changes of `build_engine` that make another engine of the same model and options."""


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        path: The file.
        record: How it was built.
        reused: Whether an earlier build was taken.
    """

    path: Path
    record: BuildRecord
    reused: bool


def record_path(engine: Path) -> Path:
    """Return where the record of an engine lies: beside it."""
    return engine.with_name(f"{engine.name}.json")


def engine_key(
    library: Library, model: Path, options: BuildOptions, calibrated_on: str = ""
) -> str:
    """Return the SHA-256 of all that makes an engine valid: model, options, TensorRT and GPU.

    Args:
        library: The TensorRT.
        model: The ONNX file.
        options: What it is built for.
        calibrated_on: Checksum of what a calibrator is fed; empty without one.
    """
    ahead = library.name == "tensorrt_rtx" and options.compute_capabilities
    device = ",".join(options.compute_capabilities) if ahead else gpu_title()
    return sha256_of(
        [
            BUILDER,
            sha256(model),
            json.dumps(options.to_record(), sort_keys=True),
            library.name,
            library.module.__version__,
            device,
            calibrated_on,
        ]
    )


def cached_engine(
    library: Library,
    model: Path,
    options: BuildOptions,
    folder: Path,
    calibrator: Any = None,
    calibrated_on: str = "",
) -> Engine:
    """Build an engine, unless the folder holds the same one undamaged.

    Args:
        library: The TensorRT to build with.
        model: An ONNX file of this project.
        options: What it is built for.
        folder: Where engines lie.
        calibrator: As in `build_engine`.
        calibrated_on: As in `engine_key`.

    Raises:
        EdgeudaError: See `build_engine`.
    """
    if not model.is_file():
        msg = f"{model}: expected an ONNX model, found no such file"
        raise ModelError(msg)
    key = engine_key(library, model, options, calibrated_on)
    path = folder / f"{short_name(model.stem)}-{key[:16]}.engine"
    if path.exists():
        try:
            load_plan(path)
            record = BuildRecord.read(record_path(path))
            if record.key == key:
                return Engine(path, record, True)
        except (DataError, ModelError):
            pass  # damaged or half written: built again
    built = build_engine(library, model, options, calibrator)
    write_bytes(path, built.plan)
    layers = None
    if not (library.name == "tensorrt_rtx" and options.compute_capabilities):
        layers = engine_layers(library, built.plan, options)
    record = replace(built.record, key=key, engine_layers=layers)
    record.write(record_path(path))
    return Engine(path, record, False)


def load_plan(path: Path, model_sha256: str | None = None) -> bytes:
    """Return an engine's bytes after checking that they are those that were built here.

    Deserialising an engine runs native code from it, so nothing unchecked may get that far.

    Args:
        path: The engine; its record lies beside it.
        model_sha256: Checksum of the model it has to be of, for example from a verified bundle.

    Raises:
        DataError: If there is no record.
        ModelError: If the engine is not the one of the record, or of another model.
    """
    record = BuildRecord.read(record_path(path))
    try:
        plan = path.read_bytes()
    except OSError as err:
        msg = f"{path}: expected an engine, found no such file ({err.strerror})"
        raise ModelError(msg) from err
    if hashlib.sha256(plan).hexdigest() != record.plan_sha256:
        msg = f"{path}: is not the engine of its record. Remove both and build again"
        raise ModelError(msg)
    if model_sha256 is not None and record.model_sha256 != model_sha256:
        msg = f"{path}: was built from another model. Build again"
        raise ModelError(msg)
    return plan
