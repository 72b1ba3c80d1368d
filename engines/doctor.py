"""What this machine can do, what it lacks, and how to get that."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeuda import __version__
from edgeuda.errors import DependencyError, DeviceError, EdgeudaError
from edgeuda.files import text_of
from edgeuda.records.doctor import CheckStatus, DoctorRecord, Part
from edgeuda.records.names import LibraryName, ProviderName
from engines.cuda.device import open_device
from engines.cuda.driver import cuda_devices, driver_version, gpu_title
from engines.cuda.extra import extra_here, jetson_release
from engines.machine.hardware import adds_in_32_bits, drive_release, identity
from engines.onnx.session import open_session
from engines.tensorrt.library import load_tensorrt

_TASKS = {
    "run on the CPU": ("onnxruntime",),
    "run on the CPU with OpenVINO": ("openvino",),
    "calibrate INT8": ("onnxruntime", "onnx"),
    "run on the GPU with ONNX Runtime": ("driver", "onnxruntime cuda"),
    "build TensorRT engines": ("onnx", "driver", "tensorrt"),
    "run TensorRT engines": ("driver", "tensorrt", "device memory"),
    "compile with TensorRT-RTX": ("onnx", "tensorrt_rtx"),
    "train and adapt": ("torch", "onnx"),
    "sign bundles": ("cryptography",),
}


def examine(root: Path = Path("/")) -> list[Part]:
    """Look at the machine.

    Args:
        root: Root of the file system, for the files that say which release this is.
    """
    checks = [
        Part("edgeuda", "note", __version__),
        Part("python", "note", f"{platform.python_version()} at {sys.executable}"),
        Part("machine", "note", f"{platform.machine()}, {platform.platform()}"),
        _processor(identity()),
        *_release(root),
        _driver(),
        *(_power(root)),
        _onnxruntime(),
        *_providers(),
        _package("openvino", "pip install 'edgeuda[openvino]'", "another runtime for CPUs"),
    ]
    checks += [
        _package("onnx", "pip install 'edgeuda[build]'"),
        _package("torch", "pip install 'edgeuda[train]'", "not needed on a vehicle"),
        _tensorrt("tensorrt"),
        _tensorrt("tensorrt_rtx"),
        *_devices(root),
        _package("cryptography", "pip install 'edgeuda[sign]'"),
        _program("trtexec", "part of TensorRT: apt install libnvinfer-bin"),
    ]
    return checks


def abilities(checks: list[Part]) -> dict[str, list[str]]:
    """Return what each task lacks here; nothing means that it can be done."""
    good = {check.name for check in checks if check.status == "ok"}
    return {task: [name for name in needs if name not in good] for task, needs in _TASKS.items()}


def record_of(checks: list[Part]) -> DoctorRecord:
    """Return the record of what was looked at."""
    return DoctorRecord(checks, abilities(checks))


def _processor(machine: Mapping[str, str]) -> Part:
    """Say which instruction sets there are, and what INT8 gains by them."""
    found = f"{machine['cpu']}, {machine['cores_usable']} cores, {machine['cpu_flags']}"
    if machine["architecture"] != "x86_64":
        return Part("processor", "note", found)
    if adds_in_32_bits(machine):
        return Part("processor", "note", f"{found}; multiplies INT8 in 32 bits")
    remark = (
        "there is no VNNI: INT8 gains less over FP32 than with it, and ONNX Runtime adds pairs of "
        "products in 16 bits, which can saturate: look at the agreement with FP32 on this machine, "
        "and measure OpenVINO beside (edgeuda tradeoff --runtime openvino)"
    )
    return Part("processor", "note", f"{found}; {remark}")


def _release(root: Path) -> list[Part]:
    """Say which JetPack's Linux or DRIVE OS this is; neither on other machines."""
    found = []
    jetson = jetson_release(root)
    if jetson is not None:
        jetpack = {35: "JetPack 5", 36: "JetPack 6", 38: "JetPack 7", 39: "JetPack 7"}
        name = jetpack.get(jetson[0], "unknown JetPack")
        found.append(Part("release", "note", f"Jetson Linux {jetson[0]}.{jetson[1]} ({name})"))
    drive = drive_release(root)
    if drive is not None:
        found.append(Part("release", "note", f"DRIVE OS {drive}"))
    model = text_of(root / "proc/device-tree/model")
    if model:
        found.append(Part("board", "note", model))
    return found


def _driver() -> Part:
    try:
        major, minor = driver_version()
        return Part("driver", "ok", f"CUDA device: {gpu_title()}, serves CUDA {major}.{minor}")
    except DeviceError as err:
        fix = "on a vehicle: the image of its JetPack or DRIVE OS; elsewhere: the NVIDIA driver"
        return Part("driver", "absent", str(err), fix)


def _power(root: Path) -> list[Part]:
    found = []
    mode = _run("nvpmodel", "-q")
    if mode:
        name = next((line for line in mode.splitlines() if "Power Mode" in line), mode)
        found.append(Part("power mode", "note", name.strip(), "sudo nvpmodel -m 0, jetson_clocks"))
    governor = text_of(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor:
        fix = "" if governor == "performance" else "sudo cpupower frequency-set -g performance"
        found.append(Part("CPU governor", "note", governor, fix))
    clocks = _run(
        "nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw", "--format=csv,noheader"
    )
    if clocks:
        found.append(Part("GPU clocks", "note", clocks.strip()))
    return found


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _onnxruntime() -> Part:
    both = [n for n in ("onnxruntime", "onnxruntime-gpu") if _version(n) is not None]
    fix = "pip install 'edgeuda[cpu]', or 'edgeuda[gpu]' on a machine with a GPU"
    if not both:
        return Part("onnxruntime", "absent", "not installed", fix)
    found = ", ".join(f"{name} {_version(name)}" for name in both)
    if len(both) == 2:
        fix = f"pip uninstall -y {' '.join(both)}, then one of the two: they overwrite each other"
        return Part("onnxruntime", "broken", found, fix)
    try:
        import onnxruntime as ort

        providers = ", ".join(ort.get_available_providers())
    except Exception as err:  # whatever a damaged native package raises
        return Part("onnxruntime", "broken", f"{found}: {err}", f"pip install --force {both[0]}")
    return Part("onnxruntime", "ok", f"{found}: {providers}")


_IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n'
    b"\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""The smallest ONNX model, one number to itself."""


def _providers() -> list[Part]:
    """Try ONNX Runtime's providers for GPUs: that one is offered does not mean that it works."""
    try:
        import onnxruntime as ort

        offered = ort.get_available_providers()
    except Exception:  # said by `_onnxruntime`
        return []
    found = []
    devices: tuple[tuple[ProviderName, str], ...] = (
        ("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider"),
    )  # fmt: skip
    for device, provider in devices:
        if provider not in offered:
            continue
        name = f"onnxruntime {device}"
        try:
            open_session(_IDENTITY, threads=1, device=device)
        except EdgeudaError as err:
            fix = f"install what it misses, or 'edgeuda[cpu]' instead: {ort.__version__} is built "
            found.append(Part(name, "broken", str(err), f"{fix}for one CUDA and cuDNN"))
        else:
            found.append(Part(name, "ok", f"{provider} takes a model"))
    return found


def _devices(root: Path) -> list[Part]:
    """Try the packages for device memory, each, and whether any works."""
    fixes = {
        "cuda-python": f"pip install 'edgeuda[{extra_here(root)}]'",
        "libcudart": "part of CUDA: the image of JetPack or DRIVE OS has it",
        "pycuda": "pip install 'edgeuda[pycuda]'",
    }
    found = []
    for name, fix in fixes.items():
        version = _version(name) or ""
        try:
            cuda_devices()
        except DeviceError:
            status: CheckStatus = "note" if version else "absent"
            what = f"{version}, not tried without a driver" if version else "not found"
            found.append(Part(name, status, what, "" if version else fix))
            continue
        try:
            device = open_device(name)
        except DependencyError as err:
            found.append(Part(name, "absent", str(err), fix))
        except DeviceError as err:
            found.append(Part(name, "broken", f"{version} {err}".strip(), fix))
        else:
            what = f"CUDA {device.runtime_version()}"
            found.append(Part(name, "ok", f"{version}, {what}" if version else what))
    works = [check.name for check in found if check.status == "ok"]
    if works:
        return [*found, Part("device memory", "ok", f"by {works[0]}")]
    return [
        *found,
        Part("device memory", "absent", "no package works", fixes["cuda-python"]),
    ]


def _package(name: str, fix: str, remark: str = "") -> Part:
    version = _version(name)
    if version is None:
        return Part(name, "absent", remark or "not installed", fix)
    return Part(name, "ok", version)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tensorrt(name: LibraryName) -> Part:
    """Import and probe, and construct nothing: that is what crashes without a driver."""
    load: Callable[[], Any] = lambda: load_tensorrt(name, device=name == "tensorrt")  # noqa: E731
    try:
        return Part(name, "ok", load().title)
    except DeviceError as err:
        return Part(name, "broken", str(err), "needs the driver, see above")
    except EdgeudaError as err:
        what, _, fix = str(err).partition(" Get it by ")
        return Part(name, "absent", what, fix)


def _program(name: str, fix: str) -> Part:
    path = shutil.which(name) or next(
        (str(p) for p in (Path("/usr/src/tensorrt/bin") / name,) if os.access(p, os.X_OK)), None
    )
    return Part(name, "absent", "not found", fix) if path is None else Part(name, "ok", path)
