"""Calibration inside TensorRT 8.6 to 10, for engines without Q/DQ such as DLA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from calibration.frames import Frames
from calibration.range_file import RangeOrigin
from calibration.tensorrt_cache import read_cache, write_cache
from edgeuda.errors import DataError, DependencyError
from engines.cuda.device import DeviceMemory

Algorithm = Literal["entropy", "minmax"]
_BASES: dict[Algorithm, str] = {
    "entropy": "IInt8EntropyCalibrator2",
    "minmax": "IInt8MinMaxCalibrator",
}


def tensorrt_calibrator(
    trt: Any,
    frames: Frames,
    cache: Path,
    origin: RangeOrigin,
    memory: DeviceMemory,
    *,
    batch: int = 1,
    algorithm: Algorithm = "entropy",
) -> Any:
    """Return a calibrator for ``IBuilderConfig.int8_calibrator``.

    It keeps a reference to what it needs; keep one to it while the engine is built. An error in a
    callback cannot pass through TensorRT: calibration then ends early, and the error is in the
    attribute ``error`` for the caller to raise.

    Args:
        trt: The ``tensorrt`` module, 8.6 to 10.
        frames: uint8 ``[1, H, W, 3]`` each; what remains after the last whole batch is left out.
        cache: File of TensorRT's cache, read if it exists and written otherwise.
        origin: What the cache is made from; one that was made from something else is refused.
        memory: The device's memory.
        batch: Images per batch, as in the engine's calibration profile.
        algorithm: ``entropy``, which DLA needs, or ``minmax``.

    Raises:
        DependencyError: If this TensorRT has no calibrators.
        DataError: If there are fewer frames than a batch, or ``cache`` is of something else.
    """
    name = _BASES[algorithm]
    if not hasattr(trt, name):
        msg = (
            f"TensorRT {getattr(trt, '__version__', '')} has no {name}: calibrators were removed "
            "in 11. Build the engine from a Q/DQ model: edgeuda calibrate --runtime tensorrt"
        )
        raise DependencyError(msg)
    if len(frames) < batch:
        msg = f"Expected at least one batch of {batch} frames to calibrate on, found {len(frames)}"
        raise DataError(msg)
    known = read_cache(cache, origin, same_frames=True) if cache.exists() else None

    class Calibrator(getattr(trt, name)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error: BaseException | None = None
            self.position = 0
            self.address: int | None = None

        def get_batch_size(self) -> int:
            return batch

        def get_batch(self, names: list[str], *_: Any) -> list[int] | None:
            if self.error is not None or self.position + batch > len(frames):
                self.release()
                return None
            try:
                images = [frames[self.position + i] for i in range(batch)]
                pixels = np.ascontiguousarray(np.concatenate(images), np.float32)
                if self.address is None:
                    self.address = memory.alloc(pixels.nbytes)
                memory.upload(self.address, pixels)
            except Exception as err:
                self.error = err
                self.release()
                return None
            self.position += batch
            return [self.address] * len(names)

        def read_calibration_cache(self) -> bytes | None:
            return known

        def write_calibration_cache(self, content: Any) -> None:
            try:
                write_cache(cache, bytes(content), origin)
            except Exception as err:
                self.error = err

        def release(self) -> None:
            """Give back the device memory; nothing happens the second time."""
            if self.address is not None:
                memory.free(self.address)
                self.address = None

    return Calibrator()
