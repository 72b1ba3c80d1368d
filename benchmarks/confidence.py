"""What it costs to be told how sure a network is, on this CPU: exported without, not asked, asked.

Callers take turns; each ratio is of neighbours in one turn. Confidence and pooled features are
asked for together. Networks are untrained, on which latency does not depend.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.networks import network, smooth_files, spec_of
from benchmarks.turns import in_turns, say
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.data.images import read_image
from engines.onnx_export import export_onnx
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import signals_of
from engines.signals import statistics

NEEDS = "extras train, quantize and cpu"
QUICK = {"size": [("0.25", "64", "128")], "runs": 2}
SIZES = [("1.0", "512", "1024"), ("0.5", "256", "512")]
FORMS = (("labels", "fp32"), ("labels", "int8"), ("scores", "int8"))
CLOCKS = ("cpu", "wall")


def cost(width: float, rows: int, columns: int, threads: int, runs: int) -> dict:
    spec = spec_of(rows, columns, width)
    net, found = network(spec), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = smooth_files(folder, 4, rows, columns)
        image = read_image(frames[0])
        for head, precision in FORMS:
            paths = {}
            for sure in (False, True):
                paths[sure] = folder / f"{head}-{sure}.onnx"
                if not paths[sure].exists():
                    export_onnx(net, spec, paths[sure], head=head, frames=[image], confidence=sure)
                if precision == "int8":
                    out = folder / f"{head}-{sure}-int8.onnx"
                    calibrate(paths[sure], frames, out, Options("ort-x86", threads=threads))
                    paths[sure] = out
            without, silent = (OnnxRunner(paths[sure], threads) for sure in (False, True))
            asked = OnnxRunner(paths[True], threads, confidence=True)
            callers = {
                "without": partial(without, image[None]),
                "not asked": partial(silent, image[None]),
                "asked": partial(asked.signals, image[None]),
            }
            turns = in_turns(callers, runs)
            seen = signals_of(asked, image)
            counted = in_turns({"statistics": partial(statistics, seen, 19)}, runs)
            found.append(
                {
                    "head": head,
                    "precision": precision,
                    "runs": runs,
                    "median_ms": {clock: turns.ms(clock) for clock in CLOCKS},
                    "to_without": {
                        clock: {n: turns.ratio(n, "without", clock) for n in ("not asked", "asked")}
                        for clock in CLOCKS
                    },
                    "statistics_ms": counted.ms("cpu")["statistics"],
                }
            )
            say(head, precision, found[-1]["median_ms"], found[-1]["to_without"])
    return {"width": width, "rows": rows, "columns": columns, "threads": threads, "forms": found}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", nargs=3, action="append", metavar=("WIDTH", "ROWS", "COLUMNS"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=31)


def measure(given: argparse.Namespace) -> dict:
    return {
        "schema": "edgeuda.benchmark.confidence/1",
        "results": [
            cost(float(w), int(h), int(c), given.threads, given.runs)
            for w, h, c in given.size or SIZES
        ],
    }
