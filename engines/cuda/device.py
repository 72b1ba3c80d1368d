"""A CUDA device as a runner needs it: streams, pinned memory, graphs.

Three packages offer it: cuda-python, the CUDA runtime library itself, which every Jetson image has,
and pycuda.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy.typing as npt

from edgeuda.errors import DependencyError, DeviceError
from engines.cuda.cuda_python import CudaPythonDevice
from engines.cuda.driver import cuda_devices, driver_version
from engines.cuda.extra import cuda_extra
from engines.cuda.libcudart import CudaRuntimeDevice
from engines.cuda.memory import Bytes
from engines.cuda.pycuda_device import PycudaDevice

logger = logging.getLogger(__name__)


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

    Every method raises `DeviceError` where CUDA refuses.

    Attributes:
        name: The package, which is printed.
        graphs: Whether sequences can be captured.
    """

    name: ClassVar[str]
    graphs: ClassVar[bool]

    def runtime_version(self) -> str:
        """Return the CUDA that the package brings, for example ``"12.6"``."""

    def integrated(self) -> bool:
        """Whether the GPU shares the host's memory, as a Jetson's does."""

    def stream(self) -> int:
        """Open a stream; returns its handle."""

    def close_stream(self, stream: int) -> None:
        """Close it."""

    def synchronize(self, stream: int) -> None:
        """Wait for all that was enqueued."""

    def pinned(self, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
        """Return an array in page-locked memory, from which copies need no staging."""

    def mapped(self, array: npt.NDArray[Any]) -> int:
        """Return the device's address of what `pinned` returned; no copy is made."""

    def release(self, array: npt.NDArray[Any]) -> None:
        """Give back what `pinned` returned; the array must not be used any more."""

    def upload_async(self, address: int, array: Bytes, stream: int) -> None:
        """Enqueue a copy to the device."""

    def download_async(self, array: Bytes, address: int, stream: int) -> None:
        """Enqueue a copy from it."""

    def load_kernel(self) -> None:
        """Load `engines.cuda.labels_kernel`.

        Raises:
            DependencyError: If this package launches no kernels, or NVRTC is not installed.
            DeviceError: If it cannot be compiled or loaded.
        """

    def unload_kernel(self) -> None:
        """Give back what one `load_kernel` took; the last of several unloads the kernel."""

    def upsample_argmax(
        self, scores: int, labels: int, shape: tuple[int, ...], height: int, width: int, stream: int
    ) -> None:
        """Enqueue the kernel that `load_kernel` loaded, see `LabelsKernel.launch`."""

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """Record what ``enqueue`` enqueues, without running it; returns something to launch.

        Raises:
            DeviceError: If it cannot be recorded; the stream can be used as before.
        """

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


DEVICES: dict[str, Callable[[], Device]] = {
    "cuda-python": CudaPythonDevice,
    "libcudart": CudaRuntimeDevice,
    "pycuda": PycudaDevice,
}


def _tried(kind: str) -> Device | ImportError | DeviceError:
    """Return a package's device after it took and gave back memory, or what stood in the way."""
    try:
        device = DEVICES[kind]()
        device.free(device.alloc(1))
    except (ImportError, DeviceError) as err:
        return err
    return device


def open_device(name: str | None = None) -> Device:
    """Open the device by a package that is shown to work: memory is taken and given back.

    Args:
        name: A key of `DEVICES`; None tries all in turn. What is passed over because it does not
            work, as opposed to not being installed, is said as a warning.

    Raises:
        DeviceError: If there is no usable device, or what is installed cannot use it; the message
            says why, by package.
        DependencyError: If the package is not installed, or none of them is.
    """
    cuda_devices()
    absent: dict[str, str] = {}
    broken: dict[str, str] = {}
    for kind in DEVICES if name is None else (name,):
        found = _tried(kind)
        if isinstance(found, ImportError):
            absent[kind] = f"not installed ({found})"
        elif isinstance(found, DeviceError):
            broken[kind] = str(found)
        else:
            for other, why in broken.items():
                logger.warning("%s cannot be used (%s); %s is used instead", other, why, kind)
            return found
    reasons = "; ".join(f"{kind}: {why}" for kind, why in {**broken, **absent}.items())
    major, minor = driver_version()
    extra = cuda_extra((major, minor))
    msg = (
        f"No package can use the device ({reasons}). The driver serves CUDA {major}.{minor}: "
        f"pip install 'edgeuda[{extra}]'"
    )
    raise (DeviceError if broken else DependencyError)(msg)
