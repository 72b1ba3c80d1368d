"""Which runner a file asks for."""

from __future__ import annotations

from pathlib import Path

from edgeuda.errors import ConfigError
from engines.onnxruntime_runner import OnnxRunner
from engines.onnxruntime_session import Device
from engines.runner import Runner

ENGINE = ".engine"


def open_runner(
    model: Path, threads: int | None = None, device: Device = "cpu", *, graphs: bool = True
) -> Runner:
    """Open an ONNX file with ONNX Runtime, or an engine with the TensorRT that built it.

    Args:
        model: ``.onnx``, or ``.engine`` as `edgeuda build` wrote it.
        threads: As in `OnnxRunner`; engines have none.
        device: As in `OnnxRunner`; an engine runs on the GPU.
        graphs: As in `TensorRTRunner`; ONNX files have none.

    Raises:
        ConfigError: If an engine is asked to run on the CPU's threads or another device.
        EdgeudaError: See the runners.
    """
    if model.suffix != ENGINE:
        return OnnxRunner(model, threads, device)
    if device == "tensorrt":
        msg = f"{model}: is an engine already; --device is for ONNX files"
        raise ConfigError(msg)
    from engines.tensorrt_runner import TensorRTRunner

    return TensorRTRunner(model, graphs=graphs)
