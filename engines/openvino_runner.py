"""Running a model with OpenVINO, on the CPU."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgeuda.errors import ModelError, require
from edgeuda.records.names import Head, Precision
from engines.onnx.heads import labels_of_batch
from engines.onnx.metadata import (
    export_of,
    identity_in,
    made_from,
    precision_of,
    read_metadata,
    spec_of,
)
from engines.onnx.session import usable_cores
from engines.runner import ImageBatch, Labels, check_images


class OpenVinoRunner:
    """A `Runner` on OpenVINO's CPU plugin, compiled for the lowest latency of one request.

    OpenVINO would compute FP32 graphs in bfloat16 where the processor has it; here they stay FP32,
    so that a precision means the same with every runtime. Each batch size is compiled once.

    Args:
        path: An ONNX file written by this project, FP32, FP16 or INT8, with any head.
        threads: Threads of one request; None takes every usable core.

    Raises:
        ModelError: If the file is missing, broken or was not written by this project.
        DependencyError: If ``openvino`` is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        openvino = require("openvino", "openvino")
        metadata = read_metadata(path)
        self.spec = spec_of(metadata, str(path))
        self.head: Head = export_of(metadata, str(path)).head
        self.precision: Precision = precision_of(metadata)
        self.identity = identity_in(metadata, str(path))
        self.made_from = made_from(metadata)
        self.fallbacks: list[str] = []
        self.parts: dict[str, int] = {}
        self._path = path
        self._core: Any = openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            # A pinned thread would wait for its core while other work of the vehicle has it.
            "ENABLE_CPU_PINNING": False,
        }
        self._requests: dict[int, Any] = {}
        self._request(1)
        self.backend = f"openvino {openvino.__version__.split('-')[0]} cpu"

    def _request(self, batch: int) -> Any:
        """Return the request for a batch size, compiled when it is first asked for."""
        if batch not in self._requests:
            size = self.spec.preprocessing
            try:
                graph = self._core.read_model(self._path)
                graph.reshape([batch, size.height, size.width, 3])
                compiled = self._core.compile_model(graph, "CPU", self._options)
                self._requests[batch] = compiled.create_infer_request()
            except RuntimeError as err:
                msg = f"{self._path}: expected an ONNX model that OpenVINO can compile ({err})"
                raise ModelError(msg) from err
            self.execution = {
                "precision_hint": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
                "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
                "streams": str(compiled.get_property("NUM_STREAMS")),
            }
        return self._requests[batch]

    def buffer(self, _batch: int = 1) -> None:
        """See `Runner`: OpenVINO reads images where they lie."""

    def __call__(self, images: ImageBatch) -> Labels:
        """Segment ``[N, H, W, 3]`` uint8 RGB images; returns ``[N, H, W]`` uint8 class ids."""
        check_images(images, self.spec)
        request = self._request(len(images))
        start = perf_counter_ns()
        # Both are shared: the images are read and the outputs are turned into labels right here.
        output = request.infer(
            [np.ascontiguousarray(images)], share_inputs=True, share_outputs=True
        )[0]
        done = perf_counter_ns()
        size = self.spec.preprocessing
        labels = labels_of_batch(self.head, output, size.height, size.width)
        self.parts = {"inference": done - start, "upsample": perf_counter_ns() - done}
        return labels

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        # Dropping the requests is the only way OpenVINO offers to free its memory and threads.
        self._requests.clear()
        self._core = None
