"""How a model was calibrated, as a JSON record beside the quantized model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record, entries
from edgeuda.records.names import QuantizerName, RuleName, RuntimeName
from edgeuda.spec import Preprocessing

RecordedRule = RuleName | Literal["tensorrt-cache"]


class Range(NamedTuple):
    """Smallest and largest value that are represented."""

    low: float
    high: float


@dataclass(frozen=True)
class Limits:
    """What is accepted.

    Attributes:
        agreement: Least share of equal pixels, 0 to 1.
        class_agreement: Least IoU between FP32 and INT8 of a class that FP32 sees on at least
            `calibration.acceptance.RARE` of the pixels, 0 to 1.
    """

    agreement: float = 0.95
    class_agreement: float = 0.5


@dataclass(frozen=True)
class ClassAgreement:
    """What INT8 makes of a class.

    Attributes:
        share: Its share of the pixels in FP32, 0 to 1.
        iou: Between FP32 and INT8, 0 to 1; None where neither has it.
        became: The class that most of its lost pixels turned into; None if none was lost.
        now: Its share of the pixels in INT8, 0 to 1; None in records of before.
    """

    share: float
    iou: float | None
    became: str | None
    now: float | None = field(default=None, metadata={OMIT: True})


@dataclass(frozen=True)
class Agreement:
    """How one form of a network differs from another on frames; the first is called FP32.

    Attributes:
        frames: Names of the frames.
        agreement: Share of equal pixels over all frames, 0 to 1.
        frame_agreement: The same of each frame.
        classes: By class.
        regions: ``[4][4]`` agreement by part of the image, rows from the top.
        divergence: Mean Kullback-Leibler divergence of the class probabilities, in nats.
        confidence: Mean probability of the likeliest class in FP32.
        confidence_shift: INT8's minus FP32's.
        worst: Positions in ``frames`` of the least agreement, worst first.
    """

    frames: tuple[str, ...]
    agreement: float
    frame_agreement: tuple[float, ...]
    classes: dict[str, ClassAgreement]
    regions: tuple[tuple[float, ...], ...]
    divergence: float
    confidence: float
    confidence_shift: float
    worst: tuple[int, ...]


@dataclass(frozen=True)
class Acceptance(Agreement):
    """How a quantized model differs from its FP32 form on frames, and whether that is accepted.

    Attributes:
        limits: What was accepted.
        reasons: Why it is refused; empty if it is accepted.
    """

    limits: Limits = field(default_factory=Limits)
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether every limit is kept."""
        return not self.reasons

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, which says whether it was accepted."""
        return {"accepted": self.accepted, **entries(self)}


@dataclass(frozen=True)
class CalibrationFrame:
    """A calibration image.

    Attributes:
        name: File name without its folder.
        sha256: Checksum of the file.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Layer:
    """A convolution.

    Attributes:
        weight: Name of its weight, which is the parameter's name in the network.
        int8: Whether it was placed in INT8.
        compiled: Whether ONNX Runtime runs it in integers on the machine that calibrated.
    """

    weight: str
    int8: bool
    compiled: bool = False


@dataclass(frozen=True)
class BlockEffect:
    """What quantizing one group of convolutions, and nothing else, does.

    Attributes:
        group: Name of the block.
        convs: Its convolutions, by their output.
        weights: Names of their weights.
        share: Share of all multiplications of the network, 0 to 1.
        disagreement: Share of the frames' pixels whose class changes, 0 to 1.
        divergence: Mean KL divergence of the class probabilities, in nats.
    """

    group: str
    convs: tuple[str, ...]
    weights: tuple[str, ...]
    share: float
    disagreement: float
    divergence: float


@dataclass(frozen=True)
class BudgetStep:
    """One assignment on the way from all INT8 to all float.

    Attributes:
        returned: The group that this step returned to float; None at first.
        int8_share: Share of the multiplications that are INT8, 0 to 1.
        drop: What is lost against FP32, 0 to 1: mIoU where there are labels, else the share of the
            pixels that changed class.
    """

    returned: str | None
    int8_share: float
    drop: float


@dataclass(frozen=True)
class Assignment:
    """A mixed-precision assignment and how it was found.

    Attributes:
        kept_float: Groups that stay float.
        convs: Their convolutions, by their output.
        max_drop: The budget, 0 to 1.
        measure: ``mIoU`` or ``disagreement``: what the drop is of.
        met: Whether the budget is kept.
        effects: Every group, most harmful per multiplication first.
        curve: Every assignment that was tried, from all INT8 on.
    """

    kept_float: tuple[str, ...]
    convs: frozenset[str]
    max_drop: float
    measure: str
    met: bool
    effects: tuple[BlockEffect, ...]
    curve: tuple[BudgetStep, ...]


@dataclass(frozen=True)
class BlockTime:
    """What returning one block to float, and nothing else, does to the time of a frame.

    Attributes:
        group: Name of the block.
        convs: Its convolutions, by their output.
        int8_ms: Median of the graph with every block in INT8.
        float_ms: Likewise with this one in float, in turns with it.
    """

    group: str
    convs: tuple[str, ...]
    int8_ms: float
    float_ms: float


@dataclass(frozen=True)
class MeasuredPlacement:
    """Blocks that stay float because the machine that calibrated is faster so.

    Attributes:
        kept_float: Groups that stay float, in the order in which they were found.
        convs: Their convolutions, by their output.
        int8_ms: Median of a frame with every block in INT8.
        chosen_ms: Likewise with these in float, in turns with it.
        blocks: Each block alone.
        clock: ``processor``: time of all threads; ``wall``: that of the clock.
        threads: Of ONNX Runtime.
        machine: See `engines.machine.hardware.identity`.
    """

    kept_float: tuple[str, ...]
    convs: frozenset[str]
    int8_ms: float
    chosen_ms: float
    blocks: tuple[BlockTime, ...]
    clock: Literal["processor", "wall"]
    threads: int
    machine: dict[str, str]


@dataclass(frozen=True)
class QuantizationNote(Record):
    """What a quantized graph says of itself, in its metadata.

    Attributes:
        runtime: What it was made for.
        rule: How ranges were chosen.
        percentile: Of the rule; None for rules without.
        calibration_sha256: Checksum of its `CalibrationRecord`.
        model_sha256: Of the FP32 model.
        int8_convs: Convolutions in integers.
        convs: All convolutions.
    """

    SCHEMA: ClassVar[str] = schemas.QUANTIZATION
    OLDER: ClassVar[tuple[str, ...]] = (schemas.QUANTIZATION_1,)
    AGAIN: ClassVar[str] = "Calibrate it again"

    runtime: str
    rule: str | None = None
    percentile: float | None = None
    calibration_sha256: str | None = None
    model_sha256: str | None = None
    int8_convs: int | None = None
    convs: int | None = None

    @classmethod
    def modern(cls, record: dict[str, Any]) -> dict[str, Any]:
        """Read the first form, which has the runtime as ``policy``."""
        if record["schema"] == schemas.QUANTIZATION_1:
            return record | {"runtime": record["policy"]}
        return record


@dataclass(frozen=True)
class CalibrationRecord(Record):
    """Everything that determined a quantized model, and what came of it.

    Attributes:
        runtime: What the model is for.
        rule: How ranges were taken from the histograms, or ``tensorrt-cache``: they were read.
        percentile: The rule's percentage; None for rules without one.
        model: File name of the FP32 model.
        model_sha256: Its checksum.
        preprocessing: How frames were fed.
        frames: The calibration images in order.
        ranges: Low and high of every quantized activation, in the FP32 model's tensor names.
        layers: Every convolution in graph order.
        int8_convs: Convolutions that ONNX Runtime runs with integer kernels on this machine.
        convs: Convolutions of the graph it compiled.
        agreement: Fraction, 0 to 1, of the target frames' pixels whose class is the same in FP32
            and INT8. It needs no labels and is not an accuracy.
        versions: Versions of the packages that took part.
        created: ISO 8601 time, UTC.
        transforms: What was done to the FP32 graph before, in order, see `Options`.
        convergence: Share of the final ranges that 1, 2, ... frames show, see
            `calibration.frame_choice.convergence`.
        acceptance: How INT8 differs from FP32, and whether that was accepted.
        scores: With labels: ``fp32`` and ``int8`` mIoU, 0 to 1, and ``images``.
        folders: Number of calibration frames by the name of their folder.
        quantizer: Whose placement and ranges these are.
        assignment: How layers were chosen to stay float.
        geometry: What was done to the calibration frames, see `edgeuda.data.treatment.noted`.
        skipped: Files among those looked at that could not be read.
        measured: Which blocks stay float because that is faster; None if it was not measured.
    """

    SCHEMA: ClassVar[str] = schemas.CALIBRATION
    OLDER: ClassVar[tuple[str, ...]] = (schemas.CALIBRATION_1,)
    AGAIN: ClassVar[str] = "Calibrate again with `edgeuda calibrate`"

    runtime: RuntimeName
    rule: RecordedRule
    percentile: float | None
    model: str
    model_sha256: str
    preprocessing: Preprocessing
    frames: tuple[CalibrationFrame, ...]
    ranges: dict[str, Range]
    layers: tuple[Layer, ...]
    int8_convs: int
    convs: int
    agreement: float
    versions: dict[str, str]
    created: str
    transforms: tuple[str, ...] = ()
    convergence: tuple[float, ...] = ()
    acceptance: Acceptance | None = None
    scores: dict[str, float] | None = None
    assignment: Assignment | None = None
    folders: dict[str, int] = field(default_factory=dict)
    quantizer: QuantizerName = "edgeuda"
    geometry: dict[str, Any] | None = field(default=None, metadata={OMIT: True})
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})
    measured: MeasuredPlacement | None = field(default=None, metadata={OMIT: True})

    @classmethod
    def modern(cls, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of version 1 with its runtime's name of today."""
        if record["schema"] != schemas.CALIBRATION_1:
            return record
        return {**record, "runtime": record["target"]}

    def __str__(self) -> str:
        verdict = "not judged"
        if self.acceptance is not None:
            verdict = "accepted" if self.acceptance.accepted else "not accepted"
        placed = sum(layer.int8 for layer in self.layers)
        return (
            f"{self.model} for {self.runtime}: {placed} of {len(self.layers)} convolutions INT8, "
            f"{self.agreement:.2%} of the pixels keep their class, {verdict}"
        )


def record_path(model: Path) -> Path:
    """Return where the record of a quantized model lies: beside it."""
    return model.with_name(f"{model.name}.calibration.json")
