"""What an ONNX file written by this project says about itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from edgeuda import schemas
from edgeuda.errors import DataError, DependencyError, ModelError, require
from edgeuda.records.calibration import QuantizationNote
from edgeuda.records.identity import Identity
from edgeuda.records.names import Head, Precision
from edgeuda.spec import ModelSpec
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.session import open_session

SPEC_KEY = "edgeuda.spec"
IDENTITY_KEY = "edgeuda.identity"
"""Which network it is, where its training run was known when it was exported."""
EXPORT_KEY = "edgeuda.export"
QUANTIZATION_KEY = "edgeuda.quantization"
HALF_KEY = "edgeuda.half"
"""Checksum of the model that a half-precision one was made from."""
BATCH_NORM_KEY = "edgeuda.batch_norm"
"""Batch norms that export folded into convolutions, see `FoldedNorm`."""


@dataclass(frozen=True)
class ExportRecord:
    """How a network was exported and how well the graph reproduces it.

    Attributes:
        head: What the graph returns, see `engines.onnx.heads`.
        opset: ONNX operator set of the file.
        torch_version: Version that exported it.
        onnx_version: Version that checked and wrote it.
        frames: Number of frames on which torch and ONNX Runtime were compared.
        pixels_equal: Fraction of pixels whose class is the same in both.
        logit_difference: Largest absolute difference of a logit; None for other heads.
    """

    head: Head
    opset: int
    torch_version: str
    onnx_version: str
    frames: int
    pixels_equal: float
    logit_difference: float | None

    def to_json(self) -> str:
        """Serialise to one line of JSON."""
        return json.dumps({"schema": schemas.EXPORT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, origin: str) -> ExportRecord:
        """Read `to_json`'s text; ``origin`` names the file in errors.

        Raises:
            ModelError: If the text is not such a record.
        """
        try:
            record = json.loads(text)
            if record.pop("schema") != schemas.EXPORT or record["head"] not in get_args(Head):
                raise ValueError(text)
            return cls(**record)
        except (AttributeError, KeyError, TypeError, ValueError) as err:
            msg = f"{origin}: its 'edgeuda.export/1' record is damaged ({err!r}). Export it again"
            raise ModelError(msg) from err


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """A batch norm that was folded into the convolution before it.

    With it, statistics can be estimated anew on the exported graph. The running mean is not among
    them: no mean is needed to replace one.

    Attributes:
        gamma: ``[C]`` float32 factor after normalisation.
        beta: ``[C]`` float32 summand after it.
        variance: ``[C]`` float32 running variance.
        epsilon: What is added to the variance.
    """

    gamma: npt.NDArray[np.float32]
    beta: npt.NDArray[np.float32]
    variance: npt.NDArray[np.float32]
    epsilon: float


def norms_to_json(norms: Mapping[str, FoldedNorm]) -> str:
    """Serialise folded batch norms by the name of the convolution's weight."""
    entries = {
        name: [_text(norm.gamma), _text(norm.beta), _text(norm.variance), norm.epsilon]
        for name, norm in norms.items()
    }
    return json.dumps({"schema": schemas.BATCH_NORM, "norms": entries})


def norms_of(metadata: Mapping[str, str], origin: str) -> dict[str, FoldedNorm]:
    """Return the folded batch norms by the name of the convolution's weight.

    Raises:
        ModelError: If the model does not carry them, or they are damaged.
    """
    if BATCH_NORM_KEY not in metadata:
        msg = (
            f"{origin}: carries no batch norms, so their statistics cannot be estimated anew. "
            "Export the network again with this version"
        )
        raise ModelError(msg)
    try:
        entries = json.loads(metadata[BATCH_NORM_KEY])["norms"]
        return {
            name: FoldedNorm(_floats(gamma), _floats(beta), _floats(variance), float(epsilon))
            for name, (gamma, beta, variance, epsilon) in entries.items()
        }
    except (KeyError, TypeError, ValueError) as err:
        msg = f"{origin}: its record of batch norms is damaged ({err!r}). Export it again"
        raise ModelError(msg) from err


def _text(values: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _floats(text: str) -> npt.NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), "<f4")


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata properties of an ONNX file, by ONNX Runtime or else by ``onnx``.

    Raises:
        ModelError: If the file is missing or is not an ONNX model.
        DependencyError: If neither package is installed.
    """
    try:
        require("onnxruntime", "cpu")
    except DependencyError as missing:
        try:
            return metadata_of(load_graph(path))
        except DependencyError:
            raise missing from None
    session = open_session(path, threads=1, optimize=False)
    return dict(session.get_modelmeta().custom_metadata_map)


def spec_of(metadata: Mapping[str, str], origin: str) -> ModelSpec:
    """Return the model spec held by metadata properties; ``origin`` names the file in errors.

    Raises:
        ModelError: If the properties are not those of a model written by this project.
    """
    return ModelSpec.from_json(_entry(metadata, SPEC_KEY, origin), origin)


def export_of(metadata: Mapping[str, str], origin: str) -> ExportRecord:
    """Return the export record held by metadata properties; ``origin`` names the file in errors.

    Raises:
        ModelError: If the properties are not those of a model written by this project.
    """
    return ExportRecord.from_json(_entry(metadata, EXPORT_KEY, origin), origin)


def precision_of(metadata: Mapping[str, str]) -> Precision:
    """Return ``int8`` for a quantized model, also with the rest in half precision."""
    if QUANTIZATION_KEY in metadata:
        return "int8"
    return "fp16" if HALF_KEY in metadata else "fp32"


def runtime_of(metadata: Mapping[str, str]) -> str | None:
    """Return the runtime a model is quantized for; None if it is not."""
    text = metadata.get(QUANTIZATION_KEY)
    if text is None:
        return None
    try:
        note = json.loads(text)
        return QuantizationNote.from_record(note, f"metadata {QUANTIZATION_KEY!r}").runtime
    except (AttributeError, DataError, ValueError, RecursionError) as err:
        msg = (
            f"The model's metadata {QUANTIZATION_KEY!r} is damaged: expected a record with a "
            f"'runtime', found {text[:60]!r}. Calibrate it again"
        )
        raise ModelError(msg) from err


def identity_in(metadata: Mapping[str, str], origin: str) -> Identity | None:
    """Return which network metadata properties say it is; ``origin`` names the file in errors.

    Returns:
        None where they do not say: earlier exports, and networks of no training run of ours.

    Raises:
        ModelError: If what they say is damaged.
    """
    if IDENTITY_KEY not in metadata:
        return None
    try:
        return Identity.from_json(metadata[IDENTITY_KEY], origin)
    except DataError as err:
        msg = f"{err}. Export it again"
        raise ModelError(msg) from err


def made_from(metadata: Mapping[str, str]) -> str | None:
    """Return the checksum of the model that a quantized or half-precision one was made from.

    Of a quantized model in half precision it is the FP32 one. None where nothing is recorded.
    """
    try:
        found = json.loads(metadata.get(QUANTIZATION_KEY, "{}")).get("model_sha256")
    except (ValueError, AttributeError, RecursionError):
        found = None  # `runtime_of` says what is wrong with it
    if found is not None:
        return str(found)
    return None if QUANTIZATION_KEY in metadata else metadata.get(HALF_KEY)


def read_spec(path: Path) -> ModelSpec:
    """Return the model spec of an ONNX file.

    Raises:
        ModelError: If the file is missing, broken or was not written by this project.
        DependencyError: If neither ``onnxruntime`` nor ``onnx`` is installed.
    """
    return spec_of(read_metadata(path), str(path))


def read_export(path: Path) -> ExportRecord:
    """Return the export record of an ONNX file; raises as `read_spec` does."""
    return export_of(read_metadata(path), str(path))


def _entry(metadata: Mapping[str, str], key: str, origin: str) -> str:
    if key not in metadata:
        found = ", ".join(sorted(metadata)) or "no metadata"
        msg = (
            f"{origin}: expected a model written by `edgeuda export` (metadata {key!r}), "
            f"found {found}. Another project's network comes in by its weights: edgeuda import "
            "--weights FILE.pth --out MODEL.safetensors, then edgeuda export, which puts the "
            "normalisation of camera images into the graph"
        )
        raise ModelError(msg)
    return metadata[key]
