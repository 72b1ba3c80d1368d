"""Folders of labelled images: what is in them, and whether it can be trusted."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgeuda.camera import CameraGeometry
from edgeuda.data.images import Image, LabelMap, is_turned, list_images, read_image
from edgeuda.data.label_files import read_ids
from edgeuda.data.layouts import LAYOUTS, Layout, layout_of
from edgeuda.data.lists import is_list, read_list
from edgeuda.data.named import ByName, read_names
from edgeuda.data.stores import StorePath, located, located_in
from edgeuda.data.treatment import applied_to, as_shown, labels_as_shown
from edgeuda.errors import DataError
from edgeuda.files import sha256, sha256_of, stamp
from edgeuda.labels import IGNORE, LabelSpace, counterparts, describe, mapping
from edgeuda.records.dataset import DatasetRecord

logger = logging.getLogger(__name__)

MAX_IGNORED = 0.95
"""Share of ignored pixels above which labels are taken for misread; a look at a few files."""
LOOKED_AT = 8
SPARSE = ("dataset.json", "pseudo-labels.json")
"""Files beside a list whose makers knew how much its labels ignore."""

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """An image file and its label file."""

    image: Path
    label: Path


@dataclass(frozen=True)
class LabelledFolder:
    """Images with label maps.

    Attributes:
        root: The folder, or the file that lists the pairs.
        pairs: Sorted by image path, or as listed.
        stored: Label space of the files.
        space: Label space that `read` returns.
        read_file: Reads a label file as ids of ``stored``.
        layout: What the files were recognised as, for people.
        table: ``[256]`` uint8 from ids of ``stored`` to those of ``space``.
        geometry: Of the model that is scored: `read` returns raw frames and their labels as the
            model is shown them, see `edgeuda.data.treatment`.
    """

    root: Path
    pairs: tuple[Pair, ...]
    stored: LabelSpace
    space: LabelSpace
    read_file: Callable[[Path], LabelMap]
    layout: str
    table: npt.NDArray[np.uint8] = field(compare=False, repr=False)
    geometry: CameraGeometry | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[Image, LabelMap]:
        """Return image ``[H, W, 3]`` and label map ``[H, W]`` in `space`, of equal size.

        Raises:
            DataError: If a file is damaged, sizes differ, or a label id is outside `stored`.
        """
        pair = self.pairs[index]
        image, label = read_image(pair.image), self.read_file(pair.label)
        if image.shape[:2] != label.shape:
            hint = " The image's EXIF orientation turns it" if is_turned(pair.image) else ""
            msg = (
                f"{pair.label}: expected a label map of the size of its image {pair.image.name} "
                f"({image.shape[1]}x{image.shape[0]}), found {label.shape[1]}x{label.shape[0]}."
                f"{hint}"
            )
            raise DataError(msg)
        present = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
        outside = [int(i) for i in present if i >= len(self.stored) and i != IGNORE]
        if outside:
            msg = (
                f"{pair.label}: expected ids 0 to {len(self.stored) - 1} of label space "
                f"{self.stored.name!r} or {IGNORE} (ignore), found {outside}. "
                "Give the folder's own label space with --label-space"
            )
            raise DataError(msg)
        if self.stored != self.space:
            label = self.table[label]
        return (
            as_shown(image, pair.image, self.geometry),
            labels_as_shown(label, pair.image, self.geometry),
        )

    @cached_property
    def stamp(self) -> str:
        """What tells these images and labels from others of the same names."""
        files = [pair.image for pair in self.pairs], [pair.label for pair in self.pairs]
        return sha256_of(stamp(paths) for paths in files)

    def labels_sha256(self) -> str:
        """Return a checksum over the label files: equal ones mean comparable scores."""
        sums = [sha256(pair.label) for pair in self.pairs]
        if self.geometry is not None:  # scores of a part of the frame are scores of something else
            done = applied_to([pair.image for pair in self.pairs], self.geometry)["geometry"]
            sums += [json.dumps(done)] * (done["applied"] > 0)
        return sha256_of(sums)

    def __iter__(self) -> Iterator[tuple[Image, LabelMap]]:
        return ahead(self.read, range(len(self)), 2)  # decoded while others look at the last


def labelled_folder(
    root: Path,
    space: LabelSpace | None = None,
    stored: LabelSpace | None = None,
    *,
    every: bool = True,
    ignore_unmapped: bool = False,
    geometry: CameraGeometry | None = None,
) -> LabelledFolder:
    """Index labelled images: a folder with ``images/`` and ``labels/``, a data set, or a list.

    Args:
        root: The folder of images of a data set in `edgeuda.data.layouts`; the
            folder with both; the two sub-folders may be nested alike (``images/train``, ...). The
            images may lie elsewhere if ``dataset.json`` says where under ``images``, and those that
            it names under ``skipped`` are left out: whoever labelled them could not read them. Or a
            list of pairs, see `edgeuda.data.lists`.
        space: Label space wanted; that of the files if not given.
        stored: Label space of the files; by default the one in the folder's ``dataset.json``, else
            ``space``. What is said here wins over what the folder looks like.
        every: Whether each image must have a label map; those without are left out if not.
        ignore_unmapped: Whether classes without counterpart in ``space`` may be ignored.
        geometry: See `LabelledFolder`.

    Raises:
        DataError: If there are no images, labels are missing, no label space is known, the folder
            is one of a data set whose labels are of another space than ``stored``, or nearly all
            pixels are ignored.
        ConfigError: If classes have no counterpart, see `edgeuda.labels.counterparts`.
    """
    root = located(root)
    if isinstance(root, StorePath):
        deque(root.names(), 0)  # one listing, in place of a question for each label
    if is_list(root):
        listed = tuple(Pair(*entry) for entry in read_list(root, columns=2))
        known = _known(root, stored or space)
        found = _indexed(root, listed, known, space, every, ignore_unmapped, "a list")
        found = replace(found, geometry=geometry)
        return _looked_at(found, stop=not any((root.parent / name).exists() for name in SPARSE))
    file = root / DatasetRecord.FILE
    record = DatasetRecord.read(file) if file.exists() else None
    layout = None if record or isinstance(root, StorePath) else layout_of(root)
    if layout is not None and _agreed(root, layout, stored):
        found = _public(root, layout, space, every, ignore_unmapped)
        return _looked_at(replace(found, geometry=geometry))
    elsewhere = None if record is None else record.images
    image_root, label_root = located_in(root, elsewhere or "images"), root / "labels"
    if elsewhere is None:
        list_images(root)  # says what is wrong with a folder that holds nothing
    if not image_root.is_dir() or not label_root.is_dir():
        layouts = "; ".join(f"{layout.name} ({layout.looks})" for layout in LAYOUTS)
        msg = (
            f"{root}: expected the folders 'images' and 'labels' in it, or the folder of images of "
            f"a known data set, found neither. Known are: {layouts}"
        )
        raise DataError(msg)
    skipped = {image_root / name for name in (record.skipped if record else None) or ()}
    images = [path for path in list_images(image_root) if path not in skipped]
    if record:
        own = record.space
        if stored is not None and stored != own:
            logger.warning(
                "%s: it says that labels are of %s; they are read as %s, as --label-space says",
                file, own.name, stored.name,
            )  # fmt: skip
        stored = stored or own
    pairs = tuple(
        Pair(image, _label_of(label_root / image.relative_to(image_root))) for image in images
    )
    form = "folders images and labels" + (", with a dataset.json" if record else "")
    known_space = _known(root, stored or space)
    found = _indexed(root, pairs, known_space, space, every, ignore_unmapped, form)
    return _looked_at(replace(found, geometry=geometry), stop=not record)


def _agreed(root: Path, layout: Layout, stored: LabelSpace | None) -> bool:
    """Return whether a folder is read as the data set that it looks like.

    Raises:
        DataError: If the user says otherwise and it cannot be a plain folder.
    """
    if stored is None or stored == layout.space:
        return True
    if (root / "images").is_dir() and (root / "labels").is_dir():
        logger.warning(
            "%s: looks like %s (%s), whose labels are of %s; read as a plain folder with labels of "
            "%s, as --label-space says",
            root, layout.name, layout.looks, layout.space.name, stored.name,
        )  # fmt: skip
        return False
    msg = (
        f"{root}: this is a {layout.name} folder ({layout.looks}), whose labels are of "
        f"{layout.space.name!r}, but --label-space says {stored.name!r}. Leave --label-space away, "
        "or give a folder with 'images' and 'labels'"
    )
    raise DataError(msg)


def _looked_at(folder: LabelledFolder, stop: bool = True) -> LabelledFolder:
    """Say what a folder was recognised as and how much of a few label maps is ignored.

    Args:
        folder: The folder.
        stop: Whether labels of which nearly nothing is left are refused.

    Raises:
        DataError: If they are.
    """
    looked, ignored = 0, 0.0
    for pair in spread(folder.pairs, LOOKED_AT):
        try:
            label = folder.table[folder.read_file(pair.label)]
        except DataError:
            continue  # whoever needs this file says what is wrong with it
        looked += 1
        ignored += float((label == IGNORE).mean())
    if not looked:
        return folder
    share = ignored / looked
    logger.info(
        "%s: %d images, read as %s with labels of %s; %.1f %% of the pixels of %d label maps are "
        "ignored",
        folder.root, len(folder), folder.layout, folder.stored.name, 100 * share, looked,
    )  # fmt: skip
    if share > MAX_IGNORED:
        msg = (
            f"{folder.root}: {share:.1%} of the pixels are ignored in {looked} label maps that "
            f"were looked at, read as {folder.layout} with labels of {folder.stored.name!r}"
        )
        if stop:
            msg += (
                ". Probably the labels are of another space: say which with --label-space. If they "
                "are meant to be so sparse, put a dataset.json beside them that names their space "
                f'({{"schema": "{DatasetRecord.SCHEMA}", "label_space": "..."}})'
            )
            raise DataError(msg)
        logger.warning(msg)
    return folder


def _label_of(image: Path) -> Path:
    """Return the label file of an image with its folder exchanged; the suffix in either case."""
    upper = image.with_suffix(".PNG")
    return upper if upper.is_file() else image.with_suffix(".png")


def _known(root: Path, stored: LabelSpace | None) -> LabelSpace:
    if stored is None:
        msg = f"{root}: no dataset.json tells its label space. Give it with --label-space"
        raise DataError(msg)
    return stored


def _indexed(
    root: Path,
    pairs: tuple[Pair, ...],
    stored: LabelSpace,
    space: LabelSpace | None,
    every: bool,
    ignore_unmapped: bool,
    form: str,
) -> LabelledFolder:
    """Index label files of the forms that `read_ids` knows."""
    missing = [pair.label for pair in pairs if not pair.label.is_file()]
    if missing and every:
        msg = f"{missing[0]}: expected a label map for each image, {len(missing)} are missing"
        raise DataError(msg)
    kept = tuple(pair for pair in pairs if pair.label.is_file())
    reader = partial(read_ids, space=stored)
    table = _table(root, stored, space or stored, ignore_unmapped)
    return LabelledFolder(root, kept, stored, space or stored, reader, form, table)


def _table(
    root: Path, stored: LabelSpace, space: LabelSpace, ignore_unmapped: bool
) -> npt.NDArray[np.uint8]:
    """Return the table from one space to another, and say what it does."""
    if stored != space:
        found = describe(counterparts(stored, space, ignore_unmapped))
        logger.info("%s: labels of %s as %s: %s", root, stored.name, space.name, found)
    return mapping(stored, space, ignore_unmapped)


def _public(
    root: Path, layout: Layout, space: LabelSpace | None, every: bool, ignore_unmapped: bool
) -> LabelledFolder:
    """Index a folder of a public data set."""
    whole = root.resolve()  # folders above the one that was given have a say
    pairs = tuple(
        Pair(image, layout.label(whole / image.relative_to(root))) for image in list_images(root)
    )
    missing = [pair.label for pair in pairs if not pair.label.is_file()]
    if missing and every:
        msg = (
            f"{missing[0]}: expected a label map for each image of this {layout.name} folder "
            f"({layout.looks}), {len(missing)} of {len(pairs)} are missing"
        )
        raise DataError(msg)
    kept = tuple(pair for pair in pairs if pair.label.is_file())
    wanted = space or layout.space
    table = _table(root, layout.space, wanted, ignore_unmapped)
    return LabelledFolder(root, kept, layout.space, wanted, layout.read, layout.name, table)


def tells_space(root: Path) -> bool:
    """Return whether a folder itself says which label space its files are of."""
    if is_list(root):
        return False
    return (root / "dataset.json").exists() or layout_of(root) is not None


def labelled_frames(
    root: Path, space: LabelSpace, stored: LabelSpace | None = None
) -> LabelledFolder | None:
    """Index those images of a folder that have a label map, None if none has one.

    Args:
        root: Folder with ``images/`` and perhaps ``labels/``, see `labelled_folder`.
        space: Label space wanted.
        stored: Label space of the files where the folder does not tell it.
    """
    plain = (root / "labels").is_dir() and (root / "images").is_dir()
    if not plain and layout_of(root) is None:
        return None
    own = None if tells_space(root) else stored
    found = labelled_folder(root, space, own, every=False, ignore_unmapped=True)
    return found if found.pairs else None


def labelled_subset(folder: LabelledFolder, wanted: int | str, seed: int) -> LabelledFolder:
    """Return some of a folder's images, the same for the same seed; fewer are among more.

    Args:
        folder: All of them.
        wanted: How many, or a file that lists them, see `edgeuda.data.named.read_names`; then they
            are in its order.
        seed: Of the draw.

    Raises:
        DataError: If there are too few, or a listed one is not there.
    """
    if isinstance(wanted, int):
        if wanted > len(folder):
            msg = f"{folder.root}: expected {wanted} labelled images, found {len(folder)}"
            raise DataError(msg)
        order = np.random.default_rng(seed).permutation(len(folder))[:wanted]
        return replace(folder, pairs=tuple(folder.pairs[index] for index in sorted(order)))
    path = Path(wanted)
    if not path.is_file():
        msg = f"{path}: expected a number of labelled images or a file that lists them"
        raise DataError(msg)
    pairs = {pair.image: pair for pair in folder.pairs}
    find = ByName(pairs, f"image with a label in {folder.root}")
    chosen = dict.fromkeys(find(name, path) for name in read_names(path))  # each one once
    return replace(folder, pairs=tuple(pairs[image] for image in chosen))


def parallel(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Map over items with threads (decoding releases the interpreter lock), in order."""
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        return list(pool.map(function, items))


def ahead(function: Callable[[S], T], items: Iterable[S], count: int | None = None) -> Iterator[T]:
    """Map over items with threads as `parallel` does, but no further than results are taken.

    Args:
        function: Called in threads.
        items: Its arguments.
        count: Results that are made before they are asked for; by default twice the threads.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > (count or 2 * _threads()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def class_counts(labels: Iterable[LabelMap], classes: int) -> npt.NDArray[np.int64]:
    """Return the pixels of each class in each label map, ``[M, K]``."""
    rows = [np.bincount(label.ravel(), minlength=256)[:classes] for label in labels]
    return np.asarray(rows, np.int64).reshape(-1, classes)


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most ``count`` items, evenly spread over a sequence and in its order."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
