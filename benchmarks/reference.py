"""How large the reference of what is normal is: 19 classes, features of a network of width 1.

The network is untrained and its input small, on which the size does not depend.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from pathlib import Path

from benchmarks.networks import network, smooth_files, spec_of
from calibration.options import Options
from calibration.quantize import calibrate
from calibration.reference import write_reference
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import read_image
from edgeuda.records.reference import reference_path
from engines.onnx_export import export_onnx

NEEDS = "extras train, quantize and cpu"
QUICK = {"frames": [3], "width": 0.25}
ROWS, COLUMNS = 64, 128


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", nargs="+", type=int, default=[64, 128, 2000])
    parser.add_argument("--width", type=float, default=1.0)


def measure(given: argparse.Namespace) -> dict:
    spec, rows = spec_of(ROWS, COLUMNS, given.width), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = smooth_files(folder / "frames", max(given.frames), ROWS, COLUMNS)
        fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
        image = read_image(paths[0])
        export_onnx(network(spec), spec, fp32, frames=[image], confidence=True)
        calibrate(fp32, paths[:4], int8, Options("ort-x86", threads=1))
        footage = frame_folder(folder / "frames")
        for count in given.frames:
            record = write_reference(int8, footage, count, threads=1)
            content = reference_path(int8).read_bytes()
            rows.append(
                {
                    "frames": record.frames,
                    "kilobytes": round(len(content) / 1000, 1),
                    "kilobytes_in_a_bundle": round(len(gzip.compress(content)) / 1000, 1),
                    "classes": len(record.classes),
                    "channels": record.features.mean.shape[0] if record.features else None,
                    "directions": len(record.features.variances) if record.features else None,
                }
            )
    return {"schema": "edgeuda.benchmark.reference/1", "results": rows}
