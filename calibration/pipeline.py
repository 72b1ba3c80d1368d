"""One FP32 graph on its way to INT8: what is placed, measured, trained and rounded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calibration.block_times import faster_in_float
from calibration.equalize import channel_means, correct_biases, equalize
from calibration.frame_choice import convergence
from calibration.frames import FrameFiles
from calibration.options import Options, Report
from calibration.placement import Placement
from calibration.qdq import insert_qdq
from calibration.range_file import RangeFile, RangeOrigin
from calibration.sensitivity import assign, effects_of
from calibration.source import miou, origin_of
from calibration.tensorrt_cache import CalibrationCache, read_cache
from edgeuda.data.folders import spread
from edgeuda.errors import ConfigError, ModelError
from edgeuda.records.calibration import Assignment, MeasuredPlacement, Range, RecordedRule
from edgeuda.spec import ModelSpec
from engines.onnx.heads import scores_of
from engines.onnx.index import GraphIndex, index
from engines.onnx.weights import with_constants

if TYPE_CHECKING:
    import onnx

    from edgeuda.data.folders import LabelledFolder

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, eq=False)
class Quantized:
    """A Q/DQ graph and how it came to be.

    Attributes:
        model: The graph.
        convs: Quantized convolutions, by their output in the FP32 graph.
        float_convs: The others.
        ranges: Of every quantized activation.
        rule: How they were taken, see `CalibrationRecord`.
        percentile: Of the rule.
        transforms: What was done to the FP32 graph before, in order.
        convergence: See `CalibrationRecord`.
        assignment: How layers were chosen to stay float, if they were.
    """

    model: onnx.ModelProto
    convs: tuple[str, ...]
    float_convs: tuple[str, ...]
    ranges: dict[str, Range]
    rule: RecordedRule
    percentile: float | None
    transforms: tuple[str, ...] = ()
    convergence: tuple[float, ...] = ()
    assignment: Assignment | None = None


class Work:
    """What `calibrate` does with one graph.

    Args:
        proto: The FP32 graph.
        spec: What the model is.
        frames: Calibration images.
        sums: Their checksums.
        ranges: File of histograms.
        options: See `Options`.
        cache: TensorRT's cache whose scales are taken; nothing is collected.
        report: See `Report`.
    """

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
        self.frames = FrameFiles.of(frames, size)
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
        """Place pairs with these convolutions in float, besides those that stay so anyway."""
        return self.options.policy.place(self.graph, self.kept | floating)

    def quantize(self, floating: frozenset[str]) -> onnx.ModelProto:
        """Return the Q/DQ graph with these convolutions in float, see `placement`."""
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
                cluster=self.options.cluster,
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

    def result(self, assignment: Assignment | None) -> Quantized:
        """Return the graph as it stands."""
        placement = self.placement(frozenset())
        return Quantized(
            self.quantize(frozenset()),
            placement.convs,
            placement.float_convs,
            {name: self.limits[name] for name in placement.measured()},
            self.options.rule if self.cache is None else "tensorrt-cache",
            self.options.percent if self.cache is None else None,
            tuple(self.transforms),
            () if self.cache is not None else tuple(convergence(self.file.histograms)),
            assignment,
        )

    def measure(self) -> MeasuredPlacement:
        """Find out which blocks are faster in float here; they stay so from now on."""
        found = faster_in_float(
            self.proto,
            self.placement(frozenset()).convs,
            self.quantize,
            self.frames[0],
            threads=self.options.threads,
            progress=partial(self.report, "timing blocks"),
        )
        self.kept |= found.convs
        return found

    def assign(
        self, judged: Sequence[Path], labelled: LabelledFolder | None, fp32_miou: float | None
    ) -> Assignment:
        """Choose which blocks stay float within the budget; they do so from now on.

        Args:
            judged: Target frames.
            labelled: Labelled images, by which the drop is then measured.
            fp32_miou: What FP32 scores on them, 0 to 1; None without labels.
        """
        assignment = _assign(self, judged, labelled, fp32_miou)
        if not assignment.met:
            logger.warning("No assignment keeps the budget; every block stays float")
        self.kept |= assignment.convs
        return assignment


def _read(cache: Cache, origin: RangeOrigin, options: Options) -> CalibrationCache:
    if options.equalize or options.adapt_batch_norm:
        msg = "A calibration cache is of the exported network; it cannot be changed first"
        raise ConfigError(msg)
    content = read_cache(cache.path, origin, same_frames=False, unchecked=cache.unchecked)
    return CalibrationCache.parse(content, str(cache.path))


def _assign(
    work: Work, judged: Sequence[Path], labelled: LabelledFolder | None, fp32_miou: float | None
) -> Assignment:
    options, size = work.options, work.spec.preprocessing
    chosen = FrameFiles.of(spread(judged, options.sensitivity_frames), size)
    effects, reference = effects_of(
        work.original,
        work.placement(frozenset()).convs,
        work.quantize,
        chosen,
        threads=options.threads,
        progress=partial(work.report, "sensitivity of each block"),
    )
    score = None
    if labelled is not None and fp32_miou is not None:

        def of(graph: onnx.ModelProto) -> float:
            return miou(graph, labelled, work.spec, options.threads)

        score = of, fp32_miou
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
