"""Which runner a file asks for."""

from __future__ import annotations

from pathlib import Path

from edgeuda.errors import ConfigError
from edgeuda.records.names import DeviceName
from engines.bundle_model import model_file
from engines.kept_engines import kept_engines
from engines.onnxruntime_runner import OnnxRunner
from engines.openvino_runner import OpenVinoRunner
from engines.runner import Runner

ENGINE = ".engine"


def open_runner(
    model: Path,
    threads: int | None = None,
    device: DeviceName = "cpu",
    *,
    graphs: bool = True,
    trusted: bool = False,
    confidence: bool = False,
    engines: Path | None = None,
) -> Runner:
    """Open an ONNX file with ONNX Runtime or OpenVINO, or an engine with its TensorRT.

    Args:
        model: ``.onnx``, ``.edgeuda``, of which the best model for the device is taken, or
            ``.engine`` as `edgeuda build` wrote it.
        threads: As in `OnnxRunner`; engines have none.
        device: As in `OnnxRunner`, or ``openvino``: the CPU, by OpenVINO. An engine runs on the
            GPU.
        graphs: As in `TensorRTRunner`; ONNX files have none.
        trusted: Whether this process has made the file or checked its signature.
        confidence: Whether `Runner.signals` is asked for; else nothing is spent on it, but for an
            engine, which computes what it was built with.
        engines: As in `engines.onnx.session.open_session`, for a file out of a bundle; of one that
            is not trusted yet it is found out.

    Raises:
        BundleError: If this machine demands a signature (`engines.trust`) that it lacks.
        ConfigError: If an engine is asked to run on the CPU's threads or another device.
        EdgeudaError: See the runners.
    """
    if not trusted:
        with model_file(model, device) as file:
            return open_runner(
                file, threads, device, graphs=graphs, trusted=True, confidence=confidence,
                engines=kept_engines(model, device),
            )  # fmt: skip
    if model.suffix != ENGINE:
        if device == "openvino":
            return OpenVinoRunner(model, threads, confidence=confidence)
        return OnnxRunner(model, threads, device, confidence=confidence, engines=engines)
    if device in ("tensorrt", "openvino"):
        msg = f"{model}: is an engine already; `device` is for ONNX files"
        raise ConfigError(msg)
    from engines.tensorrt.runner import TensorRTRunner

    return TensorRTRunner(model, graphs=graphs, confidence=confidence)
