"""Post-training quantization of an exported model on unlabelled frames."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.acceptance import judge
from calibration.frames import FrameFiles, checksums
from calibration.modelopt import by_modelopt
from calibration.observe import Observer
from calibration.options import Options, Report, silent
from calibration.ort_kernels import compiled
from calibration.pipeline import Cache, Quantized, Tune, Work
from calibration.range_file import ranges_path
from calibration.source import adapted_model, load_fp32, miou
from edgeuda.data.treatment import applied_to
from edgeuda.errors import ConfigError, DataError, require
from edgeuda.files import now_utc, require_absent, sha256, write_bytes
from edgeuda.records.calibration import (
    Acceptance,
    CalibrationFrame,
    CalibrationRecord,
    Layer,
    QuantizationNote,
    record_path,
)
from edgeuda.spec import ModelSpec
from engines.onnx.metadata import QUANTIZATION_KEY

if TYPE_CHECKING:
    import onnx

    from edgeuda.data.folders import LabelledFolder

logger = logging.getLogger(__name__)


def calibrate(
    model: Path,
    frames: Sequence[Path],
    out: Path,
    options: Options,
    *,
    judged: Sequence[Path] | None = None,
    labelled: LabelledFolder | None = None,
    ranges: Path | None = None,
    cache: Cache | None = None,
    tune: Tune | None = None,
    report: Report = silent,
    skipped: Sequence[str] = (),
) -> CalibrationRecord:
    """Write the INT8 form of an exported model, and its record beside it.

    Histograms are kept in a file; what is interrupted goes on from there, and another rule, runtime
    or precision takes no new pass over the frames.

    Args:
        model: An FP32 ONNX file written by `export_onnx`, with either head.
        frames: Images of the domain it will run in, 100 to 500 of them; labels are not needed.
        out: The Q/DQ ONNX file to write; the record goes to ``<out>.calibration.json``. With
            ``adapt_batch_norm`` the FP32 model with new statistics goes to ``<out>.fp32.onnx``.
        options: See `Options`.
        judged: Target frames by which INT8 is compared with FP32; None takes ``frames``.
        labelled: Labelled images in the network's label space; with them the drop is one of mIoU.
        ranges: File of histograms; None is ``<out>.ranges.npz``.
        cache: TensorRT's calibration cache whose scales are taken; nothing is collected.
        tune: Fine-tunes the rounded network before it is written.
        report: See `Report`.
        skipped: Files that could not be read, for the record.

    Raises:
        OutputExistsError: If ``out`` exists, or a file of the record's name that is none.
        ModelError: If ``model`` is not an FP32 model of this project.
        DataError: If there are no frames, one cannot be read, or ``ranges`` is of something else.
        DependencyError: If ``onnx`` or ``onnxruntime`` is not installed.
    """
    require_absent(out)
    _require_leftover(record_path(out))
    if not frames:
        msg = f"{out}: expected at least one frame to calibrate on, found none"
        raise DataError(msg)
    proto, spec = load_fp32(model)
    sums = checksums(frames)
    _warn(sums)
    judged = frames if judged is None else judged
    first = []
    if options.adapt_batch_norm:
        model, proto = adapted_model(
            model, proto, frames, sums, out, spec.preprocessing, options, report
        )
        first.append("batch-norm statistics of the frames")
    measured = None
    fp32_miou = None if labelled is None else miou(proto, labelled, spec, options.threads)
    if options.cluster is not None and (options.quantizer == "modelopt" or cache is not None):
        msg = (
            "A Ray cluster collects ranges: with the quantizer modelopt, or with a TensorRT cache, "
            "there is nothing for it to do. Leave `ray` out"
        )
        raise ConfigError(msg)
    if options.quantizer == "modelopt":
        if cache is not None or tune is not None:
            msg = "nvidia-modelopt collects ranges itself: no cache and no fine-tuning goes with it"
            raise ConfigError(msg)
        files = FrameFiles.of(frames, spec.preprocessing)
        made = by_modelopt(proto, files, options)
    else:
        work = Work(proto, spec, frames, sums, ranges or ranges_path(out), options, cache, report)
        if tune is not None:
            work.tune(tune)
        if options.measure:
            measured = work.measure()
        assignment = None
        if options.max_drop is not None:
            assignment = work.assign(judged, labelled, fp32_miou)
        made = work.result(assignment)
    quantized = made.model
    acceptance = _judge(proto, quantized, judged, spec, options, report)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "int8.onnx"
        trial.write_bytes(quantized.SerializeToString())
        runs = compiled(trial)
    record = CalibrationRecord(
        runtime=options.runtime,
        rule=made.rule,
        percentile=made.percentile,
        model=model.name,
        model_sha256=sha256(model),
        preprocessing=spec.preprocessing,
        frames=tuple(
            CalibrationFrame(path.name, digest) for path, digest in zip(frames, sums, strict=True)
        ),
        ranges=made.ranges,
        layers=_layers(proto, made.convs, runs.placed),
        int8_convs=runs.integer,
        convs=runs.total,
        agreement=acceptance.agreement,
        versions={
            "python": platform.python_version(),
            **{n: require(n, "quantize").__version__ for n in ("numpy", "onnx", "onnxruntime")},
        },
        created=now_utc(),
        transforms=(*first, *made.transforms),
        convergence=made.convergence,
        acceptance=acceptance,
        scores=None
        if labelled is None or fp32_miou is None
        else {
            "images": len(labelled),
            "fp32": fp32_miou,
            "int8": miou(quantized, labelled, spec, options.threads),
        },
        assignment=made.assignment,
        quantizer=options.quantizer,
        folders=dict(Counter(map(_folder, frames))),
        geometry=applied_to(frames, spec.preprocessing.geometry).get("geometry"),
        skipped=list(skipped) or None,
        measured=measured,
    )
    record.write(record_path(out))
    _write(made, record, out)
    return record


def _write(made: Quantized, record: CalibrationRecord, out: Path) -> None:
    """Write a Q/DQ graph that names its written record."""
    onnx = require("onnx", "quantize")
    note = QuantizationNote(
        runtime=record.runtime,
        rule=record.rule,
        percentile=record.percentile,
        calibration_sha256=sha256(record_path(out)),
        model_sha256=record.model_sha256,
        int8_convs=len(made.convs),
        convs=len(made.convs) + len(made.float_convs),
    )
    made.model.metadata_props.append(
        onnx.StringStringEntryProto(key=QUANTIZATION_KEY, value=note.to_json())
    )
    write_bytes(out, made.model.SerializeToString())


def _judge(
    proto: onnx.ModelProto,
    quantized: onnx.ModelProto,
    judged: Sequence[Path],
    spec: ModelSpec,
    options: Options,
    report: Report,
) -> Acceptance:
    size = spec.preprocessing
    return judge(
        Observer(proto, options.threads),
        Observer(quantized, options.threads),
        FrameFiles.of(judged, size),
        [path.name for path in judged],
        spec.label_space,
        options.limits,
        partial(report, "comparing with FP32"),
    )


def _warn(sums: Sequence[str]) -> None:
    """Say what makes ranges less trustworthy than their number suggests."""
    different = len(set(sums))
    if different < len(sums):
        logger.warning(
            "%d of %d calibration frames are copies of others", len(sums) - different, len(sums)
        )
    if different == 1:
        logger.warning(
            "Ranges come from a single frame; whatever another one exceeds is cut off. "
            "Use 100 or more"
        )


def _require_leftover(path: Path) -> None:
    """Let a record be replaced whose model was never written: an earlier call was killed."""
    try:
        CalibrationRecord.read(path)
    except DataError:
        require_absent(path)


def _folder(frame: Path) -> str:
    """Return the name of a frame's data set: that of the folder above ``images``."""
    folder = frame.resolve().parent
    return folder.parent.name if folder.name == "images" else folder.name


def _layers(
    proto: onnx.ModelProto, convs: Sequence[str], compiled: frozenset[str]
) -> tuple[Layer, ...]:
    return tuple(
        Layer(node.input[1], node.output[0] in convs, node.output[0] in compiled)
        for node in proto.graph.node
        if node.op_type == "Conv"
    )
