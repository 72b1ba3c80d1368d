"""Heads of one INT8 network on this CPU: labels, scores, labels_low, in turns.

Latency is of an untrained network; --model, a trained checkpoint, with --target frames adds how far
`labels_low` is from `labels`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.networks import network, smooth_files, spec_of
from benchmarks.turns import in_turns
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.accuracy.evaluation import agreement
from edgeuda.data.folders import spread
from edgeuda.data.images import list_images, read_image, resize_image
from edgeuda.models.checkpoint import load_model
from engines.onnx_export import export_onnx
from engines.onnxruntime_runner import OnnxRunner

HEADS = ("labels", "scores", "labels_low")
NEEDS = "extras train, quantize and cpu"
QUICK = {"size": [("0.25", "64", "128")], "threads": [1], "runs": 2}
SIZES = [("1.0", "512", "1024"), ("0.5", "256", "512")]


def latency(width: float, height: int, columns: int, threads: list[int], runs: int) -> dict:
    spec = spec_of(height, columns, width)
    net = network(spec)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = smooth_files(folder, 4, height, columns)
        paths = {}
        for head in HEADS:
            fp32, paths[head] = folder / f"{head}.onnx", folder / f"{head}-int8.onnx"
            export_onnx(net, spec, fp32, head=head, frames=[read_image(frames[0])])
            calibrate(fp32, frames, paths[head], Options("ort-x86"))
        image = read_image(frames[0])[None]
        rows = []
        for count in threads:
            runners = {head: OnnxRunner(path, count) for head, path in paths.items()}
            turns = in_turns({h: lambda r=r: r(image) for h, r in runners.items()}, runs)
            clock = "cpu" if count == 1 else "wall"
            rows.append(
                {
                    "threads": count,
                    "runs": runs,
                    "median_ms": turns.ms(),
                    "median_cpu_ms": turns.ms("cpu"),
                    "ratios_of": clock,
                    "to_labels": {h: turns.ratio(h, "labels", clock)["median"] for h in HEADS},
                }
            )
    return {"width": width, "height": height, "columns": columns, "latency": rows}


def difference(model: Path, target: Path) -> dict:
    net, spec = load_model(model)
    size = spec.preprocessing
    frames = [read_image(path) for path in spread(list_images(target), 32)]
    images = [resize_image(frame, size.height, size.width)[None] for frame in frames]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        runners = {}
        for head in HEADS:
            path = Path(name) / f"{head}.onnx"
            export_onnx(net, spec, path, head=head, frames=frames[:1])
            runners[head] = OnnxRunner(path, 1)
        for head in HEADS[1:]:
            equal = [agreement(runners["labels"](i)[0], runners[head](i)[0]) for i in images]
            found[head] = round(float(np.mean(equal)), 6)
    return {"input": [size.height, size.width], "frames": len(frames), "agreement": found}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", nargs=3, action="append", metavar=("WIDTH", "ROWS", "COLUMNS"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--model", type=Path, help="checkpoint")
    parser.add_argument("--target", type=Path, help="folder of frames")


def measure(given: argparse.Namespace) -> dict:
    return {
        "schema": "edgeuda.benchmark.heads/1",
        "results": [
            latency(float(w), int(h), int(c), given.threads, given.runs)
            for w, h, c in given.size or SIZES
        ],
        "trained": None if given.model is None else difference(given.model, given.target),
    }
