"""Batch-norm statistics estimated on exported graphs: frames in order or shuffled; prints JSON.

One exported source network per --model; --target are unlabelled frames, --data is labelled.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from calibration.batch_norm import adapt_batch_norm
from calibration.frames import FrameFiles
from calibration.source import load_fp32, miou
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import list_images
from engines.machine.hardware import identity

ROWS = [(4, None), (4, 0), (8, 0)]
"""Frames per batch, and the seed of their order."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", required=True)
    for name in ("target", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    rows = [{"name": "as exported", "miou": []}]
    rows += [
        {"name": f"batches of {batch}, " + ("in order" if seed is None else "shuffled"),
         "miou": [], "seconds": []}
        for batch, seed in ROWS
    ]  # fmt: skip
    for path in options.model:
        model, spec = load_fp32(path)
        size = spec.preprocessing
        data = labelled_folder(options.data, spec.label_space)
        frames = FrameFiles(tuple(list_images(options.target)), size.height, size.width)
        rows[0]["miou"].append(round(100 * miou(model, data, spec), 2))
        for row, (batch, seed) in zip(rows[1:], ROWS, strict=True):
            start = time.perf_counter()
            adapted, _ = adapt_batch_norm(model, frames, str(path), batch=batch, seed=seed)
            row["seconds"].append(round(time.perf_counter() - start, 2))
            row["miou"].append(round(100 * miou(adapted, data, spec), 2))
    for row in rows:
        row["mean"] = round(float(np.mean(row["miou"])), 2)
        row["stdev"] = round(float(np.std(row["miou"], ddof=1)), 2)
    record = {
        "schema": "edgeuda.benchmark.batch-norm/1",
        "machine": identity(),
        "frames": len(frames),
        "input": [size.height, size.width],
        "rows": rows,
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
