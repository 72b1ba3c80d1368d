"""What is drawn on frames, whichever tool it was drawn with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeuda.data.images import LabelMap
from edgeuda.errors import DataError
from edgeuda.records.names import AnnotationTool

Mask = npt.NDArray[np.bool_]
"""``[H, W]`` bool, True where something is drawn."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A frame to hand over.

    Attributes:
        name: Its file's name, perhaps below folders.
        image: The file.
        label: ``[H, W]`` uint8 class ids, 255 ignored.
        score: Mean confidence of the labelled pixels, 0 to 1; None if unknown.
    """

    name: str
    image: Path
    label: LabelMap
    score: float | None

    def copy_into(self, folder: Path) -> None:
        """Copy the frame's file below a folder, under its name."""
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.image, path)


@dataclass(frozen=True)
class Drawn:
    """What a tool's file says of one frame.

    Attributes:
        names: What the tool may mean by the frame, the likeliest first.
        origin: The file that says so, for errors.
        layers: Yields the class and the mask of each annotation, the lowest first.
    """

    names: Sequence[str]
    origin: str
    layers: Callable[[], Iterator[tuple[str, Mask]]]


@dataclass(frozen=True)
class Annotations:
    """What a tool's file holds.

    Attributes:
        form: Whose form it has.
        frames: What is drawn, by frame.
        passed_over: What was not read, in words, and how often.
    """

    form: AnnotationTool
    frames: Sequence[Drawn]
    passed_over: Mapping[str, int] = field(default_factory=dict)


def damaged(origin: object, what: str, err: Exception) -> DataError:
    """Return the error for a file that is not what it has to be.

    Args:
        origin: The file.
        what: What was expected.
        err: What went wrong.
    """
    found = f"no {err}" if isinstance(err, KeyError) else str(err)
    return DataError(f"{origin}: expected {what}, found it damaged ({found})")
