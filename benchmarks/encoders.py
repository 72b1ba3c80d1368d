"""Context paths side by side: parameters, multiplications, FP32 and INT8 latency on this CPU.

    PYTHONPATH=. python benchmarks/encoders.py --out benchmarks/results/encoders.json

Weights are random: they play no part in speed, and say nothing about accuracy. In each round every
network runs once, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import onnx
from int8_ort import in_turns, network, smooth_files

from calibration.options import Options
from calibration.ort_kernels import compiled
from calibration.quantize import calibrate
from edgeuda.data.images import read_image
from edgeuda.labels import SPACES
from edgeuda.models.fused import fused
from edgeuda.spec import ModelSpec, Preprocessing
from engines.machine.hardware import identity
from engines.onnx.weights import multiplications
from engines.onnx_export import export_onnx
from engines.onnxruntime_runner import OnnxRunner

ENCODERS = (
    "resnet18", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_lite0",
    "repvgg_a0", "mobileone_s0",
)  # fmt: skip


def measure(width: float, height: int, columns: int, threads: int, runs: int) -> list[dict]:
    """Return one row per encoder, quartiles of seconds and ratios to the first among them."""
    rows, callers = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = smooth_files(folder, 4, height, columns)
        image = read_image(frames[0])[None]
        for encoder in ENCODERS:
            size = Preprocessing(height, columns)
            spec = ModelSpec("bisenet", width, SPACES["cityscapes-19"], size, encoder)
            model = network(spec).eval()
            run = fused(model)
            fp32, int8 = folder / f"{encoder}.onnx", folder / f"{encoder}.int8.onnx"
            export_onnx(model, spec, fp32, frames=[image[0]])
            calibrate(fp32, frames, int8, Options("ort-x86", threads=threads))
            auxiliary = sum(
                p.numel() for n, p in run.named_parameters() if n.startswith(("aux8", "aux16"))
            )
            found = compiled(int8)
            rows.append(
                {
                    "encoder": encoder,
                    "parameters": sum(p.numel() for p in run.parameters()) - auxiliary,
                    "trunk_parameters": sum(p.numel() for p in run.context.trunk.parameters()),
                    "gmacs": round(sum(multiplications(onnx.load(fp32)).values()) / 1e9, 2),
                    "int8_convs": found.integer,
                    "convs": found.total,
                }
            )
            callers |= {
                f"{encoder} {form}": OnnxRunner(path, threads)
                for form, path in (("fp32", fp32), ("int8", int8))
            }
        seconds = in_turns(callers, image, runs)
    for row in rows:
        for form in ("fp32", "int8"):
            ordered = sorted(seconds[f"{row['encoder']} {form}"])
            row[f"{form}_seconds"] = [
                round(ordered[len(ordered) * part // 4], 5) for part in (1, 2, 3)
            ]
    first = rows[0]
    for row in rows:
        row["speed_of_int8"] = round(row["fp32_seconds"][1] / row["int8_seconds"][1], 2)
        for form in ("fp32", "int8"):
            ratio = first[f"{form}_seconds"][1] / row[f"{form}_seconds"][1]
            row[f"{form}_speed_to_first"] = round(ratio, 2)
        print(json.dumps(row))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    record = {
        "schema": "edgeuda.benchmark.encoders/1",
        "machine": identity(),
        "input": options.size,
        "threads": options.threads,
        "runs": options.runs,
        "widths": {
            f"{width:g}": measure(width, *options.size, options.threads, options.runs)
            for width in options.widths
        },
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
