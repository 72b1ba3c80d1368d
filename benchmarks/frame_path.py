"""What our own code takes of a frame's time on this CPU, next to FP32 inference; prints JSON.

Full-width untrained network, frames of 1024x2048. Every stage is timed in one process; models take
turns.

    python benchmarks/frame_path.py --size 512 1024 --size 1024 2048 --threads 1 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from int8_ort import network, smooth_files

from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.data.images import read_image
from edgeuda.labels import SPACES
from edgeuda.spec import ModelSpec, Preprocessing
from engines.bench.load import Load
from engines.bench.measure import bench
from engines.machine.hardware import identity
from engines.onnx_export import export_onnx

FRAME = (1024, 2048)
OWN = ("resize", "upsample")
AROUND = ("decode", "overlay")


def measure(height: int, columns: int, threads: int, samples: int) -> dict:
    spec = ModelSpec("bisenet", 1.0, SPACES["cityscapes-19"], Preprocessing(height, columns))
    net = network(spec)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = smooth_files(folder, 4, *FRAME)
        paths = []
        for head in ("labels", "scores"):
            fp32, int8 = folder / f"fp32-{head}.onnx", folder / f"int8-{head}.onnx"
            export_onnx(net, spec, fp32, head=head, frames=[read_image(frames[0])])
            calibrate(fp32, frames, int8, Options("ort-x86"))
            paths += [fp32, int8]
        record = bench(paths, frames, load=Load(samples=samples), threads=threads)
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
        "frame": list(FRAME),
        "threads": threads,
        "samples": record.method.samples,
        "noise": record.noise,
        "other_load_cores": record.state["other_load_cores"],
        "models": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs=2, type=int, action="append", required=True)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--samples", type=int, default=36)
    options = parser.parse_args()
    record = {
        "schema": "edgeuda.benchmark.frame-path/1",
        "machine": identity(),
        "results": [
            measure(*size, threads, options.samples)
            for size in options.size
            for threads in options.threads
        ],
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
