"""Frames that a vehicle kept of what it saw, and why, as `edgeuda run` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from edgeuda import schemas
from edgeuda.errors import ConfigError
from edgeuda.records.arrays import Floats
from edgeuda.records.form import Record
from edgeuda.records.predictions import ModelFile

KeepReason = Literal["unsure", "rare", "far", "spread"]
"""What a frame was kept for: the model was unsure, its classes are rare, it is far from the
reference; or none of these, and it stands for its time and look."""


@dataclass(frozen=True)
class KeepBudget:
    """What may be kept.

    Attributes:
        frames: Images at most.
        megabytes: Of their files together at most, 10^6 bytes each.
    """

    frames: int = 500
    megabytes: float = 200.0

    def __post_init__(self) -> None:
        if not (self.frames >= 1 and self.megabytes > 0):
            msg = (
                "`keep_frames` and `keep_megabytes`: expected positive numbers, found "
                f"{self.frames} and {self.megabytes:g}"
            )
            raise ConfigError(msg)


@dataclass(frozen=True)
class KeptFrame:
    """A frame that was kept.

    Attributes:
        file: Its image, relative to the record.
        bytes: Size of the file.
        origin: The image, video or camera that it is of.
        time: When it was captured, UTC, ISO 8601 to the microsecond.
        time_ns: The same in nanoseconds since 1970.
        confidence: Mean over the image, 0 to 1.
        classes: Share of the pixels of each class, 0 to 1.
        distance: Of its features from the reference, 1 for a usual frame; None without.
        value: How much it teaches, 1 for a usual frame, as of the last writing of the record.
        reason: What makes it so.
    """

    file: str
    bytes: int
    origin: str
    time: str
    time_ns: int
    confidence: float
    classes: tuple[float, ...]
    distance: float | None
    value: float
    reason: KeepReason


@dataclass(frozen=True)
class KeptRecord(Record):
    """What is kept of one or more drives with one model.

    Attributes:
        created: UTC time of the last writing, in ISO 8601.
        model: The model whose signals these are.
        classes: Names of its classes.
        budget: What may be kept.
        reference: Whether a reference said which frames are far and which classes usual.
        redact: The function that images went through before they were written, None without.
        seen: Frames that were considered.
        seconds: Driven so far, over all drives.
        shares: Share of the pixels of each class in the frames that were considered.
        doubt: Mean of 1 - confidence over them.
        frames: By time.
        layouts: ``[frames, D]``: of each, what is seen where, see `engines.live.keep`.
    """

    SCHEMA: ClassVar[str] = schemas.KEPT
    AGAIN: ClassVar[str] = "Choose another folder for the frames to keep"
    FILE: ClassVar[str] = "kept.json"

    created: str
    model: ModelFile
    classes: tuple[str, ...]
    budget: KeepBudget
    reference: bool
    redact: str | None
    seen: int
    seconds: float
    shares: tuple[float, ...]
    doubt: float
    frames: tuple[KeptFrame, ...]
    layouts: Floats


@dataclass(frozen=True)
class KeepCounts:
    """What one drive came to in frames to bring home.

    Attributes:
        folder: Where they are.
        considered: Frames that were valued.
        dropped: Frames that came while the disk was busy, and were not valued.
        kept: Frames in the folder at the end.
        megabytes: Of these.
        new: Of these, the ones from this drive.
        unredacted: Frames that were not written because the function that redacts failed.
        unwritten: Frames that could not be written, or were larger than the budget.
        error: The last reason for either; None if there was none.
    """

    folder: str
    considered: int
    dropped: int
    kept: int
    megabytes: float
    new: int
    unredacted: int
    unwritten: int
    error: str | None

    def __str__(self) -> str:
        text = f"{self.kept} frames kept ({self.megabytes:.1f} MB), {self.new} of them new"
        for count, what in (
            (self.dropped, "came too fast to be valued"),
            (self.unredacted, "not written because they could not be redacted"),
            (self.unwritten, "could not be written"),
        ):
            text += f", {count} {what}" * (count > 0)
        return text
