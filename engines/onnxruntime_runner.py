"""Running a model with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns

import numpy as np

from edgeuda.errors import require
from engines.heads import labels_of
from engines.metadata import Head, Precision, export_of, precision_of, spec_of
from engines.onnxruntime_session import Device, open_session
from engines.runner import Images, Labels, check_images


class OnnxRunner:
    """A `Runner` on one of ONNX Runtime's providers.

    Args:
        path: An ONNX file written by this project, FP32 or INT8, with any head.
        threads: Threads of one operator; None takes every usable core.
        device: Where it runs, see `open_session`.

    Raises:
        ModelError: If the file is missing, broken or was not written by this project.
        DependencyError: If ``onnxruntime`` is not installed, or not for that device.
    """

    def __init__(self, path: Path, threads: int | None = None, device: Device = "cpu") -> None:
        self._session = open_session(path, threads=threads, device=device)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.spec = spec_of(metadata, str(path))
        self.head: Head = export_of(metadata, str(path)).head
        self.precision: Precision = precision_of(metadata)
        self.backend = f"onnxruntime {require('onnxruntime', 'cpu').__version__} {device}"
        self.parts: dict[str, int] = {}

    def __call__(self, images: Images) -> Labels:
        """Segment ``[N, H, W, 3]`` uint8 RGB images; returns ``[N, H, W]`` uint8 class ids."""
        check_images(images, self.spec)
        start = perf_counter_ns()
        output = self._session.run([self.head], {"image": images})[0]
        done = perf_counter_ns()
        size = self.spec.preprocessing
        labels = np.stack([labels_of(self.head, one, size.height, size.width) for one in output])
        # On a GPU, ONNX Runtime's copies are part of its run.
        self.parts = {"inference": done - start, "upsample": perf_counter_ns() - done}
        return labels

    def __enter__(self) -> OnnxRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        # Dropping the session is the only way ONNX Runtime offers to free its memory and threads.
        self._session = None
