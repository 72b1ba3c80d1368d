"""Context paths side by side: parameters, multiplications, FP32 and INT8 latency on this CPU.

Weights are random: they play no part in speed, and say nothing about accuracy. In each round every
network runs once, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx

from benchmarks.networks import network, smooth_files, spec_of
from benchmarks.turns import in_turns, say
from calibration.options import Options
from calibration.ort_kernels import compiled
from calibration.quantize import calibrate
from edgeuda.data.images import read_image
from edgeuda.models.fused import fused
from engines.onnx.weights import multiplications
from engines.onnx_export import export_onnx
from engines.onnxruntime_runner import OnnxRunner

ENCODERS = (
    "resnet18", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_lite0",
    "repvgg_a0", "mobileone_s0",
)  # fmt: skip
NEEDS = "extras train, quantize and cpu"
QUICK = {"widths": [0.25], "size": [64, 128], "runs": 2, "encoders": ["resnet18"]}


def row_of(encoder: str, width: float, size: list[int], threads: int, folder: Path) -> dict:
    """Export a network in both precisions and return what it is made of."""
    frames = smooth_files(folder, 4, *size)
    spec = spec_of(*size, width, encoder=encoder)
    model = network(spec)
    run = fused(model)
    fp32, int8 = folder / f"{encoder}.fp32.onnx", folder / f"{encoder}.int8.onnx"
    export_onnx(model, spec, fp32, frames=[read_image(frames[0])])
    calibrate(fp32, frames, int8, Options("ort-x86", threads=threads))
    auxiliary = sum(p.numel() for n, p in run.named_parameters() if n.startswith(("aux8", "aux16")))
    found = compiled(int8)
    return {
        "encoder": encoder,
        "parameters": sum(p.numel() for p in run.parameters()) - auxiliary,
        "trunk_parameters": sum(p.numel() for p in run.context.trunk.parameters()),
        "gmacs": round(sum(multiplications(onnx.load(fp32)).values()) / 1e9, 2),
        "int8_convs": found.integer,
        "convs": found.total,
    }


def compare(width: float, given: argparse.Namespace) -> list[dict]:
    """Return one row per encoder, quartiles of seconds and ratios to the first among them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [row_of(e, width, given.size, given.threads, folder) for e in given.encoders]
        runners = {
            f"{encoder}.{form}": OnnxRunner(folder / f"{encoder}.{form}.onnx", given.threads)
            for encoder in given.encoders
            for form in ("fp32", "int8")
        }
        image = read_image(folder / "0000.png")[None]
        callers = {key: lambda call=call: call(image) for key, call in runners.items()}
        turns = in_turns(callers, given.runs)
    for row in rows:
        for form in ("fp32", "int8"):
            for clock in ("wall", "cpu"):
                ordered = sorted(getattr(turns, clock)[f"{row['encoder']}.{form}"])
                row[f"{form}_seconds" if clock == "wall" else f"{form}_cpu_seconds"] = [
                    round(ordered[len(ordered) * part // 4], 5) for part in (1, 2, 3)
                ]
    # With one thread by the processor's time, which other work of the machine changes less.
    clock = "cpu_seconds" if given.threads == 1 else "seconds"
    for row in rows:
        row["ratios_of"] = clock
        row["speed_of_int8"] = round(row[f"fp32_{clock}"][1] / row[f"int8_{clock}"][1], 2)
        for form in ("fp32", "int8"):
            ratio = rows[0][f"{form}_{clock}"][1] / row[f"{form}_{clock}"][1]
            row[f"{form}_speed_to_first"] = round(ratio, 2)
        say(row)
    return rows


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024])
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)


def measure(given: argparse.Namespace) -> dict:
    return {
        "schema": "edgeuda.benchmark.encoders/2",
        "input": given.size,
        "threads": given.threads,
        "runs": given.runs,
        "widths": {f"{width:g}": compare(width, given) for width in given.widths},
    }
