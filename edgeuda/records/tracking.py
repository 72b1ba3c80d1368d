"""What a stage gave to which tracker, as it lies beside the stage's log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgeuda import schemas
from edgeuda.records.form import Record
from edgeuda.records.names import TrackerName

TRACKERS_FILE = "trackers.json"


@dataclass(frozen=True)
class TrackedRun:
    """A stage in one tracker.

    Attributes:
        tracker: Its name.
        run: What the tracker calls the run: an id, or the name of the stage.
        place: Folder, below that of the run, or address without user, password and query.
        step: The last step that was given to it, -1 for none; a resumed stage goes on behind it.
        failed: Why it took no more, one sentence for each time; training went on without it.
    """

    tracker: TrackerName
    run: str
    place: str
    step: int
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrackersRecord(Record):
    """Every tracker of a stage.

    Attributes:
        runs: In the order of the names that were asked for; those of earlier tries stay.
    """

    SCHEMA: ClassVar[str] = schemas.TRACKERS
    AGAIN: ClassVar[str] = "Remove it: the trackers then begin new runs"

    runs: list[TrackedRun]
