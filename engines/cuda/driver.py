"""NVIDIA's driver, probed before anything that would crash without one."""

from __future__ import annotations

import ctypes
from typing import Any

from edgeuda.errors import DeviceError

_NO_DEVICE = {35: "the driver is missing or too old", 100: "there is no device"}
_COMPUTE_CAPABILITY = (75, 76)
"""Device attributes of the driver: major and minor."""


def cuda_devices() -> int:
    """Return the number of usable CUDA devices.

    Called before anything of TensorRT is constructed: without a driver its runtime does not raise
    but end the process.

    Raises:
        DeviceError: If there is no driver or no device; the message says which.
    """
    count = ctypes.c_int()
    _driver().cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        msg = "CUDA cannot be used: there is no device"
        raise DeviceError(msg)
    return count.value


def _driver() -> Any:
    """Return the driver's library, initialised."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        msg = "No NVIDIA driver here (libcuda.so.1 cannot be loaded). Run this on the vehicle"
        raise DeviceError(msg) from err
    code = driver.cuInit(0)
    if code:
        msg = f"CUDA cannot be used: error {code}, {_NO_DEVICE.get(code, 'see CUresult')}"
        raise DeviceError(msg)
    return driver


def require_success(error: Any) -> None:
    """Check what a function of ``cuda-python`` returned first.

    Raises:
        DeviceError: If it is an error; the message names it.
    """
    if int(error):
        msg = f"CUDA error {int(error)}, {getattr(error, 'name', '')}"
        raise DeviceError(msg)


def driver_version() -> tuple[int, int]:
    """Return the latest CUDA that the driver serves, for example ``(12, 6)``.

    Raises:
        DeviceError: See `cuda_devices`.
    """
    number = ctypes.c_int()
    _driver().cuDriverGetVersion(ctypes.byref(number))
    return version_of(number.value)


def version_of(number: int) -> tuple[int, int]:
    """Return major and minor of CUDA's form of a version, 12060 for 12.6."""
    return number // 1000, number % 1000 // 10


def compute_capability() -> tuple[int, int]:
    """Return the first device's compute capability, for example ``(8, 7)``.

    Raises:
        DeviceError: See `cuda_devices`.
    """
    cuda_devices()
    driver = _driver()
    major, minor = (ctypes.c_int(), ctypes.c_int())
    for value, attribute in zip((major, minor), _COMPUTE_CAPABILITY, strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
    return major.value, minor.value


def gpu_title() -> str:
    """Return name and compute capability of the first device, for example ``"Orin (8.7)"``.

    Raises:
        DeviceError: See `cuda_devices`.
    """
    major, minor = compute_capability()
    name = ctypes.create_string_buffer(256)
    _driver().cuDeviceGetName(name, ctypes.c_int(len(name)), ctypes.c_int(0))
    return f"{name.value.decode(errors='replace')} ({major}.{minor})"
