"""Running a model with OpenVINO, on the CPU."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgeuda.errors import ModelError, require
from edgeuda.records.names import Head, Precision
from engines.onnx.confidence import BESIDE, beside
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
from engines.runner import ImageBatch, InPlaceRunner, check_images


class OpenVinoRunner(InPlaceRunner):
    """A `Runner` on OpenVINO's CPU plugin, compiled for the lowest latency of one request.

    OpenVINO would compute FP32 graphs in bfloat16 where the processor has it; here they stay FP32,
    so that a precision means the same with every runtime. Each batch size is compiled once.

    Args:
        path: An ONNX file written by this project, FP32, FP16 or INT8, with any head.
        threads: Threads of one request; None takes every usable core.
        confidence: Whether it is asked for `signals` too; else what they take is not compiled.

    Raises:
        ModelError: If the file is missing, broken or was not written by this project; if it is
            asked for signals and gives none.
        DependencyError: If ``openvino`` is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None, *, confidence: bool = False) -> None:
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
        self._confidence = confidence
        self._beside: tuple[str, ...] = ()
        self._core: Any = openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            # A pinned thread would wait for its core while other work of the vehicle has it.
            "ENABLE_CPU_PINNING": False,
        }
        self._requests: dict[int, Any] = {}
        # The file may be gone when another batch size is asked for: one out of a bundle is.
        self._graph: Any = self._read()
        self._request(1)
        self.backend = f"openvino {openvino.__version__.split('-')[0]} cpu"

    def _read(self) -> Any:
        """Return the graph with the outputs that are asked for."""
        try:
            graph = self._core.read_model(self._path)
        except RuntimeError as err:
            raise self._refused(err) from err
        results = {n: one for one in graph.get_results() for n in one.output(0).names}
        if self._confidence:
            self._beside = beside(list(results), str(self._path))
        else:
            for name in results.keys() & set(BESIDE):
                graph.remove_result(results[name])
        return graph

    def _refused(self, err: RuntimeError) -> ModelError:
        return ModelError(f"{self._path}: expected an ONNX model that OpenVINO can compile ({err})")

    def _request(self, batch: int) -> Any:
        """Return the request for a batch size, compiled when it is first asked for."""
        if batch not in self._requests:
            size = self.spec.preprocessing
            graph = self._graph.clone()
            try:
                graph.reshape([batch, size.height, size.width, 3])
                compiled = self._core.compile_model(graph, "CPU", self._options)
                self._requests[batch] = compiled.create_infer_request()
            except RuntimeError as err:
                raise self._refused(err) from err
            self.execution = {
                "precision_hint": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
                "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
                "streams": str(compiled.get_property("NUM_STREAMS")),
            }
        return self._requests[batch]

    def _run(self, images: ImageBatch, beside: tuple[str, ...]) -> list[Any]:
        """Return labels, and copies of the outputs that are asked for beside them."""
        check_images(images, self.spec)
        request = self._request(len(images))
        start = perf_counter_ns()
        # Both are shared: the images are read and the outputs are turned into labels right here.
        found = request.infer([np.ascontiguousarray(images)], share_inputs=True, share_outputs=True)
        done = perf_counter_ns()
        size = self.spec.preprocessing
        labels = labels_of_batch(self.head, found[self.head], size.height, size.width)
        self.parts = {"inference": done - start, "upsample": perf_counter_ns() - done}
        return [labels, *(np.array(found[name]) for name in beside)]

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        # Dropping the requests is the only way OpenVINO offers to free its memory and threads.
        self._requests.clear()
        self._graph = None
        self._core = None
