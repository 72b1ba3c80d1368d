"""TensorRT as it is installed here: found, probed, and its log kept."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from edgeuda.errors import DependencyError, ModelError
from edgeuda.records.names import LibraryName
from engines.cuda.driver import cuda_devices
from engines.cuda.extra import extra_here

BROKEN = {(10, 2, 0): "its builder is known to be broken; install another 10.x"}
KEPT = 200
"""Messages kept of one log."""


@dataclass
class Log:
    """What TensorRT said, worst first in `worst`.

    Attributes:
        messages: Severity (``ERROR``, ``WARNING``, ``INFO``) and text, as they came.
    """

    messages: list[tuple[str, str]] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        """Keep a message unless it repeats one, or there are too many."""
        if len(self.messages) < KEPT and (severity, text) not in self.messages:
            self.messages.append((severity, text))

    def of(self, *severities: str) -> list[str]:
        """Return the texts of some severities."""
        return [text for severity, text in self.messages if severity in severities]


@dataclass(frozen=True)
class Library:
    """A TensorRT.

    Attributes:
        name: ``tensorrt``, or ``tensorrt_rtx``, which also compiles without a GPU.
        module: The Python module.
        version: Its version, for example ``(10, 16, 1)``.
    """

    name: LibraryName
    module: Any
    version: tuple[int, ...]

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{self.name} {'.'.join(map(str, self.version))}"

    def logger(self) -> tuple[Any, Log]:
        """Return a logger for TensorRT's constructors, and what it keeps."""
        log = Log()
        trt = self.module
        names = {
            trt.ILogger.INTERNAL_ERROR: "ERROR",
            trt.ILogger.ERROR: "ERROR",
            trt.ILogger.WARNING: "WARNING",
            trt.ILogger.INFO: "INFO",
        }

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                if severity in names:
                    log.add(names[severity], message)

        return Logger(), log


def load_tensorrt(name: LibraryName = "tensorrt", *, device: bool = True) -> Library:
    """Import TensorRT.

    Args:
        name: Which one.
        device: Whether a device will be used. ``tensorrt`` always needs one: without a driver even
            its builder's constructor fails, and its runtime's ends the process.

    Raises:
        DependencyError: If it is not installed, or its libraries cannot be loaded.
        DeviceError: If a device is needed and cannot be used; the message says why.
        ModelError: If this version is known not to work.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as err:
        how = (
            "pip install tensorrt-rtx-cu13"
            if name == "tensorrt_rtx"
            else "apt or the image of your JetPack or DRIVE OS, elsewhere by pip install "
            f"'edgeuda[{extra_here()}]'"
        )
        msg = f"{name} cannot be imported ({err}). Get it by {how}"
        raise DependencyError(msg) from err
    version = tuple(int(part) for part in module.__version__.split(".")[:3])
    if name == "tensorrt" and version[:3] in BROKEN:
        msg = f"TensorRT {module.__version__}: {BROKEN[version[:3]]}"  # type: ignore[index]
        raise ModelError(msg)
    if device or name == "tensorrt":
        cuda_devices()
    return Library(name, module, version)
