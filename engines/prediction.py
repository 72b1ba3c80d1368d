"""Label maps and overlays of frames by an exported model, and the record that lists them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from edgeuda.data.camera import CameraGeometry
from edgeuda.data.footage import Frame, camera, footage, is_moving
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import IMAGE_SUFFIXES, paint, write_image, write_label
from edgeuda.data.treatment import as_shown, noted
from edgeuda.files import require_absent, sha256, short_name
from edgeuda.records.names import DeviceName
from edgeuda.records.predictions import ModelFile, PredictedFrame, PredictionsRecord
from engines.api import AnyPath
from engines.opening import open_runner
from engines.runner import segment

ALL = 1_000_000
"""Frames at most, where all are wanted."""
Track = Callable[[Iterable[Any]], Iterable[Any]]
"""Shows how far an iteration is."""


def predict(
    model: AnyPath,
    target: AnyPath,
    out: AnyPath,
    *,
    name: str | None = None,
    frames: int = ALL,
    threads: int | None = None,
    device: DeviceName = "cpu",
    graphs: bool = True,
    track: Track = iter,
) -> PredictionsRecord:
    """Segment frames: label maps, overlays, and a record of both, which the report shows.

    Args:
        model: An exported model, see `engines.open_model`.
        target: Footage: a folder or list of frames, a video, or a camera's number; a camera is
            ended by Ctrl-C.
        out: Folder to write; it must not exist.
        name: What tables call the model; by default the name of its file.
        frames: How many frames, of a folder spread evenly.
        threads: Threads of one operator; None takes every usable core.
        device: Where an ONNX file runs.
        graphs: Whether an engine replays CUDA graphs.
        track: Wraps the frames as they are gone through, to show how far that is.

    Returns:
        The record, which was written to ``out`` as ``predictions.json``.

    Raises:
        OutputExistsError: If ``out`` exists.
        EdgeudaError: Others of its kinds, if the model or the footage cannot be read.

    Example:
        >>> import engines
        >>> found = engines.predict("adapted.onnx", "frames", "predicted", frames=2)
        >>> len(found.frames)
        2
    """
    model, out = Path(model), Path(out)
    require_absent(out)
    entries = []
    skipped: list[str] = []
    applied = 0
    opened = open_runner(model, threads, device, graphs=graphs)
    with opened as runner, suppress(KeyboardInterrupt):  # a camera has no end
        space, geometry = runner.spec.label_space, runner.spec.preprocessing.geometry
        colors = space.colors()
        for index, frame in enumerate(_frames(Path(target), frames, geometry, track, skipped)):
            image, path = as_shown(frame.image, frame.origin, geometry), frame.origin
            applied += image is not frame.image
            labels = segment(runner, image)
            # Frames of several folders may share a stem.
            file = f"{index:06d}_{short_name(frame.name)}.png"
            raw = None
            if image is not frame.image or path.suffix.lower() not in IMAGE_SUFFIXES:
                if path.suffix.lower() in IMAGE_SUFFIXES:  # other models' labels are of it, too
                    raw = os.path.relpath(path.resolve(), out.resolve())
                path = out / "frames" / file  # the report shows frames beside labels
                write_image(path, image)
            write_label(out / "labels" / file, labels)
            write_image(out / "overlays" / file, paint(image, labels, colors))
            shown = os.path.relpath(path.resolve(), out.resolve())
            entries.append(PredictedFrame(shown, f"labels/{file}", raw))
    record = PredictionsRecord(
        name or model.stem,
        ModelFile(str(model), sha256(model)),
        space,
        entries,
        **noted(geometry, applied, len(entries) - applied),
        skipped=skipped or None,
    )
    record.write(out / PredictionsRecord.FILE)
    return record


def _frames(
    target: Path, count: int, geometry: CameraGeometry | None, track: Track, skipped: list[str]
) -> Iterator[Frame]:
    """Yield the frames as they are; those of a folder by the names of their files.

    Files that cannot be read are added to ``skipped``.
    """
    live = str(target).isdecimal() and not target.exists()
    if live or is_moving(target):
        moving = camera(int(str(target))) if live else footage(target)
        yield from islice(track(moving), count)
        return
    found = frame_folder(target, geometry)
    for index, (path, image) in enumerate(track(found.images(count))):
        yield Frame(path, path.stem, index, 0.0, image)
    skipped += found.skipped()
