"""Post-training quantization of an exported model on unlabelled frames."""

from __future__ import annotations

import json
import logging
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calibration.acceptance import Acceptance, judge
from calibration.choice import convergence
from calibration.compiled import int8_convs
from calibration.equalize import channel_means, correct_biases, equalize
from calibration.frames import FrameFiles, checksums
from calibration.graph import GraphIndex, index
from calibration.observe import Observer, scores_of
from calibration.options import Options, Report, silent
from calibration.placement import Placement
from calibration.qdq import insert_qdq
from calibration.range_file import Origin, RangeFile, ranges_path
from calibration.record import CalibrationRecord, Frame, Layer, record_path
from calibration.rules import Range
from calibration.sensitivity import Assignment, assign, effects_of
from calibration.source import adapted_model, load_fp32, miou, origin_of
from calibration.tensorrt_cache import CalibrationCache, read_cache
from calibration.weights import with_constants
from edgeuda.data.folders import spread
from edgeuda.errors import ConfigError, DataError, ModelError, require
from edgeuda.files import require_absent, sha256, write_atomic
from edgeuda.spec import ModelSpec
from engines.metadata import QUANTIZATION_KEY

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
    transforms = []
    if options.adapt_batch_norm:
        model, proto = adapted_model(
            model, proto, frames, sums, out, spec.preprocessing, options, report
        )
        transforms.append("batch-norm statistics of the frames")
    work = _Work(proto, spec, frames, sums, ranges or ranges_path(out), options, cache, report)
    if tune is not None:
        work.tune(tune)
    transforms += work.transforms
    assignment = None
    if options.max_drop is not None:
        assignment = _assign(work, judged, labelled)
        if not assignment.met:
            logger.warning("No assignment keeps the budget; every block stays float")
        work.kept |= assignment.convs
    placement = work.placement(frozenset())
    quantized = work.quantize(frozenset())
    acceptance = _judge(proto, quantized, judged, spec, options, report)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "int8.onnx"
        trial.write_bytes(quantized.SerializeToString())
        integer, total = int8_convs(trial)
    record = CalibrationRecord(
        target=options.target,
        rule=options.rule if cache is None else "tensorrt-cache",
        percentile=options.percent if cache is None else None,
        model=model.name,
        model_sha256=sha256(model),
        preprocessing=spec.preprocessing,
        frames=tuple(Frame(path.name, digest) for path, digest in zip(frames, sums, strict=True)),
        ranges={name: work.limits[name] for name in placement.measured()},
        layers=_layers(proto, placement),
        int8_convs=integer,
        convs=total,
        agreement=acceptance.agreement,
        versions={
            "python": platform.python_version(),
            **{n: require(n, "quantize").__version__ for n in ("numpy", "onnx", "onnxruntime")},
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        transforms=tuple(transforms),
        convergence=() if cache is not None else tuple(convergence(work.file.histograms)),
        acceptance=acceptance,
        scores=None
        if labelled is None
        else {
            "images": len(labelled),
            "fp32": miou(proto, labelled, spec, options.threads),
            "int8": miou(quantized, labelled, spec, options.threads),
        },
        assignment=None if assignment is None else assignment.to_record(),
    )
    record.write(record_path(out))
    write_quantized(quantized, record, placement, out)
    return record


def write_quantized(
    quantized: onnx.ModelProto, record: CalibrationRecord, placement: Placement, out: Path
) -> None:
    """Write a Q/DQ graph that names its written record."""
    onnx = require("onnx", "quantize")
    note = {
        "schema": "edgeuda.quantization/1",
        "policy": record.target,
        "rule": record.rule,
        "percentile": record.percentile,
        "calibration_sha256": sha256(record_path(out)),
        "int8_convs": len(placement.convs),
        "convs": len(placement.convs) + len(placement.float_convs),
    }
    quantized.metadata_props.append(
        onnx.StringStringEntryProto(key=QUANTIZATION_KEY, value=json.dumps(note))
    )
    write_atomic(out, lambda name: name.write_bytes(quantized.SerializeToString()))


@dataclass(frozen=True)
class Cache:
    """A TensorRT calibration cache, and whether one without hashes is taken on trust."""

    path: Path
    unchecked: bool = False


@dataclass(frozen=True)
class TuningTask:
    """What is to be fine-tuned.

    Attributes:
        model: The FP32 graph.
        scores: Name of its class scores.
        inputs: Range of each rounded input, by the reader's first output and the position.
        limits: Ends of each range.
        convs: Convolutions whose weights are rounded, by their output.
        unsigned: Whether activations are uint8 with a zero point.
        frames: Unlabelled frames.
    """

    model: onnx.ModelProto
    scores: str
    inputs: dict[tuple[str, int], str]
    limits: dict[str, Range]
    convs: tuple[str, ...]
    unsigned: bool
    frames: FrameFiles


Tune = Callable[[TuningTask], tuple[dict[str, npt.NDArray[np.float32]], dict[str, Range]]]
"""Returns trained constants and ranges."""


class _Work:
    """One FP32 graph on its way to INT8: what is placed, measured and rounded."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        spec: ModelSpec,
        frames: Sequence[Path],
        sums: Sequence[str],
        ranges: Path,
        options: Options,
        cache: Cache | None,
        report: Report,
    ) -> None:
        size = spec.preprocessing
        self.spec, self.options, self.report = spec, options, report
        self.frames = FrameFiles(tuple(frames), size.height, size.width)
        self.original = proto
        self.proto = equalize(proto) if options.equalize else proto
        self.transforms = ["weights equalized across layers"] if options.equalize else []
        self.graph: GraphIndex = index(self.proto.graph)
        self.kept = self._by_pattern(options.keep_float)
        self.file = RangeFile.open(ranges, origin_of(self.proto, sums, size))
        self.cache = None
        if cache is not None:
            self.cache = _read(cache, origin_of(proto, sums, size), options)
        self.limits: dict[str, Range] = {}
        placement = self.placement(frozenset())
        if not placement.convs:
            msg = "The model has no convolution that could be quantized for this runtime"
            raise ModelError(msg)
        self._measure(placement)
        self.means = None
        if options.correct_biases:
            self.transforms.append("biases corrected")
            inputs = {n.input[0] for n in self.graph.nodes if n.output[0] in placement.convs}
            self.means = channel_means(
                self.proto,
                sorted(inputs),
                self.frames,
                threads=options.threads,
                device=options.device,
            )

    def placement(self, floating: frozenset[str]) -> Placement:
        return self.options.policy.place(self.graph, self.kept | floating)

    def quantize(self, floating: frozenset[str]) -> onnx.ModelProto:
        policy, placement = self.options.policy, self.placement(floating)
        self._measure(placement)
        proto = self.proto
        if self.means is not None:
            proto = correct_biases(proto, placement, policy, self.limits, self.means)
        return insert_qdq(proto, placement, policy, self.limits)

    def tune(self, tune: Tune) -> None:
        """Replace weights, biases and ranges by trained ones."""
        placement = self.placement(frozenset())
        inputs = {}
        for edge in placement.edges:
            tensor = self.graph.producers[edge.reader].input[edge.position]
            inputs[edge.reader, edge.position] = placement.same_as.get(tensor, tensor)
        limits = {name: self.limits[name] for name in placement.measured()}
        task = TuningTask(
            self.proto, scores_of(self.proto), inputs, limits, placement.convs,
            self.options.policy.unsigned, self.frames,
        )  # fmt: skip
        constants, ranges = tune(task)
        self.proto = with_constants(self.proto, constants)
        self.limits |= ranges
        self.transforms.append("fine-tuned with its FP32 form as teacher")

    def _measure(self, placement: Placement) -> None:
        """Collect what is not known yet: another placement may need other tensors."""
        missing = [name for name in placement.measured() if name not in self.limits]
        if missing and self.cache is not None:
            self.limits |= self.cache.ranges(missing, "The calibration cache")
        elif missing:
            histograms = self.file.collect(
                self.proto,
                missing,
                self.frames,
                threads=self.options.threads,
                device=self.options.device,
                progress=partial(self.report, "collecting ranges"),
            )
            to_range = self.options.to_range
            self.limits |= {name: to_range(histogram) for name, histogram in histograms.items()}

    def _by_pattern(self, patterns: Sequence[str]) -> frozenset[str]:
        weights = {n.output[0]: n.input[1] for n in self.graph.nodes if n.op_type == "Conv"}
        for pattern in patterns:
            if not any(fnmatch(name, pattern) for name in weights.values()):
                msg = (
                    f"No convolution's weight is called {pattern!r}; there are for example "
                    f"{', '.join(list(weights.values())[:3])}"
                )
                raise ConfigError(msg)
        return frozenset(
            output
            for output, name in weights.items()
            if any(fnmatch(name, pattern) for pattern in patterns)
        )


def _read(cache: Cache, origin: Origin, options: Options) -> CalibrationCache:
    if options.equalize or options.adapt_batch_norm:
        msg = "A calibration cache is of the exported network; it cannot be changed first"
        raise ConfigError(msg)
    content = read_cache(cache.path, origin, same_frames=False, unchecked=cache.unchecked)
    return CalibrationCache.parse(content, str(cache.path))


def _assign(work: _Work, judged: Sequence[Path], labelled: LabelledFolder | None) -> Assignment:
    options, size = work.options, work.spec.preprocessing
    chosen = FrameFiles(tuple(spread(judged, options.sensitivity_frames)), size.height, size.width)
    effects, reference = effects_of(
        work.original,
        work.placement(frozenset()).convs,
        work.quantize,
        chosen,
        threads=options.threads,
        progress=partial(work.report, "sensitivity of each block"),
    )
    score = None
    if labelled is not None:

        def of(graph: onnx.ModelProto) -> float:
            return miou(graph, labelled, work.spec, options.threads)

        score = of, of(work.original)
    assert options.max_drop is not None
    return assign(
        effects,
        work.quantize,
        chosen,
        reference,
        options.max_drop,
        whole_curve=options.whole_curve,
        score=score,
        threads=options.threads,
        progress=partial(work.report, "looking for an assignment"),
    )


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
        FrameFiles(tuple(judged), size.height, size.width),
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


def _layers(proto: onnx.ModelProto, placement: Placement) -> tuple[Layer, ...]:
    return tuple(
        Layer(node.input[1], node.output[0] in placement.convs)
        for node in proto.graph.node
        if node.op_type == "Conv"
    )
