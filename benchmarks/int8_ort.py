"""Latency of BiSeNet in FP32 and INT8 on this CPU with ONNX Runtime; prints one JSON record.

The network is untrained: batch norms take their statistics from smooth random images, so that
activations are of a sane size. Latency does not depend on the weights; agreement does, and a
trained network's is higher.

    python benchmarks/int8_ort.py --size 0.5 160 320 --size 1.0 512 1024 --threads 1 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.data.images import Image, read_image, resize_image, write_image
from edgeuda.labels import SPACES
from edgeuda.models.bisenet import BiSeNet
from edgeuda.spec import ModelSpec, Preprocessing
from engines.machine.hardware import identity
from engines.onnx.session import open_session
from engines.onnx_export import export_onnx

SIZES = [(0.5, 160, 320), (0.5, 256, 512), (1.0, 512, 1024)]
"""Width multiplier, rows, columns."""


def smooth_images(count: int, height: int, width: int) -> list[Image]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 16, 3), np.uint8)
    return [resize_image(image, height, width) for image in coarse]


def smooth_files(folder: Path, count: int, height: int, width: int) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, image in zip(paths, smooth_images(count, height, width), strict=True):
        write_image(path, image)
    return paths


def network(spec: ModelSpec) -> nn.Module:
    torch.manual_seed(0)
    model = BiSeNet(len(spec.label_space), spec.width, spec.encoder)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain average over the batches
    size = spec.preprocessing
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (size.mean, size.std))
    images = torch.from_numpy(np.stack(smooth_images(8, 256, 512))).permute(0, 3, 1, 2)
    with torch.no_grad():
        for batch in images.split(4):
            model((batch.float() / 255 - mean) / std)
    return model


def in_turns(
    callers: dict[str, Callable[[Image], object]], image: Image, runs: int, warm_up: int = 3
) -> dict[str, list[float]]:
    """Return the seconds of each caller; one run of each in turn, in one process."""
    seconds: dict[str, list[float]] = {name: [] for name in callers}
    for run in range(warm_up + runs):
        for name, call in callers.items():
            start = time.perf_counter()
            call(image)
            if run >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(
    width: float, height: int, columns: int, threads: list[int], runs: int, photos: list[Path]
):
    spec = ModelSpec("bisenet", width, SPACES["cityscapes-19"], Preprocessing(height, columns))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = photos or smooth_files(folder, 8, height, columns)
        images = [resize_image(read_image(path), height, columns) for path in frames[:8]]
        fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
        export_onnx(network(spec), spec, fp32, frames=images[:1])
        start = time.perf_counter()
        record = calibrate(fp32, frames, int8, Options("ort-x86"))
        calibration_s = time.perf_counter() - start
        latency = []
        for count in threads:
            sessions = {path.stem: open_session(path, threads=count) for path in (fp32, int8)}
            callers = {k: lambda x, s=s: s.run(None, {"image": x}) for k, s in sessions.items()}
            seconds = in_turns(callers, images[0][None], runs)
            fp32_ms, int8_ms = (1e3 * float(np.median(seconds[k])) for k in ("fp32", "int8"))
            latency.append(
                {
                    "threads": count,
                    "fp32_median_ms": round(fp32_ms, 2),
                    "int8_median_ms": round(int8_ms, 2),
                    "ratio": round(fp32_ms / int8_ms, 2),
                    "runs": runs,
                }
            )
        return {
            "width": width,
            "height": height,
            "columns": columns,
            "fp32_bytes": fp32.stat().st_size,
            "int8_bytes": int8.stat().st_size,
            "int8_convs": record.int8_convs,
            "convs": record.convs,
            "agreement": round(record.agreement, 4),
            "calibration_s": round(calibration_s, 1),
            "frames": len(frames),
            "latency": latency,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs=3, action="append", metavar=("WIDTH", "ROWS", "COLUMNS"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each model")
    parser.add_argument("--frames", nargs="*", type=Path, default=[], help="images to calibrate on")
    options = parser.parse_args()
    sizes = [(float(w), int(h), int(c)) for w, h, c in options.size] if options.size else SIZES
    results = [measure(*size, options.threads, options.runs, options.frames) for size in sizes]
    record = {"schema": "edgeuda.benchmark.int8-ort/1", "machine": identity(), "results": results}
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
