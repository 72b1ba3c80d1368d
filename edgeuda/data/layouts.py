"""Public data sets as they lie on disk: where the label of an image is, and how its ids are stored.

A layout is recognised by where an image folder lies, so every verb takes that folder:
``cityscapes/leftImg8bit/train``, ``GTA5``, ``SYNTHIA/RGB``. Nothing has to be converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeuda.data.images import LabelMap, read_label
from edgeuda.data.label_files import read_channel, read_colours, read_palette_index, table
from edgeuda.labels import IGNORE, SPACES, LabelSpace

CITYSCAPES_IDS = table(SPACES["cityscapes-19"], "labelIds")
"""Cityscapes labelId to trainId; GTA5 and NTHU use the same labelIds."""
SYNTHIA_IDS = table(SPACES["cityscapes-19"], "synthia")
"""SYNTHIA id to trainId; lane markings (22) stay ignored, as most publications have it."""
ROBOTCAR_IDS = table(SPACES["robotcar-9"], "anno")
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
    return label if path.name.endswith("TrainIds.png") else CITYSCAPES_IDS[label]


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
        lambda path: CITYSCAPES_IDS[read_label(path)],
    ),
    Layout(
        "Oxford RobotCar",
        "val/X.png, anno/X.png",
        SPACES["robotcar-9"],
        lambda folder: folder.name in ("train", "val") and (folder.parent / "anno").is_dir(),
        _robotcar_label,
        lambda path: ROBOTCAR_IDS[read_channel(path, 0)],
    ),
    Layout(
        "SYNTHIA-RAND-CITYSCAPES",
        "RGB/0000000.png, GT/LABELS/0000000.png",
        SPACES["cityscapes-19"],
        lambda folder: folder.name == "RGB" and (folder.parent / "GT" / "LABELS").is_dir(),
        _synthia_label,
        lambda path: SYNTHIA_IDS[read_channel(path, 0)],
    ),
    Layout(
        "GTA5",
        "images/00001.png, labels/00001.png with a palette",
        SPACES["cityscapes-19"],
        _is_gta5,
        _gta5_label,
        lambda path: CITYSCAPES_IDS[read_palette_index(path)],
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
