"""Ranges and histograms of a model's activations, collected frame by frame."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calibration.frames import Frames
from edgeuda.errors import DataError, ModelError, require
from edgeuda.records.names import ProviderName
from engines.onnx.graphs import shapes_of_one_image
from engines.onnx.session import open_session, usable_cores

if TYPE_CHECKING:
    import onnx

BINS = 2048
CHUNK_BYTES = 512 * 2**20

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Distribution of one activation over all pixels of all frames.

    Attributes:
        low: Smallest value.
        high: Largest value.
        counts: ``[bins]`` int64, equal bins from ``low`` to ``high``.
        frame_ranges: ``[frames, 2]`` float32, smallest and largest value of each frame.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]
    frame_ranges: Floats = field(default_factory=lambda: np.empty((0, 2), np.float32))


@dataclass(eq=False)
class Progress:
    """How far the tensors of one chunk are; with it, collection goes on where it stopped.

    Attributes:
        names: The tensors.
        frame_ranges: ``[tensors, frames, 2]`` float32, filled by the first pass.
        done: ``[tensors, bins]`` int64 counts, filled by the second, and the frames done, those of
            both passes added: at most twice the frames. Both change together, in one assignment,
            so that an interruption finds no frame counted that is not among the frames done.
    """

    names: tuple[str, ...]
    frame_ranges: Floats
    done: tuple[npt.NDArray[np.int64], int]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """``[tensors, bins]`` int64."""
        return self.done[0]

    @property
    def steps(self) -> int:
        """Frames done in both passes."""
        return self.done[1]

    @classmethod
    def start(cls, names: Sequence[str], frames: int, bins: int) -> Progress:
        """Return the state before the first frame."""
        size = len(names)
        return cls(
            tuple(names),
            np.zeros((size, frames, 2), np.float32),
            (np.zeros((size, bins), np.int64), 0),
        )

    def bounds(self) -> list[tuple[float, float]]:
        """Return low and high of each tensor once the first pass is over."""
        ranges = self.frame_ranges
        low, high = ranges[:, :, 0].min(1), ranges[:, :, 1].max(1)
        for name, span in zip(self.names, high - low, strict=True):
            if not np.isfinite(span):
                msg = (
                    f"Activation {name!r} is not finite on these frames; check the model's weights"
                )
                raise ModelError(msg)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def histograms(self) -> dict[str, Histogram]:
        """Return the result of both passes."""
        return {
            name: Histogram(*limits, self.counts[i], self.frame_ranges[i])
            for i, (name, limits) in enumerate(zip(self.names, self.bounds(), strict=True))
        }


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    frames: Frames,
    *,
    bins: int = BINS,
    chunk_bytes: int = CHUNK_BYTES,
    threads: int | None = None,
    device: ProviderName = "cpu",
    begun: Progress | None = None,
    after_step: Callable[[Progress], None] = lambda _: None,
    after_chunk: Callable[[dict[str, Histogram]], None] = lambda _: None,
) -> dict[str, Histogram]:
    """Run the model over the frames twice: first for the ranges, then for the histograms.

    Memory does not grow with the number of frames. Tensors are watched in chunks: a chunk's
    activations of one frame are in memory at once, and the model runs twice per chunk and frame.

    Args:
        model: Takes ``image``, uint8 ``[1, H, W, 3]``.
        tensors: Names of float32 tensors of the graph.
        frames: Each is read twice per chunk.
        bins: Bins per tensor.
        chunk_bytes: Largest sum of the activations of a chunk (one tensor may exceed it).
        threads: As in `open_session`; as many count the activations of a frame.
        device: As in `open_session`.
        begun: State of a chunk that was not finished; it counts if the first chunk has its tensors.
        after_step: Called after each frame of each pass with the state of the chunk.
        after_chunk: Called with the histograms of a finished chunk.

    Raises:
        DataError: If there are no frames.
        ModelError: If an activation is not finite, or a name is none of a float32 tensor.
    """
    if not len(frames):
        msg = "Expected at least one frame to calibrate on, found none"
        raise DataError(msg)
    found: dict[str, Histogram] = {}
    for names in chunks(model, tensors, chunk_bytes):
        state = Progress.start(names, len(frames), bins)
        if begun is not None and begun.names == state.names:
            state = begun
        session = open_session(watching(model, names), threads=threads, device=device)
        with ThreadPoolExecutor(threads or usable_cores()) as pool:
            _fill(state, session, frames, after_step, pool)
        del session  # its activations, before the next one has some
        found |= state.histograms()
        after_chunk(state.histograms())
    return found


def _fill(
    state: Progress,
    session: Any,
    frames: Frames,
    after_step: Callable[[Progress], None],
    pool: ThreadPoolExecutor,
) -> None:
    """Run both passes of a chunk from where it stands."""
    names = list(state.names)
    # Outputs have no name: it would keep a frame's activations until the next one's are there.
    for frame in range(min(state.steps, len(frames)), len(frames)):
        found = pool.map(extremes, session.run(names, {"image": frames[frame]}))
        state.frame_ranges[:, frame] = list(found)
        state.done = (state.counts, frame + 1)
        after_step(state)
    bounds = state.bounds()
    for frame in range(state.steps - len(frames), len(frames)):
        counts = state.counts.copy()
        list(pool.map(add_counts, session.run(names, {"image": frames[frame]}), bounds, counts))
        state.done = (counts, len(frames) + frame + 1)
        after_step(state)


def extremes(values: Floats) -> tuple[float, float]:
    """Return the smallest and the largest value."""
    return float(values.min()), float(values.max())


def add_counts(values: Floats, bounds: tuple[float, float], counts: npt.NDArray[np.int64]) -> None:
    """Add values to counts of equal bins between two bounds, faster than `np.histogram`.

    Args:
        values: Of any shape, float32.
        bounds: Lower end of the first bin and upper end of the last one.
        counts: ``[bins]`` int64; values beyond the bounds count in the bin at that end.
    """
    low, high = bounds
    scale = len(counts) / (high - low) if high > low else 0.0
    flat = values.reshape(-1)
    for start in range(0, flat.size, 2**18):  # temporaries that stay in the cache
        bins = ((flat[start : start + 2**18] - np.float32(low)) * np.float32(scale)).astype(
            np.int32
        )
        np.clip(bins, 0, len(counts) - 1, out=bins)
        counts += np.bincount(bins, minlength=len(counts))


def chunks(
    model: onnx.ModelProto, tensors: Sequence[str], chunk_bytes: int = CHUNK_BYTES
) -> Iterator[list[str]]:
    """Cut the tensors, in order, into runs of at most ``chunk_bytes`` per frame."""
    elements = {
        name: int(np.prod([size or 1 for size in shape]))
        for name, shape in shapes_of_one_image(model).items()
    }
    chunk: list[str] = []
    used = 0
    for name in tensors:
        if name not in elements:
            msg = f"The graph has no tensor {name!r} whose range could be collected"
            raise ModelError(msg)
        size = 4 * elements[name]
        if chunk and used + size > chunk_bytes:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += size
    if chunk:
        yield chunk


def watching(model: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """Return the model with ``names`` for outputs; the runtime drops what they do not need."""
    onnx = require("onnx", "quantize")
    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return bytes(watched.SerializeToString())
