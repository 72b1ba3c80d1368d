"""What became of labels from an annotation tool, as `edgeuda data import-labels` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeuda import schemas
from edgeuda.records.form import Record
from edgeuda.records.names import AnnotationTool


@dataclass(frozen=True)
class ImportedFrame:
    """A frame and its label map.

    Attributes:
        frame: The frame's name below the folder of the footage.
        labelled: Share of its pixels that have a class, 0 to 1; the others are ignored.
        overlapped: Pixels that more than one annotation covers; the later one counts.
    """

    frame: str
    labelled: float
    overlapped: int


@dataclass(frozen=True)
class ImportedLabelsRecord(Record):
    """One import.

    Attributes:
        annotations: The file or folder that was read.
        form: Whose form it has.
        footage: Folder of the frames.
        frames: The frames that have labels now, by name.
        empty: Frames that the tool lists without any annotation; they are left out.
        unlisted: How many frames of the footage the tool does not list.
        classes: By each class of the tool that was drawn, the class it became; None if ignored.
        passed_over: What was not read, in words, and how often.
    """

    SCHEMA: ClassVar[str] = schemas.IMPORTED_LABELS
    AGAIN: ClassVar[str] = "Import again with `edgeuda data import-labels`"
    FILE: ClassVar[str] = "imported-labels.json"

    annotations: str
    form: AnnotationTool
    footage: str
    frames: list[ImportedFrame]
    empty: list[str]
    unlisted: int
    classes: dict[str, str | None]
    passed_over: dict[str, int]

    def said(self) -> list[str]:
        """Return what came of it in sentences: what was left out, joined or ignored, above all."""
        text = [f"{len(self.frames)} frames have labels now"]
        if self.empty or self.unlisted:
            text.append(
                f"left out: {len(self.empty)} frames that are listed without any annotation, and "
                f"{self.unlisted} that are not listed"
            )
        over = [frame for frame in self.frames if frame.overlapped]
        if over:
            pixels = sum(frame.overlapped for frame in over)
            text.append(
                f"in {len(over)} frames annotations overlap, in {pixels} pixels: the later one "
                "counts"
            )
        text += [
            f"class {theirs!r} is " + ("ignored" if ours is None else f"taken for {ours!r}")
            for theirs, ours in self.classes.items()
            if theirs != ours
        ]
        text += [f"not read: {count} {what}" for what, count in self.passed_over.items()]
        return text
