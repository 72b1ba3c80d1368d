"""Which frames are worth labelling and why, as `edgeuda data select` writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record
from edgeuda.records.predictions import ModelFile


@dataclass(frozen=True)
class FrameDoubt:
    """What a network does not know of a frame; means over its pixels, 0 to 1 each.

    Attributes:
        entropy: Of the class probabilities, as a share of the largest that is possible.
        margin: 1 less the difference between the two largest probabilities.
        mirror: Share of the pixels that get another class in the mirror image of the frame.
    """

    entropy: float
    margin: float
    mirror: float


@dataclass(frozen=True)
class ClassDoubt:
    """A class as the network predicts it in all frames that were looked at.

    Attributes:
        share: Of all pixels, 0 to 1.
        doubt: Mean doubt of its pixels, 0 to 1; None if no pixel is of this class.
        weight: By which doubt of its pixels counts: more than 1 for rare classes.
    """

    share: float
    doubt: float | None
    weight: float


@dataclass(frozen=True)
class RankedFrame:
    """A frame to label.

    Attributes:
        frame: Its name below the folder of the footage.
        score: Its doubt, weighted by class. The first frame has the highest of all.
        distance: To the nearest of the frames that rank higher, 0 (the same again) to 1; 1 for the
            first frame. Frames are ranked by score times distance.
        doubt: Where the score comes from.
        reasons: The same in sentences.
    """

    frame: str
    score: float
    distance: float
    doubt: FrameDoubt
    reasons: list[str]


@dataclass(frozen=True)
class FrameSelectionRecord(Record):
    """Frames to label, the most telling first.

    Attributes:
        model: The network that was asked.
        footage: Folder or list of the frames.
        looked_at: How many frames were looked at.
        doubt: Means over these.
        mean_score: Likewise.
        classes: By name.
        ranked: The chosen frames in their order.
        geometry: What was done to the frames, see `edgeuda.data.treatment.noted`.
        skipped: Files that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.FRAME_SELECTION
    AGAIN: ClassVar[str] = "Select again with `edgeuda data select`"

    model: ModelFile
    footage: str
    looked_at: int
    doubt: FrameDoubt
    mean_score: float
    classes: dict[str, ClassDoubt]
    ranked: list[RankedFrame]
    geometry: dict[str, Any] | None = field(default=None, metadata={OMIT: True})
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})
