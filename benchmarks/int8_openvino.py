"""FP32 and INT8 on this CPU: ONNX Runtime against OpenVINO, in turns in one process; prints JSON.

OpenVINO's INT8 is made by NNCF from the same network on the same frames, and OpenVINO also runs our
Q/DQ graph. The network is untrained, so agreement says little. Needs `pip install openvino nncf`.

    python benchmarks/int8_openvino.py --size 1.0 512 1024 --threads 1 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import nncf
import numpy as np
import openvino
from int8_ort import in_turns, network, smooth_files

from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.data.images import read_image, resize_image
from edgeuda.labels import SPACES
from edgeuda.spec import ModelSpec, Preprocessing
from engines.machine.hardware import identity
from engines.onnx.session import open_session
from engines.onnx_export import export_onnx


def compiled(model, threads: int):
    core = openvino.Core()
    return core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # On VNNI machines float would otherwise be computed in bfloat16.
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )


def measure(width: float, height: int, columns: int, threads: list[int], runs: int, photos):
    spec = ModelSpec("bisenet", width, SPACES["cityscapes-19"], Preprocessing(height, columns))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = photos or smooth_files(folder, 8, height, columns)
        images = [resize_image(read_image(path), height, columns)[None] for path in frames]
        fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
        export_onnx(network(spec), spec, fp32, frames=[images[0][0]])
        record = calibrate(fp32, frames, int8, Options("ort-x86"))
        vino = openvino.Core().read_model(fp32)
        vino.reshape([1, height, columns, 3])
        by_nncf = nncf.quantize(vino, nncf.Dataset(images), subset_size=len(images))
        ours = openvino.Core().read_model(int8)
        ours.reshape([1, height, columns, 3])
        latency = []
        for count in threads:
            ort = [open_session(path, threads=count) for path in (fp32, int8)]
            ov = [compiled(model, count) for model in (vino, by_nncf, ours)]
            callers = {
                "onnxruntime FP32": lambda x, s=ort[0]: s.run(None, {"image": x})[0],
                "onnxruntime INT8": lambda x, s=ort[1]: s.run(None, {"image": x})[0],
                "openvino FP32": lambda x, m=ov[0]: m(x)[0],
                "openvino INT8, NNCF": lambda x, m=ov[1]: m(x)[0],
                "openvino INT8, our Q/DQ": lambda x, m=ov[2]: m(x)[0],
            }
            reference = [np.asarray(callers["onnxruntime FP32"](x)) for x in images]
            agreement = {
                key: round(float(np.mean([
                    (np.asarray(call(image)) == labels).mean()
                    for image, labels in zip(images, reference, strict=True)
                ])), 4)
                for key, call in callers.items()
            }  # fmt: skip
            seconds = in_turns(callers, images[0], runs, warm_up=0)  # agreement warmed them up
            medians = {key: float(np.median(value)) for key, value in seconds.items()}
            own = medians["onnxruntime INT8"]
            latency.append(
                {
                    "threads": count,
                    "runs": runs,
                    "median_ms": {key: round(1e3 * value, 2) for key, value in medians.items()},
                    "agreement": agreement,
                    "fp32_to_int8": round(medians["onnxruntime FP32"] / own, 3),
                    "int8_to_openvino_int8": round(own / medians["openvino INT8, NNCF"], 3),
                }
            )
        return {
            "width": width, "height": height, "columns": columns,
            "int8_convs": record.int8_convs, "convs": record.convs, "latency": latency,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs=3, action="append", required=True,
                        metavar=("WIDTH", "ROWS", "COLUMNS"))  # fmt: skip
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--frames", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    results = [
        measure(float(w), int(h), int(c), options.threads, options.runs, options.frames)
        for w, h, c in options.size
    ]
    versions = {"openvino": openvino.__version__, "nncf": nncf.__version__}
    record = {
        "schema": "edgeuda.benchmark.int8-openvino/1",
        "machine": identity() | versions,
        "results": results,
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
