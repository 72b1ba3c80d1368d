"""Reading and resizing of camera images and label maps."""

from __future__ import annotations

import io
import logging
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from edgeuda.data.lists import is_list, read_list
from edgeuda.data.stores import located
from edgeuda.data.walk import Files, by_folder, sorted_names
from edgeuda.errors import DataError
from edgeuda.files import write_atomic
from edgeuda.labels import IGNORE

logger = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]
"""``[H, W, 3]`` uint8 RGB."""
LabelMap = npt.NDArray[np.uint8]
"""``[H, W]`` uint8 class ids."""

ORIENTATION = 0x0112
"""EXIF tag; 5 to 8 turn the image by a quarter."""
GREY, PALETTE = 0, 3
"""Colour types of PNG."""
Pillow.MAX_IMAGE_PIXELS = None  # our own limit, which names the file, holds in its place
HEADER = 1 << 18
"""Bytes in which an image file says its size."""
MAX_PIXELS = 100_000_000
PIXELS_VARIABLE = "EDGEUDA_MAX_PIXELS"
"""Environment variable: pixels of an image at most, in place of `MAX_PIXELS`."""
BITS_VARIABLE = "EDGEUDA_FRAME_BITS"
"""Environment variable: bits that a camera fills in PNGs of 16 bits."""
SQUEEZED = 1.15
"""Change of aspect from which it is said."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
DARKEST = 0.25
"""Share of its light that is left of a place where a network is not sure at all."""


def read_image(path: str | Path) -> Image:
    """Read an image file as ``[H, W, 3]`` uint8 RGB.

    Raises:
        DataError: If the file is missing, empty, truncated or not an image.
    """
    path = located(path)
    return decode_image(intact_bytes(path), path)


def decode_image(encoded: npt.NDArray[np.uint8], path: Path | None = None) -> Image:
    """Decode a file's bytes as ``[H, W, 3]`` uint8 RGB.

    Of more than 8 bits the upper 8 are kept: of 16, or of as many as the file or the environment
    variable `BITS_VARIABLE` says that its camera has.

    Raises:
        DataError: If they are not an image; ``path`` names the file in the error. If its values
            look like those of a camera of fewer than 16 bits and nothing says how many.
    """
    deep = (png_form(encoded) or (8, GREY))[0] > 8
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if deep else 0))
    if decoded is None:
        msg = f"{path or 'Image'}: expected an image, found bytes that cannot be decoded"
        raise DataError(msg)
    if deep:
        decoded = upper_eight(decoded, f"{path or 'Image'}: a PNG", _significant_bits(encoded))
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def _require_modest(data: bytes, path: Path) -> None:
    """Refuse an image that would not fit in memory: a megabyte of file can hold a gigabyte.

    Raises:
        DataError: If it has more pixels than `PIXELS_VARIABLE` allows.
    """
    try:
        with Pillow.open(io.BytesIO(data[:HEADER])) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError):
        return  # whoever decodes it says what is wrong
    most = int(os.environ.get(PIXELS_VARIABLE, MAX_PIXELS))
    if width * height > most:
        msg = (
            f"{path}: has {width}x{height} pixels, more than the {most:,} that are "
            f"allowed. If it is meant to be so large, set {PIXELS_VARIABLE}={width * height}"
        )
        raise DataError(msg)


def upper_eight(
    pixels: npt.NDArray[Any], what: str, told: int | None = None
) -> npt.NDArray[np.uint8]:
    """Return the upper 8 of the bits that a camera fills of 16, of the same shape, uint8.

    Args:
        pixels: Values of 16 bits.
        what: Where they come from, for the error.
        told: How many bits the file says that there are. `BITS_VARIABLE` counts before it.

    Raises:
        DataError: If the values look like those of a camera of fewer than 16 bits and nothing says
            how many.
    """
    said = os.environ.get(BITS_VARIABLE)
    if said is not None:
        if not said.isdecimal() or not 8 <= int(said) <= 16:
            msg = f"{BITS_VARIABLE}: expected a number of bits from 8 to 16, found {said!r}"
            raise DataError(msg)
        told = int(said)
    largest = int(pixels.max())
    if told is None and largest < 1 << 14:  # a camera of 10, 12 or 14 bits, or a very dark picture
        msg = (
            f"{what} of 16 bits whose values end at {largest}, as those of a "
            f"{max(8, largest.bit_length())}-bit camera would. Say how many bits it has: "
            f"{BITS_VARIABLE}=12, say, or 16 if the picture is only dark"
        )
        raise DataError(msg)
    return (pixels.astype(np.int32) >> ((told or 16) - 8)).clip(max=255).astype(np.uint8)


def _significant_bits(encoded: npt.NDArray[np.uint8]) -> int | None:
    """Return how many bits of a channel a PNG says to be significant; None if it does not."""
    data = encoded.tobytes()
    place = data.find(b"sBIT", 0, data.find(b"IDAT"))
    return data[place + 4] if place > 0 and 8 <= data[place + 4] <= 16 else None


def read_label(path: Path) -> LabelMap:
    """Read a label map stored as a single-channel PNG of up to 8 bits, ``[H, W]`` uint8.

    Raises:
        DataError: If the file is missing, truncated, a JPEG, has colours or more than 8 bits.
    """
    decoded = decode_label(path, intact_bytes(path))
    if decoded is None:
        msg = f"{path}: expected a label image, found bytes that cannot be decoded"
        raise DataError(msg)
    if decoded.ndim != 2 or decoded.dtype != np.uint8:
        channels = 1 if decoded.ndim == 2 else decoded.shape[2]
        msg = (
            f"{path}: expected an 8-bit single-channel label image with class ids, "
            f"found {channels} channel(s) of {decoded.dtype}"
        )
        raise DataError(msg)
    return np.ascontiguousarray(decoded, dtype=np.uint8)


def decode_label(path: Path, encoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
    """Decode a label file's bytes with the numbers that are stored; None if they are no image.

    OpenCV stretches grey PNGs of 1, 2 and 4 bits to 0 to 255.

    Raises:
        DataError: If it is a JPEG, whatever its name: its compression alters ids and colours.
    """
    refuse_jpeg(path, encoded)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    depth, kind = png_form(encoded) or (8, GREY)
    if decoded is not None and kind == GREY and depth < 8:
        decoded = decoded // (255 // (2**depth - 1))
    return decoded  # type: ignore[return-value]


def refuse_jpeg(path: Path, encoded: npt.NDArray[np.uint8]) -> None:
    """Refuse a label file that is a JPEG, whatever its name.

    Raises:
        DataError: If it is one: its compression alters ids and colours.
    """
    if encoded[:2].tobytes() == b"\xff\xd8":
        msg = (
            f"{path}: expected a label image, found a JPEG, whose compression alters class ids. "
            "Save labels as PNG, from their source"
        )
        raise DataError(msg)


def png_form(encoded: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return bit depth and colour type of a PNG, None if it is none."""
    data = encoded[:26].tobytes()
    # The header follows the signature: length, "IHDR", width, height, depth, colour type.
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26:
        return None
    depth, kind = struct.unpack(">BB", data[24:26])
    return int(depth), int(kind)


def write_label(path: Path, label: LabelMap, *, durable: bool = True) -> None:
    """Write an ``[H, W]`` uint8 label map as PNG, see `edgeuda.files.write_atomic`."""
    _write(path, label, durable)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Return an ``[H, W, 3]`` uint8 RGB image as a JPEG of a quality from 0 to 100.

    Raises:
        DataError: If it is too large for a JPEG.
    """
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        msg = f"Cannot encode an image of shape {image.shape} as JPEG"
        raise DataError(msg)
    return encoded.tobytes()


def write_image(path: Path, image: Image) -> None:
    """Write an ``[H, W, 3]`` uint8 RGB image in the format of the suffix, atomically."""
    _write(path, np.ascontiguousarray(image[:, :, ::-1]), durable=True)


def _write(path: Path, pixels: npt.NDArray[np.uint8], durable: bool) -> None:
    done, encoded = cv2.imencode(path.suffix, pixels)
    if not done:
        msg = f"{path}: cannot encode an image of shape {pixels.shape} as {path.suffix}"
        raise DataError(msg)
    content = encoded.tobytes()
    write_atomic(path, lambda name: name.write_bytes(content), durable=durable)


def resize_image(image: Image, height: int, width: int, into: Image | None = None) -> Image:
    """Resize to ``height`` x ``width``: by area when shrinking, bilinearly otherwise.

    This is the one resize between a camera frame and a network, in training and on the vehicle. It
    keeps no aspect, and says so once where that changes the shape of things.

    Args:
        image: ``[H, W, 3]`` uint8.
        height: Rows of the result.
        width: Its columns.
        into: C-contiguous ``[height, width, 3]`` uint8 to write to; None makes an array, or returns
            ``image`` where it has that size.
    """
    if image.shape[:2] == (height, width):
        if into is None:
            return image
        np.copyto(into, image)
        return into
    _say_squeezed(image.shape[1], image.shape[0], width, height)
    return scaled(image, height, width, into)


@lru_cache(maxsize=256)
def _say_squeezed(width: int, height: int, to_width: int, to_height: int) -> None:
    """Say once in a process that frames of some size change their shape."""
    factor = (width / height) / (to_width / to_height)
    if max(factor, 1 / factor) > SQUEEZED:
        logger.warning(
            "Frames of %dx%d are resized to %dx%d: things become %.2f times as %s. Where source "
            "and target differ in this, crop one of them (edgeuda data frames --crop), or choose "
            "model.input between them",
            width, height, to_width, to_height, max(factor, 1 / factor),
            "narrow" if factor > 1 else "wide",
        )  # fmt: skip


def scaled(image: Image, height: int, width: int, into: Image | None = None) -> Image:
    """Resize as `resize_image` does, for people to look at or for comparing: without a word."""
    shrink = image.shape[0] >= height and image.shape[1] >= width
    method = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), into, interpolation=method), np.uint8)


def resize_label(label: LabelMap, height: int, width: int) -> LabelMap:
    """Resize a label map to ``height`` x ``width`` by nearest neighbour (pixel centres)."""
    if label.shape[:2] == (height, width):
        return label
    resized = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.uint8)


def is_turned(path: Path) -> bool:
    """Return whether EXIF turns a file's image by a quarter, which `read_image` follows."""
    try:
        with Pillow.open(path) as image:
            return int(image.getexif().get(ORIENTATION, 1)) >= 5
    except OSError:
        return False


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of what `read_image` returns, by the file's header alone.

    Raises:
        DataError: If the file is missing or its beginning is not that of an image.
    """
    try:
        with Pillow.open(path) as image:
            width, height = image.size
            # Of a PNG without, Pillow would decode the pixels to look behind them.
            told = image.format != "PNG" or "exif" in image.info
            turned = told and int(image.getexif().get(ORIENTATION, 1)) >= 5
            return (height, width) if turned else (width, height)
    except (OSError, SyntaxError, ValueError) as err:
        msg = f"{path}: expected an image, found a file whose header cannot be read ({err})"
        raise DataError(msg) from err


def list_images(folder: Path) -> Files:
    """Return the image files under a folder (or its ``images`` folder, if it has one), sorted.

    A ``.txt`` or ``.csv`` file lists them itself, see `edgeuda.data.lists`.

    Raises:
        DataError: If there is no such folder, or no image in it.
    """
    folder = located(folder)
    if is_list(folder):
        return Files(Path(), (str(entry[0]) for entry in read_list(folder, columns=1)))
    root = folder / "images" if (folder / "images").is_dir() else folder
    if not root.is_dir():
        if folder.is_file():
            msg = (
                f"{folder}: expected a folder or a list of images, found a file. Extract the "
                "frames of a video first: edgeuda data frames --footage VIDEO --out FRAMES"
            )
            raise DataError(msg)
        msg = f"{folder}: expected a folder of images, found no such folder"
        raise DataError(msg)
    found = Files(root, sorted_names(root, IMAGE_SUFFIXES, by_folder))
    if not found:
        msg = f"{root}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none"
        raise DataError(msg)
    return found


def intact_bytes(path: Path) -> npt.NDArray[np.uint8]:
    """Return a file's bytes after checking that a JPEG or PNG was written to its end.

    OpenCV returns half-grey images for truncated files, with no more than a line on stderr.

    Raises:
        DataError: If the file is missing, empty or truncated, or its image would fill the memory.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        msg = f"{path}: expected a readable image file ({err.strerror})"
        raise DataError(msg) from err
    _require_modest(data, path)
    end = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}.get(data[:2])
    # What follows a whole image (a motion photo's video, padding) is a decoder's to judge.
    whole = end is None or end in data[-64:] or (end in data and _decodes(data))
    if not data or not whole:
        msg = f"{path}: expected a complete image file, found a truncated one ({len(data)} bytes)"
        raise DataError(msg)
    return np.frombuffer(data, np.uint8)


def _decodes(data: bytes) -> bool:
    """Whether a file is whole to a decoder that, unlike OpenCV, refuses truncated ones."""
    try:
        with Pillow.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def paint(image: Image, label: LabelMap, colors: npt.NDArray[np.uint8]) -> Image:
    """Paint classes over an image, for people to look at.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        label: ``[H, W]`` uint8 ids; pixels with 255 stay as they are.
        colors: ``[256, 3]`` uint8 RGB by id, see `LabelSpace.colors`.
    """
    tinted = cv2.addWeighted(image, 0.4, _tint(label, colors), 0.6, 0)
    cv2.copyTo(image, (label == IGNORE).astype(np.uint8), dst=tinted)
    return np.asarray(tinted, np.uint8)


def dimmed(image: Image, confidence: npt.NDArray[np.uint8]) -> Image:
    """Return an image that is dark where a network is unsure, for people to look at.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        confidence: ``[h, w]`` uint8, 255 where it is sure; enlarged bilinearly.
    """
    size = (image.shape[1], image.shape[0])
    light = cv2.resize(confidence, size, interpolation=cv2.INTER_LINEAR)
    shown = cv2.addWeighted(light, 1 - DARKEST, np.full_like(light, 255), DARKEST, 0)
    return np.asarray(cv2.multiply(image, cv2.merge([shown] * 3), scale=1 / 255), np.uint8)


def _tint(label: LabelMap, colors: npt.NDArray[np.uint8]) -> Image:
    """Return ``[H, W, 3]`` colours of a label map."""
    return np.asarray(cv2.LUT(cv2.merge([label] * 3), colors[None]), np.uint8)
