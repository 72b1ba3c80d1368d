"""INT8 engines by TensorRT's own calibrators, which the deep learning accelerator needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibration.frames import FrameFiles, checksums
from calibration.source import origin_of
from calibration.tensorrt_calibrator import Algorithm, tensorrt_calibrator
from edgeuda.errors import ModelError
from edgeuda.files import sha256_of, short_name
from edgeuda.records.build import BuildOptions
from engines.cuda.device import DeviceMemory, open_device
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.metadata import runtime_of, spec_of
from engines.tensorrt.cache import Engine, cached_engine
from engines.tensorrt.library import Library


def calibrated_engine(
    library: Library,
    model: Path,
    frames: Sequence[Path],
    options: BuildOptions,
    folder: Path,
    *,
    algorithm: Algorithm = "entropy",
    memory: DeviceMemory | None = None,
) -> Engine:
    """Build an INT8 engine of an FP32 model on frames, unless the folder holds the same one.

    TensorRT chooses which layers are INT8. Its calibration cache lies beside the engine, and serves
    other options of the same model and frames.

    Args:
        library: TensorRT 8.6 to 10.11.
        model: An exported FP32 model.
        frames: Frames of the target domain; what is left after the last whole batch is not used.
        options: What it is built for.
        folder: Where engines lie.
        algorithm: ``entropy``, which the accelerator needs, or ``minmax``.
        memory: The device's memory; None opens the device.

    Raises:
        ConfigError: If this TensorRT has no calibrators.
        ModelError: If the model is quantized already.
        DataError: If there are fewer frames than a batch, or one cannot be read.
        EdgeudaError: See `cached_engine`.
    """
    proto = load_graph(model, "build")
    metadata = metadata_of(proto)
    if runtime_of(metadata) is not None:
        msg = f"{model}: is quantized already. Give the FP32 model it was made from"
        raise ModelError(msg)
    size = spec_of(metadata, str(model)).preprocessing
    origin = origin_of(proto, checksums(frames), size)
    made_from = sha256_of([algorithm, origin.model_sha256, *origin.frames])
    cache = folder / f"{short_name(model.stem)}-{made_from[:16]}.calibration"
    calibrator = tensorrt_calibrator(
        library.module,
        FrameFiles.of(frames, size),
        cache,
        origin,
        memory or open_device(),
        batch=options.batch[1],
        algorithm=algorithm,
    )
    return cached_engine(library, model, options, folder, calibrator, made_from)
