"""Frames that show what a chosen variant does: its worst, and some typical ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.variants import Sweep
from edgeuda.accuracy.evaluation import miou_of
from edgeuda.data.images import Image, LabelMap, read_image, write_image, write_label
from edgeuda.data.stores import relative
from edgeuda.data.treatment import as_shown
from edgeuda.files import sha256, sha256_of
from edgeuda.labels import LabelSpace
from edgeuda.records.names import DeviceName
from edgeuda.records.predictions import ModelFile, PredictedFrame, PredictionsRecord
from engines.opening import open_runner
from engines.runner import segment

WORST, TYPICAL = 4, 2
"""Frames shown: those on which the chosen variant is worst, and those around its median."""


def telling_frames(images: npt.NDArray[np.int64]) -> dict[int, str]:
    """Return images to look at, by index, and why: those with the least mIoU, worst first.

    After them come some from the middle, so that nobody takes the worst for the usual.
    """
    scores = {i: miou_of(one) for i, one in enumerate(images)}
    order = sorted((i for i in scores if not np.isnan(scores[i])), key=lambda i: scores[i])
    middle = max(WORST, (len(order) - TYPICAL) // 2)
    places = dict.fromkeys(order[:WORST], "among the worst")
    places |= dict.fromkeys(order[middle : middle + TYPICAL], "typical")
    return {i: f"{place}, mIoU {100 * scores[i]:.0f} %" for i, place in places.items()}


def draw_frames(
    shown: Sequence[tuple[str, Path, DeviceName]],
    images: npt.NDArray[np.int64],
    what: Sweep,
    out: Path,
) -> None:
    """Write label maps of telling frames by some variants, and the truth.

    Args:
        shown: Name, file and device of each variant.
        images: ``[N, K, K]`` counts of the variant that says which frames are telling.
        what: The sweep.
        out: Folder; what an earlier choice had drawn there is removed.
    """
    paths = (
        list(what.frames) if what.labelled is None else [pair.image for pair in what.labelled.pairs]
    )
    telling = telling_frames(images)
    for earlier in out.glob("frames-*"):
        shutil.rmtree(earlier)
    frames: dict[int, Image] = {}
    files = dict(enumerate(paths))
    for number, (name, file, device) in enumerate(shown):
        with open_runner(file, what.threads, device, trusted=True) as runner:
            geometry = runner.spec.preprocessing.geometry
            frames = {index: read_image(paths[index]) for index in telling}
            for index, image in frames.items():
                frames[index] = as_shown(image, paths[index], geometry)
                if frames[index] is not image:  # the report shows what the labels are of
                    files[index] = out / "frames-shown" / f"{index:06d}.png"
                    write_image(files[index], frames[index])
            labels = {index: segment(runner, frames[index]) for index in telling}
            space = runner.spec.label_space
        folder = out / f"frames-{number}"
        write_predictions(folder, name, file, space, labels, files, telling)
    if what.labelled is not None:
        labels = {index: what.labelled.read(index)[1] for index in telling}
        folder, space = out / "frames-truth", what.labelled.space
        write_predictions(folder, "ground truth", None, space, labels, files, telling)


def write_predictions(
    folder: Path,
    name: str,
    model: Path | None,
    space: LabelSpace,
    labels: Mapping[int, LabelMap],
    files: Mapping[int, Path],
    notes: Mapping[int, str],
) -> None:
    """Write label maps and their index, as the report shows them.

    Args:
        folder: Where they go.
        name: What the report calls them.
        model: The model's file; None for labels.
        space: What the ids mean.
        labels: Label maps by index.
        files: The image file of each index.
        notes: What is said of each.
    """
    file = ModelFile("labels", sha256_of([]))
    if model is not None:
        file = ModelFile(str(model), sha256(model))
    entries = []
    for index, label in labels.items():
        path = folder / f"{index:06d}.png"
        write_label(path, label)
        frame = relative(files[index], folder)
        entries.append(PredictedFrame(frame, path.name, note=notes[index]))
    PredictionsRecord(name, file, space, entries).write(folder / PredictionsRecord.FILE)
