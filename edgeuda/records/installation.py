"""What was installed on a vehicle, what was refused, and what fell back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from edgeuda import schemas
from edgeuda.records.bundle import Driven
from edgeuda.records.form import OMIT, Record

Action = Literal["installed", "refused", "fell back"]


LEAST_AGREEMENT = 0.99
"""Of the pixels, where another machine or runtime rounds otherwise: as `edgeuda half` demands."""


@dataclass(frozen=True)
class Demands:
    """What a network has to keep before it becomes current.

    Attributes:
        budget_ms: Milliseconds of the 95th percentile; None for any.
        agreement: Least share of pixels, 0 to 1, where labels need not be the same to the bit.
        frames: Whether a bundle without acceptance frames is refused.
    """

    budget_ms: float | None = None
    agreement: float = LEAST_AGREEMENT
    frames: bool = False


@dataclass(frozen=True)
class Acceptance:
    """How a model did on the frames that its bundle was packed with.

    Attributes:
        frames: Number of frames.
        agreement: Least share of a frame's pixels with the expected label, 0 to 1; None without
            frames.
        exact: Whether every pixel had to be the same: this machine computes as the one on which the
            bundle was packed.
    """

    frames: int
    agreement: float | None
    exact: bool


@dataclass(frozen=True)
class Event:
    """Something that changed, or did not.

    Attributes:
        at: UTC time in ISO 8601.
        action: What was done.
        bundle: Name of the file as it came.
        sha256: Of the bundle that was installed or refused, or that is current again.
        reason: Why, in a sentence.
        acceptance: On the bundle's own frames; None where it came to no such test.
        milliseconds: From an image at the network's size to its label map, by percentile.
        parent: SHA-256 of the bundle that it descends from; None if it does not say.
        driven: What its network was adapted to on this vehicle; None if it was not.
        demands: What it had to keep; None where nobody tried to install it, or wrote it down.
    """

    at: str
    action: Action
    bundle: str
    sha256: str
    reason: str = ""
    acceptance: Acceptance | None = None
    milliseconds: dict[str, float] | None = None
    parent: str | None = field(default=None, metadata={OMIT: True})
    driven: Driven | None = field(default=None, metadata={OMIT: True})
    demands: Demands | None = field(default=None, metadata={OMIT: True})


@dataclass(frozen=True)
class Watched:
    """How often a network gave an alarm on this vehicle.

    Attributes:
        sha256: Of its bundle.
        per_hour: False alarms in an hour that were accepted; what was watched otherwise is another
            entry.
        window: Seconds of a window.
        hours: Watched so far.
        alarms: Given in them.
        drives: Number of drives.
    """

    sha256: str
    per_hour: float
    window: float
    hours: float = 0.0
    alarms: int = 0
    drives: int = 0


@dataclass(frozen=True)
class Installation(Record):
    """The state of a vehicle's folder; which bundle is current, its links say.

    Attributes:
        history: The last events, oldest first.
        watched: Of the networks that are there.
    """

    SCHEMA: ClassVar[str] = schemas.INSTALLATION
    AGAIN: ClassVar[str] = "Remove it; only the history is lost"
    FILE: ClassVar[str] = "installed.json"

    history: tuple[Event, ...] = ()
    watched: tuple[Watched, ...] = ()
