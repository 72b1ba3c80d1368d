"""Label maps and overlays of frames, as `edgeuda predict` and `edgeuda tradeoff` list them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.labels import LabelSpace
from edgeuda.records.form import OMIT, Record


@dataclass(frozen=True)
class ModelFile:
    """The file of a model.

    Attributes:
        file: Its name.
        sha256: Its checksum.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class PredictedFrame:
    """A frame and its label map; paths are relative to the record.

    Attributes:
        frame: What the labels are of.
        labels: The label map, PNG.
        raw: The camera's file, if the frame was undistorted and cropped.
        note: Why it is shown.
        confidence: How sure the model is, PNG of 0 to 255, at the size of its scores; None if it
            was not asked.
    """

    frame: str
    labels: str
    raw: str | None = field(default=None, metadata={OMIT: True})
    note: str | None = field(default=None, metadata={OMIT: True})
    confidence: str | None = field(default=None, metadata={OMIT: True})


@dataclass(frozen=True)
class PredictionsRecord(Record):
    """What one model says of frames.

    Attributes:
        name: What tables call the model.
        model: The model.
        label_space: What the ids mean.
        frames: In their order.
        geometry: What was done to them, see `edgeuda.data.treatment.noted`.
        skipped: Files that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.PREDICTIONS
    AGAIN: ClassVar[str] = "Predict again with `edgeuda predict`"
    FILE: ClassVar[str] = "predictions.json"

    name: str
    model: ModelFile
    label_space: LabelSpace
    frames: list[PredictedFrame]
    geometry: dict[str, Any] | None = field(default=None, metadata={OMIT: True})
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})
