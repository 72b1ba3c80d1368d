"""Public data sets as they lie on disk: where the label of an image is, and how its ids are stored.

A layout is recognised by where an image folder lies, so every verb takes that folder:
``cityscapes/leftImg8bit/train``, ``GTA5``, ``SYNTHIA/RGB``. Nothing has to be converted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from edgeuda.data.images import LabelMap, intact_bytes, read_label
from edgeuda.errors import DataError
from edgeuda.labels import IGNORE, SPACES, LabelSpace

CITYSCAPES_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
"""Cityscapes labelId to trainId; GTA5 and NTHU use the same labelIds."""
SYNTHIA_IDS = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13,
    18: 14, 19: 15, 20: 16, 12: 17, 11: 18,
}  # fmt: skip
"""SYNTHIA id to trainId; lane markings (22) stay ignored, as most publications have it."""
ROBOTCAR_IDS = {
    1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 10: 7, 11: 8, 12: 8, 13: 8, 14: 8, 17: 8,
}  # fmt: skip
"""Oxford RobotCar annotation id to the 9 classes."""


@dataclass(frozen=True)
class Layout:
    """A data set's form on disk.

    Attributes:
        name: For messages.
        looks: An example of an image and its label, for people.
        space: Label space of what `read` returns.
        matches: Whether a folder of images belongs to it.
        label: Returns the label file of an image.
        read: Reads a label file as ``[H, W]`` uint8 ids of ``space``.
    """

    name: str
    looks: str
    space: LabelSpace
    matches: Callable[[Path], bool]
    label: Callable[[Path], Path]
    read: Callable[[Path], LabelMap]


def layout_of(folder: Path) -> Layout | None:
    """Return the layout that a folder of images belongs to, None if to none that is known."""
    return next((layout for layout in LAYOUTS if layout.matches(folder.resolve())), None)


def table(ids: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    """Return the ``[256]`` uint8 table of a mapping; all other ids become 255."""
    result = np.full(256, IGNORE, np.uint8)
    for before, after in ids.items():
        result[before] = after
    return result


def read_palette_index(path: Path) -> LabelMap:
    """Read the indices of an 8-bit palette PNG, or of a grey one, ``[H, W]`` uint8.

    OpenCV would return the palette's colours.

    Raises:
        DataError: If the file is damaged or has another form.
    """
    data = intact_bytes(path)
    # The header follows the signature: length, "IHDR", width, height, depth, colour type.
    if data[:8].tobytes() != b"\x89PNG\r\n\x1a\n":
        msg = f"{path}: expected a PNG of class indices, found another format"
        raise DataError(msg)
    depth, kind = struct.unpack(">BB", data[24:26].tobytes())
    if (depth, kind) not in ((8, 3), (8, 0)):
        msg = (
            f"{path}: expected an 8-bit PNG of class indices with or without a palette, found "
            f"{depth} bits of PNG colour type {kind}"
        )
        raise DataError(msg)
    if kind == 0:
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
    decoded = cv2.imdecode(intact_bytes(path), cv2.IMREAD_UNCHANGED)
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

    Raises:
        DataError: If a colour is not the space's; channels in the wrong order are recognised.
    """
    decoded = cv2.imdecode(intact_bytes(path), cv2.IMREAD_COLOR)
    if decoded is None:
        msg = f"{path}: expected a colour-coded label image, found bytes that cannot be decoded"
        raise DataError(msg)
    codes = _codes(decoded[:, :, ::-1].astype(np.int64))
    known = dict(zip(_codes(np.array(space.palette, np.int64)).tolist(), range(256), strict=False))
    known.setdefault(0, IGNORE)
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


def _codes(rgb: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _beside(name: str, labels: str) -> Callable[[Path], bool]:
    """Return whether a folder is, or lies in, one called ``name`` that has ``labels`` beside it."""

    def matches(folder: Path) -> bool:
        found = next((p for p in (folder, *folder.parents) if p.name == name), None)
        return found is not None and (found.parent / labels).is_dir()

    return matches


def _swapped(image: Path, folders: Mapping[str, str], name: str) -> Path:
    """Return the path with folders renamed (the last of each name) and another file name."""
    parts = list(image.parts)
    for before, after in folders.items():
        place = len(parts) - 1 - parts[::-1].index(before)
        parts[place] = after
    return Path(*parts[:-1], name)


def _cityscapes_label(image: Path) -> Path:
    stem = image.name.removesuffix("_leftImg8bit.png")
    folders = {"leftImg8bit": "gtFine"}
    ids = _swapped(image, folders, f"{stem}_gtFine_labelTrainIds.png")
    return ids if ids.is_file() else _swapped(image, folders, f"{stem}_gtFine_labelIds.png")


def _cityscapes_read(path: Path) -> LabelMap:
    label = read_label(path)
    return label if path.name.endswith("TrainIds.png") else table(CITYSCAPES_IDS)[label]


def _acdc_label(image: Path) -> Path:
    stem = image.stem.removesuffix("_rgb_anon")
    return _swapped(image, {"rgb_anon": "gt"}, f"{stem}_gt_labelTrainIds.png")


def _bdd_label(image: Path) -> Path:
    parts = list(image.with_suffix(".png").parts)
    place = len(parts) - 1 - parts[::-1].index("10k")
    return Path(*parts[: place - 1], "labels", "sem_seg", "masks", *parts[place + 1 :])


def _nthu_label(image: Path) -> Path:
    return _swapped(image, {"Images": "Labels"}, f"{image.stem}_eval.png")


def _robotcar_label(image: Path) -> Path:
    return image.parent.parent / "anno" / image.name


def _synthia_label(image: Path) -> Path:
    return image.parent.parent / "GT" / "LABELS" / image.name


def _gta5_label(image: Path) -> Path:
    return _swapped(image, {"images": "labels"}, image.name)


def _is_gta5(folder: Path) -> bool:
    """Labels of GTA5 are palette PNGs with five digits as name; those of other folders are not."""
    labels = (folder / "labels") if (folder / "labels").is_dir() else None
    first = None if labels is None else next(labels.rglob("[0-9][0-9][0-9][0-9][0-9].png"), None)
    if first is None:
        return False
    with first.open("rb") as file:
        return file.read(26)[24:26] == b"\x08\x03"


def _segnet_label(image: Path) -> Path:
    return image.parent.parent / f"{image.parent.name}annot" / image.name


def _segnet_read(path: Path) -> LabelMap:
    label = read_label(path)
    return np.where(label == len(SPACES["camvid-11"]), IGNORE, label).astype(np.uint8)


def _camvid_label(image: Path) -> Path:
    return image.parent.parent / "LabeledApproved_full" / f"{image.stem}_L.png"


LAYOUTS = (
    Layout(
        "Cityscapes",
        "leftImg8bit/train/aachen/X_leftImg8bit.png, gtFine/train/aachen/X_gtFine_labelIds.png",
        SPACES["cityscapes-19"],
        _beside("leftImg8bit", "gtFine"),
        _cityscapes_label,
        _cityscapes_read,
    ),
    Layout(
        "ACDC",
        "rgb_anon/fog/train/GOPR0475/X_rgb_anon.png, gt/fog/train/GOPR0475/X_gt_labelTrainIds.png",
        SPACES["cityscapes-19"],
        _beside("rgb_anon", "gt"),
        _acdc_label,
        read_label,
    ),
    Layout(
        "BDD100K",
        "images/10k/train/X.jpg, labels/sem_seg/masks/train/X.png",
        SPACES["cityscapes-19"],
        lambda folder: "10k" in folder.parts and _beside("images", "labels")(folder),
        _bdd_label,
        read_label,
    ),
    Layout(
        "NTHU cross-city",
        "Rome/Images/Test/X.png, Rome/Labels/Test/X_eval.png",
        SPACES["cityscapes-19"],
        _beside("Images", "Labels"),
        _nthu_label,
        lambda path: table(CITYSCAPES_IDS)[read_label(path)],
    ),
    Layout(
        "Oxford RobotCar",
        "val/X.png, anno/X.png",
        SPACES["robotcar-9"],
        lambda folder: folder.name in ("train", "val") and (folder.parent / "anno").is_dir(),
        _robotcar_label,
        lambda path: table(ROBOTCAR_IDS)[read_channel(path, 0)],
    ),
    Layout(
        "SYNTHIA-RAND-CITYSCAPES",
        "RGB/0000000.png, GT/LABELS/0000000.png",
        SPACES["cityscapes-19"],
        lambda folder: folder.name == "RGB" and (folder.parent / "GT" / "LABELS").is_dir(),
        _synthia_label,
        lambda path: table(SYNTHIA_IDS)[read_channel(path, 0)],
    ),
    Layout(
        "GTA5",
        "images/00001.png, labels/00001.png with a palette",
        SPACES["cityscapes-19"],
        _is_gta5,
        _gta5_label,
        lambda path: table(CITYSCAPES_IDS)[read_palette_index(path)],
    ),
    Layout(
        "CamVid, 11 classes",
        "train/X.png, trainannot/X.png",
        SPACES["camvid-11"],
        lambda folder: (folder.parent / f"{folder.name}annot").is_dir(),
        _segnet_label,
        _segnet_read,
    ),
    Layout(
        "CamVid, 32 colours",
        "701_StillsRaw_full/X.png, LabeledApproved_full/X_L.png",
        SPACES["camvid-32"],
        lambda folder: folder.name == "701_StillsRaw_full",
        _camvid_label,
        lambda path: read_colours(path, SPACES["camvid-32"]),
    ),
)
