"""What every way of running a model offers, whatever the runtime beneath it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgeuda.data.images import Image, LabelMap, resize_image, resize_label
from edgeuda.errors import DataError, ModelError
from edgeuda.records.identity import Identity
from edgeuda.records.names import Head, Precision
from edgeuda.spec import ModelSpec

Found = TypeVar("Found")
ImageBatch = npt.NDArray[np.uint8]
"""``[N, H, W, 3]`` uint8 RGB at the network's input size."""
Labels = npt.NDArray[np.uint8]
"""``[N, H, W]`` uint8 class ids."""


@dataclass(frozen=True, eq=False)
class Signals:
    """What a model says of images: their labels, and how sure it is.

    Attributes:
        labels: ``[N, H, W]`` uint8 class ids.
        confidence: ``[N, h, w]`` uint8, see `engines.onnx.confidence`.
        features: ``[N, C]`` float32 pooled features; None if the model gives none.
    """

    labels: Labels
    confidence: npt.NDArray[np.uint8]
    features: npt.NDArray[np.float32] | None


class Runner(Protocol):
    """A loaded model. It is a context manager: leaving it frees what the runtime holds."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is and how frames are fed."""

    @property
    def head(self) -> Head:
        """What the graph itself returns; a runner returns labels in either case."""

    @property
    def precision(self) -> Precision:
        """Whether the model is quantized."""

    @property
    def identity(self) -> Identity | None:
        """Which network it is, by its training run; None if the file does not say."""

    @property
    def made_from(self) -> str | None:
        """Checksum of the model that a form in fewer bits was made from; None if unknown."""

    @property
    def backend(self) -> str:
        """Runtime, its version and its device, for example ``"onnxruntime 1.31.1 cpu"``."""

    @property
    def parts(self) -> Mapping[str, int]:
        """Where the last call's time went, in nanoseconds.

        By the host's clock ``copy_in``, ``inference``, ``upsample`` (from what the graph returns to
        labels) and ``copy_out``; by CUDA events ``gpu`` and its parts ``gpu_upload``,
        ``gpu_execute``, ``gpu_download``, all within ``inference``. What a runtime does not tell
        apart is absent.
        """

    @property
    def execution(self) -> Mapping[str, str]:
        """How it is run, for the record: what of the runtime decides how fast it is."""

    @property
    def fallbacks(self) -> Sequence[str]:
        """What came otherwise than asked, and why; each was a warning when it happened."""

    def buffer(self, batch: int = 1) -> ImageBatch | None:
        """Return an array to write a batch into before calling with it; None if any is as good.

        It saves a copy and is the same array each time.

        Raises:
            DataError: If the model does not take that batch.
        """

    def __call__(self, images: ImageBatch) -> Labels:
        """Segment images of the network's input size, as class ids of ``spec.label_space``.

        Raises:
            DataError: If the images have another shape or type.
        """

    def signals(self, images: ImageBatch) -> Signals:
        """Segment images and say how sure the model is; else as a call.

        Raises:
            DataError: If the images have another shape or type.
            ModelError: If the model was opened without ``confidence``.
        """

    def __enter__(self) -> Runner: ...

    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True, eq=False)
class FrameSignals:
    """What a model says of a camera frame.

    Attributes:
        labels: ``[H, W]`` uint8 class ids at the frame's own size.
        fed: ``[height, width, 3]`` uint8 RGB, the frame as the network took it; it is good until
            the next call.
        confidence: ``[h, w]`` uint8, not enlarged.
        features: ``[C]`` float32; None if the model gives none.
    """

    labels: LabelMap
    fed: Image
    confidence: npt.NDArray[np.uint8]
    features: npt.NDArray[np.float32] | None


def segment(runner: Runner, frame: Image, stages: dict[str, float] | None = None) -> LabelMap:
    """Segment a camera frame of any size.

    Args:
        runner: A loaded model.
        frame: ``[H, W, 3]`` uint8 RGB.
        stages: Where the milliseconds of ``resize`` and of `Runner.parts` are put; what a runner
            does beside its parts counts as ``inference``.

    Returns:
        ``[H, W]`` uint8 class ids at the frame's own size.
    """
    _, _, labels = _through(runner, frame, runner, lambda found: found[0], stages)
    return labels


def signals_of(
    runner: Runner, frame: Image, stages: dict[str, float] | None = None
) -> FrameSignals:
    """Segment a camera frame of any size and say how sure the model is.

    Args:
        runner: A loaded model that was opened with ``confidence``.
        frame: ``[H, W, 3]`` uint8 RGB.
        stages: As in `segment`.

    Raises:
        ModelError: If it was opened without.
    """
    fed, found, labels = _through(
        runner, frame, runner.signals, lambda found: found.labels[0], stages
    )
    features = None if found.features is None else found.features[0]
    return FrameSignals(labels, fed, found.confidence[0], features)


def _through(
    runner: Runner,
    frame: Image,
    call: Callable[[ImageBatch], Found],
    labels_in: Callable[[Found], LabelMap],
    stages: dict[str, float] | None,
) -> tuple[Image, Found, LabelMap]:
    """Return a frame as it was fed, what a call made of it, and its labels at its own size."""
    start = perf_counter_ns()
    size = runner.spec.preprocessing
    buffer = runner.buffer()
    into = None if buffer is None else buffer[0]
    image = resize_image(frame, size.height, size.width, into)[None]
    before = perf_counter_ns()
    fed = image if buffer is None else buffer
    found = call(fed)
    inferred = perf_counter_ns()
    label = resize_label(labels_in(found), *frame.shape[:2])
    if stages is not None:
        parts = dict(runner.parts)
        known = sum(ns for name, ns in parts.items() if not name.startswith("gpu"))
        parts["inference"] = parts.get("inference", 0) + inferred - before - known
        parts["upsample"] = parts.get("upsample", 0) + perf_counter_ns() - inferred
        stages["resize"] = (before - start) / 1e6
        stages.update({name: ns / 1e6 for name, ns in parts.items()})
    return fed[0], found, label


class InPlaceRunner(ABC):
    """What runners have in common whose runtime reads images where they lie."""

    _beside: tuple[str, ...]
    """Outputs beside the labels, if the model was opened for them."""

    def buffer(self, _batch: int = 1) -> ImageBatch | None:
        """See `Runner`: any array is as good."""
        return None

    def __call__(self, images: ImageBatch) -> Labels:
        """Segment ``[N, H, W, 3]`` uint8 RGB images; returns ``[N, H, W]`` uint8 class ids."""
        (labels,) = self._run(images, ())
        return np.asarray(labels, np.uint8)

    def signals(self, images: ImageBatch) -> Signals:
        """See `Runner`."""
        if not self._beside:
            raise not_asked()
        labels, confidence, *features = self._run(images, self._beside)
        return Signals(labels, confidence, features[0] if features else None)

    @abstractmethod
    def _run(self, images: ImageBatch, beside: tuple[str, ...]) -> list[Any]:
        """Return labels, and the outputs that are asked for beside them."""


def not_asked() -> ModelError:
    """Return the error of a runner that is asked for what it was opened without."""
    return ModelError("The model was opened for labels only. Open it with `confidence`")


def check_images(images: ImageBatch, spec: ModelSpec) -> None:
    """Check what is given to a runner.

    Raises:
        DataError: Unless ``images`` is uint8 ``[N, height, width, 3]`` with N of at least 1.
    """
    wanted = (spec.preprocessing.height, spec.preprocessing.width, 3)
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1:] != wanted
        or not len(images)
    ):
        msg = (
            f"Expected images as uint8 [N, {wanted[0]}, {wanted[1]}, 3], "
            f"found {images.dtype} {list(images.shape)}"
        )
        raise DataError(msg)
