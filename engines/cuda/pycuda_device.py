"""A CUDA device by ``pycuda``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy.typing as npt

from edgeuda.errors import DeviceError
from engines.cuda.labels_kernel import WithoutKernel
from engines.cuda.memory import Bytes


class PycudaDevice(WithoutKernel):
    """`engines.cuda.device.Device` by ``pycuda``, which captures no graphs.

    Raises:
        ImportError: If it is not installed, or was compiled for a CUDA that is not here.
        DeviceError: If it cannot use the device.
    """

    name: ClassVar[str] = "pycuda"
    graphs: ClassVar[bool] = False

    def __init__(self) -> None:
        import pycuda.driver

        self._driver: Any = pycuda.driver
        self._held: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        try:
            # Retains the primary context, which TensorRT uses too, for the process.
            import pycuda.autoprimaryctx
        except self._driver.Error as err:
            raise DeviceError(str(err)) from err

    def _call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except self._driver.Error as err:
            raise DeviceError(str(err)) from err

    def runtime_version(self) -> str:
        """See `Device`; of pycuda, the CUDA that it was compiled against."""
        return ".".join(map(str, self._driver.get_version()[:2]))

    def integrated(self) -> bool:
        """See `Device`."""
        device = self._call(self._driver.Device, 0)
        attribute = self._driver.device_attribute.INTEGRATED
        return bool(self._call(device.get_attribute, attribute))

    def alloc(self, size: int) -> int:
        """See `DeviceMemory`."""
        memory = self._call(self._driver.mem_alloc, size)
        self._held[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """See `DeviceMemory`."""
        self._call(self._held.pop(address).free)

    def upload(self, address: int, array: Bytes) -> None:
        """See `DeviceMemory`."""
        self._call(self._driver.memcpy_htod, address, array)

    def stream(self) -> int:
        """See `Device`."""
        stream = self._call(self._driver.Stream)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def close_stream(self, stream: int) -> None:
        """See `Device`."""
        self._streams.pop(stream)

    def synchronize(self, stream: int) -> None:
        """See `Device`."""
        self._call(self._streams[stream].synchronize)

    def pinned(self, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
        """See `Device`."""
        flags = self._driver.host_alloc_flags.DEVICEMAP
        array: npt.NDArray[Any] = self._call(
            self._driver.pagelocked_empty, shape, dtype, mem_flags=flags
        )
        return array

    def mapped(self, array: npt.NDArray[Any]) -> int:
        """See `Device`."""
        memory: Any = array.base
        return int(self._call(memory.get_device_pointer))

    def release(self, array: npt.NDArray[Any]) -> None:
        """See `Device`; pycuda frees with the array."""

    def upload_async(self, address: int, array: Bytes, stream: int) -> None:
        """See `Device`."""
        self._call(self._driver.memcpy_htod_async, address, array, self._streams[stream])

    def download_async(self, array: Bytes, address: int, stream: int) -> None:
        """See `Device`."""
        self._call(self._driver.memcpy_dtoh_async, array, address, self._streams[stream])

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
        return self._call(self._driver.Event)

    def record(self, event: Any, stream: int) -> None:
        """See `Device`."""
        self._call(event.record, self._streams[stream])

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """See `Device`."""
        return round(1e6 * float(self._call(start.time_till, end)))

    def close_event(self, event: Any) -> None:
        """See `Device`; pycuda destroys it with the object."""
