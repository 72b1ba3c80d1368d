"""How this project opens ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from edgeuda.errors import DependencyError, ModelError, require

Device = Literal["cpu", "cuda", "tensorrt"]
_PROVIDERS: dict[Device, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
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
    device: Device = "cpu",
    optimized: Path | None = None,
) -> Any:
    """Open an ``onnxruntime.InferenceSession``.

    Args:
        model: An ONNX file or its serialised bytes.
        threads: Threads of one operator; None takes every usable core.
        optimize: Whether the graph is optimised; off saves time where nothing is run.
        device: Where it runs; operators without a kernel there run on the next best: ``tensorrt``
            (ONNX Runtime's provider), ``cuda``, ``cpu``.
        optimized: File to write the graph to as it was compiled; None writes none.

    Raises:
        ModelError: If the file is missing, broken or uses what this ONNX Runtime lacks.
        DependencyError: If ``onnxruntime`` is not installed, or not for that device.
    """
    ort = require("onnxruntime", "cpu")
    origin = str(model) if isinstance(model, Path) else "the ONNX model in memory"
    if isinstance(model, Path) and not model.is_file():
        msg = f"{origin}: expected an ONNX model, found no such file"
        raise ModelError(msg)
    if _PROVIDERS[device][0] not in ort.get_available_providers():
        msg = (
            f"ONNX Runtime {ort.__version__} has no provider for device {device!r} here, only "
            f"{', '.join(ort.get_available_providers())}. Install 'edgeuda[gpu]' in place of the "
            f"CPU package, or use --device cpu"
        )
        raise DependencyError(msg)
    options = ort.SessionOptions()
    # What is fatal arrives as an exception; the rest is about initialisers and graph rewrites.
    options.log_severity_level = 4
    # Asked for by name because INT8 depends on it: only the extended level turns Q/DQ pairs into
    # integer kernels, and only "all" chooses the blocked layout of float convolutions.
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
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
    try:
        return ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=[p for p in _PROVIDERS[device] if p in ort.get_available_providers()],
        )
    except Exception as err:  # a family of native exceptions without a public base class
        msg = f"{origin}: expected an ONNX model that ONNX Runtime can load ({err})"
        raise ModelError(msg) from err
