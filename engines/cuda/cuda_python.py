"""A CUDA device by ``cuda-python``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy.typing as npt

from engines.cuda.driver import require_success, version_of
from engines.cuda.labels_kernel import LabelsKernel
from engines.cuda.memory import Bytes, array_at, size_of


class CudaPythonDevice:
    """`engines.cuda.device.Device` by ``cuda-python``."""

    name: ClassVar[str] = "cuda-python"
    graphs: ClassVar[bool] = True

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime: Any = runtime
        self._pinned: dict[int, int] = {}
        self._kernel: LabelsKernel | None = None
        self._kernel_users = 0

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        require_success(error)
        return values[0] if values else None

    def runtime_version(self) -> str:
        """See `Device`."""
        return ".".join(map(str, version_of(int(self._call("cudaRuntimeGetVersion")))))

    def integrated(self) -> bool:
        """See `Device`."""
        attribute = self._runtime.cudaDeviceAttr.cudaDevAttrIntegrated
        return bool(self._call("cudaDeviceGetAttribute", attribute, 0))

    def alloc(self, size: int) -> int:
        """See `DeviceMemory`."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """See `DeviceMemory`."""
        self._call("cudaFree", address)

    def upload(self, address: int, array: Bytes) -> None:
        """See `DeviceMemory`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, array.ctypes.data, array.nbytes, kind)

    def load_kernel(self) -> None:
        """See `Device`."""
        self._kernel = self._kernel or LabelsKernel()
        self._kernel_users += 1

    def unload_kernel(self) -> None:
        """See `Device`."""
        self._kernel_users -= 1
        if self._kernel is not None and not self._kernel_users:
            self._kernel.close()
            self._kernel = None

    def upsample_argmax(
        self, scores: int, labels: int, shape: tuple[int, ...], height: int, width: int, stream: int
    ) -> None:
        """See `Device`."""
        assert self._kernel is not None  # `load_kernel` comes first
        self._kernel.launch(scores, labels, shape, height, width, stream)

    def stream(self) -> int:
        """See `Device`."""
        return int(self._call("cudaStreamCreate"))

    def close_stream(self, stream: int) -> None:
        """See `Device`."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """See `Device`."""
        self._call("cudaStreamSynchronize", stream)

    def pinned(self, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
        """See `Device`."""
        flags = self._runtime.cudaHostAllocMapped
        address = int(self._call("cudaHostAlloc", size_of(shape, dtype), flags))
        array = array_at(address, shape, dtype)
        self._pinned[id(array)] = address
        return array

    def mapped(self, array: npt.NDArray[Any]) -> int:
        """See `Device`."""
        return int(self._call("cudaHostGetDevicePointer", self._pinned[id(array)], 0))

    def release(self, array: npt.NDArray[Any]) -> None:
        """See `Device`."""
        self._call("cudaFreeHost", self._pinned.pop(id(array)))

    def upload_async(self, address: int, array: Bytes, stream: int) -> None:
        """See `Device`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        data = array.ctypes.data
        self._call("cudaMemcpyAsync", address, data, array.nbytes, kind, stream)

    def download_async(self, array: Bytes, address: int, stream: int) -> None:
        """See `Device`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        data = array.ctypes.data
        self._call("cudaMemcpyAsync", data, address, array.nbytes, kind, stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """See `Device`."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            # Ends the capture, whose own error would hide the cause.
            _, graph = self._runtime.cudaStreamEndCapture(stream)
            if graph is not None and int(graph):
                self._runtime.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """See `Device`."""
        self._call("cudaGraphLaunch", graph, stream)

    def close_graph(self, graph: Any) -> None:
        """See `Device`."""
        self._call("cudaGraphExecDestroy", graph)

    def event(self) -> Any:
        """See `Device`."""
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: int) -> None:
        """See `Device`."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """See `Device`."""
        return round(1e6 * float(self._call("cudaEventElapsedTime", start, end)))

    def close_event(self, event: Any) -> None:
        """See `Device`."""
        self._call("cudaEventDestroy", event)
