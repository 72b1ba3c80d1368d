"""Labels to an annotation tool, and back as a labelled folder."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeuda.annotation import coco, cvat, label_studio
from edgeuda.annotation.drawn import Annotations, Drawn, Labelled
from edgeuda.data.folders import LabelledFolder, labelled_folder, labelled_subset
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import LabelMap, image_size, write_label
from edgeuda.data.named import ByName
from edgeuda.data.stores import located, located_in
from edgeuda.data.treatment import treatment_of
from edgeuda.errors import ConfigError, DataError, did_you_mean
from edgeuda.files import is_empty, require_absent
from edgeuda.labels import IGNORE, LabelSpace
from edgeuda.records.dataset import DatasetRecord
from edgeuda.records.imported_labels import ImportedFrame, ImportedLabelsRecord
from edgeuda.records.labelling import PseudoLabelsRecord
from edgeuda.records.names import AnnotationTool

logger = logging.getLogger(__name__)

UNLABELLED = frozenset({"background", "unlabeled", "unlabelled", "ignore", "ignored", "void"})
"""Names that tools have for pixels without a class, unless the label space has such a class."""


def export_labels(
    data: Path,
    out: Path,
    tool: AnnotationTool,
    *,
    frames: Path | None = None,
    limit: int | None = None,
    stored: LabelSpace | None = None,
    prefix: str = label_studio.LOCAL,
) -> int:
    """Write images and their labels in the form of an annotation tool.

    Args:
        data: Labelled folder: what `edgeuda pseudo-label` wrote, or any other.
        out: Folder to write, see `edgeuda.annotation.cvat.write` and its likes.
        tool: Whose form.
        frames: File that names the frames to take, see `edgeuda.data.named.read_names`; None takes
            all, and each must have labels.
        limit: How many of them at most, the first.
        stored: Label space of the folder, where it does not tell.
        prefix: What stands before the names of images in Label Studio's tasks.

    Returns:
        How many frames were written.

    Raises:
        DataError: If a frame that is named has no labels, or a file is damaged.
        OutputExistsError: If ``out`` exists.
    """
    require_absent(out)
    folder = labelled_folder(data, None, stored, every=frames is None)
    if frames is not None:
        folder = labelled_subset(folder, str(frames), 0)
    folder = replace(folder, pairs=folder.pairs[:limit])
    if not folder.pairs:
        msg = f"{data}: expected images with labels, found none"
        raise DataError(msg)
    version, score = _origin(data)
    root = Path(os.path.commonpath([str(pair.image.parent) for pair in folder.pairs]))
    found = _labelled(folder, root, score)
    with _whole(out) as unfinished:
        if tool == "cvat":
            cvat.write(unfinished, folder.space, found)
        elif tool == "coco":
            coco.write(unfinished, folder.space, found)
        else:
            label_studio.write(unfinished, folder.space, found, version, prefix)
    return len(folder)


def _labelled(
    folder: LabelledFolder, root: Path, score: Callable[[Path], float | None]
) -> Iterator[Labelled]:
    for pair, (_, label) in zip(folder.pairs, folder, strict=True):
        name = pair.image.relative_to(root).as_posix()
        yield Labelled(name, pair.image, label, score(pair.label))


def _origin(data: Path) -> tuple[str, Callable[[Path], float | None]]:
    """Return what labels are called, and what tells how sure the network was of a label file."""
    index = data / PseudoLabelsRecord.FILE
    if not index.exists():
        return "labels", lambda _label: None
    record = PseudoLabelsRecord.read(index)
    confidence = np.array(record.mean_confidence)
    pixels = {data / one.label: np.array(one.pixels) for one in record.frames}

    def score(label: Path) -> float | None:
        found = pixels.get(label)
        total = 0 if found is None else found.sum()
        return float(found @ confidence / total) if found is not None and total else None

    return f"edgeuda {record.model_sha256[:12]}", score


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Give a folder to write to that becomes ``out`` when all is done, and is gone otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        unfinished = Path(folder) / out.name
        unfinished.mkdir()
        yield unfinished
        if out.exists() and is_empty(out):
            out.rmdir()
        unfinished.rename(out)


def import_labels(
    annotations: Path,
    target: Path,
    out: Path,
    *,
    space: LabelSpace | None = None,
    map_class: Mapping[str, str | None] | None = None,
) -> ImportedLabelsRecord:
    """Make a labelled folder of labels that were drawn or corrected in an annotation tool.

    Images are copied, so that the folder can be moved; so is the record of what was done to them.

    Args:
        annotations: ZIP or folder of CVAT's Segmentation mask 1.1, or of any PNGs with a
            ``labelmap.txt``; JSON of COCO (instances or panoptic) or Label Studio (JSON, JSON-MIN).
        target: Footage that the annotated frames are from, or the labelled folder they were
            exported from. Frames are found by name.
        out: Folder to write: ``images``, ``labels``, ``dataset.json`` and the record.
        space: Label space of the labels; by default that of ``target``.
        map_class: By name of a class in the tool, its class in the label space, or None to ignore
            it. Others are matched by name, whatever their case and separators.

    Raises:
        DataError: If a class or frame is not known, a mask has another size than its frame, or
            nothing is annotated. Nothing is written then.
        OutputExistsError: If ``out`` exists.
    """
    require_absent(out)
    target = located(target)
    known = _dataset(target)
    root = target if known is None else located_in(target, known.images or "images")
    space = space or (None if known is None else known.space)
    if space is None:
        msg = f"{target}: no dataset.json tells its label space. Say it with `label_space`"
        raise DataError(msg)
    ids = _Ids(space, map_class or {})
    footage = frame_folder(root, learnt=True)
    find = ByName(footage, f"frame of {footage.root}")
    with _opened(annotations) as found, _whole(out) as unfinished:
        places = _places(found, find)
        below = Path(os.path.commonpath([str(image.parent) for _, image in places] or [str(root)]))
        frames, empty = [], []
        for drawn, image in places:
            label, overlapped = _flattened(drawn, image, ids)
            name = footage.name_of(image)
            if (label == IGNORE).all():
                empty.append(name)
                continue
            listed = Path(name).is_absolute()  # the name of a frame of a list is its whole path
            _keep(unfinished, image.relative_to(below) if listed else Path(name), image, label)
            frames.append(ImportedFrame(name, float((label != IGNORE).mean()), overlapped))
        if not frames:
            msg = f"{annotations}: expected annotated frames, found {len(empty)} without a class"
            raise DataError(msg)
        DatasetRecord(space.to_record()).write(unfinished / DatasetRecord.FILE)
        passed_over = {what: count for what, count in found.passed_over.items() if count}
        record = ImportedLabelsRecord(
            str(annotations), found.form, str(footage.root), frames, empty,
            len(footage) - len(places), ids.used, passed_over,
        )  # fmt: skip
        record.write(unfinished / record.FILE)
    return record


def _dataset(target: Path) -> DatasetRecord | None:
    file = target / DatasetRecord.FILE
    return DatasetRecord.read(file) if file.exists() else None


@contextmanager
def _opened(path: Path) -> Iterator[Annotations]:
    """Give what a file, folder or archive holds, by its content.

    Raises:
        DataError: If it is none of the known forms.
    """
    if not path.exists():
        msg = f"{path}: expected annotations, found no such file or folder"
        raise DataError(msg)
    if path.is_dir() or path.suffix.lower() == ".json":
        yield _read(path)
        return
    if not zipfile.is_zipfile(path):
        msg = f"{path}: expected a folder, a .json file or a .zip archive of annotations"
        raise DataError(msg)
    with tempfile.TemporaryDirectory(prefix="edgeuda-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, RuntimeError, OSError) as err:
            msg = f"{path}: expected a whole ZIP archive without a password, found another ({err})"
            raise DataError(msg) from err
        yield _read(Path(folder), path)


def _read(path: Path, archive: Path | None = None) -> Annotations:
    origin = archive or path
    if path.is_dir():
        labelmap = cvat.find(path)
        if labelmap is not None:
            return cvat.read(labelmap)
        files = sorted(path.rglob("*.json"))
        records = [(file, record) for file in files if (record := _json(file)) is not None]
        known = [(file, record) for file, record in records if _is_known(record)]
        if len(known) != 1:
            msg = (
                f"{origin}: expected a {cvat.LABELMAP} with masks, or one .json file of COCO or "
                f"Label Studio, found {len(known)} such files"
            )
            if len(known) > 1:
                msg += f": {', '.join(file.name for file, _ in known)}. Give one of them"
            elif any(path.rglob("task-*-annotation-*.png")):
                msg += (
                    ". Label Studio's PNG export does not say which frame a task is: "
                    "export as JSON there"
                )
            raise DataError(msg)
        path, record = known[0]
    else:
        record = _json(path)
    if isinstance(record, list):
        return label_studio.read(path, record)
    if isinstance(record, dict) and _is_known(record):
        return coco.read(path, record)
    msg = f"{origin}: expected JSON of COCO or Label Studio, found something else"
    raise DataError(msg)


def _json(path: Path) -> object:
    """Return the content of a JSON file, None if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_known(record: object) -> bool:
    if isinstance(record, dict):
        return {"images", "annotations", "categories"} <= record.keys()
    return isinstance(record, list) and all(isinstance(task, dict) for task in record)


class _Ids:
    """The id of each class of a tool, and which were used."""

    def __init__(self, space: LabelSpace, mapped: Mapping[str, str | None]) -> None:
        self._space, self._mapped = space, mapped
        self._plain = {_plain(name): index for index, name in enumerate(space.classes)}
        unknown = [name for name in mapped.values() if name and name not in space.classes]
        if unknown:
            hint = did_you_mean(unknown[0], space.classes)
            msg = f"`map_class`: label space {space.name!r} has no class {unknown[0]!r}{hint}"
            raise ConfigError(msg)
        self.used: dict[str, str | None] = {}

    def __call__(self, name: str, origin: str) -> int:
        """Return the id of a class.

        Raises:
            DataError: If it has none.
        """
        if name in self._mapped:
            ours = self._mapped[name]
            found = IGNORE if ours is None else self._space.classes.index(ours)
        elif name in self._space.classes:
            found = self._space.classes.index(name)
        elif _plain(name) in self._plain:
            found = self._plain[_plain(name)]
        elif name.strip("_").lower() in UNLABELLED:
            return IGNORE
        else:
            hint = did_you_mean(name, self._space.classes)
            msg = (
                f"{origin}: class {name!r} is not in label space {self._space.name!r}{hint} "
                f"({', '.join(self._space.classes)}). Say with `map_class` what it becomes: "
                f"'{name}=CLASS', or '{name}=' to ignore it"
            )
            raise DataError(msg)
        self.used[name] = None if found == IGNORE else self._space.classes[found]
        return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _places(found: Annotations, find: ByName) -> list[tuple[Drawn, Path]]:
    """Return the image file of each frame that is listed.

    Raises:
        DataError: If one is not there, or listed twice.
    """
    places: dict[Path, Drawn] = {}
    for drawn in found.frames:
        name = next((one for one in drawn.names if find.knows(one)), drawn.names[-1])
        image = find(name, drawn.origin)
        if image in places:
            msg = f"{drawn.origin}: {image} is listed twice, before by {places[image].origin}"
            raise DataError(msg)
        places[image] = drawn
    return [(drawn, image) for image, drawn in places.items()]


def _flattened(drawn: Drawn, image: Path, ids: _Ids) -> tuple[LabelMap, int]:
    """Return a frame's label map, the later annotations over the earlier, and what they cover."""
    width, height = image_size(image)
    label = np.full((height, width), IGNORE, np.uint8)
    covered = np.zeros((height, width), bool)
    overlapped = covered.copy()
    for name, mask in drawn.layers():
        if mask.shape != label.shape:
            msg = (
                f"{drawn.origin}: expected a mask of the size of its frame {image} "
                f"({width}x{height}), found {mask.shape[1]}x{mask.shape[0]}"
            )
            raise DataError(msg)
        label[mask] = ids(name, drawn.origin)
        overlapped |= covered & mask
        covered |= mask
    return label, int(overlapped.sum())


def _keep(out: Path, name: Path, image: Path, label: LabelMap) -> None:
    """Write a frame, its label map, and the record of what was done to the frame."""
    copied = out / "images" / name
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, copied)
    treatment = treatment_of(image)
    if treatment is not None:
        shutil.copyfile(treatment.record, copied.parent / treatment.record.name)
    write_label(out / "labels" / name.with_suffix(".png"), label)
