"""A camera's geometry: what lies between its raw frame and the frame that a network is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.errors import ConfigError, DataError
from edgeuda.files import write_text
from edgeuda.labels import IGNORE

Pixels = npt.NDArray[np.uint8]
"""``[H, W, 3]`` RGB, or ``[H, W]`` classes."""

ASPECT = 0.01
"""Relative difference of the scales along both sides up to which two sizes have one aspect."""
PINHOLE = (4, 5, 8, 12, 14)
"""Numbers of distortion coefficients that OpenCV's pinhole model has; the fisheye model has 4."""
LARGEST = 1 << 14
"""Rows or columns of a raw frame at most."""


@dataclass(frozen=True)
class Lens:
    """A camera's calibration.

    Attributes:
        matrix: Nine entries of the camera matrix, row by row, in pixels.
        distortion: Coefficients in OpenCV's order.
        size: Width and height it was made for, or None: those of any frame.
        fisheye: Whether the coefficients are those of the fisheye model.
    """

    matrix: tuple[float, ...]
    distortion: tuple[float, ...]
    size: tuple[int, int] | None
    fisheye: bool

    def __post_init__(self) -> None:
        counts = (4,) if self.fisheye else PINHOLE
        wrong = ""
        if len(self.matrix) != 9 or not all(map(math.isfinite, self.matrix)):
            wrong = "a camera matrix of 3x3 finite numbers"
        elif not (self.matrix[0] > 0 and self.matrix[4] > 0):
            wrong = "a camera matrix with positive focal lengths"
        elif len(self.distortion) not in counts or not all(map(math.isfinite, self.distortion)):
            wrong = f"{' or '.join(map(str, counts))} finite distortion coefficients"
        if wrong:
            msg = f"Lens: expected {wrong}, found {self.matrix} and {self.distortion}"
            raise ConfigError(msg)

    @classmethod
    def read(cls, path: Path) -> Lens:
        """Read a file of OpenCV's FileStorage with ``camera_matrix`` and the coefficients.

        Raises:
            DataError: If it is missing, lacks one of them, or they are not a lens.
        """
        if not path.is_file():
            msg = f"{path}: expected an OpenCV calibration file, found no file"
            raise DataError(msg)
        try:
            file = cv2.FileStorage()
            file.open(str(path), cv2.FILE_STORAGE_READ)
        except (cv2.error, SystemError) as err:
            msg = f"{path}: expected an OpenCV calibration file, found one that cannot be parsed"
            raise DataError(msg) from err
        matrix = _node(file, "camera_matrix", "cameraMatrix", "K")
        distortion = _node(file, "distortion_coefficients", "distCoeffs", "dist_coeffs", "D")
        if matrix is None or matrix.shape != (3, 3) or distortion is None:
            msg = (
                f"{path}: expected camera_matrix (3x3) and distortion_coefficients as "
                "cv2.FileStorage writes them, found one of them missing"
            )
            raise DataError(msg)
        width, height = (int(file.getNode(f"image_{side}").real()) for side in ("width", "height"))
        model = file.getNode("distortion_model")
        name = model.string() if model.isString() else ""
        fisheye = name in ("equidistant", "fisheye")
        size = (width, height) if width > 0 and height > 0 else None
        coefficients = distortion.ravel().tolist()[: 4 if fisheye else None]
        try:
            return cls(tuple(matrix.ravel().tolist()), tuple(coefficients), size, fisheye)
        except ConfigError as err:
            msg = f"{path}: {err}"
            raise DataError(msg) from err

    def write(self, path: Path) -> None:
        """Write the file that `read` reads."""
        storage = cv2.FileStorage(".yaml", cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY)
        storage.write("camera_matrix", np.array(self.matrix, np.float64).reshape(3, 3))
        storage.write("distortion_coefficients", np.array(self.distortion, np.float64))
        storage.write("distortion_model", "equidistant" if self.fisheye else "plumb_bob")
        if self.size is not None:
            storage.write("image_width", self.size[0])
            storage.write("image_height", self.size[1])
        write_text(path, storage.releaseAndGetString())

    def maps(
        self, rows: int, columns: int, origin: Path, *, exact: bool = False
    ) -> tuple[Any, Any]:
        """Return the maps for `cv2.remap`; the view is that of the same camera matrix.

        A frame of another size than the calibration's, but of its aspect, scales the matrix.

        Args:
            rows: Of the frame.
            columns: Of the frame.
            origin: Names the frame in errors.
            exact: In float32, as nearest neighbours need them; else in 1/32 of a pixel, which is
                what OpenCV interpolates by, and faster.

        Raises:
            DataError: If the aspect differs.
        """
        matrix = np.array(self.matrix, np.float64).reshape(3, 3)
        distortion = np.array(self.distortion, np.float64)
        if self.size is not None and self.size != (columns, rows):
            width, height = self.size
            if not alike((columns, rows), self.size):
                msg = (
                    f"{origin}: the calibration is for {width}x{height}, the frame is "
                    f"{columns}x{rows}, of another aspect"
                )
                raise DataError(msg)
            matrix[0] *= columns / width
            matrix[1] *= rows / height
        identity, kind = np.eye(3), cv2.CV_32FC1 if exact else cv2.CV_16SC2
        if self.fisheye:
            return cv2.fisheye.initUndistortRectifyMap(
                matrix, distortion, identity, matrix, (columns, rows), kind
            )
        return cv2.initUndistortRectifyMap(
            matrix, distortion, identity, matrix, (columns, rows), kind
        )


@dataclass(frozen=True)
class CameraGeometry:
    """What is done to a raw frame of a camera: undistorted, then cropped.

    It travels in a model's spec. A mask does not: it is an image of its own that would have to lie
    in every file the spec is in, and a network hardly sees a part of the frame that is always the
    same. Whoever learns from masked frames is warned that the vehicle will see them unmasked.

    Attributes:
        raw: Width and height of the raw frame in pixels, to which ``crop`` refers. Frames of
            another size and the same aspect are cropped in proportion.
        lens: By which it is undistorted, with the size it was calibrated at; None for not at all.
        crop: Left, top, width and height in pixels of the (undistorted) raw frame, or None.
    """

    raw: tuple[int, int]
    lens: Lens | None = None
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        width, height = self.raw
        if not (0 < width <= LARGEST and 0 < height <= LARGEST):
            msg = (
                f"Camera geometry: expected raw frames of 1 to {LARGEST} pixels a side, found "
                f"{width}x{height}"
            )
            raise ConfigError(msg)
        if self.lens is not None and (self.lens.size is None or min(self.lens.size) < 1):
            msg = f"Camera geometry: expected a lens that says its size, found {self.lens.size}"
            raise ConfigError(msg)
        if self.crop is not None and not crop_fits(self.crop, self.raw):
            msg = f"Camera geometry: expected a crop within {width}x{height}, found {self.crop}"
            raise ConfigError(msg)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is left of a frame of size ``raw``."""
        return self.raw if self.crop is None else self.crop[2:]

    def describe(self) -> str:
        """Say in words what is done, to follow ``frames are``."""
        words = []
        if self.lens is not None:
            words.append(f"undistorted ({'fisheye' if self.lens.fisheye else 'pinhole'})")
        if self.crop is not None:
            left, top, width, height = self.crop
            words.append(f"cropped to {width}x{height} at {left},{top}")
        return f"{' and '.join(words) or 'as they are'}, of raw {self.raw[0]}x{self.raw[1]}"

    def crop_at(self, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """Return the crop for frames of a width and height of the same aspect as ``raw``."""
        if self.crop is None or size == self.raw:
            return self.crop
        left, top, width, height = self.crop
        across, down = size[0] / self.raw[0], size[1] / self.raw[1]
        left, top = min(round(left * across), size[0] - 1), min(round(top * down), size[1] - 1)
        right = max(left + 1, min(round((self.crop[0] + width) * across), size[0]))
        bottom = max(top + 1, min(round((self.crop[1] + height) * down), size[1]))
        return left, top, right - left, bottom - top

    def same_as(self, other: CameraGeometry) -> bool:
        """Whether both show the same part of the world, at whatever resolution."""
        if self == other:
            return True
        if not alike(self.raw, other.raw) or (self.lens is None) is not (other.lens is None):
            return False
        if self.lens is not None and other.lens is not None:
            if self.lens.fisheye is not other.lens.fisheye:
                return False
            one, two = _relative(self.lens), _relative(other.lens)
            if len(one) != len(two) or not np.allclose(one, two, rtol=1e-6, atol=1e-9):
                return False
        mine = self.crop_at(other.raw) or (0, 0, *other.raw)
        theirs = other.crop or (0, 0, *other.raw)
        tolerance = 0 if self.raw == other.raw else 1  # both were rounded to pixels
        return all(abs(a - b) <= tolerance for a, b in zip(mine, theirs, strict=True))

    def apply(self, image: Pixels, origin: Path) -> Pixels:
        """Return what a network is shown of a raw frame, ``[h, w, 3]`` uint8.

        Args:
            image: ``[H, W, 3]`` uint8 RGB of size ``raw``, or of its aspect.
            origin: Names the frame in errors.

        Raises:
            DataError: If it has another aspect.
        """
        return self._applied(image, origin, cv2.INTER_LINEAR, 0)

    def apply_to_labels(self, label: Pixels, origin: Path) -> Pixels:
        """Return the label map of what `apply` returns, ``[h, w]`` uint8, by nearest neighbour.

        What the lens brings in from outside the frame is ignored (255).

        Raises:
            DataError: See `apply`.
        """
        return self._applied(label, origin, cv2.INTER_NEAREST, IGNORE)

    def _applied(
        self, pixels: npt.NDArray[np.uint8], origin: Path, method: int, outside: int
    ) -> npt.NDArray[np.uint8]:
        size = pixels.shape[1], pixels.shape[0]
        if not alike(size, self.raw):
            msg = (
                f"{origin}: expected a frame of {self.raw[0]}x{self.raw[1]}, or of its aspect, as "
                f"the camera gives it, found {size[0]}x{size[1]}"
            )
            raise DataError(msg)
        crop = self.crop_at(size)
        if self.lens is not None:
            maps = _maps(self.lens, *size, crop, method == cv2.INTER_NEAREST)
            border = (outside,) * 4
            done = cv2.remap(pixels, *maps, method, None, cv2.BORDER_CONSTANT, border)
            return np.asarray(done, np.uint8)
        if crop is None:
            return pixels
        left, top, width, height = crop
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        record: dict[str, Any] = {"raw": list(self.raw)}
        if self.lens is not None:
            assert self.lens.size is not None
            record["lens"] = {
                "model": "fisheye" if self.lens.fisheye else "pinhole",
                "camera_matrix": list(self.lens.matrix),
                "distortion_coefficients": list(self.lens.distortion),
                "size": list(self.lens.size),
            }
        if self.crop is not None:
            record["crop"] = list(self.crop)
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CameraGeometry:
        """Read `to_record`'s form.

        Raises:
            ConfigError: If it is no geometry.
            KeyError: If an entry is missing; likewise TypeError and ValueError for wrong types.
        """
        lens, crop = record.get("lens"), record.get("crop")
        if lens is not None:
            if lens["model"] not in ("pinhole", "fisheye"):
                msg = (
                    "Camera geometry: expected the lens model pinhole or fisheye, found "
                    f"{lens['model']!r}"
                )
                raise ConfigError(msg)
            lens = Lens(
                tuple(map(float, lens["camera_matrix"])),
                tuple(map(float, lens["distortion_coefficients"])),
                _pair(lens["size"]),
                lens["model"] == "fisheye",
            )
        if crop is not None:
            left, top, width, height = map(int, crop)
            crop = left, top, width, height
        return cls(_pair(record["raw"]), lens, crop)


def alike(one: tuple[int, int], two: tuple[int, int]) -> bool:
    """Whether two sizes, width and height, have one aspect."""
    across, down = one[0] / two[0], one[1] / two[1]
    return abs(across - down) <= ASPECT * across


def crop_fits(crop: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    """Whether a crop (left, top, width, height) lies within a width and height."""
    left, top, width, height = crop
    return min(left, top) >= 0 and min(width, height) >= 1 and (
        left + width <= size[0] and top + height <= size[1]
    )  # fmt: skip


@lru_cache(maxsize=8)
def _maps(
    lens: Lens, columns: int, rows: int, crop: tuple[int, int, int, int] | None, exact: bool
) -> tuple[Any, Any]:
    """Return the maps of a frame's part that is kept; made once for a camera."""
    left, top, width, height = crop or (0, 0, columns, rows)
    whole = lens.maps(rows, columns, Path("frame"), exact=exact)
    one, two = (np.ascontiguousarray(m[top : top + height, left : left + width]) for m in whole)
    return one, two


def _relative(lens: Lens) -> list[float]:
    """Return a lens's numbers with the matrix in units of the calibrated width and height."""
    width, height = lens.size or (1, 1)
    units = (width,) * 3 + (height,) * 3 + (1,) * 3
    return [a / b for a, b in zip(lens.matrix, units, strict=True)] + list(lens.distortion)


def _pair(values: Any) -> tuple[int, int]:
    first, second = map(int, values)
    return first, second


def _node(file: cv2.FileStorage, *names: str) -> npt.NDArray[np.float64] | None:
    for name in names:
        node = file.getNode(name)
        if not node.empty() and node.isMap():
            found = node.mat()
            if found is not None and found.size:
                return np.asarray(found, np.float64)
    return None
