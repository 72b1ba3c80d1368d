"""Accuracy of exported models: graphs, engines and bundles on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgeuda.accuracy.scoring import Counts, Scored, Subject, counts_of, score
from edgeuda.cluster import Cluster, Task, map_shards
from edgeuda.data.folders import LabelledFolder, Pair, labelled_folder
from edgeuda.files import sha256, sha256_of
from edgeuda.labels import LabelSpace
from edgeuda.records.names import DeviceName
from engines.opening import open_runner
from engines.runner import segment


def score_exported(
    model: Path,
    data: Path | LabelledFolder,
    name: str,
    *,
    threads: int | None = None,
    device: DeviceName = "cpu",
    graphs: bool = True,
    stored: LabelSpace | None = None,
    ignore_unmapped: bool = False,
    boundary: float | None = None,
    cluster: Cluster | None = None,
    shards: Path | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    trusted: bool = False,
) -> Scored:
    """Score an exported model on labelled images, as the vehicle runs it.

    Args:
        model: See `engines.opening.open_runner`, as ``threads``, ``device`` and ``graphs``.
        data: See `edgeuda.accuracy.scoring.score`, as what follows.
        name: What tables call it.
        threads: Threads of one operator.
        device: Where it runs.
        graphs: Whether an engine replays CUDA graphs.
        stored: Label space of the folder's files.
        ignore_unmapped: Whether classes that the model lacks may be ignored.
        boundary: Width of the band along outlines.
        cluster: Workers among which the images are divided; None scores them in this process.
        shards: Folder of what they count, see `edgeuda.cluster.map_shards`; it is read when the
            images of the result are gone through.
        progress: Called with the images done and those to do, by a cluster.
        trusted: See `open_runner`.

    Raises:
        EdgeudaError: See `open_runner` and `edgeuda.accuracy.scoring.score`.
    """
    with open_runner(model, threads, device, graphs=graphs, trusted=trusted) as runner:
        subject = Subject(
            partial(segment, runner), runner.spec, model, "onnx", runner.precision,
            identity=runner.identity, made_from=runner.made_from,
        )  # fmt: skip
        if cluster is None or shards is None:
            return score(
                subject, data, name, stored=stored, ignore_unmapped=ignore_unmapped,
                boundary=boundary,
            )  # fmt: skip
    spec = subject.spec  # the model is closed by now: workers have their own
    folder = data
    if not isinstance(folder, LabelledFolder):
        folder = labelled_folder(
            folder, spec.label_space, stored, ignore_unmapped=ignore_unmapped,
            geometry=spec.preprocessing.geometry,
        )  # fmt: skip
    task = scoring_task(
        model, folder, threads=cluster.threads, device=device, graphs=graphs, boundary=boundary
    )
    counted = map_shards(task, cluster, shards, progress=progress)
    return score(subject, folder, name, boundary=boundary, counted=counted)


def scoring_task(
    model: Path,
    folder: LabelledFolder,
    *,
    threads: int,
    device: DeviceName = "cpu",
    graphs: bool = True,
    boundary: float | None = None,
) -> Task:
    """Return the map that counts, for `edgeuda.accuracy.scoring.score` to add up.

    Args:
        model: See `score_exported`, as what follows.
        folder: All images; a worker is handed those of its shard.
        threads: Threads of one operator.
        device: Where it runs.
        graphs: Whether an engine replays CUDA graphs.
        boundary: Width of the band along outlines.
    """

    def item(places: range) -> tuple[int, LabelledFolder]:
        pairs = folder.pairs[places.start : places.stop]  # a worker may be in another folder
        whole = tuple(Pair(pair.image.absolute(), pair.label.absolute()) for pair in pairs)
        return places.start + 1, replace(folder, pairs=whole)

    settings = (sha256(model), device, str(threads), str(boundary))
    images = (f"{pair.image} {pair.label}" for pair in folder.pairs)
    spaces = repr((folder.stored, folder.space, folder.geometry))
    key = sha256_of((*settings, spaces, folder.stamp, *images))
    worker = _Scoring(model.absolute(), threads, device, graphs, boundary)
    return Task("evaluation", key, len(folder), worker, item)


@dataclass(frozen=True)
class _Scoring:
    """What a worker opens: the model, which then counts on what it is handed."""

    model: Path
    threads: int
    device: DeviceName
    graphs: bool
    boundary: float | None

    @contextmanager
    def __call__(self) -> Iterator[Callable[[tuple[int, LabelledFolder]], Counts]]:
        with open_runner(self.model, self.threads, self.device, graphs=self.graphs) as runner:

            def count(item: tuple[int, LabelledFolder]) -> Counts:
                first, folder = item
                return counts_of(partial(segment, runner), folder, self.boundary, first)

            yield count
