"""Which frames of a drive to label: those that the network does not know, spread over the drive.

How much a network doubts a pixel is the mean of three measures: the entropy of its probabilities,
how close the two likeliest classes are (Settles, "Active Learning Literature Survey", 2009), and
whether the mirror image of the frame gets another class there. Doubt counts more on classes that
are rare in the drive. Frames are then taken greedily as in farthest-first traversal (Gonzalez,
1985; Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
ICLR 2018), each distance multiplied by the frame's doubt. Near in time, or alike in what is seen
where, is near: neither the neighbour of a chosen frame nor a second minute at the same red light
is worth an annotator's hour.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.cluster import Cluster, Task, map_shards
from edgeuda.data.frames import FrameFolder
from edgeuda.data.images import Image, read_image, resize_image
from edgeuda.data.treatment import as_shown, noted
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import sha256_of
from edgeuda.records.frame_selection import (
    ClassDoubt,
    FrameDoubt,
    FrameSelectionRecord,
    RankedFrame,
)
from edgeuda.records.predictions import ModelFile
from edgeuda.spec import ModelSpec

Floats = npt.NDArray[np.float32]


class Asked(Protocol):
    """A network that tells class probabilities, whatever runs it."""

    @property
    def spec(self) -> ModelSpec:
        """What its classes are and how frames are fed."""

    def __call__(self, image: Image, /) -> Floats:
        """Return ``[K, h, w]`` float32 for ``[H, W, 3]`` uint8 RGB of the network's input size."""


GRID = (3, 4)
"""Rows and columns of the cells by which it is compared what is seen where."""
MAX_WEIGHT = 3.0
"""Weight of the rarest class at most: a few stray pixels are no reason to label a frame."""


@dataclass(frozen=True, eq=False)
class Look:
    """What is kept of a frame.

    Attributes:
        doubt: Means over its pixels.
        shares: ``[K]`` float32, share of the pixels that each class is the likeliest of.
        doubts: ``[K]`` float32, doubt of these pixels, summed and divided by all pixels.
        layout: ``[K * rows * columns]`` float16, square roots of the shares of the classes in the
            cells of `GRID`: their Euclidean distance is Hellinger's.
    """

    doubt: FrameDoubt
    shares: Floats
    doubts: Floats
    layout: npt.NDArray[np.float16]


def look(image: Image, predict: Callable[[Image], Floats]) -> Look:
    """Ask a network about a frame and its mirror image.

    Args:
        image: ``[H, W, 3]`` uint8 RGB of the network's input size.
        predict: The network, see `Asked`.
    """
    probabilities = predict(image)
    mirrored = predict(np.ascontiguousarray(image[:, ::-1]))[:, :, ::-1]
    classes = len(probabilities)
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(0)
    entropy /= np.log(max(classes, 2))
    second, first = np.partition(np.pad(probabilities, ((1, 0), (0, 0), (0, 0))), -2, axis=0)[-2:]
    margin = 1 - (first - second)
    labels = probabilities.argmax(0)
    mirror = labels != mirrored.argmax(0)
    doubt = (entropy + margin + mirror) / 3
    flat, pixels = labels.ravel(), labels.size
    cells = [
        cv2.resize((labels == one).astype(np.float32), GRID[::-1], interpolation=cv2.INTER_AREA)
        for one in range(classes)
    ]
    return Look(
        FrameDoubt(float(entropy.mean()), float(margin.mean()), float(mirror.mean())),
        (np.bincount(flat, minlength=classes) / pixels).astype(np.float32),
        (np.bincount(flat, doubt.ravel(), classes) / pixels).astype(np.float32),
        np.sqrt(cells).astype(np.float16).ravel(),
    )


def weights(shares: Floats) -> npt.NDArray[np.float64]:
    """Return how much doubt counts by class, ``[K]`` float64, at most `MAX_WEIGHT`.

    It falls with the fourth root of a class's share, and is 1 on average over the pixels. A network
    that hardly knows a class calls other things so: more weight would rank these.

    Args:
        shares: ``[N, K]`` float32 share of each class in each frame.
    """
    share = np.maximum(shares.mean(0, dtype=np.float64), 1e-12)
    wanted = share**-0.25 / (share**0.75).sum()
    return np.asarray(np.minimum(wanted, MAX_WEIGHT), np.float64)


def unlike(layouts: npt.NDArray[Any], layout: npt.NDArray[Any], cells: int) -> Floats:
    """Return how far layouts are from one: Hellinger's distance, over the cells, 0 to 1.

    Args:
        layouts: ``[N, D]`` square roots of the shares of the classes in the cells.
        layout: ``[D]`` likewise.
        cells: How many there are.
    """
    apart = np.linalg.norm(layouts.astype(np.float32) - layout.astype(np.float32), axis=1)
    return np.asarray(np.minimum(apart / np.sqrt(2 * cells), 1), np.float32)


def spread_out(
    scores: npt.NDArray[np.float64],
    layouts: npt.NDArray[np.float16],
    drives: Sequence[int],
    count: int,
) -> list[tuple[int, float]]:
    """Take the frames with the highest score times distance to those taken before.

    Args:
        scores: ``[N]`` float64, 0 or more.
        layouts: ``[N, D]`` float16, see `Look`.
        drives: Of each frame, which drive (folder) it is of. Frames of a drive are in its order.
        count: How many to take.

    Returns:
        Positions in the order they were taken, each with its distance, 0 to 1.
    """
    place, drive = np.arange(len(scores)), np.asarray(drives)
    apart = len(scores) / max(count, 1)  # as far as evenly spread frames would be
    nearest, free = np.ones(len(scores)), np.ones(len(scores), bool)
    taken = []
    for _ in range(min(count, len(scores))):
        # Where there is no doubt at all, or only copies are left, distance decides, then order.
        worth = np.where(free, (scores + 1e-6) * (nearest + 1e-6), -1)
        best = int(worth.argmax())
        taken.append((best, float(nearest[best])))
        free[best] = False
        different = unlike(layouts, layouts[best], GRID[0] * GRID[1])
        later = np.where(drive == drive[best], np.abs(place - best) / apart, 1)
        nearest = np.minimum(nearest, np.minimum(later, 1) * different)
    return taken


@dataclass(frozen=True)
class Division:
    """How looks are divided among workers.

    Attributes:
        cluster: The workers.
        open: Opens the network in each of them; it is pickled.
        shards: Folder of what they found, see `edgeuda.cluster.map_shards`.
    """

    cluster: Cluster
    open: Callable[[], Asked]
    shards: Path


def select_frames(
    network: Asked,
    model: ModelFile,
    frames: FrameFolder,
    count: int,
    *,
    among: int | None = None,
    division: Division | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> FrameSelectionRecord:
    """Rank frames for labelling, in one pass over the footage; some hundred bytes are kept of each.

    Args:
        network: The network.
        model: Its file, for the record.
        frames: The footage; those that cannot be read are left out, said and recorded.
        count: How many frames to choose.
        among: How many frames to look at, spread evenly; None looks at all.
        division: Workers among which the frames are divided; None looks at them in this process.
        progress: Called with the frames done and the frames to do.

    Raises:
        ConfigError: If ``count`` is not positive, or more than the frames to look at.
        DataError: If too many frames are broken, or one does not fit the model's camera.
    """
    total = min(len(frames), among or len(frames))
    if not 1 <= count <= total:
        msg = (
            f"`count`: expected from 1 to {total} frames to choose, as {frames.root} has {total} "
            f"to look at, found {count}"
        )
        raise ConfigError(msg)
    fed = network.spec.preprocessing
    applied = 0
    paths: list[Path] = []
    drives: dict[Path, int] = {}
    looks: list[Look] = []
    seen: Iterator[tuple[Path, Look, bool]]
    if division is None:
        seen = (_seen(network, raw, path) for path, raw in frames.images(total))
    else:
        seen = _divided(division, network.spec, model, frames, total, progress)
    for done, (path, one, treated) in enumerate(seen, 1):
        applied += treated
        looks.append(one)
        paths.append(path)
        drives.setdefault(path.parent, len(drives))
        if division is None:
            progress(done, total)
    shares = np.stack([one.shares for one in looks])
    doubts = np.stack([one.doubts for one in looks])
    weight = weights(shares)
    scores = doubts @ weight
    order = spread_out(
        scores, np.stack([one.layout for one in looks]), [drives[p.parent] for p in paths], count
    )
    every, parts = [one.doubt for one in looks], doubts.mean(0, dtype=np.float64) * weight
    mean = FrameDoubt(*(float(np.mean([getattr(d, k) for d in every])) for k in _MEASURES))
    of_class = shares.mean(0, dtype=np.float64), doubts.mean(0, dtype=np.float64)
    classes = {
        name: ClassDoubt(
            float(share), float(doubt / share) if share else None, float(weight[index])
        )
        for index, (name, share, doubt) in enumerate(
            zip(network.spec.label_space.classes, *of_class, strict=True)
        )
    }
    ranked = [
        RankedFrame(
            frames.name_of(paths[at]), float(scores[at]), distance, every[at],
            _reasons(every[at], mean, _above(doubts[at] * weight, parts, classes), distance),
        )
        for at, distance in order
    ]  # fmt: skip
    return FrameSelectionRecord(
        model, str(frames.root), len(paths), mean, float(scores.mean()), classes, ranked,
        **noted(fed.geometry, applied, len(paths) - applied), **frames.noted(),
    )  # fmt: skip


def _seen(network: Asked, raw: Image, path: Path) -> tuple[Path, Look, bool]:
    """Return a frame with what is kept of it, and whether it was cropped or undistorted."""
    fed = network.spec.preprocessing
    image = as_shown(raw, path, fed.geometry)
    found = look(resize_image(image, fed.height, fed.width), network)
    return path, found, image is not raw


def _divided(
    division: Division,
    spec: ModelSpec,
    model: ModelFile,
    frames: FrameFolder,
    total: int,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[Path, Look, bool]]:
    """Yield what workers see of the frames, in order; see `_seen`.

    Raises:
        DataError: If too many frames are broken.
    """
    stretches = frames.stretches(total)

    def item(part: range) -> list[tuple[int, list[Path]]]:
        some = stretches[part.start : part.stop]
        return [
            (one.start, [path.absolute() for path in frames[one.start : one.stop]]) for one in some
        ]

    key = sha256_of((model.sha256, str(division.cluster.threads), str(total), *frames.identity()))
    task = Task("selection", key, total, _Looking(division.open), item)
    results = map_shards(
        task,
        division.cluster,
        division.shards,
        progress=progress,
    )
    for shard in results:
        for index, why in json.loads(str(shard["broken"])):
            frames.note(index, why)
        for row, index in enumerate(shard["places"].tolist()):
            doubt = FrameDoubt(*shard["doubt"][row].tolist())
            kept = (shard[key][row] for key in ("shares", "doubts", "layout"))
            yield frames[index], Look(doubt, *kept), bool(shard["treated"][row])
    frames.judge()


@dataclass(frozen=True)
class _Looking:
    """What a worker opens: the network, which looks at the first whole frame of each stretch."""

    open: Callable[[], Asked]

    @contextmanager
    def __call__(self) -> Iterator[Callable[[list[tuple[int, list[Path]]]], Mapping[str, Any]]]:
        """Yield what looks at the first frame of each stretch that can be read."""
        yield partial(_looks, self.open())


def _looks(network: Asked, stretches: list[tuple[int, list[Path]]]) -> dict[str, npt.NDArray[Any]]:
    """Return what is kept of each frame, by row, and why others could not be read."""
    found: list[tuple[int, Look, bool]] = []
    broken: list[tuple[int, str]] = []
    for start, paths in stretches:
        for index, path in enumerate(paths, start):
            try:
                raw = read_image(path)
            except DataError as err:
                broken.append((index, str(err)))
                continue
            found.append((index, *_seen(network, raw, path)[1:]))
            break
    looks = [one for _, one, _ in found]
    return {
        "places": np.array([index for index, _, _ in found], np.int64),
        "treated": np.array([treated for _, _, treated in found], bool),
        "doubt": np.array([astuple(one.doubt) for one in looks], np.float64).reshape(-1, 3),
        "broken": np.array(json.dumps(broken)),
        **{
            key: np.array([getattr(one, key) for one in looks])
            for key in ("shares", "doubts", "layout")
        },
    }


_MEASURES = {
    "entropy": "entropy of the class probabilities",
    "margin": "closeness of the two likeliest classes",
    "mirror": "pixels with another class in the mirror image",
}


TOLD = 2
"""Classes that a frame's reasons name."""


def _above(
    own: npt.NDArray[np.float64], usual: npt.NDArray[np.float64], classes: dict[str, ClassDoubt]
) -> list[str]:
    """Name the classes that bring more of a frame's score than they do on average.

    Args:
        own: ``[K]`` float64, what each class brings of the score.
        usual: The same on average over the drive.
        classes: By name, in their order.
    """
    names = list(classes)
    return [
        f"class {names[index]!r}, {100 * classes[names[index]].share:.2g} % of all pixels, brings "
        f"{own[index]:.3f} of its score, {usual[index]:.3f} on average"
        for index in np.argsort(usual - own, kind="stable")[:TOLD]
        if own[index] > usual[index]
    ]


def _reasons(doubt: FrameDoubt, mean: FrameDoubt, classes: list[str], distance: float) -> list[str]:
    """Say why a frame was chosen: what is above the mean, and how far it is from the others."""
    measures = [
        f"{text}: {100 * value:.1f} %, {100 * usual:.1f} % on average"
        for key, text in _MEASURES.items()
        if (value := getattr(doubt, key)) > (usual := getattr(mean, key))
    ]
    return [
        *measures, *classes, f"distance to the frames that rank higher: {distance:.2f} of 1"
    ]  # fmt: skip
