"""Frames taken from footage and what was done to them, as `edgeuda data frames` writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.errors import DataError
from edgeuda.records.form import OMIT, Record


@dataclass(frozen=True)
class Span:
    """Which frames of footage are wanted.

    Attributes:
        start: Seconds from the beginning of each video, or of the images.
        end: Likewise, exclusive; None for all.
        rate: Frames per second to keep at most; None for all.
        fps: Frame rate of images, whose files do not tell.
    """

    start: float = 0.0
    end: float | None = None
    rate: float | None = None
    fps: float = 30.0

    def __post_init__(self) -> None:
        positive = [("fps", self.fps)] + ([("rate", self.rate)] if self.rate is not None else [])
        wrong = [f"{name} {value:g}" for name, value in positive if not value > 0]
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            wrong.append(f"start {self.start:g} and end {self.end}")
        if wrong:
            msg = f"Expected a span of positive seconds and rates, found {', '.join(wrong)}"
            raise DataError(msg)

    def wants(self, seconds: float, last: float | None) -> bool:
        """Whether a frame is wanted, ``last`` being the time of the last one that was."""
        if seconds < self.start or (self.end is not None and seconds >= self.end):
            return False
        # Half a thousandth of a second: timestamps of videos are rounded.
        return self.rate is None or last is None or seconds - last >= 1 / self.rate - 5e-4


@dataclass(frozen=True)
class Curation:
    """What is done to each frame, in this order: undistort, crop, mask; then compare.

    Attributes:
        calibration: OpenCV calibration file (YAML, XML or JSON) to undistort by, `FROM_RECORDING`
            for the one that a recording holds, or None.
        crop: Left, top, width and height in pixels, or None.
        mask: Image of the cropped size, or None: what is black in it is painted grey.
        distinct: Mean difference in grey levels to the last kept frame below which a frame is a
            near-duplicate, 0 to keep all.
    """

    calibration: str | None = None
    crop: tuple[int, int, int, int] | None = None
    mask: str | None = None
    distinct: float = 2.0


@dataclass(frozen=True)
class ShardRecord(Record):
    """What a shard holds, as a member of it.

    Attributes:
        source: The footage or the labelled images.
        limit: Bytes of a shard at most, as asked for.
        labels: Name of the label space of its label maps; None without.
        first: Number of its first sample among those of all shards.
        count: Number of its samples.
    """

    SCHEMA: ClassVar[str] = schemas.SHARD
    AGAIN: ClassVar[str] = "Write the shards again"
    FILE: ClassVar[str] = "shard.json"

    source: str
    limit: int
    labels: str | None
    first: int = 0
    count: int = 0


@dataclass(frozen=True)
class FramesRecord(Record):
    """An extraction, finished (``frames.json``) or under way (``progress.json``).

    Attributes:
        curation: What was asked to be done to the frames.
        source: The footage; None for frames that were written for a model that has a camera.
        source_sha256: Of its files' names, sizes and times, where it is a file.
        span: Which of its frames.
        files: Checksums of mask and calibration.
        suffix: Format of the images.
        seen: Wanted frames so far, those that cannot be read included.
        kept: Frames written.
        duplicates: Frames left out as near-duplicates.
        thumbnail: Of the last kept frame, hexadecimal, while the extraction is under way.
        geometries: What was done to the kept frames since the camera gave them, each once, see
            `edgeuda.camera.CameraGeometry`; None for frames as the camera gave them.
    """

    SCHEMA: ClassVar[str] = schemas.FRAMES
    AGAIN: ClassVar[str] = "Extract the frames again"
    FILE: ClassVar[str] = "frames.json"

    curation: Curation
    source: str | None = field(default=None, metadata={OMIT: True})
    source_sha256: str | None = field(default=None, metadata={OMIT: True})
    span: Span | None = field(default=None, metadata={OMIT: True})
    files: dict[str, str] = field(default_factory=dict)
    suffix: str | None = field(default=None, metadata={OMIT: True})
    seen: int | None = field(default=None, metadata={OMIT: True})
    kept: int | None = field(default=None, metadata={OMIT: True})
    duplicates: int | None = field(default=None, metadata={OMIT: True})
    thumbnail: str | None = field(default=None, metadata={OMIT: True})
    geometries: list[dict[str, Any] | None] | None = field(default=None, metadata={OMIT: True})
