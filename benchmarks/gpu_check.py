"""Build and run everything this machine's GPU can, against ONNX Runtime's CPU on real frames.

Installs nothing; what is missing is skipped by name. Writes one JSON record.

    make gpu-check MODEL=adapted.onnx FOOTAGE=frames
    python benchmarks/gpu_check.py --model adapted.onnx --target FRAMES --out gpu.json
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeuda.data.folders import spread
from edgeuda.data.images import list_images, read_image, resize_image
from edgeuda.errors import EdgeudaError
from edgeuda.evaluation import agreement
from edgeuda.files import sha256, write_json
from engines.device import DEVICES, open_device
from engines.doctor import examine, to_record
from engines.engine_cache import cached_engine
from engines.machine import identity
from engines.metadata import precision_of, read_metadata
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import Runner
from engines.tensorrt_builder import BuildOptions, strongly_typed
from engines.tensorrt_library import load_tensorrt
from engines.tensorrt_runner import TensorRTRunner

RUNS = 200
WARMUP = 20


def measure(runner: Runner, images: list[np.ndarray], reference: list[np.ndarray]) -> dict:
    equal = [agreement(runner(i)[0], r) for i, r in zip(images, reference, strict=True)]
    for _ in range(WARMUP):
        runner(images[0])
    seconds = []
    for number in range(RUNS):
        start = time.perf_counter()
        runner(images[number % len(images)])
        seconds.append(time.perf_counter() - start)
    ms = np.array(seconds) * 1e3
    return {
        "agreement_with_onnxruntime_cpu": round(float(np.mean(equal)), 6),
        "worst_frame": round(float(np.min(equal)), 6),
        "median_ms": round(float(np.median(ms)), 4),
        "p90_ms": round(float(np.percentile(ms, 90)), 4),
        "runs": RUNS,
        "backend": runner.backend,
    }


def trtexec(engine: Path) -> dict:
    program = shutil.which("trtexec") or "/usr/src/tensorrt/bin/trtexec"
    if not Path(program).exists():
        return {"skipped": "trtexec: not found"}
    done = subprocess.run(
        [program, f"--loadEngine={engine}", "--iterations=200", "--useCudaGraph"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    found = re.search(r"GPU Compute Time:.*?median = ([\d.]+) ms", done.stdout)
    if found is None:
        return {"failed": (done.stdout + done.stderr)[-500:]}
    return {"gpu_compute_median_ms": float(found[1])}


def attempt(results: dict, name: str, run: Callable[[], dict]) -> None:
    """Keep what came of a step; one that fails ends no other."""
    try:
        results[name] = run()
    except EdgeudaError as err:
        results[name] = {"skipped": str(err)}
    except Exception as err:  # native libraries raise what they like
        results[name] = {"failed": repr(err)[:500]}
    print(name, json.dumps(results[name])[:200], file=sys.stderr, flush=True)


def check(model: Path, images: list[np.ndarray], folder: Path) -> dict:
    with OnnxRunner(model) as cpu:
        reference = [cpu(image)[0] for image in images]
    results: dict = {}

    def with_onnxruntime(device: str) -> dict:
        with OnnxRunner(model, device=device) as runner:  # type: ignore[arg-type]
            return measure(runner, images, reference)

    for device in ("cuda", "tensorrt"):
        attempt(results, f"onnxruntime {device}", lambda device=device: with_onnxruntime(device))

    def with_tensorrt(name: str, package: str, graphs: bool, half: bool) -> dict:
        library = load_tensorrt(name)  # type: ignore[arg-type]
        if half and strongly_typed(library):
            return {"skipped": f"{library.title} takes precision from the graph"}
        engine = cached_engine(library, model, BuildOptions(half=half), folder)
        device = open_device(package)
        with TensorRTRunner(engine.path, library, device, graphs) as runner:
            result = measure(runner, images, reference)
        result |= {"build_s": engine.record["seconds"], "plan_bytes": engine.record["plan_bytes"]}
        if name == "tensorrt" and graphs:
            result["trtexec"] = trtexec(engine.path)
        return result

    for name in ("tensorrt", "tensorrt_rtx"):
        for package in DEVICES:
            for graphs in (True, False):
                for half in (False, True):
                    title = f"{name} {package}{' graph' * graphs}{' half' * half}"
                    attempt(
                        results, title,
                        lambda n=name, p=package, g=graphs, h=half: with_tensorrt(n, p, g, h),
                    )  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=16)
    options = parser.parse_args()
    record: dict = {
        "schema": "edgeuda.gpu-check/1",
        "machine": identity(),
        "doctor": to_record(examine()),
        "models": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for model in options.model:
            with OnnxRunner(model) as runner:
                size = runner.spec.preprocessing
            paths = spread(list_images(options.target), options.frames)
            images = [resize_image(read_image(p), size.height, size.width)[None] for p in paths]
            record["models"].append(
                {
                    "file": model.name,
                    "sha256": sha256(model),
                    "precision": precision_of(read_metadata(model)),
                    "frames": len(images),
                    "results": check(model, images, Path(folder)),
                }
            )
            write_json(options.out, record)  # what is measured is kept, whatever comes next
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
