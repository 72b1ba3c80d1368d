"""Label maps and overlays of frames by an exported model, and the record that lists them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeuda.camera import CameraGeometry
from edgeuda.cluster import Cluster, Task, discard, map_shards, shards_folder
from edgeuda.data.footage import Frame, camera, footage, is_moving, require_still
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import IMAGE_SUFFIXES, dimmed, paint, read_image, write_image, write_label
from edgeuda.data.stores import relative
from edgeuda.data.treatment import as_shown, noted
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import require_absent, sha256, sha256_of, short_name
from edgeuda.records.names import DeviceName
from edgeuda.records.predictions import ModelFile, PredictedFrame, PredictionsRecord
from engines.api import AnyPath
from engines.onnx.confidence import CONFIDENCE
from engines.opening import open_runner
from engines.runner import Runner, segment, signals_of

if TYPE_CHECKING:
    from edgeuda.spec import ModelSpec

ALL = 1_000_000
"""Frames at most, where all are wanted."""
FRAMES = "frames"
"""Folder of the frames that are not files of their own, or that the model saw otherwise."""
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
    confidence: bool = False,
    track: Track = iter,
    cluster: Cluster | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
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
        confidence: Whether to write how sure the model is, too, as PNG of 0 to 255 at the size of
            its scores; overlays are dark then where it is not.
        track: Wraps the frames as they are gone through, to show how far that is.
        cluster: Workers among which all frames of a folder or list are divided; None segments them
            in this process. What was stopped goes on.
        progress: Called with the frames done and those to do, by a cluster.

    Returns:
        The record, which was written to ``out`` as ``predictions.json``.

    Raises:
        OutputExistsError: If ``out`` exists, and nothing of it is left to do.
        EdgeudaError: Others of its kinds, if the model or the footage cannot be read.

    Example:
        >>> import engines
        >>> found = engines.predict("adapted.onnx", "frames", "predicted", frames=2)
        >>> len(found.frames)
        2
    """
    model, target, out = Path(model), Path(target), Path(out)
    if cluster is None or not shards_folder(out).exists():
        require_absent(out)
    skipped: list[str] = []
    opened = open_runner(model, threads, device, graphs=graphs, confidence=confidence)
    with opened as runner, suppress(KeyboardInterrupt):  # a camera has no end
        spec, shown = runner.spec, []
        if cluster is None:
            footage_of = _frames(target, frames, spec.preprocessing.geometry, track, skipped)
            for index, frame in enumerate(footage_of):
                shown.append(_segmented(runner, frame, out, index, confidence))
    if cluster is not None:  # the model is closed by now: workers have their own
        worker = _Predicting(model.absolute(), cluster.threads, device, graphs, confidence)
        shown = _divided(worker, target, spec, out, frames, cluster, progress, skipped)
    applied = sum(one.applied for one in shown)
    record = PredictionsRecord(
        name or model.stem,
        ModelFile(str(model), sha256(model)),
        spec.label_space,
        [one.entry(out) for one in shown],
        **noted(spec.preprocessing.geometry, applied, len(shown) - applied),
        skipped=skipped or None,
    )
    record.write(out / PredictionsRecord.FILE)
    if cluster is not None:
        discard(out)
    return record


@dataclass(frozen=True)
class _Shown:
    """A frame whose label map and overlay were written.

    Attributes:
        file: Their name.
        path: The frame's file, or the video it is of.
        own: Whether the frame was written beside them, as the model saw it.
        applied: Whether that was undistorted or cropped.
        sure: Whether confidence was written, too.
    """

    file: str
    path: Path
    own: bool
    applied: bool
    sure: bool

    def entry(self, out: Path) -> PredictedFrame:
        """Return the entry of the record in a folder."""
        found = relative(self.path, out)
        labels, sure = f"labels/{self.file}", f"{CONFIDENCE}/{self.file}" if self.sure else None
        if not self.own:
            return PredictedFrame(found, labels, confidence=sure)
        # Other models' labels are of the frame as it was found, too.
        raw = found if self.path.suffix.lower() in IMAGE_SUFFIXES else None
        seen = relative(out / FRAMES / self.file, out)
        return PredictedFrame(seen, labels, raw, confidence=sure)


def _segmented(runner: Runner, frame: Frame, out: Path, index: int, confidence: bool) -> _Shown:
    """Segment a frame and write its files."""
    spec = runner.spec
    image = as_shown(frame.image, frame.origin, spec.preprocessing.geometry)
    seen = signals_of(runner, image) if confidence else None
    labels = segment(runner, image) if seen is None else seen.labels
    # Frames of several folders may share a stem.
    file = f"{index:06d}_{short_name(frame.name)}.png"
    applied = image is not frame.image
    own = applied or frame.origin.suffix.lower() not in IMAGE_SUFFIXES
    if own:
        write_image(out / FRAMES / file, image)  # the report shows frames beside labels
    write_label(out / "labels" / file, labels)
    picture = paint(image, labels, spec.label_space.colors())
    if seen is not None:
        picture = dimmed(picture, seen.confidence)
        write_label(out / CONFIDENCE / file, seen.confidence)
    write_image(out / "overlays" / file, picture)
    return _Shown(file, frame.origin, own, applied, confidence)


@dataclass(frozen=True)
class _Predicting:
    """What a worker opens: the model, which then segments the frames that it is handed."""

    model: Path
    threads: int
    device: DeviceName
    graphs: bool
    confidence: bool

    @contextmanager
    def __call__(self) -> Iterator[Callable[[_Places], dict[str, npt.NDArray[Any]]]]:
        with open_runner(
            self.model, self.threads, self.device, graphs=self.graphs, confidence=self.confidence
        ) as runner:
            yield partial(_segmented_shard, runner, self.confidence)


@dataclass(frozen=True)
class _Places:
    """Frames that follow each other, and where a worker puts what it makes of them."""

    first: int
    paths: list[Path]
    out: Path


def _segmented_shard(
    runner: Runner, confidence: bool, frames: _Places
) -> dict[str, npt.NDArray[Any]]:
    """Return one row of JSON per frame: whether it was written and treated, or why it is broken."""
    rows: list[str] = []
    for place, path in enumerate(frames.paths, frames.first):
        try:
            image = read_image(path)
        except DataError as err:
            rows.append(json.dumps({"broken": str(err)}))
            continue
        frame = Frame(path, path.stem, place, 0.0, image)
        done = _segmented(runner, frame, frames.out, place, confidence)
        rows.append(json.dumps({"file": done.file, "own": done.own, "applied": done.applied}))
    return {"rows": np.array(rows)}


def _divided(
    worker: _Predicting,
    target: Path,
    spec: ModelSpec,
    out: Path,
    count: int,
    cluster: Cluster,
    progress: Callable[[int, int], None],
    skipped: list[str],
) -> list[_Shown]:
    """Segment all frames of a folder in workers.

    Files are numbered by the frames that could be read, which are only known at the end. So workers
    write beside the shards, by place, and files are moved when all are there.

    Raises:
        ConfigError: If the footage is a camera or a video, or only some of its frames are wanted.
    """
    require_still(target)
    found = frame_folder(target, spec.preprocessing.geometry)
    if count < len(found):
        msg = f"A Ray cluster segments all {len(found)} frames: leave out how many, or `ray`"
        raise ConfigError(msg)
    staged = shards_folder(out) / "files"

    def item(places: range) -> _Places:
        paths = [path.absolute() for path in found[places.start : places.stop]]
        return _Places(places.start, paths, staged.absolute())

    settings = [worker.device, str(worker.threads), sha256(worker.model)]
    settings += [CONFIDENCE] * worker.confidence
    key = sha256_of((*settings, *found.identity()))
    task = Task("prediction", key, len(found), worker, item)
    shown: list[_Shown] = []
    results = map_shards(task, cluster, shards_folder(out), progress=progress)
    rows = chain.from_iterable(shard["rows"] for shard in results)
    found.saw(range(len(found)))
    for place, row in enumerate(map(json.loads, rows)):
        if "broken" in row:
            found.note(place, row["broken"])
            continue
        file = f"{len(shown):06d}_{row['file'].partition('_')[2]}"
        shown.append(_Shown(file, found[place], row["own"], row["applied"], worker.confidence))
        kinds = ["labels", "overlays"] + [FRAMES] * row["own"] + [CONFIDENCE] * worker.confidence
        for kind in kinds:
            (out / kind).mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # it was moved before this was stopped
                (staged / kind / row["file"]).replace(out / kind / file)
    found.judge()
    skipped += found.skipped()
    return shown


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
