"""Range collection against ONNX Runtime's calibrators: time, peak memory, ranges; prints JSON.

Every measurement is a process of its own, on the same model, tensors and frames. A network of
benchmarks/int8_ort.py, or one given by --model, sees photos given by --frames, or smooth noise.

    python benchmarks/range_collection.py --size 256 512 16 --size 512 1024 8
    python benchmarks/range_collection.py --size 1024 2048 64 --only ours
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from calibration import rules
from calibration.frames import FrameFiles
from calibration.placement import ORT_X86
from calibration.ranges import BINS, Histogram, collect
from edgeuda.data.images import write_image
from engines.machine.hardware import identity
from engines.onnx.index import index

METHODS = ("ours", "ort-minmax", "ort-percentile", "ort-entropy")
PERCENT = 99.99


def frames_of(folder: Path, height: int, width: int) -> FrameFiles:
    return FrameFiles(tuple(sorted(folder.iterdir())), height, width)


def ours(model: Path, tensors: list[str], frames: FrameFiles) -> dict[str, Histogram]:
    return collect(onnx.load(model), tensors, frames)


def theirs(method: str, model: Path, tensors: list[str], frames: FrameFiles) -> dict[str, list]:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.calibrate import CalibraterBase, CalibrationDataReader

    def select(_self, graph):
        known = {value.name: value for value in (*graph.graph.value_info, *graph.graph.output)}
        return set(tensors), {name: known.get(name) for name in tensors}

    class Reader(CalibrationDataReader):
        position = 0

        def get_next(self):
            self.position += 1
            if self.position > len(frames):
                return None
            return {"image": frames[self.position - 1]}

    CalibraterBase.select_tensors_to_calibrate = select
    how = {
        "ort-minmax": (CalibrationMethod.MinMax, {}),
        "ort-percentile": (
            CalibrationMethod.Percentile,
            {"percentile": PERCENT, "num_bins": BINS, "symmetric": False},
        ),
        # 2048 bins: with its default of 128 no range but the largest competes.
        "ort-entropy": (CalibrationMethod.Entropy, {"num_bins": BINS, "num_quantized_bins": 128}),
    }
    kind, options = how[method]
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            str(model), augmented_model_path=f"{folder}/augmented.onnx", calibrate_method=kind,
            extra_options=options,
        )  # fmt: skip
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
    return {
        name: [float(np.ravel(value)[0]) for value in data.range_value]
        for name, data in found.data.items()
    }


def child(method: str, model: Path, folder: Path, height: int, width: int, out: Path) -> None:
    tensors = list(ORT_X86.place(index(onnx.load(model).graph), frozenset()).measured())
    frames = frames_of(folder, height, width)
    start = time.perf_counter()
    result = {"ranges": {}}
    if method == "ours":
        found = ours(model, tensors, frames)
        for histogram in found.values():
            rules.entropy(histogram)
        seconds = time.perf_counter() - start
        for name, how in (
            ("max", rules.maximum),
            # onnxruntime cuts half of what is beyond on each side
            ("percentile", lambda h: rules.percentile(h, 100 - (100 - PERCENT) / 2)),
            ("entropy", as_onnxruntime),
        ):
            result["ranges"][name] = {tensor: list(how(h)) for tensor, h in found.items()}
    else:
        ranges = theirs(method, model, tensors, frames)
        seconds = time.perf_counter() - start
        result["ranges"] = ranges
    # getrusage would report the parent's peak from before this program was started
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
    result |= {
        "seconds": round(seconds, 2),
        "peak_mib": peak,
    }
    out.write_text(json.dumps(result))


def as_onnxruntime(histogram: Histogram) -> list[float]:
    """Put our histogram into bins that are symmetric about zero and apply onnxruntime's rule."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    reach = max(abs(histogram.low), abs(histogram.high))
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    counts, bins = np.histogram(centres, BINS, (-reach, reach), weights=histogram.counts)
    collector = HistogramCollector("entropy", True, BINS, 128, PERCENT, "same")
    low, high = np.float32(histogram.low), np.float32(histogram.high)
    limits = collector.get_entropy_threshold((counts.astype(np.int64), bins, low, high, 0), 128)
    return [float(limit) for limit in limits[:2]]


def differences(measured: dict[str, dict]) -> dict[str, dict]:
    """Differences of the ranges' ends, in bins of a symmetric histogram."""
    result: dict[str, dict] = {}
    own = measured["ours"]["ranges"]
    for name in ("max", "percentile", "entropy"):
        other = measured.get(f"ort-{'minmax' if name == 'max' else name}")
        if other is None:
            continue
        ends = []
        for tensor, (low, high) in own[name].items():
            a, b = other["ranges"][tensor]
            reach = 2 * max(map(abs, own["max"][tensor]))
            ends += [abs(low - a) / (reach / BINS), abs(high - b) / (reach / BINS)]
        result[name] = {
            "largest": round(max(ends), 3),
            "within_one_bin": round(float(np.mean(np.array(ends) <= 1.01)), 4),
        }
    return result


def measure(model: Path, photos: list[Path], height: int, width: int, count: int, only: list[str]):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = folder / "frames"
        frames.mkdir()
        if photos:
            for number in range(count):
                photo = photos[number % len(photos)].resolve()
                (frames / f"{number:04d}{photo.suffix}").symlink_to(photo)
        else:
            from int8_ort import smooth_images

            for number, image in enumerate(smooth_images(count, height, width)):
                write_image(frames / f"{number:04d}.png", image)
        measured = {}
        for method in only:
            out = folder / f"{method}.json"
            subprocess.run(
                [sys.executable, __file__, "--child", method, str(model), str(frames),
                 str(height), str(width), str(out)],
                check=True, stdout=subprocess.DEVNULL,  # onnxruntime's calibrators print
            )  # fmt: skip
            measured[method] = json.loads(out.read_text())
        record = {"height": height, "width": width, "frames": count}
        for method, result in measured.items():
            record[method] = {k: v for k, v in result.items() if k != "ranges"}
        if "ours" in measured and "ort-entropy" in measured:
            record["entropy_ratio"] = round(
                measured["ort-entropy"]["seconds"] / measured["ours"]["seconds"], 2
            )
        if "ours" in measured:
            record["difference_in_bins"] = differences(measured)
        return record


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        method, model, folder, height, width, out = sys.argv[2:]
        child(method, Path(model), Path(folder), int(height), int(width), Path(out))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs=3, type=int, action="append", required=True,
                        metavar=("ROWS", "COLUMNS", "FRAMES"))  # fmt: skip
    parser.add_argument("--frames", nargs="*", type=Path, default=[], help="photos")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    from int8_ort import network, smooth_images

    from edgeuda.labels import SPACES
    from edgeuda.spec import ModelSpec, Preprocessing
    from engines.onnx_export import export_onnx

    results = []
    for height, width, count in options.size:
        spec = ModelSpec("bisenet", 1.0, SPACES["cityscapes-19"], Preprocessing(height, width))
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.onnx"
            export_onnx(network(spec), spec, model, frames=smooth_images(1, height, width))
            results.append(measure(model, options.frames, height, width, count, options.only))
        print(json.dumps(results[-1]), file=sys.stderr)
    print(json.dumps(
        {"schema": "edgeuda.benchmark.ranges/1", "machine": identity(), "results": results},
        indent=2,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
