"""Which extra of this distribution fits the CUDA of a machine."""

from __future__ import annotations

import re
from pathlib import Path

from edgeuda.errors import DeviceError
from edgeuda.files import text_of
from engines.cuda.driver import driver_version


def jetson_release(root: Path = Path("/")) -> tuple[int, str] | None:
    """Return Jetson Linux's major release and its revision, ``(36, "4.3")``; None elsewhere.

    Args:
        root: Root of the file system.
    """
    match = re.search(r"R(\d+).*?REVISION: ([\d.]+)", text_of(root / "etc/nv_tegra_release"))
    return None if match is None else (int(match[1]), match[2])


def cuda_extra(driver: tuple[int, int] | None, root: Path = Path("/")) -> str:
    """Return the extra whose cuda-python the driver can serve.

    A package for a later CUDA than the driver's answers every call with error 35. On a Jetson,
    TensorRT comes with the image and must not be taken from PyPI, where it is another build.
    For CUDA 11 it is pycuda, which is compiled against the CUDA that is there.

    Args:
        driver: The CUDA that the driver serves; None if there is no driver.
        root: Root of the file system.
    """
    jetson = jetson_release(root)
    if jetson is not None:
        return "pycuda" if jetson[0] <= 35 else "jetpack6" if jetson[0] <= 37 else "jetpack7"
    if driver is None or driver[0] >= 13:
        return "tensorrt-cu13"
    return "tensorrt-cu12" if driver[0] == 12 else "pycuda"


def extra_here(root: Path = Path("/")) -> str:
    """Return `cuda_extra` of this machine.

    Args:
        root: Root of the file system.
    """
    try:
        driver = driver_version()
    except DeviceError:
        driver = None
    return cuda_extra(driver, root)
