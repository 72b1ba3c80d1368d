"""What a watch saw of a drive: how far it was from normal, and its alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AlarmKind = Literal["light", "blur", "covered", "scene"]
"""Light or colour changed; the image lost its sharpness; part of the view is covered; or none of
these: the model sees what it was not made for."""


@dataclass(frozen=True)
class Limit:
    """What is normal of a column.

    Attributes:
        name: See `edgeuda.records.reference.COLUMNS`.
        mean: Of the reference; of the logarithm, for sharpness and distance.
        unit: Standard deviation by which a window's mean is measured.
        limit: Units beyond which it is an alarm; None where the reference has too few independent
            blocks, and the column is not tested.
        blocks: Independent blocks of the reference that this rests on.
    """

    name: str
    mean: float
    unit: float
    limit: float | None
    blocks: float


@dataclass(frozen=True)
class Alarm:
    """A change.

    Attributes:
        at: Seconds since the beginning when it was noticed.
        until: Seconds when windows were normal again; None if they never were.
        kind: What it looks like.
        apart: Columns beyond their limits, in units from the mean.
    """

    at: float
    until: float | None
    kind: AlarmKind
    apart: dict[str, float]

    def __str__(self) -> str:
        far = ", ".join(f"{name} {value:+.1f}" for name, value in self.apart.items())
        return f"Alarm at {self.at:.0f} s, {self.kind}: {far} deviations from normal"


@dataclass(frozen=True)
class Tested:
    """An entry of the timeline.

    Attributes:
        seconds: End of the window.
        ratio: The farthest column as a part of its limit; above 1 it is an alarm.
        column: That column.
    """

    seconds: float
    ratio: float
    column: str


@dataclass(frozen=True)
class WatchRecord:
    """What a watch saw.

    Attributes:
        per_hour: False alarms in an hour that were accepted.
        window: Seconds of a window.
        tested: Windows that were tested.
        untested: Windows with too few frames.
        limits: Of each column, for windows of many frames.
        alarms: In their order.
        timeline: Windows by time; of a long drive the farthest ones.
    """

    per_hour: float
    window: float
    tested: int
    untested: int
    limits: list[Limit]
    alarms: list[Alarm]
    timeline: list[Tested]

    def __str__(self) -> str:
        found = [f"{one.kind} at {one.at:.0f} s" for one in self.alarms]
        text = f"{len(found)} alarm{'s' * (len(found) != 1)} in {self.tested} windows"
        text += f" of {self.window:g} s"
        return f"{text} ({', '.join(found)})" if found else text
