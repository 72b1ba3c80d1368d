"""A CUDA device as a runner needs it: streams, pinned memory, graphs.

Three packages offer it: cuda-python, the CUDA runtime library itself, which every Jetson image has,
and pycuda.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from edgeuda.errors import DependencyError, DeviceError
from engines.cuda_driver import cuda_devices, require_success
from engines.labels_kernel import LabelsKernel

Bytes = npt.NDArray[Any]

_TO_DEVICE, _TO_HOST = 1, 2
_RELAXED = 2
"""Capture mode in which other threads may still call CUDA."""


class DeviceMemory(Protocol):
    """What calibration needs of a device."""

    def alloc(self, size: int) -> int:
        """Reserve ``size`` bytes; returns their address."""

    def free(self, address: int) -> None:
        """Give back what `alloc` returned."""

    def upload(self, address: int, array: Bytes) -> None:
        """Copy a C-contiguous array to the device, and wait for it."""


class Device(DeviceMemory, Protocol):
    """What a runner needs beyond `DeviceMemory`.

    Attributes:
        name: The package, which is printed.
        graphs: Whether sequences can be captured.
    """

    name: ClassVar[str]
    graphs: ClassVar[bool]

    def stream(self) -> int:
        """Open a stream; returns its handle."""

    def close_stream(self, stream: int) -> None:
        """Close it."""

    def synchronize(self, stream: int) -> None:
        """Wait for all that was enqueued."""

    def pinned(self, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
        """Return an array in page-locked memory, from which copies need no staging."""

    def release(self, array: npt.NDArray[Any]) -> None:
        """Give back what `pinned` returned; the array must not be used any more."""

    def upload_async(self, address: int, array: Bytes, stream: int) -> None:
        """Enqueue a copy to the device."""

    def download_async(self, array: Bytes, address: int, stream: int) -> None:
        """Enqueue a copy from it."""

    def upsample_argmax(
        self, scores: int, labels: int, shape: tuple[int, ...], height: int, width: int, stream: int
    ) -> None:
        """Enqueue `engines.labels_kernel`, where `kernels` says that it can."""

    def kernels(self) -> bool:
        """Load the kernel; returns whether that was possible."""

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """Record what ``enqueue`` enqueues, without running it; returns something to launch."""

    def launch(self, graph: Any, stream: int) -> None:
        """Enqueue a recorded sequence."""

    def close_graph(self, graph: Any) -> None:
        """Give back what `capture` returned."""

    def event(self) -> Any:
        """Make an event, a point on a stream whose time can be taken."""

    def record(self, event: Any, stream: int) -> None:
        """Enqueue an event; an earlier recording of it is forgotten."""

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """Return nanoseconds by the device's clock between two events that are past."""

    def close_event(self, event: Any) -> None:
        """Give back what `event` returned."""


class _WithoutKernels:
    """What a package says that launches no kernels."""

    def kernels(self) -> bool:
        """See `Device`."""
        return False

    def upsample_argmax(
        self, scores: int, labels: int, shape: tuple[int, ...], height: int, width: int, stream: int
    ) -> None:
        """See `Device`."""
        msg = "Only cuda-python launches kernels. Install it: pip install 'edgeuda[tensorrt]'"
        raise DeviceError(msg)


class CudaPythonDevice:
    """`Device` by ``cuda-python``."""

    name: ClassVar[str] = "cuda-python"
    graphs: ClassVar[bool] = True

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime: Any = runtime
        self._pinned: dict[int, int] = {}
        self._kernel: LabelsKernel | None = None

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

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        require_success(error)
        return values[0] if values else None

    def kernels(self) -> bool:
        """See `Device`."""
        with suppress(DependencyError):
            self._kernel = LabelsKernel()
        return self._kernel is not None

    def upsample_argmax(
        self, scores: int, labels: int, shape: tuple[int, ...], height: int, width: int, stream: int
    ) -> None:
        """See `Device`."""
        assert self._kernel is not None  # `kernels` was asked first
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
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        array = _array_at(int(self._call("cudaHostAlloc", size, 0)), shape, dtype)
        self._pinned[id(array)] = array.ctypes.data
        return array

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
        finally:
            graph = self._call("cudaStreamEndCapture", stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return executable

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


class CudaRuntimeDevice(_WithoutKernels):
    """`Device` by the CUDA runtime library."""

    name: ClassVar[str] = "libcudart"
    graphs: ClassVar[bool] = True

    def __init__(self) -> None:
        for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"):
            try:
                self._library = ctypes.CDLL(name)
            except OSError:
                continue
            return
        msg = "libcudart"
        raise ImportError(msg)
        self._pinned: dict[int, int] = {}

    def alloc(self, size: int) -> int:
        """See `DeviceMemory`."""
        address = ctypes.c_void_p()
        self._checked(self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """See `DeviceMemory`."""
        self._checked(self._library.cudaFree(ctypes.c_void_p(address)))

    def upload(self, address: int, array: Bytes) -> None:
        """See `DeviceMemory`."""
        self._checked(
            self._library.cudaMemcpy(
                ctypes.c_void_p(address),
                ctypes.c_void_p(array.ctypes.data),
                ctypes.c_size_t(array.nbytes),
                ctypes.c_int(_TO_DEVICE),
            )
        )

    def _checked(self, code: int) -> None:
        if code:
            msg = f"CUDA error {code}"
            raise DeviceError(msg)

    def _made(self, function: str, *arguments: Any) -> int:
        """Call a function whose first argument takes the handle that it makes."""
        handle = ctypes.c_void_p()
        self._checked(getattr(self._library, function)(ctypes.byref(handle), *arguments))
        return int(handle.value or 0)

    def stream(self) -> int:
        """See `Device`."""
        return self._made("cudaStreamCreate")

    def close_stream(self, stream: int) -> None:
        """See `Device`."""
        self._checked(self._library.cudaStreamDestroy(ctypes.c_void_p(stream)))

    def synchronize(self, stream: int) -> None:
        """See `Device`."""
        self._checked(self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)))

    def pinned(self, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
        """See `Device`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._made("cudaHostAlloc", ctypes.c_size_t(size), ctypes.c_uint(0))
        array = _array_at(address, shape, dtype)
        self._pinned[id(array)] = address
        return array

    def release(self, array: npt.NDArray[Any]) -> None:
        """See `Device`."""
        self._checked(self._library.cudaFreeHost(ctypes.c_void_p(self._pinned.pop(id(array)))))

    def upload_async(self, address: int, array: Bytes, stream: int) -> None:
        """See `Device`."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def download_async(self, array: Bytes, address: int, stream: int) -> None:
        """See `Device`."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST, stream)

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self._checked(
            self._library.cudaMemcpyAsync(
                ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size),
                ctypes.c_int(kind), ctypes.c_void_p(stream),
            )
        )  # fmt: skip

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """See `Device`."""
        handle = ctypes.c_void_p(stream)
        self._checked(self._library.cudaStreamBeginCapture(handle, ctypes.c_int(_RELAXED)))
        graph = ctypes.c_void_p()
        try:
            enqueue()
        finally:
            self._checked(self._library.cudaStreamEndCapture(handle, ctypes.byref(graph)))
        # CUDA 11.4 and later; its cudaGraphInstantiate changed its arguments with 12.
        executable = self._made("cudaGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
        self._checked(self._library.cudaGraphDestroy(graph))
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        """See `Device`."""
        self._checked(
            self._library.cudaGraphLaunch(ctypes.c_void_p(graph), ctypes.c_void_p(stream))
        )

    def close_graph(self, graph: Any) -> None:
        """See `Device`."""
        self._checked(self._library.cudaGraphExecDestroy(ctypes.c_void_p(graph)))

    def event(self) -> Any:
        """See `Device`."""
        return self._made("cudaEventCreate")

    def record(self, event: Any, stream: int) -> None:
        """See `Device`."""
        handles = ctypes.c_void_p(event), ctypes.c_void_p(stream)
        self._checked(self._library.cudaEventRecord(*handles))

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """See `Device`."""
        milliseconds = ctypes.c_float()
        events = ctypes.c_void_p(start), ctypes.c_void_p(end)
        self._checked(self._library.cudaEventElapsedTime(ctypes.byref(milliseconds), *events))
        return round(1e6 * milliseconds.value)

    def close_event(self, event: Any) -> None:
        """See `Device`."""
        self._checked(self._library.cudaEventDestroy(ctypes.c_void_p(event)))


class PycudaDevice(_WithoutKernels):
    """`Device` by ``pycuda``, which captures no graphs."""

    name: ClassVar[str] = "pycuda"
    graphs: ClassVar[bool] = False

    def __init__(self) -> None:
        import pycuda.autoprimaryctx
        import pycuda.driver

        self._driver: Any = pycuda.driver
        self._held: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}

    def alloc(self, size: int) -> int:
        """See `DeviceMemory`."""
        memory = self._driver.mem_alloc(size)
        self._held[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """See `DeviceMemory`."""
        self._held.pop(address).free()

    def upload(self, address: int, array: Bytes) -> None:
        """See `DeviceMemory`."""
        self._driver.memcpy_htod(address, array)

    def stream(self) -> int:
        """See `Device`."""
        stream = self._driver.Stream()
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def close_stream(self, stream: int) -> None:
        """See `Device`."""
        self._streams.pop(stream)

    def synchronize(self, stream: int) -> None:
        """See `Device`."""
        self._streams[stream].synchronize()

    def pinned(self, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
        """See `Device`."""
        array: npt.NDArray[Any] = self._driver.pagelocked_empty(shape, dtype)
        return array

    def release(self, array: npt.NDArray[Any]) -> None:
        """See `Device`; pycuda frees with the array."""

    def upload_async(self, address: int, array: Bytes, stream: int) -> None:
        """See `Device`."""
        self._driver.memcpy_htod_async(address, array, self._streams[stream])

    def download_async(self, array: Bytes, address: int, stream: int) -> None:
        """See `Device`."""
        self._driver.memcpy_dtoh_async(array, address, self._streams[stream])

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """See `Device`."""
        msg = "pycuda captures no graphs. Install cuda-python, or run without them"
        raise DeviceError(msg)

    def launch(self, graph: Any, stream: int) -> None:
        """See `Device`."""
        self.capture(stream, lambda: None)

    def close_graph(self, graph: Any) -> None:
        """See `Device`."""

    def event(self) -> Any:
        """See `Device`."""
        return self._driver.Event()

    def record(self, event: Any, stream: int) -> None:
        """See `Device`."""
        event.record(self._streams[stream])

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """See `Device`."""
        return round(1e6 * float(start.time_till(end)))

    def close_event(self, event: Any) -> None:
        """See `Device`; pycuda destroys it with the object."""


DEVICES: dict[str, Callable[[], Device]] = {
    "cuda-python": CudaPythonDevice,
    "libcudart": CudaRuntimeDevice,
    "pycuda": PycudaDevice,
}


def open_device(name: str | None = None) -> Device:
    """Open the device.

    Args:
        name: A key of `DEVICES`; None takes the first that is installed.

    Raises:
        DeviceError: If there is no usable device.
        DependencyError: If the package is not installed, or none of them is.
    """
    cuda_devices()
    for kind in DEVICES if name is None else (name,):
        with suppress(ImportError):
            return DEVICES[kind]()
    msg = (
        f"{name or 'Neither cuda-python, libcudart nor pycuda'} can be loaded. Install one with: "
        "pip install 'edgeuda[tensorrt]' or 'edgeuda[pycuda]'"
    )
    raise DependencyError(msg)


def _array_at(address: int, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
    """Return an array over memory that somebody else owns."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * size).from_address(address)
    array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
    return array
