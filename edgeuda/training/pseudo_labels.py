"""Pseudo-labels of target frames as files: PNG label maps and a JSON index.

They are written as they are made, and an interrupted pass goes on where it stopped. In the index
(``edgeuda.pseudo-labels/1``) are the model's checksum, the thresholds, the mean confidence of each
class and its pixels in each frame.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from edgeuda import schemas
from edgeuda.data.folders import ahead
from edgeuda.data.frames import FrameFolder, frame_folder
from edgeuda.data.images import Image, resize_image, resize_label, write_image, write_label
from edgeuda.data.lists import is_list, write_list
from edgeuda.data.treatment import SCHEMA as FRAMES
from edgeuda.data.treatment import applied_to, as_shown
from edgeuda.errors import DataError, OutputExistsError
from edgeuda.files import (
    alone,
    read_json,
    require_absent,
    sha256,
    sha256_of,
    short_name,
    write_json,
    write_text,
)
from edgeuda.labels import IGNORE
from edgeuda.methods.selection import (
    PATTERNS,
    InstanceAdaptive,
    SelectorSettings,
    balanced_thresholds,
    confidence_histogram,
    select,
)
from edgeuda.methods.teacher import Teacher
from edgeuda.models.checkpoint import load_model
from edgeuda.records.identity import model_file
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.training.loader import Images, sample, to_unit

INDEX_FILE = "pseudo-labels.json"
PROGRESS_FILE = "pseudo-labels.jsonl"
SCHEMA = schemas.PSEUDO_LABELS
Sizes = dict[int, tuple[int, int] | None]
"""Rows and columns of the label maps of a batch by frame, None for the network's."""
MOMENTUM = 0.99
"""Of the mean confidence of a class over batches, as released with HIAST."""


@dataclass(frozen=True)
class PseudoLabels:
    """What a finished pass has written.

    Attributes:
        labels: Label file of each frame.
        pixels: ``[M, K]`` int64 labelled pixels of each class in each frame.
        mean_confidence: Per class; 0 where nothing was selected.
    """

    labels: tuple[Path, ...]
    pixels: npt.NDArray[np.int64]
    mean_confidence: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> PseudoLabels:
        """Read the index of a finished pass.

        Raises:
            DataError: If there is none, or it is damaged.
        """
        record = read_json(folder / INDEX_FILE, SCHEMA)
        return cls(
            tuple(folder / frame["label"] for frame in record["frames"]),
            np.array([frame["pixels"] for frame in record["frames"]], np.int64),
            tuple(record["mean_confidence"]),
        )


class Shown(Images):
    """Frames as a model is shown them, each decoded when it is labelled, and broken ones left out.

    Args:
        frames: The frames.
        labels: Names of their label files.
        fed: What is done to them.
        written: Folder to which they are written as the model is shown them, or None.
    """

    def __init__(
        self, frames: FrameFolder, labels: Sequence[str], fed: Preprocessing, written: Path | None
    ) -> None:
        self.footage: FrameFolder = frames
        self._fed, self._cache = fed, None
        self.files = frames if written is None else [written / name for name in labels]
        self._written = written is not None
        self.names = [str(path) for path in self.files]

    def identity(self) -> Iterator[str]:
        """Yield what tells the files that are read from others."""
        yield from map(str, self.footage)
        yield self.footage.stamp

    def read(self, index: int) -> tuple[Image, tuple[int, int]] | None:
        """Return a frame at network size, and its own rows and columns; None if it is broken.

        Raises:
            DataError: See `FrameFolder.read`.
        """
        image = self.footage.read(index, instead=False)
        if image is None:
            return None
        image = as_shown(image, self.footage[index], self._fed.geometry)
        if self._written and not self.files[index].exists():
            write_image(self.files[index], image)
        rows, columns = image.shape[:2]
        return resize_image(image, self._fed.height, self._fed.width), (rows, columns)


def generate(
    teacher: Teacher,
    spec: ModelSpec,
    frames: Images,
    settings: SelectorSettings,
    folder: Path,
    *,
    model_sha256: str,
    seed: int,
    device: torch.device,
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
) -> PseudoLabels:
    """Label all frames in an order drawn from the seed, and write labels and index.

    Each frame is read once, ahead in threads; once more for thresholds that take all of them.

    Args:
        teacher: The network that labels.
        spec: Its spec.
        frames: At network size.
        settings: Which pixels get a label.
        folder: Where ``labels/`` and the index go; a pass that was interrupted there goes on.
        model_sha256: Identity of the network.
        seed: Of the order.
        device: Where to compute.
        names: Label file of each frame under ``labels``; by default its number.
        size: Rows and columns of the label maps; by default the network's, or the frame's own if
            the frames are `Shown`.

    Raises:
        DataError: If too many frames are broken.
        OutputExistsError: If the folder holds labels of another network or other settings.
    """
    classes = len(spec.label_space)
    names = names or [f"{index:06d}.png" for index in range(len(frames))]
    identity = sha256_of(
        chain(
            (model_sha256, json.dumps(settings.to_record()), str(seed), spec.to_json()),
            frames.identity(),
        )
    )
    blank = np.zeros((spec.preprocessing.height, spec.preprocessing.width, 3), np.uint8)
    done = _resume(folder, identity)
    if (folder / INDEX_FILE).exists():
        (folder / PROGRESS_FILE).unlink(missing_ok=True)  # killed after the index was written
        return PseudoLabels.read(folder)
    order = sample(len(frames), range(len(frames)), seed, 0)
    groups = [order[i : i + settings.batch] for i in range(0, len(order), settings.batch)]

    if isinstance(frames, Shown):
        frames.footage.saw(chain.from_iterable(groups[: len(done)]))

    def read(index: int) -> tuple[Image, tuple[int, int] | None] | None:
        return frames.read(index) if isinstance(frames, Shown) else (frames[index][0], size)

    def predictions(start: int) -> Iterator[tuple[Sizes, Tensor, Tensor]]:
        reading = ahead(read, order[start * settings.batch :])
        for group in track(groups[start:], "pseudo-labels", transient=True):
            found = [one for one in zip(group, islice(reading, len(group)), strict=True) if one[1]]
            images = np.stack([one[0] for _, one in found if one] or [blank])
            confidence, label = teacher.predict(
                to_unit(torch.from_numpy(images), device), spec.preprocessing
            )
            count = len(found)  # none, if all of a batch are broken
            yield (
                {index: one[1] for index, one in found if one},
                confidence[:count], label[:count].int(),  # half the memory to read twice
            )  # fmt: skip

    rule = InstanceAdaptive(settings.keep, settings.history, settings.hardness, settings.initial)
    if done:
        last = done[-1]
        thresholds = torch.tensor(last["thresholds"], dtype=torch.float64, device=device)
        mean = torch.tensor(last["mean_confidence"], dtype=torch.float64, device=device)
    else:
        start = 0.0 if settings.selector == "all" else settings.initial
        thresholds = torch.full((classes,), start, dtype=torch.float64, device=device)
        mean = torch.zeros(classes, dtype=torch.float64, device=device)
        if settings.selector == "class-balanced":
            total = torch.zeros(classes, PATTERNS, dtype=torch.int64, device=device)
            for _, confidence, label in predictions(0):
                total += confidence_histogram(confidence, label, classes)
            thresholds = balanced_thresholds(total, settings.keep)

    def labelled() -> Iterator[tuple[dict[str, Any], Sizes, npt.NDArray[np.uint8]]]:
        nonlocal thresholds, mean
        for group, confidence, label in predictions(len(done)):
            if settings.selector == "instance-adaptive":
                histogram = confidence_histogram(confidence, label, classes)
                thresholds = rule.update(thresholds, histogram)
            chosen = select(confidence, label, thresholds)
            mean = _follow(mean, confidence, chosen)
            line = {"thresholds": thresholds.tolist(), "mean_confidence": mean.tolist()}
            yield line, group, chosen.cpu().numpy()

    def write(one: tuple[dict[str, Any], Sizes, npt.NDArray[np.uint8]]) -> dict[str, Any]:
        line, group, chosen = one
        pixels = _write(chosen, group, names, folder, classes)
        return {"frames": list(group), "pixels": pixels, **line}

    folder.mkdir(parents=True, exist_ok=True)
    with (
        alone(folder),
        (folder / PROGRESS_FILE).open("a", encoding="utf-8", buffering=1) as log,
    ):
        if not done:
            print(json.dumps({"identity": identity}), file=log)
        for line in ahead(write, labelled(), 1):  # while the next batch is predicted
            print(json.dumps(line), file=log)
            done.append(line)
    counts = {frame: row for line in done for frame, row in zip(*_columns(line), strict=True)}
    pre = spec.preprocessing
    share = sum(map(sum, counts.values())) / (len(counts) * pre.height * pre.width)
    write_json(
        folder / INDEX_FILE,
        {
            "schema": SCHEMA,
            "model_sha256": model_sha256,
            "label_space": spec.label_space.to_record(),
            "selection": settings.to_record(),
            "seed": seed,
            "thresholds": done[-1]["thresholds"],
            "mean_confidence": done[-1]["mean_confidence"],
            "labelled_share": share,
            "frames": [
                {"frame": frames.names[i], "label": f"labels/{names[i]}", "pixels": counts[i]}
                for i in sorted(counts)
            ],
            **(frames.footage.noted() if frames.footage is not None else {}),
        },
    )
    (folder / PROGRESS_FILE).unlink()
    return PseudoLabels.read(folder)


def label_footage(
    model: Path,
    target: Path,
    out: Path,
    settings: SelectorSettings,
    *,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Write pseudo-labels of a folder of frames, at the frames' size; returns the index.

    The folder written is a labelled folder for every other verb: its ``dataset.json`` says where
    the frames are. Labels are named as the frames. For frames from a list it is ``pairs.csv``. Raw
    frames for a model with a geometry are written, too, as the model is shown them: to ``images``.

    Args:
        model: Model file or run folder.
        target: Folder of frames.
        out: Folder to write.
        settings: Which pixels get a label.
        seed: Of the order in which frames are seen.
        resume: Go on with an interrupted pass in ``out``.

    Raises:
        EdgeudaError: See `load_model`, `frame_folder` and `generate`; if two frames differ only
            in their suffix.
    """
    if not resume:
        require_absent(out)
    network, spec = load_model(model)
    pre = spec.preprocessing
    frames = frame_folder(target, pre.geometry)
    root = target / "images" if (target / "images").is_dir() else target
    if is_list(target):
        names = [f"{index:06d}_{short_name(path.stem)}.png" for index, path in enumerate(frames)]
    else:
        names = [str(path.relative_to(root).with_suffix(".png")) for path in frames]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        msg = f"{target}: two frames would both have the label file {twice!r}; rename one"
        raise DataError(msg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    frames.keep(out)
    if written := bool(applied_to(frames, pre.geometry).get("geometry", {}).get("applied")):
        root = out / "images"
        _say_treated(out, pre)
    shown = Shown(frames, names, pre, root if written else None)
    generate(
        Teacher(network),
        spec,
        shown,
        settings,
        out,
        model_sha256=sha256(model_file(model)),
        seed=seed,
        device=device,
        names=names,
    )
    frames.judge()
    if is_list(target):
        whole = [index for index in range(len(frames)) if index not in frames.broken]
        pairs = [(shown.files[index], out / "labels" / names[index]) for index in whole]
        write_list(out / "pairs.csv", ("image", "label"), pairs)
        return out / INDEX_FILE
    record = {
        "schema": schemas.DATASET,
        "label_space": spec.label_space.to_record(),
        "images": os.path.relpath(root.resolve(), out.resolve()),
    }
    if frames.broken and not written:
        skipped = [frames[index].relative_to(root) for index in sorted(frames.broken)]
        record["skipped"] = [path.as_posix() for path in skipped]
    write_json(out / "dataset.json", record)
    return out / INDEX_FILE


def _say_treated(out: Path, fed: Preprocessing) -> None:
    """Write the record of frames that are written as a model with a geometry is shown them."""
    assert fed.geometry is not None
    done = {"crop": fed.geometry.crop, "calibration": fed.geometry.lens and "see geometries"}
    record = {"schema": FRAMES, "curation": done, "geometries": [fed.geometry.to_record()]}
    write_json(out / "frames.json", record)


def _columns(line: dict[str, Any]) -> tuple[list[int], list[list[int]]]:
    return line["frames"], line["pixels"]


def _resume(folder: Path, identity: str) -> list[dict[str, Any]]:
    """Return the lines of an interrupted pass, and drop one that was cut short.

    Raises:
        OutputExistsError: If they belong to another pass.
    """
    path = folder / PROGRESS_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text[: text.rfind("\n") + 1]
    if not lines:
        return []
    header, *done = [json.loads(line) for line in lines.splitlines()]
    if header["identity"] != identity:
        msg = (
            f"{path}: belongs to pseudo-labels of another network, other frames or settings. "
            "Choose another --out, or delete it"
        )
        raise OutputExistsError(msg)
    write_text(path, lines)
    return done


def _follow(mean: Tensor, confidence: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean confidences ``[K]`` after a batch; its first batch sets a class's."""
    known = chosen != IGNORE
    label = chosen[known].long()
    count = torch.bincount(label, minlength=len(mean))
    batch = torch.bincount(label, confidence[known].double(), len(mean)) / count.clamp(min=1)
    moved = torch.where(mean > 0, MOMENTUM * mean + (1 - MOMENTUM) * batch, batch)
    return torch.where(count > 0, moved, mean)


def _write(
    chosen: npt.NDArray[np.uint8],
    group: Sizes,
    names: Sequence[str],
    folder: Path,
    classes: int,
) -> list[list[int]]:
    """Write a batch's label maps; returns the pixels of each class at network size."""
    rows = []
    for (index, size), label in zip(group.items(), chosen, strict=True):
        rows.append(np.bincount(label.ravel(), minlength=256)[:classes].tolist())
        if size is not None:
            label = resize_label(label, *size)
        write_label(folder / "labels" / names[index], label)
    return rows
