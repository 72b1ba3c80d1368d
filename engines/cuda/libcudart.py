"""A CUDA device by the CUDA runtime library, which every Jetson image has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, ClassVar

import numpy.typing as npt

from edgeuda.errors import DeviceError
from engines.cuda.driver import version_of
from engines.cuda.labels_kernel import WithoutKernel
from engines.cuda.memory import Bytes, array_at, size_of

NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_TO_DEVICE, _TO_HOST = 1, 2
_MAPPED = 2
_INTEGRATED = 18
_RELAXED = 2
"""Capture mode in which other threads may still call CUDA."""


class CudaRuntimeDevice(WithoutKernel):
    """`engines.cuda.device.Device` by the CUDA runtime library.

    Of several that are installed, the first that the driver serves is taken.

    Raises:
        ImportError: If there is none.
        DeviceError: If there is one, and none can use the device.
    """

    name: ClassVar[str] = "libcudart"
    graphs: ClassVar[bool] = True

    def __init__(self) -> None:
        self._pinned: dict[int, int] = {}
        refused = []
        for name in NAMES:
            try:
                self._library = ctypes.CDLL(name)
            except OSError:
                continue
            try:
                self._checked(self._library.cudaGetDeviceCount(ctypes.byref(ctypes.c_int())))
            except DeviceError as err:
                refused.append(f"{name}: {err}")
                continue
            return
        if refused:
            raise DeviceError("; ".join(refused))
        msg = f"none of {', '.join(NAMES)} can be loaded"
        raise ImportError(msg)

    def _checked(self, code: int) -> None:
        if code:
            name_of = self._library.cudaGetErrorName
            name_of.restype = ctypes.c_char_p
            msg = f"CUDA error {code}, {name_of(code).decode(errors='replace')}"
            raise DeviceError(msg)

    def _made(self, function: str, *arguments: Any) -> int:
        """Call a function whose first argument takes the handle that it makes."""
        handle = ctypes.c_void_p()
        self._checked(getattr(self._library, function)(ctypes.byref(handle), *arguments))
        return int(handle.value or 0)

    def _number(self, function: str, *arguments: Any) -> int:
        """Call a function whose first argument takes the number that it finds."""
        number = ctypes.c_int()
        self._checked(getattr(self._library, function)(ctypes.byref(number), *arguments))
        return number.value

    def runtime_version(self) -> str:
        """See `Device`."""
        return ".".join(map(str, version_of(self._number("cudaRuntimeGetVersion"))))

    def integrated(self) -> bool:
        """See `Device`."""
        arguments = ctypes.c_int(_INTEGRATED), ctypes.c_int(0)
        return bool(self._number("cudaDeviceGetAttribute", *arguments))

    def alloc(self, size: int) -> int:
        """See `DeviceMemory`."""
        return self._made("cudaMalloc", ctypes.c_size_t(size))

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
        size = ctypes.c_size_t(size_of(shape, dtype))
        address = self._made("cudaHostAlloc", size, ctypes.c_uint(_MAPPED))
        array = array_at(address, shape, dtype)
        self._pinned[id(array)] = address
        return array

    def mapped(self, array: npt.NDArray[Any]) -> int:
        """See `Device`."""
        address = ctypes.c_void_p(self._pinned[id(array)])
        return self._made("cudaHostGetDevicePointer", address, ctypes.c_uint(0))

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
        except BaseException:
            # Ends the capture, whose own error would hide the cause.
            self._library.cudaStreamEndCapture(handle, ctypes.byref(graph))
            if graph.value:
                self._library.cudaGraphDestroy(graph)
            raise
        self._checked(self._library.cudaStreamEndCapture(handle, ctypes.byref(graph)))
        try:
            # CUDA 11.4 and later; its cudaGraphInstantiate changed its arguments with 12.
            return self._made("cudaGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
        finally:
            self._checked(self._library.cudaGraphDestroy(graph))

    def launch(self, graph: Any, stream: int) -> None:
        """See `Device`."""
        handles = ctypes.c_void_p(graph), ctypes.c_void_p(stream)
        self._checked(self._library.cudaGraphLaunch(*handles))

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
