"""What a graph returns beside its labels, as `edgeuda export --confidence` notes it in the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record

LARGEST_SOFTMAX = "largest softmax probability times 255, rounded"


@dataclass(frozen=True)
class FeaturesNote:
    """The output ``features``.

    Attributes:
        channels: Their number, C.
        of: Which features of the network they are the mean of.
        difference: Largest absolute difference from torch, relative to the largest feature.
    """

    channels: int
    of: str
    difference: float


@dataclass(frozen=True)
class ConfidenceNote(Record):
    """The output ``confidence``, uint8 ``[batch, rows, columns]``.

    Attributes:
        of: What its levels are.
        rows: Of the scores before they are enlarged.
        columns: Likewise.
        temperature: What the logits were divided by before the softmax: 1, which is the bare one.
        fitted_temperature: The one in the run folder, which was not applied; None if there is none.
        frames: Frames on which it was compared with torch.
        within_one: Share of their places that differ from torch by no more than one level, 0 to 1.
        difference: Largest difference from torch, in levels.
        features: The output ``features``; None if the network has none to give.
    """

    SCHEMA: ClassVar[str] = schemas.CONFIDENCE
    AGAIN: ClassVar[str] = "Export it again with `edgeuda export --confidence`"

    of: str
    rows: int
    columns: int
    temperature: float
    fitted_temperature: float | None
    frames: int
    within_one: float
    difference: int
    features: FeaturesNote | None = field(default=None, metadata={OMIT: True})
