"""What `data frames` did to frames that lie in files, and what a model still has to do to them.

The one place where a frame of footage becomes a frame that a model is shown, before it is resized:
raw frames get the geometry of the model's spec, frames that were treated so already are taken as
they are, and what fits neither is refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgeuda.camera import CameraGeometry, alike
from edgeuda.data.images import IMAGE_SUFFIXES, Image, LabelMap, read_image
from edgeuda.data.stores import StorePath
from edgeuda.errors import ConfigError, DataError
from edgeuda.records.frames import Curation, FramesRecord

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
FILES = (FramesRecord.FILE, PROGRESS_FILE)
"""Records of a finished and of an unfinished extraction."""
CHANGES = {"calibration": "undistorted", "crop": "cropped", "mask": "masked"}


@dataclass(frozen=True)
class Treatment:
    """What was done to the frames of a folder before they were kept.

    Attributes:
        record: The file that says so.
        changes: In words, of `CHANGES`.
        geometry: Of raw frames; None if they were neither undistorted nor cropped, or if the record
            does not say how exactly.
        told: Whether the record says how exactly.
    """

    record: Path
    changes: tuple[str, ...]
    geometry: CameraGeometry | None
    told: bool

    @property
    def words(self) -> str:
        """What was done, to follow ``were``."""
        return " and ".join(self.changes) or "left as they were"


def treatment_of(frame: Path) -> Treatment | None:
    """Return what the record beside a frame's file says; None without one, as of a video.

    The record lies in the frame's folder, or in the one above if that is called ``images``; a
    linked file is looked for where it really lies, too.

    Raises:
        DataError: If the record is damaged.
    """
    if frame.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    for path in dict.fromkeys((frame, _linked(frame))):
        folder = path.parent
        for place in (folder, folder.parent) if folder.name == "images" else (folder,):
            for name in FILES:
                try:
                    found = (place / name).stat()
                except OSError:
                    continue
                treatment = _read(place / name, found.st_mtime_ns, found.st_size)
                if treatment is not None:
                    return treatment
    return None


def _linked(frame: Path) -> Path:
    return frame if isinstance(frame, StorePath) else Path(os.path.realpath(frame))


@lru_cache(maxsize=256)
def _read(path: Path, _changed: int, _size: int) -> Treatment | None:
    if b"edgeuda.frames/" not in path.read_bytes():
        return None  # somebody else's
    record = FramesRecord.read(path)
    geometries = record.geometries or []
    changes = tuple(
        text for key, text in CHANGES.items() if getattr(record.curation, key) is not None
    )
    try:
        lost = len(geometries) > 1 or any(one and one["raw"] is None for one in geometries)
        found = [
            None if one is None else CameraGeometry.from_record(one)
            for one in geometries
            if not lost
        ]
    except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as err:
        msg = f"{path}: its geometries are damaged ({err!r}). {FramesRecord.AGAIN}"
        raise DataError(msg) from err
    geometry = found[0] if found else None
    if geometry is not None:  # perhaps of the frames that these were made from
        parts = {"undistorted": geometry.lens, "cropped": geometry.crop}
        kept = [text for text, part in parts.items() if part is not None]
        changes = (*kept, *(text for text in changes if text not in parts))
    told = bool(found) or not (lost or {"undistorted", "cropped"} & set(changes))
    return Treatment(path, changes, geometry, told)


def geometry_of(frames: Sequence[Path]) -> CameraGeometry | None:
    """Return the geometry that all frames to learn from were given, None if they are raw.

    Frames whose record does not say what exactly was done count as raw, see `say_learnt`.

    Raises:
        DataError: If frames of several folders were treated differently.
    """
    found = {folder: treatment_of(frame) for folder, frame in _one_each(frames).items()}
    first, *others = found.items()
    one = None if first[1] is None else first[1].geometry
    for folder, treatment in others:
        two = None if treatment is None else treatment.geometry
        if (one is None) is not (two is None) or (one and two and not one.same_as(two)):
            msg = (
                f"{folder}: its frames are {'raw' if two is None else two.describe()}, those of "
                f"{first[0]} are {'raw' if one is None else one.describe()}. A model has one "
                "camera: extract all footage with the same `calibration` and `crop`"
            )
            raise DataError(msg)
    return one


def _one_each(frames: Sequence[Path]) -> dict[Path, Path]:
    """Return the first frame of each folder."""
    found: dict[Path, Path] = {}
    for frame in frames:
        found.setdefault(frame.parent, frame)
    return found


def say_learnt(frames: Sequence[Path], geometry: CameraGeometry | None) -> None:
    """Say what the spec of a model that learns from frames will know of them, and what not.

    Args:
        frames: The frames.
        geometry: What `geometry_of` says of them.
    """
    if geometry is not None:
        logger.info(
            "Target frames are %s: the model's spec says so, and raw frames of this camera will be "
            "treated alike wherever the model is used",
            geometry.describe(),
        )
    for treatment in dict.fromkeys(map(treatment_of, _one_each(frames).values())):
        if treatment is not None and not treatment.told:
            logger.warning(
                "%s: these frames were %s, and the record does not say how exactly, or it differs "
                "from frame to frame: the model will not know, and take the vehicle's frames as "
                "they are. Extract them again from footage of one size",
                treatment.record, treatment.words,
            )  # fmt: skip
        if treatment is not None and "masked" in treatment.changes:
            logger.warning(
                "%s: these frames were masked. A mask does not travel with the model, which will "
                "see the vehicle's frames unmasked",
                treatment.record,
            )  # fmt: skip


def is_raw(origin: Path, size: tuple[int, int], geometry: CameraGeometry) -> bool:
    """Whether a frame is as the camera gave it, as opposed to treated by a geometry already.

    Args:
        origin: Its image file; or a video, a camera's name: those are raw.
        size: Width and height of the frame.
        geometry: What the model's frames are given.

    Raises:
        DataError: If it was treated otherwise, or its size belongs to neither.
    """
    treatment = treatment_of(origin)
    if treatment is not None and not (treatment.told and treatment.geometry is None):
        own = treatment.geometry
        if own is None or not own.same_as(geometry):
            how = "it does not say how exactly" if own is None else f"they are {own.describe()}"
            msg = (
                f"{origin}: expected frames as the camera gives them, or {geometry.describe()}, as "
                f"the model's were; {treatment.record} says that these were {treatment.words}: "
                f"{how}. Give raw frames, or extract them again as the model's were"
            )
            raise DataError(msg)
        if not alike(size, own.size):
            msg = (
                f"{origin}: expected a frame of {own.size[0]}x{own.size[1]}, or of its aspect, as "
                f"{treatment.record} says, found {size[0]}x{size[1]}. Extract the frames again"
            )
            raise DataError(msg)
        return False
    file = origin.suffix.lower() in IMAGE_SUFFIXES
    treated = file and treatment is None and size == geometry.size != geometry.raw
    if treated or not alike(size, geometry.raw):
        width, height = geometry.raw
        msg = (
            f"{origin}: expected a frame of {width}x{height}, or of its aspect, as the camera "
            f"gives it, found {size[0]}x{size[1]}. The model's frames are {geometry.describe()}. "
            + (
                "If this one was treated so, keep the frames.json that says it beside the folder; "
                "if it is raw, extract it by `edgeuda data frames` without `crop`"
                if treated
                else "Give footage of the camera that the model was made for, or adapt the model "
                "to this one"
            )
        )
        raise DataError(msg)
    return True


def as_shown(image: Image, origin: Path, geometry: CameraGeometry | None) -> Image:
    """Return a frame as a model is shown it, before it is resized.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        origin: See `is_raw`.
        geometry: Of the model's spec; None leaves every frame as it is.

    Returns:
        ``[h, w, 3]`` uint8; the very same array if there was nothing to do.

    Raises:
        DataError: See `is_raw`.
    """
    if geometry is None or not is_raw(origin, (image.shape[1], image.shape[0]), geometry):
        return image
    _say_applied(geometry)
    return geometry.apply(image, origin)


def labels_as_shown(label: LabelMap, origin: Path, geometry: CameraGeometry | None) -> LabelMap:
    """Return the label map ``[H, W]`` of a frame as that of what `as_shown` returns.

    Raises:
        DataError: See `is_raw`.
    """
    if geometry is None or not is_raw(origin, (label.shape[1], label.shape[0]), geometry):
        return label
    return geometry.apply_to_labels(label, origin)


def read_frame(path: Path, geometry: CameraGeometry | None) -> Image:
    """Read an image file as a model is shown it, see `as_shown`.

    Raises:
        DataError: See `read_image` and `is_raw`.
    """
    return as_shown(read_image(path), path, geometry)


def say_treated(folder: Path, geometry: CameraGeometry) -> None:
    """Write the record of a folder's frames that are written as a model is shown them.

    Raises:
        OutputError: If it cannot be written.
    """
    lens = None if geometry.lens is None else "see geometries"
    done = Curation(lens, geometry.crop, distinct=0.0)
    FramesRecord(done, geometries=[geometry.to_record()]).write(folder / FramesRecord.FILE)


def applied_to(frames: Iterable[Path], geometry: CameraGeometry | None) -> dict[str, Any]:
    """Return what a record says of a model's geometry; nothing for a model without.

    Args:
        frames: Image files that `is_raw` accepts.
        geometry: Of the model's spec.
    """
    if geometry is None:
        return {}
    treatments = [treatment_of(frame) for frame in frames]
    raw = sum(one is None or one.geometry is None for one in treatments)
    return noted(geometry, raw, len(treatments) - raw)


def noted(geometry: CameraGeometry | None, applied: int, found: int) -> dict[str, Any]:
    """Return the entry ``geometry`` of a record; nothing for a model without.

    Args:
        geometry: Of the model's spec.
        applied: Raw frames that were undistorted and cropped.
        found: Frames that had been before.
    """
    if geometry is None:
        return {}
    return {"geometry": {**geometry.to_record(), "applied": applied, "as_found": found}}


@lru_cache(maxsize=64)
def _say_applied(geometry: CameraGeometry) -> None:
    """Say once in a process what is done to raw frames."""
    logger.info(
        "Raw frames are %s, as the model's spec says; labels and overlays are of that part",
        geometry.describe(),
    )  # fmt: skip
