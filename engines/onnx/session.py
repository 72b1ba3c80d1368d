"""How this project opens ONNX Runtime."""

from __future__ import annotations

import ctypes
import hashlib
import io
import logging
import os
import tempfile
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from edgeuda.errors import DependencyError, DeviceError, ModelError, require
from edgeuda.records.names import ProviderName
from engines.onnx.graphs import require_whole

logger = logging.getLogger(__name__)

_PROVIDERS: dict[ProviderName, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}


def usable_cores() -> int:
    """Return the number of CPU cores this process may run on (its affinity, where known)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(
    model: Path | bytes,
    *,
    threads: int | None = None,
    optimize: bool = True,
    device: ProviderName = "cpu",
    optimized: Path | None = None,
    profile: Path | None = None,
    int8: bool = False,
    half: bool = False,
    origin: str | None = None,
    engines: Path | None = None,
) -> Any:
    """Open an ``onnxruntime.InferenceSession``.

    Args:
        model: An ONNX file or its serialised bytes.
        threads: Threads of one operator; None takes every usable core.
        optimize: Whether the graph is optimised; off saves time where nothing is run.
        device: Where it runs; operators without a kernel there run on the next best: ``tensorrt``
            (ONNX Runtime's provider), ``cuda``, ``cpu``.
        optimized: File to write the graph to as it was compiled; None writes none.
        profile: Beginning of the name of a profile to write, see `nodes_by_provider`; None writes
            none.
        int8: Whether the graph has Q/DQ pairs, which ``tensorrt`` has to be told.
        half: Whether it is in half precision, likewise.
        origin: What errors call it; None is the file's name.
        engines: Folder in which ``tensorrt`` keeps what it builds, for later processes; it must be
            writable by nobody who is not trusted, as engines are native code. None keeps them for
            this process. What lies there and cannot be used is built again.

    Raises:
        ModelError: If the file is missing, broken or uses what this ONNX Runtime lacks.
        DependencyError: If ``onnxruntime`` is not installed, or not for that device.
        DeviceError: If the device's provider is installed and would not be used. ONNX Runtime
            itself goes on with the CPU then.
    """
    ort = require("onnxruntime", "cpu")
    if origin is None:
        origin = str(model) if isinstance(model, Path) else "the ONNX model in memory"
    if isinstance(model, Path) and not model.is_file():
        msg = f"{origin}: expected an ONNX model, found no such file"
        raise ModelError(msg)
    require_whole(model.read_bytes() if isinstance(model, Path) else model, origin)
    if _PROVIDERS[device][0] not in ort.get_available_providers():
        msg = (
            f"ONNX Runtime {ort.__version__} has no provider for device {device!r} here, only "
            f"{', '.join(ort.get_available_providers())}. Install 'edgeuda[gpu]' in place of the "
            f"CPU package, or use `device` cpu"
        )
        raise DependencyError(msg)
    options = ort.SessionOptions()
    # What is fatal arrives as an exception; the rest is about initialisers and graph rewrites.
    options.log_severity_level = 4
    # Asked for by name because INT8 depends on it: only the extended level turns Q/DQ pairs into
    # integer kernels, and only "all" chooses the blocked layout of float convolutions.
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    # ONNX Runtime counts the machine's cores, not those this process is allowed to use.
    options.intra_op_num_threads = threads or usable_cores()
    # The graph is a chain with short side branches: running them in parallel costs more than it
    # gains and makes latency uneven.
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    # Idle worker threads would otherwise spin on their cores between frames. That makes a lone
    # model about 3 % faster, but takes the cores from the vehicle's other work and, in a benchmark
    # of several models, from the one that is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    if device == "cpu":
        return _session(ort, source, options, origin)
    _load_cuda(ort)
    wanted = _PROVIDERS[device][0]
    providers: list[Any] = [p for p in _PROVIDERS[device] if p in ort.get_available_providers()]
    if device == "tensorrt":
        providers[0] = (wanted, _tensorrt_options(model, int8, half, engines))

    def opened() -> Any:
        # Else what fails on the device is tried again on the CPU.
        return ort.InferenceSession(source, options, providers=providers, enable_fallback=0)

    try:
        try:
            session = opened()
        except Exception as err:
            if device != "tensorrt" or not _cleared(engines):
                raise
            logger.warning("%s: the engines in %s are built again (%s)", origin, engines, err)
            session = opened()
        found = session.get_providers()
    except Exception as err:  # a family of native exceptions without a public base class
        plain = ort.SessionOptions()
        plain.log_severity_level = 4
        _session(ort, source, plain, origin)  # it is the model that is refused
        raise DeviceError(_not_used(ort, origin, device, str(err))) from err
    if found[0] != wanted:
        raise DeviceError(_not_used(ort, origin, device, f"it chose {', '.join(found)}"))
    return session


def _session(ort: Any, source: str | bytes, options: Any, origin: str) -> Any:
    try:
        return ort.InferenceSession(source, options, providers=list(_PROVIDERS["cpu"]))
    except Exception as err:  # a family of native exceptions without a public base class
        msg = f"{origin}: expected an ONNX model that ONNX Runtime can load ({err})"
        raise ModelError(msg) from err


def _load_cuda(ort: Any) -> None:
    """Load CUDA's libraries from their wheels, where they are installed as such."""
    if hasattr(ort, "preload_dlls"):  # 1.21 and later
        with redirect_stdout(io.StringIO()):  # what is missing is said by `_not_used`
            ort.preload_dlls()


def _tensorrt_options(
    model: Path | bytes, int8: bool, half: bool, engines: Path | None
) -> dict[str, Any]:
    """Return the options of ONNX Runtime's TensorRT provider.

    Engines lie in a folder that nobody else writes to, as they are native code, and one for each
    model, as ONNX Runtime tells models apart by names only.
    """
    content = model.read_bytes() if isinstance(model, Path) else model
    if engines is not None:
        engines.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = (engines or Path(_engines().name)) / hashlib.sha256(content).hexdigest()
    folder.mkdir(exist_ok=True)
    return {
        "trt_int8_enable": int8,
        "trt_fp16_enable": half,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
    }


def _cleared(engines: Path | None) -> bool:
    """Remove what was kept, if anything was; returns whether it was."""
    kept = [] if engines is None else [path for path in engines.rglob("*") if path.is_file()]
    for path in kept:
        path.unlink()
    return bool(kept)


@cache
def _engines() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgeuda-engines-")


def _not_used(ort: Any, origin: str, device: ProviderName, why: str) -> str:
    """Say why a device would not be used, by the library that cannot be loaded if that is it."""
    folder = Path(ort.__file__).parent / "capi"
    for provider in _PROVIDERS[device]:
        if provider in _LIBRARIES and (folder / _LIBRARIES[provider]).exists():
            try:
                ctypes.CDLL(str(folder / _LIBRARIES[provider]))
            except OSError as err:
                # Not its undefined symbols, which ONNX Runtime brings.
                if "cannot open shared object" in str(err):
                    why = f"{why.strip()}; {err}"
    return (
        f"{origin}: ONNX Runtime {ort.__version__} would not use device {device!r} ({why}). "
        "Install the CUDA, cuDNN and, for tensorrt, TensorRT it was built for: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'; or use `device` cpu"
    )
