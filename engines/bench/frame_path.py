"""A frame's way through the vehicle's software, timed station by station."""

from __future__ import annotations

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
from engines.runner import Runner

STAGES = (
    "decode", "waiting", "resize", "copy_in", "inference", "gpu_upload", "gpu_execute",
    "gpu_download", "gpu", "copy_out", "upsample", "total", "overlay", "end_to_end",
)  # fmt: skip
"""Order of the stages in a record; one has those that its runtime and load pattern tell apart.

``total`` goes from a frame in memory to a label map of its size, which is what the vehicle's
software waits for; with a frame rate it includes ``waiting``. ``end_to_end`` adds ``decode`` and
``overlay``, which a vehicle with a raw camera and no viewer does not have. The ``gpu`` stages lie
within ``inference`` and are by CUDA events, all others by the host's clock.
"""


@dataclass(frozen=True, eq=False)
class Shot:
    """A frame as its file has it, and decoded."""

    encoded: npt.NDArray[np.uint8]
    image: Image


def read_shot(path: Path) -> Shot:
    """Read an image file.

    Raises:
        DataError: If it is missing, truncated or not an image.
    """
    encoded = intact_bytes(path)
    return Shot(encoded, decode_image(encoded, path))


class FramePath:
    """One model's path, from a frame to its label map.

    Args:
        runner: The model.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._colors = runner.spec.label_space.colors()

    def labels(self, images: list[Image]) -> tuple[dict[str, int], list[LabelMap]]:
        """Segment frames as one batch.

        Returns:
            Nanoseconds by stage, ``total`` among them, and the label maps.
        """
        size = self.runner.spec.preprocessing
        start = perf_counter_ns()
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
        return {"resize": before - start, **parts, "total": end - start}, labels

    def whole(self, shot: Shot) -> dict[str, int]:
        """Decode, segment and paint a frame; returns nanoseconds by stage."""
        start = perf_counter_ns()
        image = decode_image(shot.encoded)
        decoded = perf_counter_ns()
        stages, labels = self.labels([image])
        labelled = perf_counter_ns()
        paint(image, labels[0], self._colors)
        end = perf_counter_ns()
        return {
            "decode": decoded - start,
            **stages,
            "overlay": end - labelled,
            "end_to_end": end - start,
        }
