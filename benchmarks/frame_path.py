"""What our own code takes of a frame's time on this CPU, next to FP32 inference.

Full-width untrained network, frames of 1024x2048. Every stage is timed in one process; models take
turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.networks import network, smooth_files, spec_of
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.data.images import read_image
from engines.bench.load import Load
from engines.bench.measure import bench
from engines.onnx_export import export_onnx

OWN = ("resize", "upsample")
AROUND = ("decode", "overlay")
NEEDS = "extras train, quantize and cpu"
QUICK = {"size": [[64, 128]], "frame": [128, 256], "width": 0.25, "threads": [1], "samples": 33}


def at(height: int, columns: int, threads: int, given: argparse.Namespace) -> dict:
    spec = spec_of(height, columns, given.width)
    net = network(spec)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = smooth_files(folder, 4, *given.frame)
        paths = []
        for head in ("labels", "scores"):
            fp32, int8 = folder / f"fp32-{head}.onnx", folder / f"int8-{head}.onnx"
            export_onnx(net, spec, fp32, head=head, frames=[read_image(frames[0])])
            calibrate(fp32, frames, int8, Options("ort-x86"))
            paths += [fp32, int8]
        record = bench(paths, frames, load=Load(samples=given.samples), threads=threads)
    inference = record.models[0].stages["inference"].percentiles["50"]
    rows = []
    for model in record.models:
        median = {stage: s.percentiles["50"] for stage, s in model.stages.items()}
        own = sum(median[stage] for stage in OWN)
        rows.append(
            {
                "model": model.name,
                "median_ms": {stage: round(ms, 3) for stage, ms in median.items()},
                "own_share_of_fp32_inference": round(own / inference, 4),
                "with_decode_and_overlay": round(
                    (own + sum(median[stage] for stage in AROUND)) / inference, 4
                ),
            }
        )
    return {
        "input": [height, columns],
        "frame": given.frame,
        "threads": threads,
        "samples": record.method.samples,
        "noise": record.noise,
        "other_load_cores": record.state.other_load_cores,
        "models": rows,
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", nargs=2, type=int, action="append")
    parser.add_argument("--frame", nargs=2, type=int, default=[1024, 2048])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--samples", type=int, default=36)


def measure(given: argparse.Namespace) -> dict:
    return {
        "schema": "edgeuda.benchmark.frame-path/1",
        "results": [
            at(*size, threads, given)
            for size in given.size or [[512, 1024], [1024, 2048]]
            for threads in given.threads
        ],
    }
