"""Identity of the machine on which something was measured."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from edgeuda import __version__
from edgeuda.errors import DependencyError, DeviceError, require
from edgeuda.files import text_of
from engines.cuda.driver import driver_version, gpu_title
from engines.onnx.session import usable_cores

UNKNOWN = "not available"

CPU_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
)
"""Instruction sets that decide how fast INT8 and float kernels are, on x86 and on Arm."""

GPU_NAMES = re.compile(r"gpu|ga10b|gv11b|gp10b")
"""Integrated GPUs among the kernel's devices with a variable clock."""
ROUNDING = ("onnxruntime", "cpu_flags", "architecture")
"""What of `identity` decides how a model's sums are rounded on the CPU."""
_CPU0 = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def adds_in_32_bits(machine: Mapping[str, str]) -> bool:
    """Whether products of bytes are added in 32 bits; else ONNX Runtime's sums may saturate.

    Args:
        machine: See `identity`.
    """
    flags = machine["cpu_flags"].split()
    wide = any("vnni" in flag or flag.startswith("amx_int8") for flag in flags)
    return machine["architecture"] != "x86_64" or wide


def identity() -> dict[str, str]:
    """Return what a latency depends on, flat, with ``"not available"`` for what cannot be read.

    Nothing in it names the user, the host or the network.
    """
    info = _proc_table(Path("/proc/cpuinfo"))
    flags = info.get("flags", info.get("Features", "")).split()
    found = " ".join(flag for flag in CPU_FLAGS if flag in flags)
    return {
        "cpu": info.get("model name") or _board() or platform.processor() or UNKNOWN,
        "architecture": platform.machine() or UNKNOWN,
        "cores_usable": str(usable_cores()),
        "cores_online": str(os.cpu_count() or UNKNOWN),
        "cpu_flags": (found or "none of interest") if flags else UNKNOWN,
        "cpu_governor": _read(_CPU0 / "scaling_governor"),
        "cpu_mhz": info.get("cpu MHz") or _mhz("scaling_cur_freq"),
        "cpu_mhz_max": _mhz("cpuinfo_max_freq"),
        "memory": _proc_table(Path("/proc/meminfo")).get("MemTotal", UNKNOWN),
        "load_average": _load_average(),
        "os": _os_name(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "onnxruntime": _onnxruntime(),
        **cuda_identity(),
        **gpu_identity(),
        **jetson_identity(),
        "drive_os": drive_release() or UNKNOWN,
        "edgeuda": __version__,
        "git_commit": git_commit(Path(__file__).resolve().parents[1]),
    }


def git_commit(root: Path) -> str:
    """Return the commit of a checkout, with ``-dirty`` after it if files differ from it.

    Where git cannot tell, ``"not available"`` and, in a checkout, why.
    """
    if not (root / ".git").exists():  # installed, or inside somebody else's repository
        return UNKNOWN
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=60, check=True
        )
    except subprocess.TimeoutExpired:  # a machine under load
        return f"{UNKNOWN}: git describe took more than a minute"
    except subprocess.CalledProcessError as err:
        return f"{UNKNOWN}: {err.stderr.strip() or f'git describe ended with {err.returncode}'}"
    except OSError as err:
        return f"{UNKNOWN}: git: {err.strerror}"
    return done.stdout.strip()


def _proc_table(path: Path) -> dict[str, str]:
    """Read the first ``key : value`` of each key; empty where there is no such file."""
    table: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return table
    for line in text.splitlines():
        key, _, value = line.partition(":")
        table.setdefault(key.strip(), value.strip())
    return table


def drive_release(root: Path = Path("/")) -> str | None:
    """Return the release of DRIVE OS; None elsewhere.

    Args:
        root: Root of the file system.
    """
    for name in ("etc/nvidia/version-ubuntu-rootfs.txt", "etc/nvidia/version-pdk.txt"):
        if text := text_of(root / name):
            return text.splitlines()[0]
    return None


def _read(path: Path) -> str:
    return text_of(path) or UNKNOWN


def _mhz(name: str) -> str:
    khz = _read(_CPU0 / name)
    return f"{int(khz) / 1000:.0f}" if khz.isdecimal() else UNKNOWN


def _board() -> str | None:
    """Return the board's name on Arm, where /proc/cpuinfo has no model name."""
    name = _read(Path("/proc/device-tree/model"))
    return None if name == UNKNOWN else name


def _load_average() -> str:
    try:
        return " ".join(f"{value:.2f}" for value in os.getloadavg())
    except (AttributeError, OSError):
        return UNKNOWN


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def _onnxruntime() -> str:
    try:
        return str(require("onnxruntime", "cpu").__version__)
    except DependencyError:
        return UNKNOWN


def cuda_identity() -> dict[str, str]:
    """Return the CUDA that the driver serves and the first GPU's compute capability.

    ``"not available"`` where there is no driver. The runtime's version is of a runner, as each
    package brings its own, see `engines.runner.Runner.execution`.
    """
    facts = dict.fromkeys(("cuda_driver", "cuda_device"), UNKNOWN)
    with suppress(DeviceError):
        facts["cuda_driver"] = ".".join(map(str, driver_version()))
        facts["cuda_device"] = gpu_title()
    return facts


def gpu_identity() -> dict[str, str]:
    """Return the first GPU's name, driver, limit and clocks by NVML; ``"not available"`` without.

    NVML does not tell whether clocks are locked. What is said of them is the streaming
    multiprocessors' clock now, that which applications asked for, and the highest.
    """
    names = ("gpu", "gpu_driver", "gpu_power_limit_w", "gpu_clocks_mhz")
    facts = dict.fromkeys(names, UNKNOWN)
    with suppress(Exception):  # DependencyError without the package, NVMLError without a driver
        nvml = require("pynvml", "gpu")
        nvml.nvmlInit()
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(0)
            facts["gpu"] = str(nvml.nvmlDeviceGetName(device))
            facts["gpu_driver"] = str(nvml.nvmlSystemGetDriverVersion())
            with suppress(Exception):  # integrated GPUs lack some of them
                limit = nvml.nvmlDeviceGetEnforcedPowerLimit(device)
                facts["gpu_power_limit_w"] = f"{limit / 1e3:g}"
            with suppress(Exception):
                kind = nvml.NVML_CLOCK_SM
                now = nvml.nvmlDeviceGetClockInfo(device, kind)
                asked = nvml.nvmlDeviceGetApplicationsClock(device, kind)
                highest = nvml.nvmlDeviceGetMaxClockInfo(device, kind)
                facts["gpu_clocks_mhz"] = f"{now} now, {asked} asked for, {highest} at most"
        finally:
            nvml.nvmlShutdown()
    return facts


def jetson_identity(root: Path = Path("/")) -> dict[str, str]:
    """Return a Jetson's release, power mode and fixed clocks; ``"not available"`` elsewhere.

    ``jetson_clocks --show`` needs root; ``gpu_clock_lock`` is read where everybody may.
    """
    release = _read(root / "etc/nv_tegra_release").split("\n")[0]
    return {
        "l4t": release.lstrip("# "),
        "nvpmodel": _said(["nvpmodel", "-q"]),
        "jetson_clocks": _said(["jetson_clocks", "--show"]),
        "gpu_clock_lock": _clock_lock(root),
    }


def _clock_lock(root: Path) -> str:
    """Say whether an integrated GPU's clock is fixed: its lowest is its highest then."""
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        if GPU_NAMES.search(device.name):
            low, high = (text_of(device / name) for name in ("min_freq", "max_freq"))
            if low.isdecimal() and high.isdecimal():
                lowest, highest = int(low) // 10**6, int(high) // 10**6
                return f"at {highest} MHz" if low == high else f"no, {lowest} to {highest} MHz"
    return UNKNOWN


def _said(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return UNKNOWN
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return "; ".join(done.stdout.split("\n")).strip("; ") or UNKNOWN
    return UNKNOWN
