"""Batch-norm statistics estimated on exported graphs: frames in order or shuffled.

One exported source network per --model; --target are unlabelled frames, --data is labelled.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from calibration.batch_norm import adapt_batch_norm
from calibration.frames import FrameFiles
from calibration.source import load_fp32, miou
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import list_images

NEEDS = "extras train and quantize, exported networks, frames and labelled images of the target"
QUICK = {"frames": 8}
ROWS = [(4, None), (4, 0), (8, 0)]
"""Frames per batch, and the seed of their order."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, action="append", required=True)
    for name in ("target", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--frames", type=int, help="the first so many; all by default")


def measure(given: argparse.Namespace) -> dict:
    rows = [{"name": "as exported", "miou": []}]
    rows += [
        {"name": f"batches of {batch}, " + ("in order" if seed is None else "shuffled"),
         "miou": [], "seconds": []}
        for batch, seed in ROWS
    ]  # fmt: skip
    for path in given.model:
        model, spec = load_fp32(path)
        size = spec.preprocessing
        data = labelled_folder(given.data, spec.label_space)
        frames = FrameFiles.of(list(list_images(given.target))[: given.frames], size)
        rows[0]["miou"].append(round(100 * miou(model, data, spec), 2))
        for row, (batch, seed) in zip(rows[1:], ROWS, strict=True):
            start = time.perf_counter()
            adapted, _ = adapt_batch_norm(model, frames, str(path), batch=batch, seed=seed)
            row["seconds"].append(round(time.perf_counter() - start, 2))
            row["miou"].append(round(100 * miou(adapted, data, spec), 2))
    for row in rows:
        row["mean"] = round(float(np.mean(row["miou"])), 2)
        row["stdev"] = (
            round(float(np.std(row["miou"], ddof=1)), 2) if len(given.model) > 1 else None
        )
    return {
        "schema": "edgeuda.benchmark.batch-norm/1",
        "frames": len(frames),
        "input": [size.height, size.width],
        "rows": rows,
    }
