"""Ranges and histograms of activations from workers of a cluster, the same as from one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calibration.frames import FrameFiles
from calibration.ranges import Histogram, Progress, add_counts, extremes, watching
from edgeuda.cluster import Cluster, Task, map_shards
from edgeuda.files import sha256_of
from edgeuda.records.names import ProviderName
from engines.onnx.session import open_session

if TYPE_CHECKING:
    import onnx

Bounds = list[tuple[float, float]]


def collect_on(
    cluster: Cluster,
    model: onnx.ModelProto,
    names: Sequence[str],
    frames: FrameFiles,
    *,
    folder: Path,
    key: str,
    bins: int,
    device: ProviderName = "cpu",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Histogram]:
    """Run both passes of `calibration.ranges.collect` for one chunk of tensors on a cluster.

    Ranges of frames are put side by side in the frames' order, and counts are whole numbers, so
    that the histograms are those of one process that runs as many threads as a worker does.

    Args:
        cluster: Where frames are divided among workers.
        model: As in `collect`.
        names: The tensors of the chunk.
        frames: Files that all workers can read.
        folder: Where shards are kept, a folder in it for each pass.
        key: Checksum of the model and the frames.
        bins: Bins per tensor.
        device: As in `collect`.
        progress: Called with the frames done and those to do, over both passes.

    Raises:
        EdgeudaError: See `edgeuda.cluster.map_shards` and `collect`.
    """
    total = len(frames)
    state = Progress.start(names, total, bins)
    look = _Look(watching(model, names), tuple(names), bins, cluster.threads, device)

    def item(places: range) -> FrameFiles:
        paths = frames.paths[places.start : places.stop]
        return replace(frames, paths=tuple(path.absolute() for path in paths))

    def arrays(look: _Look, what: str, before: int) -> Iterator[npt.NDArray[Any]]:
        whole = sha256_of((key, *names, str(bins), device, str(cluster.threads), str(look.bounds)))
        found = map_shards(
            Task(what, whole, total, look, item), cluster, folder / what,
            progress=lambda done, _: progress(before + done, 2 * total),
        )  # fmt: skip
        return (shard["found"] for shard in found)

    done = 0
    for part in arrays(look, "ranges", 0):
        state.frame_ranges[:, done : done + part.shape[1]] = part
        done += part.shape[1]
    for part in arrays(replace(look, bounds=json.dumps(state.bounds())), "counts", total):
        state.counts[:] += part
    return state.histograms()


@dataclass(frozen=True)
class _Look:
    """What a worker opens: a session that returns the activations.

    Attributes:
        model: The graph with ``names`` for outputs.
        names: The tensors.
        bins: Bins per tensor.
        threads: Of an operator; as many count the activations of a frame.
        device: Where it runs.
        bounds: Of each tensor, as JSON, which is exact; None in the first pass, which finds them.
    """

    model: bytes
    names: tuple[str, ...]
    bins: int
    threads: int
    device: ProviderName
    bounds: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[Callable[[FrameFiles], dict[str, npt.NDArray[Any]]]]:
        session = open_session(self.model, threads=self.threads, device=self.device)
        with ThreadPoolExecutor(self.threads) as pool:
            yield partial(self._look, partial(session.run, list(self.names)), pool)

    def _look(
        self, run: Callable[[Any], Any], pool: ThreadPoolExecutor, frames: FrameFiles
    ) -> dict[str, npt.NDArray[Any]]:
        """Return ``[tensors, frames, 2]`` float32 ranges, or ``[tensors, bins]`` int64 counts."""
        if self.bounds is None:
            found = [list(pool.map(extremes, run({"image": frame}))) for frame in frames]
            return {"found": np.array(found, np.float32).transpose(1, 0, 2)}
        bounds: Bounds = [(low, high) for low, high in json.loads(self.bounds)]
        counts = np.zeros((len(self.names), self.bins), np.int64)
        for frame in frames:
            list(pool.map(add_counts, run({"image": frame}), bounds, counts))
        return {"found": counts}
