"""A frame's way through the vehicle's software, timed station by station."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda.data.images import (
    Image,
    LabelMap,
    decode_image,
    intact_bytes,
    paint,
    resize_image,
    resize_label,
)  # fmt: skip
from edgeuda.data.treatment import as_shown
from engines.runner import Runner

STAGES = (
    "decode", "waiting", "geometry", "resize", "copy_in", "inference", "gpu_upload", "gpu_execute",
    "gpu_download", "gpu", "copy_out", "upsample", "total", "overlay", "end_to_end",
)  # fmt: skip
"""Order of the stages in a record; one has those that its runtime and load pattern tell apart.

``total`` goes from a frame in memory to a label map of its size (of the part that the model's spec
keeps), which is what the vehicle's software waits for; with a frame rate it includes ``waiting``,
and ``geometry``, undistorting and cropping, if the model's spec has one. ``end_to_end`` adds
``decode`` and ``overlay``, which a vehicle with a raw camera and no viewer does not have. The
``gpu`` stages lie within ``inference`` and are by CUDA events, all others by the host's clock.
"""


@dataclass(frozen=True, eq=False)
class Shot:
    """A frame as its file has it, and decoded; and the file."""

    encoded: npt.NDArray[np.uint8]
    image: Image
    origin: Path


def read_shot(path: Path) -> Shot:
    """Read an image file.

    Raises:
        DataError: If it is missing, truncated or not an image.
    """
    encoded = intact_bytes(path)
    return Shot(encoded, decode_image(encoded, path), path)


class FramePath:
    """One model's path, from a frame to its label map.

    Args:
        runner: The model.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._colors = runner.spec.label_space.colors()

    def labels(
        self, images: list[Image], origins: Sequence[Path] | None = None
    ) -> tuple[dict[str, int], list[LabelMap]]:
        """Segment frames as one batch.

        Args:
            images: ``[H, W, 3]`` uint8 RGB each.
            origins: Their files; those that hold raw frames are undistorted and cropped as the
                model's spec says. None takes all as they are.

        Returns:
            Nanoseconds by stage, ``total`` among them, and the label maps.

        Raises:
            DataError: If a frame was treated otherwise, see `edgeuda.data.treatment`.
        """
        stages, _, labels = self._segment(images, origins)
        return stages, labels

    def _segment(
        self, images: list[Image], origins: Sequence[Path] | None
    ) -> tuple[dict[str, int], list[Image], list[LabelMap]]:
        """Return nanoseconds by stage, the frames as the model is shown them, and their labels."""
        size = self.runner.spec.preprocessing
        begin = perf_counter_ns()
        if origins is not None and size.geometry is not None:
            images = [
                as_shown(image, origin, size.geometry)
                for image, origin in zip(images, origins, strict=True)
            ]
        start = begin if size.geometry is None else perf_counter_ns()  # stages sum to the total
        buffer = self.runner.buffer(len(images))
        places = [None] * len(images) if buffer is None else buffer
        resized = [
            resize_image(image, size.height, size.width, place)
            for image, place in zip(images, places, strict=True)
        ]
        if buffer is not None:  # pinned memory: what is resized into it is copied no more
            batch = buffer
        else:
            batch = resized[0][None] if len(resized) == 1 else np.stack(resized)
        before = perf_counter_ns()
        small = self.runner(batch)
        inferred = perf_counter_ns()
        labels = [
            resize_label(one, *image.shape[:2]) for one, image in zip(small, images, strict=True)
        ]
        end = perf_counter_ns()
        parts: dict[str, Any] = dict(self.runner.parts)
        # What a runner does beside its parts, such as checks, counts as inference.
        rest = inferred - before - sum(v for k, v in parts.items() if not k.startswith("gpu"))
        parts["inference"] = parts.get("inference", 0) + rest
        parts["upsample"] = parts.get("upsample", 0) + end - inferred
        shown = {} if size.geometry is None else {"geometry": start - begin}
        return {**shown, "resize": before - start, **parts, "total": end - begin}, images, labels

    def whole(self, shot: Shot) -> dict[str, int]:
        """Decode, segment and paint a frame; returns nanoseconds by stage."""
        start = perf_counter_ns()
        image = decode_image(shot.encoded)
        decoded = perf_counter_ns()
        stages, shown, labels = self._segment([image], [shot.origin])
        labelled = perf_counter_ns()
        paint(shown[0], labels[0], self._colors)
        end = perf_counter_ns()
        return {
            "decode": decoded - start,
            **stages,
            "overlay": end - labelled,
            "end_to_end": end - start,
        }
