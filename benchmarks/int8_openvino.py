"""FP32 and INT8 on this CPU: ONNX Runtime against OpenVINO, in turns in one process; prints JSON.

Each call goes from an image to its label map. OpenVINO runs our graphs as `--device openvino` does,
and INT8 that NNCF makes of the same network with the same frames and head. With one thread the
process's CPU time is kept too: other work of the machine changes it less. The network is untrained,
so agreement says little. Needs `pip install openvino nncf`.

    python benchmarks/int8_openvino.py --size 1.0 512 1024 --threads 1 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import nncf
import numpy as np
import openvino
from int8_ort import network, smooth_files

from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.data.images import read_image, resize_image
from edgeuda.labels import SPACES
from edgeuda.spec import ModelSpec, Preprocessing
from engines.machine.hardware import identity
from engines.onnx.heads import labels_of
from engines.onnx_export import export_onnx
from engines.opening import open_runner


def by_nncf(graph: Path, images, threads: int, head: str):
    """Return a caller of OpenVINO on what NNCF makes of a graph."""
    model = openvino.Core().read_model(graph)
    height, columns = images[0].shape[1:3]
    model.reshape([1, height, columns, 3])
    model = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    request = (
        openvino.Core()
        .compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "ENABLE_CPU_PINNING": False,
            },
        )
        .create_infer_request()
    )

    def call(image):
        output = request.infer([image], share_inputs=True, share_outputs=True)[0]
        return np.stack([labels_of(head, one, height, columns) for one in output])

    return call


def in_turns(callers, images, runs: int, warm_up: int = 3):
    """Return wall and CPU seconds of each caller; one call of each in turn."""
    wall: dict[str, list[float]] = {name: [] for name in callers}
    cpu: dict[str, list[float]] = {name: [] for name in callers}
    for run in range(warm_up + runs):
        for name, call in callers.items():
            start, busy = time.perf_counter(), time.process_time()
            call(images[run % len(images)])
            if run >= warm_up:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - busy)
    return wall, cpu


def medians(seconds) -> dict[str, float]:
    return {name: round(1e3 * float(np.median(found)), 2) for name, found in seconds.items()}


def measure(width, height, columns, threads, runs, photos, head):
    spec = ModelSpec("bisenet", width, SPACES["cityscapes-19"], Preprocessing(height, columns))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = photos or smooth_files(folder, 8, height, columns)
        images = [resize_image(read_image(path), height, columns)[None] for path in frames]
        fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
        export_onnx(network(spec), spec, fp32, head=head, frames=[images[0][0]])
        record = calibrate(fp32, frames, int8, Options("ort-x86"))
        latency = []
        for count in threads:
            callers = {
                f"{title} {precision}": open_runner(path, count, device, trusted=True)
                for precision, path in (("FP32", fp32), ("INT8", int8))
                for title, device in (("onnxruntime", "cpu"), ("openvino", "openvino"))
            }
            callers["openvino INT8, NNCF"] = by_nncf(fp32, images, count, head)
            reference = [callers["onnxruntime FP32"](x) for x in images]
            agreement = {
                key: round(float(np.mean([
                    (call(image) == labels).mean()
                    for image, labels in zip(images, reference, strict=True)
                ])), 4)
                for key, call in callers.items()
            }  # fmt: skip
            wall, cpu = map(medians, in_turns(callers, images, runs))
            used = cpu if count == 1 else wall
            best = min(used["openvino INT8"], used["openvino INT8, NNCF"])
            latency.append(
                {
                    "threads": count,
                    "runs": runs,
                    "median_ms": wall,
                    "median_cpu_ms": cpu,
                    "agreement": agreement,
                    "ratios_of": "cpu" if count == 1 else "wall",
                    "fp32_to_openvino": round(used["onnxruntime FP32"] / used["openvino FP32"], 3),
                    "int8_to_openvino": round(used["onnxruntime INT8"] / best, 3),
                    "fp32_to_int8": round(used["onnxruntime FP32"] / used["onnxruntime INT8"], 3),
                }
            )
        return {
            "width": width, "height": height, "columns": columns, "head": head,
            "int8_convs": record.int8_convs, "convs": record.convs, "latency": latency,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs=3, action="append", required=True,
                        metavar=("WIDTH", "ROWS", "COLUMNS"))  # fmt: skip
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--head", choices=("labels", "scores"), default="scores")
    parser.add_argument("--frames", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    results = [
        measure(
            float(w), int(h), int(c), options.threads, options.runs, options.frames, options.head
        )
        for w, h, c in options.size
    ]
    versions = {"openvino": openvino.__version__, "nncf": nncf.__version__}
    record = {
        "schema": "edgeuda.benchmark.int8-openvino/2",
        "machine": identity() | versions,
        "results": results,
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
