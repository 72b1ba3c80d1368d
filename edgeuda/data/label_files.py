"""Label files: class ids as an image stores them, whichever way that is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from edgeuda.data.images import (
    GREY,
    PALETTE,
    LabelMap,
    decode_label,
    intact_bytes,
    png_form,
    read_label,
    refuse_jpeg,
)
from edgeuda.errors import DataError
from edgeuda.labels import IGNORE, LabelSpace


def table(space: LabelSpace, encoding: str) -> npt.NDArray[np.uint8]:
    """Return the ``[256]`` uint8 table from an encoding's ids to a space's; others become 255."""
    result = np.full(256, IGNORE, np.uint8)
    for number, name in space.ids[encoding].items():
        if name is not None:
            result[number] = space.classes.index(name)
    return result


def read_palette_index(path: Path) -> LabelMap:
    """Read the indices of a palette PNG, or a grey one of up to 8 bits, as ``[H, W]`` uint8.

    OpenCV would return the palette's colours.

    Raises:
        DataError: If the file is damaged or has another form.
    """
    form = png_form(intact_bytes(path))
    if form is None:
        msg = f"{path}: expected a PNG of class indices, found another format"
        raise DataError(msg)
    depth, kind = form
    if kind != PALETTE and (kind != GREY or depth > 8):
        msg = (
            f"{path}: expected a PNG of class indices, with a palette or of up to 8 bits, found "
            f"{depth} bits of PNG colour type {kind}"
        )
        raise DataError(msg)
    if kind == GREY:
        return read_label(path)
    with Pillow.open(path) as image:
        return np.asarray(image, np.uint8)


def read_channel(path: Path, channel: int) -> LabelMap:
    """Read one channel of a colour PNG of 8 or 16 bits as ids.

    Args:
        path: The file.
        channel: In RGB order.

    Raises:
        DataError: If the file is damaged, has one channel only, or ids above 255.
    """
    decoded = decode_label(path, intact_bytes(path))
    if decoded is None or decoded.ndim != 3:
        found = "one channel" if decoded is not None else "bytes that cannot be decoded"
        msg = f"{path}: expected class ids in channel {channel} of a colour PNG, found {found}"
        raise DataError(msg)
    ids = decoded[:, :, 2 - channel]  # OpenCV's order is BGR
    if ids.max(initial=0) > IGNORE:
        msg = (
            f"{path}: expected class ids up to 255 in channel {channel}, found {ids.max()}. It may "
            "be a file of instance ids"
        )
        raise DataError(msg)
    return np.ascontiguousarray(ids, np.uint8)


def read_colours(path: Path, space: LabelSpace) -> LabelMap:
    """Read a colour-coded label image as ids of a space; black is ignored unless a class has it.

    An alpha channel plays no part.

    Raises:
        DataError: If a colour is not the space's; channels in the wrong order are recognised.
    """
    encoded = intact_bytes(path)
    refuse_jpeg(path, encoded)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if decoded is None:
        msg = f"{path}: expected a colour-coded label image, found bytes that cannot be decoded"
        raise DataError(msg)
    codes = _codes(decoded[:, :, ::-1].astype(np.int64))
    known = _colour_codes(space)
    present, inverse = np.unique(codes, return_inverse=True)
    unknown = [code for code in present.tolist() if code not in known]
    if unknown:
        colour = (unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255)
        swapped = _codes(decoded.astype(np.int64))
        hint = (
            " Red and blue seem to be swapped"
            if set(np.unique(swapped).tolist()) <= known.keys()
            else ""
        )
        msg = (
            f"{path}: expected the colours of label space {space.name!r}, found {colour} and "
            f"{len(unknown) - 1} others.{hint}"
        )
        raise DataError(msg)
    ids = np.array([known[code] for code in present.tolist()], np.uint8)
    return ids[inverse.reshape(codes.shape)]


def read_ids(path: Path, space: LabelSpace) -> LabelMap:
    """Read a label file as ids of the space it is said to be in, ``[H, W]`` uint8.

    One channel holds ids, or the numbers of ``space.files``; so do the indices of a palette. Three
    channels hold the space's colours, or CARLA's tags in the red one. A file that could mean two
    things is refused.

    Raises:
        DataError: If the file is damaged, or holds anything else.
    """
    data = intact_bytes(path)
    if (png_form(data) or (0, 0))[1] == PALETTE:
        return _read_palette(path, space)
    decoded = decode_label(path, data)
    if decoded is None or decoded.dtype != np.uint8:
        return read_label(path)  # which says what is wrong
    if decoded.ndim == 2:
        return _numbered(path, np.ascontiguousarray(decoded, np.uint8), space)
    blue, green, red = (decoded[:, :, channel] for channel in range(3))
    if space.files is not None and not blue.any() and not green.any():
        return _numbered(path, np.ascontiguousarray(red, np.uint8), space)
    try:
        return read_colours(path, space)
    except DataError:
        if np.array_equal(blue, green) and np.array_equal(green, red):
            msg = (
                f"{path}: expected class ids in one channel or the colours of label space "
                f"{space.name!r}, found three equal channels. Save one of them"
            )
            raise DataError(msg) from None
        raise


def _read_palette(path: Path, space: LabelSpace) -> LabelMap:
    """Read a palette PNG by its indices, unless its colours speak against them."""
    indices = read_palette_index(path)
    with Pillow.open(path) as image:
        palette = np.zeros((256, 3), np.int64)
        stored = np.asarray(image.getpalette() or [], np.int64).reshape(-1, 3)
        palette[: len(stored)] = stored
    known = _colour_codes(space)
    used = np.unique(indices)
    codes = _codes(palette[used]).tolist()
    ids = _numbered(path, indices, space)
    if len(set(codes)) == len(codes) > 1 and all(code in known for code in codes):
        by_colour = {int(index): known[code] for index, code in zip(used, codes, strict=True)}
        by_index = {int(index): int(ids[indices == index][0]) for index in used}
        odd = next((i for i in by_colour if IGNORE != by_colour[i] != by_index[i]), None)
        if odd is not None:
            msg = (
                f"{path}: index {odd} of its palette has the colour of class "
                f"{space.classes[by_colour[odd]]!r}, which is not class {odd} of label space "
                f"{space.name!r}. Save it with one channel of ids, or as colours"
            )
            raise DataError(msg)
    return ids


def _numbered(path: Path, numbers: LabelMap, space: LabelSpace) -> LabelMap:
    """Return ids for the numbers that files of a space hold."""
    if space.files is None:
        return numbers
    unknown = sorted(set(np.unique(numbers).tolist()) - space.ids[space.files].keys() - {IGNORE})
    if unknown:
        msg = (
            f"{path}: expected the {space.files} of label space {space.name!r} (up to "
            f"{max(space.ids[space.files])}), found {unknown}"
        )
        raise DataError(msg)
    return table(space, space.files)[numbers]


def _colour_codes(space: LabelSpace) -> dict[int, int]:
    """Return the id of each colour, as `_codes` has it."""
    colours = [(colour, index) for index, colour in enumerate(space.palette)]
    colours += [
        (colour, space.classes.index(name)) for name, more in space.also.items() for colour in more
    ]
    codes = _codes(np.array([colour for colour, _ in colours], np.int64)).tolist()
    known = {code: index for code, (_, index) in reversed(list(zip(codes, colours, strict=True)))}
    known.setdefault(0, IGNORE)
    return known


def _codes(rgb: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
