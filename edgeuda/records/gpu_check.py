"""Checks of a GPU against the CPU, as `edgeuda gpu-check` writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record

GpuStatus = Literal["passed", "failed", "not installed", "skipped"]


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        name: What was tried.
        status: ``not installed`` is neither passed nor failed; ``skipped`` was asked for, or does
            not apply, and ``found`` says why.
        found: In words.
        figures: In numbers.
    """

    name: str
    status: GpuStatus
    found: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuCheckRecord(Record):
    """One run of the checks.

    Attributes:
        created: UTC time in ISO 8601.
        machine: See `engines.machine.hardware.identity`.
        doctor: What the machine can do.
        models: Checksum of each form, by head and arithmetic.
        frames: Frames that were compared on.
        rows: The checks, in order.
        counted: How many ended how.
        geometry: What was done to the frames, see `edgeuda.data.treatment.noted`.
        skipped: Files that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.GPU_CHECK
    AGAIN: ClassVar[str] = "Check again with `edgeuda gpu-check`"

    created: str
    machine: dict[str, str]
    doctor: dict[str, Any]
    models: dict[str, str]
    frames: int
    rows: list[Row]
    counted: dict[str, int]
    geometry: dict[str, Any] | None = field(default=None, metadata={OMIT: True})
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})

    def named(self, status: GpuStatus) -> list[str]:
        """Return the names of the checks that ended so."""
        return [row.name for row in self.rows if row.status == status]
