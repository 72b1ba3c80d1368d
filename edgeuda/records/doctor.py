"""What a machine can do, as `edgeuda doctor` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from edgeuda import schemas
from edgeuda.records.form import Record

CheckStatus = Literal["ok", "absent", "broken", "note"]


@dataclass(frozen=True)
class Part:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        status: ``ok``; ``absent``; ``broken`` if it is there and does not work; ``note`` for facts.
        found: What was found.
        fix: The command or place that helps; empty where nothing is wrong.
    """

    name: str
    status: CheckStatus
    found: str
    fix: str = ""


@dataclass(frozen=True)
class DoctorRecord(Record):
    """One look at a machine.

    Attributes:
        checks: What was looked at, in order.
        lacks: What each task lacks here, by the task; nothing where it is possible.
    """

    SCHEMA: ClassVar[str] = schemas.DOCTOR
    AGAIN: ClassVar[str] = "Look again with `edgeuda doctor`"

    checks: list[Part]
    lacks: dict[str, list[str]]
