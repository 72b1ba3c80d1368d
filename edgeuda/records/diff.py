"""What two models say of the same frames, as `edgeuda diff` writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.records.calibration import Agreement
from edgeuda.records.form import OMIT, Record
from edgeuda.records.predictions import ModelFile


@dataclass(frozen=True)
class DiffRecord(Agreement, Record):
    """Two models held against each other; the first is what `Agreement` calls FP32.

    Attributes:
        models: The files.
        geometry: What was done to the frames, see `edgeuda.data.treatment.noted`.
        skipped: Files that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.DIFF
    AGAIN: ClassVar[str] = "Compare again with `edgeuda diff`"

    models: tuple[ModelFile, ModelFile]
    geometry: dict[str, Any] | None = field(default=None, metadata={OMIT: True})
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})

    def __str__(self) -> str:
        return (
            f"{self.agreement:.3%} of the pixels of {len(self.frames)} frames have the same class, "
            f"in the worst frame {min(self.frame_agreement):.3%}; class probabilities diverge by "
            f"{self.divergence:.5f} nats, confidence by {100 * self.confidence_shift:+.2f} points"
        )
