"""What a drive came to: frames, drops, latencies, sinks and memory, as `edgeuda run` writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.records.form import OMIT, SPELT, Record
from edgeuda.records.keep import KeepCounts
from edgeuda.records.predictions import ModelFile
from edgeuda.records.stream_adaptation import StreamAdaptation
from edgeuda.records.watch import WatchRecord


@dataclass(frozen=True)
class FrameCounts:
    """What became of the frames.

    Attributes:
        received: Frames that came.
        segmented: Frames with a label map.
        dropped: Frames that a newer one replaced before their turn.
        missed: Frames that the camera counted and did not deliver.
        per_second: Frames segmented per second.
    """

    received: int
    segmented: int
    dropped: int
    missed: int
    per_second: float


@dataclass(frozen=True)
class LiveLatency:
    """How long frames took.

    Attributes:
        since: What the time begins with.
        to: What it ends with.
        percentiles: Milliseconds by percentile (``"50"``, ``"99.9"``); supported ones only.
        resolution: How exact they are.
        max: The longest, in milliseconds.
    """

    since: str = field(metadata={SPELT: "from"})
    to: str
    percentiles: dict[str, float]
    resolution: str
    max: float


@dataclass(frozen=True)
class SinkCounts:
    """What became of a sink's frames.

    Attributes:
        written: Frames it took.
        dropped: Frames it was too slow for.
        error: Why it ended early; None if it did not.
    """

    written: int
    dropped: int
    error: str | None


@dataclass(frozen=True)
class ResidentMemory:
    """The process's memory in megabytes; None where it cannot be read."""

    start: float | None
    end: float | None


@dataclass(frozen=True)
class CourseTable:
    """The drive over its time: a row of numbers now and then."""

    columns: list[str]
    rows: list[list[float | None]]


@dataclass(frozen=True)
class LiveRecord(Record):
    """One drive.

    Attributes:
        created: UTC time in ISO 8601.
        backend: Runtime, version and device.
        precision: Arithmetic of the graph.
        execution: How the runtime ran it, see `engines.runner.Runner`.
        fallbacks: What came otherwise than asked.
        seconds: Duration.
        frames: What became of them.
        reconnects: Times a lost camera was opened again.
        error: Why it ended early; None if it did not.
        latency_ms: How long frames took.
        sinks: By name.
        resident_mb: The process's memory.
        course: The drive over its time.
        geometry: What was done to the frames, see `edgeuda.data.treatment.noted`.
        model: The model; None if it was not noted.
        source: Where the frames came from, without passwords.
        watch: How far they were from what is normal; None if nobody watched.
        keep: What frames were brought home; None if none were to be.
        adaptation: What became of adapting to the drive; None if nobody asked for it.
    """

    SCHEMA: ClassVar[str] = schemas.LIVE
    AGAIN: ClassVar[str] = "Drive again with `edgeuda run`"

    created: str
    backend: str
    precision: str
    execution: dict[str, str]
    fallbacks: list[str]
    seconds: float
    frames: FrameCounts
    reconnects: int
    error: str | None
    latency_ms: LiveLatency
    sinks: dict[str, SinkCounts]
    resident_mb: ResidentMemory
    course: CourseTable
    geometry: dict[str, Any] | None = field(default=None, metadata={OMIT: True})
    model: ModelFile | None = None
    source: str = ""
    watch: WatchRecord | None = field(default=None, metadata={OMIT: True})
    keep: KeepCounts | None = field(default=None, metadata={OMIT: True})
    adaptation: StreamAdaptation | None = field(default=None, metadata={OMIT: True})

    def __str__(self) -> str:
        counted, memory = self.frames, self.resident_mb
        tail = list(self.latency_ms.percentiles.items())
        parts = [f"{counted.segmented} of {counted.received} frames, {counted.dropped} dropped"]
        parts += [f"{counted.missed} missed"] * (counted.missed > 0)
        text = ", ".join([*parts, f"{self.reconnects} reconnects"]) + "; "
        text += ", ".join(f"p{name} {value:.1f} ms" for name, value in tail[:1] + tail[1:][-1:])
        if self.watch is not None:
            text += f"; {self.watch}"
        if self.keep is not None:
            text += f"; {self.keep}"
        if memory.start is None or memory.end is None:
            return text
        return f"{text}; resident memory {memory.start:.0f} to {memory.end:.0f} MB"
