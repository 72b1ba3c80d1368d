"""Ranges and histograms of a model's activations, collected frame by frame."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgeuda.errors import DataError, ModelError, require
from engines.onnxruntime_session import open_session

if TYPE_CHECKING:
    import onnx

BINS = 2048
CHUNK_BYTES = 512 * 2**20

Frames = Callable[[], Iterator[npt.NDArray[np.uint8]]]
"""Starts a pass over the frames: uint8 RGB ``[1, H, W, 3]`` at the network's input size."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Distribution of one activation over all pixels of all frames.

    Attributes:
        low: Smallest value.
        high: Largest value.
        counts: ``[bins]`` int64, equal bins from ``low`` to ``high``.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    frames: Frames,
    *,
    bins: int = BINS,
    chunk_bytes: int = CHUNK_BYTES,
    threads: int | None = None,
) -> dict[str, Histogram]:
    """Collect the histograms of float tensors in two passes over the frames.

    The first pass finds minimum and maximum, the second fills bins between them, so what is kept is
    O(tensors x bins) whatever the number of frames. Tensors are watched in chunks: a chunk's
    activations of one frame are in memory at once, and the model runs twice per chunk and frame.

    Args:
        model: Takes ``image``, uint8 ``[1, H, W, 3]``.
        tensors: Names of float32 tensors of the graph.
        frames: Called twice per chunk; every call must yield the same frames.
        bins: Bins per tensor.
        chunk_bytes: Largest sum of the activations of a chunk (one tensor may exceed it).
        threads: As in `open_session`.

    Raises:
        DataError: If there are no frames.
        ModelError: If an activation is not finite.
    """
    found: dict[str, Histogram] = {}
    for names in _chunks(model, tensors, chunk_bytes):
        session = open_session(_watching(model, names), threads=threads)
        bounds = dict.fromkeys(names, (np.inf, -np.inf))
        for frame in frames():
            for name, value in zip(names, session.run(names, {"image": frame}), strict=True):
                low, high = bounds[name]
                bounds[name] = (min(low, float(value.min())), max(high, float(value.max())))
        counts = {name: np.zeros(bins, np.int64) for name in names}
        for name, (low, high) in bounds.items():
            if low > high:
                msg = "Expected at least one frame to calibrate on, found none"
                raise DataError(msg)
            if not np.isfinite(high - low):
                msg = (
                    f"Activation {name!r} is not finite on these frames; check the model's weights"
                )
                raise ModelError(msg)
        for frame in frames():
            for name, value in zip(names, session.run(names, {"image": frame}), strict=True):
                _count(value, *bounds[name], counts[name])
        found |= {name: Histogram(*bounds[name], counts[name]) for name in names}
    return found


def _count(
    values: npt.NDArray[np.float32], low: float, high: float, counts: npt.NDArray[np.int64]
) -> None:
    """Count values in equal bins from ``low`` to ``high``, faster than `np.histogram`."""
    scale = len(counts) / (high - low) if high > low else 0.0
    flat = values.reshape(-1)
    for start in range(0, flat.size, 2**18):  # temporaries that stay in the cache
        bins = ((flat[start : start + 2**18] - np.float32(low)) * np.float32(scale)).astype(
            np.int32
        )
        np.clip(bins, 0, len(counts) - 1, out=bins)
        counts += np.bincount(bins, minlength=len(counts))


def _chunks(
    model: onnx.ModelProto, tensors: Sequence[str], chunk_bytes: int
) -> Iterator[list[str]]:
    """Cut the tensors, in order, into runs of at most ``chunk_bytes`` per frame."""
    onnx = require("onnx", "quantize")
    single = copy.deepcopy(model)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    single.graph.ClearField("value_info")
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph.value_info
    elements = {
        value.name: int(np.prod([d.dim_value or 1 for d in value.type.tensor_type.shape.dim]))
        for value in inferred
    }
    chunk: list[str] = []
    used = 0
    for name in tensors:
        size = 4 * elements[name]
        if chunk and used + size > chunk_bytes:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += size
    if chunk:
        yield chunk


def _watching(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """Return the model with ``names`` for outputs; the runtime drops what they do not need."""
    onnx = require("onnx", "quantize")
    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return bytes(watched.SerializeToString())
