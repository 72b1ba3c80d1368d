"""Running a model with ONNX Runtime."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgeuda.errors import DeviceError, require
from edgeuda.records.names import Head, Precision, ProviderName
from engines.onnx.confidence import as_asked, beside
from engines.onnx.heads import labels_of_batch
from engines.onnx.metadata import (
    HALF_KEY,
    QUANTIZATION_KEY,
    export_of,
    identity_in,
    made_from,
    precision_of,
    read_metadata,
    spec_of,
)
from engines.onnx.placement import placed_session
from engines.onnx.session import open_session
from engines.runner import ImageBatch, InPlaceRunner, check_images

logger = logging.getLogger(__name__)


class OnnxRunner(InPlaceRunner):
    """A `Runner` on one of ONNX Runtime's providers.

    On a GPU the model is run once when it is opened, to see on which provider its nodes are.

    Args:
        path: An ONNX file written by this project, FP32 or INT8, with any head.
        threads: Threads of one operator; None takes every usable core.
        device: Where it runs, see `open_session`.
        confidence: Whether it is asked for `signals` too; else what they take is cut off.
        engines: As in `open_session`.

    Raises:
        ModelError: If the file is missing, broken or was not written by this project; if it is
            asked for signals and gives none.
        DependencyError: If ``onnxruntime`` is not installed, or not for that device.
        DeviceError: If the device would not be used.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        device: ProviderName = "cpu",
        *,
        confidence: bool = False,
        engines: Path | None = None,
    ) -> None:
        self.fallbacks: list[str] = []
        self.execution: dict[str, str] = {}
        content = as_asked(path, confidence)
        if device == "cpu":
            self._session = open_session(content, threads=threads, origin=str(path))
            metadata = self._session.get_modelmeta().custom_metadata_map
        else:
            metadata = read_metadata(path)
        self.spec = spec_of(metadata, str(path))
        self.head: Head = export_of(metadata, str(path)).head
        self.precision: Precision = precision_of(metadata)
        self.identity = identity_in(metadata, str(path))
        self.made_from = made_from(metadata)
        if device != "cpu":
            self._session = self._on_device(path, content, threads, device, metadata, engines)
        self._beside: tuple[str, ...] = ()
        if confidence:
            self._beside = beside([one.name for one in self._session.get_outputs()], str(path))
        self.backend = f"onnxruntime {require('onnxruntime', 'cpu').__version__} {device}"
        self.parts: dict[str, int] = {}

    def _on_device(
        self,
        path: Path,
        content: Path | bytes,
        threads: int | None,
        device: ProviderName,
        metadata: dict[str, str],
        engines: Path | None,
    ) -> Any:
        opened = partial(
            open_session, content, threads=threads, device=device, origin=str(path),
            int8=QUANTIZATION_KEY in metadata, half=HALF_KEY in metadata, engines=engines,
        )  # fmt: skip
        size = self.spec.preprocessing
        image = np.zeros((1, size.height, size.width, 3), np.uint8)
        session, nodes = placed_session(lambda name: opened(profile=name), {"image": image})
        wanted = session.get_providers()[0]
        shares = ", ".join(f"{count} on {name}" for name, count in nodes.items())
        if not nodes.get(wanted):
            msg = (
                f"{path}: none of its nodes runs on {wanted}: {shares or 'none is known'}. Use "
                "another `device`"
            )
            raise DeviceError(msg)
        cuda = getattr(require("onnxruntime", "cpu"), "cuda_version", "")
        self.execution = {"nodes": shares, "cuda_runtime": str(cuda or "not available")}
        if len(nodes) > 1:
            self.fallbacks.append(f"not all nodes run on {wanted}: {shares}")
            logger.warning("%s: %s", path, self.fallbacks[-1])
        return session

    def _run(self, images: ImageBatch, beside: tuple[str, ...]) -> list[Any]:
        """Return labels, and the outputs that are asked for beside them."""
        check_images(images, self.spec)
        start = perf_counter_ns()
        output, *more = self._session.run([self.head, *beside], {"image": images})
        done = perf_counter_ns()
        size = self.spec.preprocessing
        labels = labels_of_batch(self.head, output, size.height, size.width)
        # On a GPU, ONNX Runtime's copies are part of its run.
        self.parts = {"inference": done - start, "upsample": perf_counter_ns() - done}
        return [labels, *more]

    def __enter__(self) -> OnnxRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        # Dropping the session is the only way ONNX Runtime offers to free its memory and threads.
        self._session = None
