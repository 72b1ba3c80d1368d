"""What networks were taken to be sure of: pseudo-labels, LSE's frames, the worth of confidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.labels import LabelSpace
from edgeuda.records.form import OMIT, SPELT, Record


@dataclass(frozen=True)
class LabelledFrame:
    """A frame and its pseudo-labels.

    Attributes:
        frame: What was labelled.
        label: The label map, relative to the record.
        pixels: Labelled pixels of each class, at the network's input size.
        soft: Its soft labels, relative to the record: a PNG with the probabilities of the classes
            one below the other, 255 being certain, at any size; None if there are none.
    """

    frame: str
    label: str
    pixels: list[int]
    soft: str | None = field(default=None, metadata={OMIT: True})


@dataclass(frozen=True)
class PseudoLabelsRecord(Record):
    """One pass over frames.

    Attributes:
        model_sha256: Checksum of the network.
        label_space: What the ids mean.
        selection: See `edgeuda.methods.selection.SelectorSettings`.
        seed: Of the order in which frames were seen.
        thresholds: Confidence from which a class was labelled at the end of the pass.
        mean_confidence: Of each class's labelled pixels; 0 where there are none.
        labelled_share: Of all pixels, at the network's input size.
        frames: In the order of the footage.
        skipped: Files that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.PSEUDO_LABELS
    AGAIN: ClassVar[str] = "Label the frames again"
    FILE: ClassVar[str] = "pseudo-labels.json"

    model_sha256: str
    label_space: LabelSpace
    selection: dict[str, Any]
    seed: int
    thresholds: list[float]
    mean_confidence: list[float]
    labelled_share: float
    frames: list[LabelledFrame]
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})


@dataclass(frozen=True)
class SelectionRecord(Record):
    """Frames on whose patches a round of LSE learns.

    Attributes:
        portion: Share that was asked for.
        frames: The surest.
        entropy_thresholds: Below which a pixel of a class keeps its label.
        pixels: Labelled pixels of each class, over all patches.
    """

    SCHEMA: ClassVar[str] = schemas.SELECTION
    AGAIN: ClassVar[str] = "Run the stage again"

    portion: float
    frames: list[str]
    entropy_thresholds: list[float]
    pixels: list[int]


@dataclass(frozen=True)
class KeptLabels:
    """Labels above a confidence.

    Attributes:
        above: The confidence.
        share: Of all pixels, 0 to 1.
        accuracy: Share of these that is right; None where there are none.
    """

    above: float
    share: float
    accuracy: float | None


@dataclass(frozen=True)
class ConfidenceOfClass:
    """Pixels for which a class was predicted.

    Attributes:
        share: Of all pixels, 0 to 1.
        accuracy: Share of these that is right; None where there are none.
        confidence: Their mean confidence; None likewise.
    """

    share: float
    accuracy: float | None
    confidence: float | None


@dataclass(frozen=True)
class ConfidenceFigures:
    """A network's confidence held against labels; all from 0 to 1.

    Attributes:
        calibration_error: Expected calibration error.
        confidence: Mean.
        accuracy: Share of the pixels that is right.
        kept: What stays above several confidences.
        by_class: By predicted class.
    """

    calibration_error: float
    confidence: float
    accuracy: float
    kept: list[KeptLabels]
    by_class: dict[str, ConfidenceOfClass]


@dataclass(frozen=True)
class ReliabilityRecord(Record):
    """What a network's confidence is worth.

    Attributes:
        temperature: Divides its logits when it labels.
        plain: Without that.
        calibrated: With it.
        images: Held-out source images that it was fitted on; None where another network's was
            taken.
    """

    SCHEMA: ClassVar[str] = schemas.RELIABILITY
    AGAIN: ClassVar[str] = "Train again, or remove the file: confidence is then taken as it is"
    FILE: ClassVar[str] = "reliability.json"

    temperature: float
    plain: ConfidenceFigures = field(metadata={SPELT: "as it is"})
    calibrated: ConfidenceFigures
    images: list[str] | None = field(default=None, metadata={OMIT: True})
