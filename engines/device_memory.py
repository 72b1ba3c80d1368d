"""The driver probed, and memory on a CUDA device by the packages that offer it."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy.typing as npt

from edgeuda.errors import DeviceError

Bytes = npt.NDArray[Any]

_NO_DEVICE = {35: "the driver is missing or too old", 100: "there is no device"}
_TO_DEVICE = 1
_COMPUTE_CAPABILITY = (75, 76)
"""Device attributes of the driver: major and minor."""


class DeviceMemory(Protocol):
    """What calibration needs of a device."""

    def alloc(self, size: int) -> int:
        """Reserve ``size`` bytes; returns their address."""

    def free(self, address: int) -> None:
        """Give back what `alloc` returned."""

    def upload(self, address: int, array: Bytes) -> None:
        """Copy a C-contiguous array to the device, and wait for it."""


def cuda_devices() -> int:
    """Return the number of usable CUDA devices.

    Called before anything of TensorRT is constructed: without a driver its runtime does not raise
    but end the process.

    Raises:
        DeviceError: If there is no driver or no device; the message says which.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        msg = "No NVIDIA driver here (libcuda.so.1 cannot be loaded). Run this on the vehicle"
        raise DeviceError(msg) from err
    code = driver.cuInit(0)
    if code:
        msg = f"CUDA cannot be used: error {code}, {_NO_DEVICE.get(code, 'see CUresult')}"
        raise DeviceError(msg)
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        msg = "CUDA cannot be used: there is no device"
        raise DeviceError(msg)
    return count.value


def gpu_title() -> str:
    """Return name and compute capability of the first device, for example ``"Orin (8.7)"``.

    Raises:
        DeviceError: See `cuda_devices`.
    """
    cuda_devices()
    driver = ctypes.CDLL("libcuda.so.1")
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, ctypes.c_int(len(name)), ctypes.c_int(0))
    numbers = []
    for attribute in _COMPUTE_CAPABILITY:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
        numbers.append(value.value)
    return f"{name.value.decode(errors='replace')} ({numbers[0]}.{numbers[1]})"


class CudaPython:
    """`DeviceMemory` by ``cuda-python``."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime: Any = runtime

    def alloc(self, size: int) -> int:
        """See `DeviceMemory`."""
        return int(self._checked(*self._runtime.cudaMalloc(size)))

    def free(self, address: int) -> None:
        """See `DeviceMemory`."""
        self._checked(*self._runtime.cudaFree(address))

    def upload(self, address: int, array: Bytes) -> None:
        """See `DeviceMemory`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(*self._runtime.cudaMemcpy(address, array.ctypes.data, array.nbytes, kind))

    def _checked(self, error: Any, *values: Any) -> Any:
        if int(error):
            msg = f"CUDA error {int(error)}, {getattr(error, 'name', '')}"
            raise DeviceError(msg)
        return values[0] if values else None


class Pycuda:
    """`DeviceMemory` by ``pycuda``, in the device's primary context."""

    def __init__(self) -> None:
        import pycuda.autoprimaryctx
        import pycuda.driver

        self._driver: Any = pycuda.driver
        self._held: dict[int, Any] = {}

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


class CudaRuntimeLibrary:
    """`DeviceMemory` by the CUDA runtime library itself, which every Jetson image has."""

    def __init__(self) -> None:
        for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"):
            try:
                self._library = ctypes.CDLL(name)
            except OSError:
                continue
            return
        msg = "libcudart"
        raise ImportError(msg)

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
