"""What an ONNX file written by this project says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from edgeuda.errors import DependencyError, ModelError, require
from edgeuda.spec import ModelSpec
from engines.onnxruntime_session import open_session

Head = Literal["labels", "logits"]
Precision = Literal["fp32", "int8"]

SPEC_KEY = "edgeuda.spec"
EXPORT_KEY = "edgeuda.export"
QUANTIZATION_KEY = "edgeuda.quantization"


@dataclass(frozen=True)
class ExportRecord:
    """How a network was exported and how well the graph reproduces it.

    Attributes:
        head: What the graph returns: ``labels`` (uint8 class ids) or ``logits`` (float32).
        opset: ONNX operator set of the file.
        torch_version: Version that exported it.
        onnx_version: Version that checked and wrote it.
        frames: Number of frames on which torch and ONNX Runtime were compared.
        pixels_equal: Fraction of pixels whose class is the same in both.
        logit_difference: Largest absolute difference of a logit; None for the ``labels`` head.
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
        return json.dumps({"schema": "edgeuda.export/1", **asdict(self)})

    @classmethod
    def from_json(cls, text: str, origin: str) -> ExportRecord:
        """Read `to_json`'s text; ``origin`` names the file in errors.

        Raises:
            ModelError: If the text is not such a record.
        """
        try:
            record = json.loads(text)
            if record.pop("schema") != "edgeuda.export/1" or record["head"] not in get_args(Head):
                raise ValueError(text)
            return cls(**record)
        except (AttributeError, KeyError, TypeError, ValueError) as err:
            msg = f"{origin}: its 'edgeuda.export/1' record is damaged ({err!r}). Export it again"
            raise ModelError(msg) from err


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
            onnx = require("onnx", "cpu")
        except DependencyError:
            raise missing from None
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as err:  # protobuf's DecodeError, OSError and more: all mean one thing
            msg = f"{path}: expected an ONNX model, found a file that cannot be loaded ({err})"
            raise ModelError(msg) from err
        return {entry.key: entry.value for entry in model.metadata_props}
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
    """Return ``int8`` for a quantized model, ``fp32`` otherwise."""
    return "int8" if QUANTIZATION_KEY in metadata else "fp32"


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
            f"found {found}"
        )
        raise ModelError(msg)
    return metadata[key]
