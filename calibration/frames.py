"""Calibration frames, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeuda.camera import CameraGeometry
from edgeuda.data.images import resize_image
from edgeuda.data.treatment import read_frame
from edgeuda.errors import DataError
from edgeuda.files import sha256
from edgeuda.spec import Preprocessing


class Frames(Protocol):
    """Frames as a graph takes them: uint8 RGB ``[1, H, W, 3]``. A list of arrays is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True)
class FrameFiles:
    """`Frames` that lie on disk; one at a time is in memory.

    Attributes:
        paths: Image files of any size.
        height: Rows of the network's input.
        width: Its columns.
        geometry: What is done to raw frames before they are resized.
    """

    paths: tuple[Path, ...]
    height: int
    width: int
    geometry: CameraGeometry | None = None

    @classmethod
    def of(cls, paths: Sequence[Path], fed: Preprocessing) -> FrameFiles:
        """Return the frames as a model is fed them."""
        return cls(tuple(paths), fed.height, fed.width, fed.geometry)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        return resize_image(read_frame(self.paths[index], self.geometry), self.height, self.width)[
            None
        ]

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        return (self[i] for i in range(len(self)))


def checksums(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file.

    Raises:
        DataError: If one cannot be read.
    """
    try:
        return [sha256(path) for path in paths]
    except OSError as err:
        msg = f"{err.filename}: expected an image to calibrate on, found none ({err.strerror})"
        raise DataError(msg) from err
