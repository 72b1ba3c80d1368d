"""Post-training quantization of an exported model on unlabelled frames."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration import rules
from calibration.compiled import int8_convs
from calibration.graph import index
from calibration.placement import POLICIES, Placement, Policy, Target
from calibration.qdq import insert_qdq
from calibration.ranges import Frames, collect
from calibration.record import CalibrationRecord, Frame, Layer, record_path
from calibration.rules import RuleName
from edgeuda.data.images import read_image, resize_image
from edgeuda.errors import ConfigError, DataError, ModelError, require
from edgeuda.evaluation import agreement
from edgeuda.files import require_absent, sha256, write_atomic
from edgeuda.spec import Preprocessing
from engines.metadata import QUANTIZATION_KEY, precision_of, spec_of
from engines.onnxruntime_runner import OnnxRunner

if TYPE_CHECKING:
    import onnx

    from engines.runner import Images

DEFAULT_RULE: RuleName = "percentile"
DEFAULT_PERCENTILE = 99.99


def calibrate(
    model: Path,
    frames: Sequence[Path],
    out: Path,
    *,
    target: Target,
    rule: RuleName = DEFAULT_RULE,
    percentile: float = DEFAULT_PERCENTILE,
    threads: int | None = None,
) -> CalibrationRecord:
    """Write the INT8 form of an exported model, and its record beside it.

    Args:
        model: An FP32 ONNX file written by `export_onnx`, with either head.
        frames: Images of the domain it will run in, 100 to 500 of them; labels are not needed.
        out: The Q/DQ ONNX file to write; the record goes to ``<out>.calibration.json``.
        target: The runtime it is for.
        rule: How ranges follow from the values seen.
        percentile: For rule ``percentile``, in percent.
        threads: Threads of ONNX Runtime; None takes every usable core.

    Raises:
        OutputExistsError: If ``out`` exists, or a file of the record's name that is none.
        ModelError: If ``model`` is not an FP32 model of this project.
        DataError: If there are no frames, or one cannot be read.
        ConfigError: If the target or the rule is unknown.
        DependencyError: If ``onnx`` or ``onnxruntime`` is not installed.
    """
    onnx = require("onnx", "quantize")
    if target not in POLICIES:
        msg = f"Unknown quantization target {target!r}; known: {', '.join(POLICIES)}"
        raise ConfigError(msg)
    policy = POLICIES[target]
    to_range = rules.by_name(rule, percentile, symmetric=not policy.unsigned)
    require_absent(out)
    _require_leftover(record_path(out))
    if not frames:
        msg = f"{out}: expected at least one frame to calibrate on, found none"
        raise DataError(msg)
    proto, size = _load(model)

    placement = policy.place(index(proto.graph))
    histograms = collect(proto, placement.measured(), _passes(frames, size), threads=threads)
    ranges = {name: to_range(histogram) for name, histogram in histograms.items()}
    quantized = insert_qdq(proto, placement, policy, ranges)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "int8.onnx"
        trial.write_bytes(quantized.SerializeToString())
        integer, total = int8_convs(trial)
        equal = _agreement(model, trial, _passes(frames, size), threads)
    record = CalibrationRecord(
        target=target,
        rule=rule,
        percentile=percentile if rule == "percentile" else None,
        model=model.name,
        model_sha256=sha256(model),
        preprocessing=size,
        frames=tuple(Frame(path.name, sha256(path)) for path in frames),
        ranges=ranges,
        layers=_layers(proto, placement),
        int8_convs=integer,
        convs=total,
        agreement=equal,
        versions={
            "python": platform.python_version(),
            **{n: require(n, "quantize").__version__ for n in ("numpy", "onnx", "onnxruntime")},
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    record.write(record_path(out))
    note = onnx.StringStringEntryProto(
        key=QUANTIZATION_KEY, value=_note(policy, placement, record, sha256(record_path(out)))
    )
    quantized.metadata_props.append(note)
    write_atomic(out, lambda name: name.write_bytes(quantized.SerializeToString()))
    return record


def _require_leftover(path: Path) -> None:
    """Let a record be replaced whose model was never written: an earlier call was killed."""
    try:
        CalibrationRecord.read(path)
    except DataError:
        require_absent(path)


def _load(path: Path) -> tuple[onnx.ModelProto, Preprocessing]:
    """Read an FP32 model of this project and how it is fed."""
    onnx = require("onnx", "quantize")
    try:
        proto = onnx.load(path)
    except Exception as err:  # protobuf's DecodeError, OSError and more: all mean one thing
        msg = f"{path}: expected an ONNX model, found a file that cannot be loaded ({err})"
        raise ModelError(msg) from err
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    spec = spec_of(metadata, str(path))
    operators = {node.op_type for node in proto.graph.node}
    if precision_of(metadata) == "int8" or "QuantizeLinear" in operators:
        msg = f"{path}: expected an FP32 model, found a quantized one. Calibrate the exported file"
        raise ModelError(msg)
    return proto, spec.preprocessing


def _passes(frames: Sequence[Path], size: Preprocessing) -> Frames:
    def start() -> Iterator[Images]:
        for path in frames:
            yield resize_image(read_image(path), size.height, size.width)[None]

    return start


def _agreement(reference: Path, other: Path, frames: Frames, threads: int | None) -> float:
    with OnnxRunner(reference, threads) as fp32, OnnxRunner(other, threads) as int8:
        return float(np.mean([agreement(fp32(image)[0], int8(image)[0]) for image in frames()]))


def _layers(proto: onnx.ModelProto, placement: Placement) -> tuple[Layer, ...]:
    return tuple(
        Layer(node.input[1], node.output[0] in placement.convs)
        for node in proto.graph.node
        if node.op_type == "Conv"
    )


def _note(
    policy: Policy, placement: Placement, record: CalibrationRecord, record_sha256: str
) -> str:
    """Return what the quantized file says about its own quantization."""
    return json.dumps(
        {
            "schema": "edgeuda.quantization/1",
            "policy": policy.target,
            "rule": record.rule,
            "percentile": record.percentile,
            "calibration_sha256": record_sha256,
            "int8_convs": len(placement.convs),
            "convs": len(placement.convs) + len(placement.float_convs),
        }
    )
