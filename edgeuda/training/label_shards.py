"""Pseudo-labels from workers of a cluster, the same as from one process.

Thresholds that follow from the batches before are no obstacle: they need histograms only. Workers
predict once for these, thresholds are gone through in order, and workers predict again, knowing the
thresholds of each batch. Predictions are not kept in between: those of a frame of 512x1024 fill
2.6 MB, and a million frames a disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeuda.cluster import Cluster, Task, map_shards, shards_folder
from edgeuda.data.images import read_image
from edgeuda.errors import DataError
from edgeuda.files import sha256_of
from edgeuda.methods.selection import PATTERNS, SelectorSettings
from edgeuda.methods.teacher import Teacher
from edgeuda.models.checkpoint import load_model
from edgeuda.models.subject import usual_device
from edgeuda.training.label_batches import (
    Followed,
    Labeller,
    Read,
    as_read,
    empty_histogram,
    grouped,
)

Arrays = Mapping[str, npt.NDArray[Any]]
LARGEST = 32
"""Batches of a shard at most: the histogram of each is kept."""


@dataclass(frozen=True)
class Place:
    """A frame for a worker.

    Attributes:
        index: Its number.
        path: Its file.
        name: Of its label file.
        written: File to which the frame is written as the model is shown it, or None.
    """

    index: int
    path: Path
    name: str
    written: Path | None


@dataclass(frozen=True)
class Work:
    """What a worker opens: the network, which labels the batches that it is handed.

    Attributes:
        model: Model file or run folder.
        out: Where label maps go.
        soft: Whether soft labels are written.
        threads: Of an operator.
        counts: What is counted: ``"batch"`` for the histogram of each batch, ``"all"`` for that of
            the shard, None where labels are written.
    """

    model: Path
    out: Path
    soft: bool
    threads: int = 1
    counts: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[Callable[[_Item], Arrays]]:
        """Yield what labels the batches of an item, or counts what the network says of them."""
        torch.set_num_threads(self.threads)
        network, spec = load_model(self.model)
        device = usual_device()
        labeller = Labeller(Teacher(network.to(device)), spec, self.out, device, self.soft)
        if self.counts is None:
            yield partial(_labels, labeller)
        else:
            labeller = replace(labeller, soft=False)
            yield partial(_histograms if self.counts == "batch" else _histogram, labeller)


@dataclass(frozen=True)
class _Item:
    """Batches that follow each other, and the thresholds ``[B, K]`` float64 of each."""

    groups: list[list[Place]]
    thresholds: npt.NDArray[np.float64]


def label_on(
    cluster: Cluster,
    key: str,
    work: Work,
    place: Callable[[int], Place],
    frames: int,
    settings: SelectorSettings,
    seed: int,
    classes: int,
    broken: Callable[[int, str], None],
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Label frames in workers; returns what is noted of each batch, in order.

    Args:
        cluster: Where frames are divided.
        key: Checksum of all that the pass depends on.
        work: What workers open.
        place: Returns where a frame is and where its label goes; workers may be in another folder.
        frames: How many there are.
        settings: Which pixels get a label.
        seed: Of the order.
        classes: Of the network.
        broken: Called with the number of a frame that cannot be read, and why.
        progress: Called with the frames done and those to do, over both passes.

    Raises:
        EdgeudaError: See `map_shards`.
    """
    groups = grouped(frames, seed, settings.batch)
    state = Followed.start(settings, classes, torch.device("cpu"))
    passes = 2 if state.by_batch or state.by_all else 1
    key = sha256_of((key, str(cluster.threads)))

    def shards(what: str, counts: str | None, rows: npt.NDArray[np.float64]) -> Iterator[Arrays]:
        """Yield the results of a pass over all batches, whose thresholds are the rows."""

        def item(part: range) -> _Item:
            some = groups[part.start : part.stop]
            places = [[place(index) for index in group] for group in some]
            return _Item(places, rows[part.start : part.stop])

        before = (passes - 1) * frames if counts is None else 0

        def said(done: int, _total: int) -> None:
            progress(before + min(done * settings.batch, frames), passes * frames)

        opened = replace(work, threads=cluster.threads, counts=counts)
        task = Task(what, key, len(groups), opened, item, unit="batches", largest=LARGEST)
        yield from map_shards(task, cluster, shards_folder(work.out) / what, progress=said)

    rows = np.tile(state.thresholds.numpy(), (len(groups), 1))
    if state.by_all:
        total = empty_histogram(classes, torch.device("cpu"))
        for shard in shards("histograms", "all", rows):
            total += torch.from_numpy(shard["total"])
        state.balance(total)
        rows = np.tile(state.thresholds.numpy(), (len(groups), 1))
    elif state.by_batch:
        histograms = shards("histograms", "batch", rows)
        moved = chain.from_iterable(_unpacked(shard, classes) for shard in histograms)
        rows = np.stack([state.move(one).numpy() for one in moved])
    lines = []
    labelled = shards("labels", None, rows)
    for thresholds, (count, total, found) in zip(rows, _batches(labelled, broken), strict=True):
        state.thresholds = torch.from_numpy(thresholds)
        state.follow(count, total)
        lines.append({"frames": list(found), "pixels": list(found.values()), **state.line()})
    return lines


def _read(labeller: Labeller, group: Sequence[Place]) -> tuple[list[Read], dict[int, str]]:
    """Return the frames of a batch, and why others could not be read."""
    found, broken = [], {}
    for one in group:
        try:
            image = read_image(one.path)
        except DataError as err:
            broken[one.index] = str(err)
            continue
        fed = labeller.spec.preprocessing
        found.append(as_read(one.index, image, one.path, fed, one.written))
    return found, broken


def _histogram(labeller: Labeller, item: _Item) -> Arrays:
    """Return the histogram of all batches, ``[K, PATTERNS]`` int64."""
    total = empty_histogram(len(labeller.spec.label_space), labeller.device)
    for group in item.groups:
        total += labeller.histogram(labeller.predict(_read(labeller, group)[0]))
    return {"total": total.cpu().numpy()}


def _histograms(labeller: Labeller, item: _Item) -> Arrays:
    """Return where the histograms of each batch are not 0, what they are there, and their ends."""
    places, counts = [], []
    for group in item.groups:
        found = labeller.predict(_read(labeller, group)[0])
        flat = labeller.histogram(found).flatten().cpu().numpy()
        places.append(np.flatnonzero(flat).astype(np.int32))
        counts.append(flat[places[-1]].astype(np.int32))
    ends = list(accumulate(map(len, places)))
    return {
        "places": np.concatenate(places),
        "counts": np.concatenate(counts),
        "ends": np.array(ends),
    }


def _unpacked(shard: Any, classes: int) -> Iterator[Tensor]:
    """Yield the histogram of each batch of a shard, ``[K, PATTERNS]`` int64."""
    places, counts = shard["places"], shard["counts"]
    for begin, end in pairwise(chain([0], shard["ends"].tolist())):
        whole = np.zeros(classes * PATTERNS, np.int64)
        whole[places[begin:end]] = counts[begin:end]
        yield torch.from_numpy(whole).view(classes, PATTERNS)


def _labels(labeller: Labeller, item: _Item) -> Arrays:
    """Write the label maps of batches; returns what is counted, and a row of JSON for each."""
    rows, counts, totals = [], [], []
    for group, thresholds in zip(item.groups, item.thresholds, strict=True):
        found, broken = _read(labeller, group)
        least = torch.from_numpy(thresholds).to(labeller.device)
        chosen = labeller.select(labeller.predict(found), least)
        names = {one.index: one.name for one in group}
        pixels = labeller.write(chosen, [names[one.index] for one in found])
        counts.append(chosen.count.cpu().numpy())
        totals.append(chosen.total.cpu().numpy())
        frames = [one.index for one in found]
        rows.append(json.dumps({"frames": frames, "pixels": pixels, "broken": broken}))
    return {"count": np.stack(counts), "total": np.stack(totals), "rows": np.array(rows)}


def _batches(
    shards: Iterator[Arrays], broken: Callable[[int, str], None]
) -> Iterator[tuple[Tensor, Tensor, dict[int, list[int]]]]:
    """Yield of each batch what was selected, and the pixels of each of its frames."""
    for shard in shards:
        for count, total, text in zip(shard["count"], shard["total"], shard["rows"], strict=True):
            row = json.loads(str(text))
            for index, why in row["broken"].items():
                broken(int(index), why)
            found = dict(zip(row["frames"], row["pixels"], strict=True))
            yield torch.from_numpy(count), torch.from_numpy(total), found
