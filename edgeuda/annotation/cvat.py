"""CVAT's "Segmentation mask 1.1": colour-coded PNGs and a ``labelmap.txt``, after Pascal VOC.

Source: https://docs.cvat.ai/docs/dataset_management/formats/format-smask. Without instance masks
CVAT takes the background for an annotation, so they are written, one instance per class.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from edgeuda.annotation.drawn import Annotations, Drawn, Labelled, Mask
from edgeuda.data.images import (
    GREY,
    PALETTE,
    decode_label,
    intact_bytes,
    png_form,
    write_image,
)
from edgeuda.data.label_files import read_palette_index
from edgeuda.data.lists import text_lines
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import write_atomic, write_text
from edgeuda.labels import Color, LabelSpace, hex_color

logger = logging.getLogger(__name__)

LABELMAP = "labelmap.txt"
CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
BACKGROUND = "background"
BLACK = (0, 0, 0)


def write(out: Path, space: LabelSpace, frames: Iterable[Labelled]) -> None:
    """Write ``JPEGImages``, ``annotations.zip`` to upload, and ``labels.json`` for CVAT's form.

    Args:
        out: Folder to write.
        space: What the ids mean.
        frames: Frames with their labels.

    Raises:
        ConfigError: If a class is called ``background``, as CVAT calls what has no label.
    """
    if BACKGROUND in space.classes:
        msg = (
            f"Label space {space.name!r} has a class {BACKGROUND!r}, which CVAT takes for pixels "
            "without a label. Rename it, or choose another form"
        )
        raise ConfigError(msg)
    colours = _distinct(space)
    table = np.zeros((256, 3), np.uint8)
    table[: len(space)] = colours
    instances = np.zeros((256, 3), np.uint8)
    instances[: len(space)] = [_voc_colour(index + 1) for index in range(len(space))]
    lines = ["# label:color_rgb:parts:actions", f"{BACKGROUND}:0,0,0::"]
    lines += [
        f"{name}:{','.join(map(str, colour))}::"
        for name, colour in zip(space.classes, colours, strict=True)
    ]
    write_text(out / LABELMAP, "\n".join(lines) + "\n")
    names = []
    for frame in frames:
        frame.copy_into(out / "JPEGImages")
        names.append(Path(frame.name).with_suffix("").as_posix())
        write_image(out / CLASSES / f"{names[-1]}.png", table[frame.label])
        write_image(out / OBJECTS / f"{names[-1]}.png", instances[frame.label])
    listed = out / "ImageSets" / "Segmentation" / "default.txt"
    write_text(listed, "".join(f"{name}\n" for name in names))
    constructor = [
        {"name": name, "color": hex_color(colour), "attributes": []}
        for name, colour in zip(space.classes, colours, strict=True)
    ]
    write_text(out / "labels.json", json.dumps(constructor, indent=2) + "\n")
    write_atomic(out / "annotations.zip", partial(_pack, out))


def _pack(out: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in (LABELMAP, "ImageSets", CLASSES, OBJECTS):
            place = out / part
            for file in sorted(place.rglob("*.*")) if place.is_dir() else [place]:
                archive.write(file, file.relative_to(out))


def _distinct(space: LabelSpace) -> list[Color]:
    """Return the space's colours, others where they are black or stand for two classes."""
    found: list[Color] = []
    for index, (name, colour) in enumerate(zip(space.classes, space.palette, strict=True)):
        spare = (_voc_colour(number) for number in range(255, 0, -1))
        own = colour
        while own == BLACK or own in found or own in space.palette[index + 1 :]:
            own = next(spare)
        if own != colour:
            logger.warning(
                "Class %r gets the colour %s in place of %s, which means something else, too",
                name, own, colour,
            )  # fmt: skip
        found.append(own)
    return found


def _voc_colour(number: int) -> Color:
    """Return colour ``number`` of Pascal VOC: its bits, spread over the channels' upper bits."""
    red, green, blue = (
        sum((number >> (3 * place + channel) & 1) << (7 - place) for place in range(8))
        for channel in range(3)
    )
    return red, green, blue


def find(folder: Path) -> Path | None:
    """Return the ``labelmap.txt`` of a folder of masks, None if there is none."""
    return next(iter(sorted(folder.rglob(LABELMAP), key=lambda path: len(path.parts))), None)


def read(labelmap: Path) -> Annotations:
    """Read masks beside a ``labelmap.txt``: as colours, or as indices in the order of its lines.

    Raises:
        DataError: If it is damaged, or there are no masks. Masks themselves are read later.
    """
    root = labelmap.parent
    folder = root / CLASSES if (root / CLASSES).is_dir() else root
    masks = [
        path
        for path in sorted(folder.rglob("*.png"))
        if not {"JPEGImages", "images", OBJECTS} & set(path.relative_to(folder).parts[:-1])
    ]
    if not masks:
        msg = f"{root}: expected masks in {CLASSES}/*.png beside {LABELMAP}, found none"
        raise DataError(msg)
    labels = _labels(labelmap)
    return Annotations(
        "cvat",
        [
            Drawn(
                [path.relative_to(folder).with_suffix("").as_posix()],
                str(path),
                partial(_layers, path, labelmap, labels),
            )
            for path in masks
        ],
    )


def _labels(labelmap: Path) -> list[tuple[str, int]]:
    """Return the names of a label map in their order, each with its colour as one number.

    A label without a colour has that of Pascal VOC for its place.
    """
    labels: list[tuple[str, int]] = []
    for number, line in enumerate(text_lines(labelmap), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, rest = text.partition(":")
        values = [part.strip() for part in rest.split(":")[0].split(",")]
        whole = all(value.isdecimal() and int(value) < 256 for value in values)
        if values == [""]:
            red, green, blue = _voc_colour(len(labels))
        elif len(values) == 3 and whole:
            red, green, blue = map(int, values)
        else:
            msg = (
                f"{labelmap}: line {number}: expected NAME:RED,GREEN,BLUE:: with colours from 0 to "
                f"255, found {text!r}"
            )
            raise DataError(msg)
        labels.append((name.strip(), red << 16 | green << 8 | blue))
    colours = [colour for _, colour in labels]
    if len(set(colours)) < len(colours):
        twice = next(colour for colour in colours if colours.count(colour) > 1)
        both = " and ".join(repr(name) for name, colour in labels if colour == twice)
        msg = f"{labelmap}: expected a colour for each label, found the same for {both}"
        raise DataError(msg)
    return labels


def _layers(
    path: Path, labelmap: Path, labels: list[tuple[str, int]]
) -> Iterator[tuple[str, Mask]]:
    """Yield the labels of a mask; a pixel has one, or is black, which needs no name."""
    encoded = intact_bytes(path)
    kind = (png_form(encoded) or (0, 0))[1]
    by_colour = {colour: name for name, colour in labels}
    values: npt.NDArray[np.int64]
    if kind == GREY:
        decoded = decode_label(path, encoded)
        if decoded is None:
            msg = f"{path}: expected a mask, found bytes that cannot be decoded"
            raise DataError(msg)
        values, names = decoded.astype(np.int64), dict(enumerate(name for name, _ in labels))
        what = f"indices of the {len(labels)} labels"
    elif kind == PALETTE:
        values, names = _of_palette(path, by_colour), by_colour
        what = "colours"
    else:
        colours = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        if colours is None:
            msg = f"{path}: expected a mask, found bytes that cannot be decoded"
            raise DataError(msg)
        blue, green, red = (colours[:, :, n].astype(np.int64) for n in range(3))
        values, names = red << 16 | green << 8 | blue, by_colour
        what = "colours"
    for value in np.unique(values).tolist():
        if value in names:
            yield names[value], values == value
        elif value or kind == GREY:
            shown = value if kind == GREY else (value >> 16, value >> 8 & 255, value & 255)
            msg = f"{path}: expected the {what} of {labelmap}, found {shown}"
            raise DataError(msg)


def _of_palette(path: Path, by_colour: dict[int, str]) -> npt.NDArray[np.int64]:
    """Return the colours of a palette PNG as numbers."""
    indices = read_palette_index(path)
    with Pillow.open(path) as image:
        stored = np.zeros((256, 3), np.int64)
        palette = np.asarray(image.getpalette() or [], np.int64).reshape(-1, 3)
        stored[: len(palette)] = palette
    return np.asarray((stored @ np.array([1 << 16, 1 << 8, 1]))[indices], np.int64)
