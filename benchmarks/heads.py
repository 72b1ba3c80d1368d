"""Heads of one INT8 network on this CPU: labels, scores, labels_low, in turns; prints JSON.

Latency is of an untrained network; --model, a trained checkpoint, with --target frames adds how far
`labels_low` is from `labels`.

    python benchmarks/heads.py --size 1.0 512 1024 --model adapted --target FOOTAGE
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from int8_ort import in_turns, network, smooth_files

from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.accuracy.evaluation import agreement
from edgeuda.data.folders import spread
from edgeuda.data.images import list_images, read_image, resize_image
from edgeuda.labels import SPACES
from edgeuda.models.checkpoint import load_model
from edgeuda.spec import ModelSpec, Preprocessing
from engines.machine.hardware import identity
from engines.onnx_export import export_onnx
from engines.onnxruntime_runner import OnnxRunner

HEADS = ("labels", "scores", "labels_low")


def latency(width: float, height: int, columns: int, threads: list[int], runs: int) -> dict:
    spec = ModelSpec("bisenet", width, SPACES["cityscapes-19"], Preprocessing(height, columns))
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
            seconds = in_turns(runners, image, runs)
            medians = {head: float(np.median(s)) * 1e3 for head, s in seconds.items()}
            rows.append(
                {
                    "threads": count,
                    "runs": runs,
                    "median_ms": {head: round(ms, 2) for head, ms in medians.items()},
                    "to_labels": {h: round(medians[h] / medians["labels"], 3) for h in HEADS},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs=3, action="append", required=True,
                        metavar=("WIDTH", "ROWS", "COLUMNS"))  # fmt: skip
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--model", type=Path, help="checkpoint")
    parser.add_argument("--target", type=Path, help="folder of frames")
    options = parser.parse_args()
    record = {
        "schema": "edgeuda.benchmark.heads/1",
        "machine": identity(),
        "results": [
            latency(float(w), int(h), int(c), options.threads, options.runs)
            for w, h, c in options.size
        ],
        "trained": None if options.model is None else difference(options.model, options.target),
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
