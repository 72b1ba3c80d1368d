"""From many images to a folder of frames, with the workers of a cluster: `data frames --ray`.

Whether a frame is a near-duplicate is decided against the last one that was kept, and so in order.
What is decided upon is a thumbnail of 64x36. So workers read and treat every frame and return the
thumbnails, the process that asked goes through these, and workers read and treat those frames again
that are kept, and write them. Where all are kept (``distinct=0``) they are written at once.

The other way, to write every frame at once and to remove the duplicates, reads nothing twice. It
costs up to twice as much where few frames are kept, and as much room on the disk as all of them;
this way costs a third more where nearly all are (benchmarks/curation.py).
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda.cluster import Cluster, Results, Task, discard, map_shards, shards_folder
from edgeuda.data.curation import (
    IMAGES,
    LINES_FILE,
    THUMBNAIL,
    CurationProgress,
    Extraction,
    Preparation,
    line_of,
    thumbnail,
    with_camera,
)
from edgeuda.data.footage import Stills, name_of, nothing_readable
from edgeuda.data.images import read_image, write_image
from edgeuda.data.stores import located
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import alone, sha256_of, stamp, write_atomic
from edgeuda.records.frames import Curation, Span

logger = logging.getLogger(__name__)

Shard = dict[str, npt.NDArray[Any]]


def curate_on_cluster(
    source: Path,
    out: Path,
    span: Span,
    curation: Curation,
    cluster: Cluster,
    suffix: str = ".jpg",
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> CurationProgress:
    """Write the distinct frames of images as `edgeuda.data.curation.curate` does, file by file.

    What was stopped goes on with the same call.

    Args:
        source: A folder or list of images, shards, or an object store with images.
        out: See `curate`, as what is not named here.
        span: Which frames.
        curation: What is done to them.
        cluster: Workers among which the images are divided; all of them write to ``out``.
        suffix: Format of the written images.
        resume: Whether a folder that is complete is taken as it is.
        progress: Called with the images done and those to do.

    Raises:
        ConfigError: If a video or recording is among them, or ``out`` was begun in one process.
        DataError: If the images, the mask or the calibration cannot be used.
        DeviceError: See `edgeuda.cluster.map_shards`.
        OutputExistsError: If ``out`` exists, and nothing of it is left to do.
    """
    source, shards = located(source), shards_folder(out)
    stills = Stills.of(source, span)
    work = Extraction.begin(source, out, span, curation, suffix, resume or shards.exists())
    if work.done:
        discard(out)
        return work.progress
    if work.progress.seen:
        msg = f"{out}: was begun in one process: go on with `resume` and without `ray`"
        raise ConfigError(msg)
    whole, images = _absolute(with_camera(curation, source, out)), out.absolute() / IMAGES
    Preparation(whole)  # what is wrong with mask or calibration is said before Ray starts
    every = curation.distinct <= 0
    key = sha256_of([json.dumps(asdict(work.settings)), *_identity(stills)])

    def place(number: int) -> Place:
        path, index = stills.files[number], stills.places[number]
        return Place(path.absolute(), name_of(path, index) + suffix)

    def mapped(name: str, opened: Looking | Writing, numbers: Sequence[int]) -> Results:
        def item(part: range) -> list[Place]:
            return [place(number) for number in numbers[part.start : part.stop]]

        task = Task("curation", key, len(numbers), opened, item)
        return map_shards(task, cluster, shards / name, progress=progress)

    looks = mapped("looks", Looking(whole, images if every else None), range(len(stills)))
    with alone(out):
        kept = fold(work, stills, looks)
    if not kept:
        raise DataError(nothing_readable(source, span))
    if not every:
        mapped("frames", Writing(whole, images), kept)
    work.finish()
    discard(out)
    return work.progress


def _absolute(curation: Curation) -> Curation:
    """Return the same with files that a worker finds wherever it stands."""
    names = {
        name: str(located(path).absolute())
        for name, path in (("mask", curation.mask), ("calibration", curation.calibration))
        if path is not None
    }
    return replace(curation, **names)  # type: ignore[arg-type]


def _identity(stills: Stills) -> Iterator[str]:
    """Yield what tells these images from others."""
    for number, place in enumerate(stills.places):
        yield f"{place} {stills.files.name(number)}"
    yield stamp(stills.files, missing=True)


@dataclass(frozen=True)
class Place:
    """An image, and what its frame is called.

    Attributes:
        image: The file.
        frame: Name of the file that a worker writes.
    """

    image: Path
    frame: str


@dataclass(frozen=True)
class Looking:
    """What a worker opens to look at frames.

    Attributes:
        curation: What is done to each, by whole names of files.
        out: Folder that frames are written to; None leaves that for later.
    """

    curation: Curation
    out: Path | None

    @contextmanager
    def __call__(self) -> Iterator[Callable[[list[Place]], Shard]]:
        """Open mask and lens."""
        yield partial(looked, Preparation(self.curation), self.out)


@dataclass(frozen=True)
class Writing:
    """What a worker opens to write the frames that are kept, see `Looking`."""

    curation: Curation
    out: Path

    @contextmanager
    def __call__(self) -> Iterator[Callable[[list[Place]], Shard]]:
        """Open mask and lens."""
        yield partial(written, Preparation(self.curation), self.out)


def looked(prepare: Preparation, out: Path | None, places: list[Place]) -> Shard:
    """Look at the frames of a shard.

    Args:
        prepare: What is done to each.
        out: Folder to write them to, or None.
        places: The images.

    Returns:
        ``small`` ``[N, 36, 64]`` uint8, the thumbnails; ``done`` ``[N]``, what was done to each
        since the camera gave it, as JSON; ``broken`` ``[N]``, why an image cannot be read, or
        nothing.

    Raises:
        DataError: If lens, crop or mask do not fit a frame.
    """
    small = np.zeros((len(places), *THUMBNAIL[::-1]), np.uint8)
    done, broken = ["null"] * len(places), [""] * len(places)
    for number, place in enumerate(places):
        try:
            image = read_image(place.image)
        except DataError as err:
            broken[number] = str(err)
            continue
        size = image.shape[1], image.shape[0]
        done[number] = json.dumps(prepare.since_camera(size, place.image))
        frame = prepare(image, place.image)
        small[number] = thumbnail(frame)
        if out is not None:
            write_image(out / place.frame, frame)
    return {"small": small, "done": np.array(done), "broken": np.array(broken)}


def written(prepare: Preparation, out: Path, places: list[Place]) -> Shard:
    """Write the frames of a shard.

    Args:
        prepare: What is done to each.
        out: Folder to write them to.
        places: Images that `looked` could read.

    Returns:
        ``frames``, how many they are.

    Raises:
        DataError: If one cannot be read any more.
    """
    for place in places:
        write_image(out / place.frame, prepare(read_image(place.image), place.image))
    return {"frames": np.array(len(places))}


def fold(work: Extraction, stills: Stills, looks: Results) -> array[int]:
    """Go through the thumbnails in order, and write the list of the frames that are kept.

    Args:
        work: The folder.
        stills: All images.
        looks: What `looked` returned of their shards.

    Returns:
        The numbers of those that are kept.
    """
    progress, distinct, span = work.progress, work.settings.curation.distinct, work.settings.span
    assert span is not None
    kept = array("Q")

    def write(to: Path) -> None:
        with to.open("w", encoding="utf-8") as lines:
            for number, (small, done, why) in enumerate(_frames(looks)):
                path, index = stills.files[number], stills.places[number]
                if why:  # a worker was handed the whole path
                    logger.warning("Skipped: %s", why.replace(str(path.absolute()), str(path), 1))
                elif progress.takes(number + 1, small, json.loads(done), distinct):
                    kept.append(number)
                    file = f"{name_of(path, index)}{work.settings.suffix}"
                    lines.write(line_of(file, path, index, index / span.fps))

    write_atomic(work.out / LINES_FILE, write)
    return kept


def _frames(looks: Results) -> Iterator[tuple[npt.NDArray[np.uint8], str, str]]:
    for shard in looks:
        for small, done, broken in zip(shard["small"], shard["done"], shard["broken"], strict=True):
            yield small, str(done), str(broken)
