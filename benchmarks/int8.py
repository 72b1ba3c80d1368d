"""FP32 and INT8 on this CPU: ONNX Runtime and, where it is installed, OpenVINO and NNCF beside it.

Each call goes from an image to its label map, in turns in one process. OpenVINO runs our graphs as
`--device openvino` does, and INT8 that NNCF makes of the same network with the same frames and
head. With one thread ratios are of the process's CPU time, which other work of the machine changes
less. The network is untrained, so agreement says little.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.networks import network, smooth_files, spec_of
from benchmarks.turns import in_turns, say
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.data.images import Image, read_image, resize_image
from engines.onnx.heads import labels_of
from engines.onnx_export import export_onnx
from engines.opening import open_runner

NEEDS = "extras train, quantize and cpu; openvino and nncf for what they are compared with"
QUICK = {"size": [("0.25", "64", "128")], "threads": [1], "runs": 2}
SIZES = [("1.0", "512", "1024"), ("0.5", "256", "512")]


def by_nncf(graph: Path, images: list[Image], threads: int, head: str) -> Callable:
    """Return a caller of OpenVINO on what NNCF makes of a graph."""
    import nncf
    import openvino

    model = openvino.Core().read_model(graph)
    height, columns = images[0].shape[1:3]
    model.reshape([1, height, columns, 3])
    model = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    how = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(model, "CPU", how).create_infer_request()

    def call(image: Image) -> np.ndarray:
        output = request.infer([image], share_inputs=True, share_outputs=True)[0]
        return np.stack([labels_of(head, one, height, columns) for one in output])

    return call


def at(width: float, height: int, columns: int, given: argparse.Namespace) -> dict:
    spec = spec_of(height, columns, width)
    devices = {"onnxruntime": "cpu"}
    if importlib.util.find_spec("openvino"):
        devices["openvino"] = "openvino"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = given.frames or smooth_files(folder, 8, height, columns)
        images = [resize_image(read_image(path), height, columns)[None] for path in frames]
        fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
        export_onnx(network(spec), spec, fp32, head=given.head, frames=[images[0][0]])
        start = time.perf_counter()
        record = calibrate(fp32, frames, int8, Options("ort-x86"))
        found = {
            "width": width,
            "height": height,
            "columns": columns,
            "head": given.head,
            "int8_convs": record.int8_convs,
            "convs": record.convs,
            "bytes": {path.stem: path.stat().st_size for path in (fp32, int8)},
            "calibration_s": round(time.perf_counter() - start, 1),
            "frames": len(frames),
            "latency": [],
        }
        for count in given.threads:
            callers = {
                f"{title} {precision}": open_runner(path, count, device, trusted=True)
                for precision, path in (("FP32", fp32), ("INT8", int8))
                for title, device in devices.items()
            }
            if importlib.util.find_spec("nncf") and "openvino" in devices:
                callers["openvino INT8, NNCF"] = by_nncf(fp32, images, count, given.head)
            found["latency"].append(compared(callers, images, count, given.runs))
            say(found["latency"][-1])
    return found


def compared(callers: dict[str, Callable], images: list[Image], threads: int, runs: int) -> dict:
    """Time the callers in turns, and say how far they agree with ONNX Runtime in FP32."""
    reference = [callers["onnxruntime FP32"](image) for image in images]
    agreement = {
        key: round(float(np.mean([
            (call(image) == labels).mean() for image, labels in zip(images, reference, strict=True)
        ])), 4)
        for key, call in callers.items()
    }  # fmt: skip

    def cycling(call: Callable) -> Callable:
        endless = itertools.cycle(images)
        return lambda: call(next(endless))

    ways = {key: cycling(call) for key, call in callers.items()}
    turns = in_turns(ways, runs)
    clock = "cpu" if threads == 1 else "wall"
    ms = turns.ms(clock)
    row = {
        "threads": threads,
        "runs": runs,
        "median_ms": turns.ms(),
        "median_cpu_ms": turns.ms("cpu"),
        "agreement": agreement,
        "ratios_of": clock,
        "fp32_to_int8": turns.ratio("onnxruntime FP32", "onnxruntime INT8", clock)["median"],
    }
    others = [key for key in ms if key.startswith("openvino INT8")]
    if others:
        best = min(others, key=ms.__getitem__)
        row["fp32_to_openvino"] = turns.ratio("onnxruntime FP32", "openvino FP32", clock)["median"]
        row["int8_to_openvino"] = turns.ratio("onnxruntime INT8", best, clock)["median"]
    return row


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", nargs=3, action="append", metavar=("WIDTH", "ROWS", "COLUMNS"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each")
    parser.add_argument("--head", choices=("labels", "scores"), default="scores")
    parser.add_argument("--frames", nargs="*", type=Path, default=[], help="images to calibrate on")


def measure(given: argparse.Namespace) -> dict:
    return {
        "schema": "edgeuda.benchmark.int8-openvino/2",
        "results": [at(float(w), int(h), int(c), given) for w, h, c in given.size or SIZES],
    }
