"""Range collection against ONNX Runtime's calibrators and NNCF: time, peak memory, ranges.

Every measurement is a process of its own, on the same model and frames; calibrators watch the same
tensors. They take turns, and where there are several turns ratios are of neighbours. What a second
core is worth is told by the fastest frame of each pass, too: on a machine with other work a second
thread may get no second core. The network is untrained and sees photos given by --frames, or smooth
noise. NNCF runs the whole of `nncf.quantize`, its writing of the graph included.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from benchmarks.networks import smooth_files, spec_of
from benchmarks.turns import alone, peak_kib, ratios, say
from calibration import rules
from calibration.frames import FrameFiles
from calibration.placement import ORT_X86
from calibration.ranges import BINS, Histogram, collect
from engines.onnx.index import index

NEEDS = "extras train, quantize and cpu; openvino and nncf for what it is compared with"
QUICK = {"size": [[64, 128, 2]], "width": 0.25, "turns": 1, "only": ["ours", "ort-percentile"]}
SIZES = [[256, 512, 16], [512, 1024, 8]]
METHODS = ("ours", "ort-minmax", "ort-percentile", "ort-entropy", "nncf")
PERCENT = 99.99


def frames_of(folder: Path, height: int, width: int) -> FrameFiles:
    return FrameFiles(tuple(sorted(folder.iterdir())), height, width)


def theirs(
    method: str, model: Path, tensors: list[str], frames: FrameFiles, threads: int
) -> dict[str, list]:
    """Collect ranges by one of ONNX Runtime's calibrators."""
    import onnxruntime
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

    def open_session(self):
        how = onnxruntime.SessionOptions()
        how.intra_op_num_threads = threads
        how.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.infer_session = onnxruntime.InferenceSession(
            self.augmented_model_path, how, self.execution_providers
        )

    CalibraterBase.select_tensors_to_calibrate = select
    CalibraterBase.create_inference_session = open_session  # as its own, but for the threads
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


def by_nncf(model: Path, frames: FrameFiles, threads: int) -> None:
    """Quantize the model with OpenVINO's tool, which collects ranges by running it there."""
    import nncf
    import openvino

    openvino.Core().set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
    graph = openvino.Core().read_model(model)
    graph.reshape([1, frames.height, frames.width, 3])
    nncf.quantize(graph, nncf.Dataset(frames), subset_size=len(frames))


def collected(
    method: str, path: str, folder: str, size: list[int], threads: int, entropy: bool
) -> dict:
    """Collect ranges in this process; returns seconds, peak memory and the ranges by rule."""
    model = Path(path)
    tensors = list(ORT_X86.place(index(onnx.load(model).graph), frozenset()).measured())
    frames = frames_of(Path(folder), *size)
    found = {}
    wall, cpu = time.perf_counter(), time.process_time()
    if method == "ours":
        steps = [time.perf_counter()]
        found = collect(
            onnx.load(model), tensors, frames, threads=threads,
            after_step=lambda _: steps.append(time.perf_counter()),
        )  # fmt: skip
        ranges = {name: rules.percentile(histogram, PERCENT) for name, histogram in found.items()}
    elif method == "nncf":
        ranges = by_nncf(model, frames, threads)
    else:
        ranges = theirs(method, model, tensors, frames, threads)
    result = {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mib": peak_kib() // 1024,
        "ranges": ranges,
    }
    if found:
        # Per pass, two for each chunk of tensors: what one frame takes when nobody else is there.
        passes = np.diff(steps).reshape(-1, len(frames))
        result["fastest_frames"] = round(float(passes.min(1).sum()), 3)
        hows = {
            "max": rules.maximum,
            # onnxruntime cuts half of what is beyond on each side
            "percentile": lambda h: rules.percentile(h, 100 - (100 - PERCENT) / 2),
        }
        if entropy:  # by our rule, which takes no other pass over the frames, and by theirs
            wall = time.perf_counter()
            for histogram in found.values():
                rules.entropy(histogram)
            result["entropy_seconds"] = round(time.perf_counter() - wall, 2)
            hows["entropy"] = as_onnxruntime
        result["ranges"] = {
            name: {tensor: list(how(h)) for tensor, h in found.items()}
            for name, how in hows.items()
        }
    return result


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


def at(rows: int, columns: int, count: int, given: argparse.Namespace) -> list[dict]:
    """Measure one size, in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = folder / "frames"
        frames.mkdir()
        for number in range(count if given.frames else 0):
            photo = given.frames[number % len(given.frames)].resolve()
            (frames / f"{number:04d}{photo.suffix}").symlink_to(photo)
        if not given.frames:
            smooth_files(frames, count, rows, columns)
        model = folder / "model.onnx"
        alone(exported, model, [rows, columns], given.width)
        entropy = "ort-entropy" in given.only
        ways = [(key, threads) for threads in given.threads for key in given.only]
        found: dict[tuple[str, int], list[dict]] = {way: [] for way in ways}
        for _ in range(given.turns):
            for key, threads in ways:
                arguments = (key, model, frames, [rows, columns], threads, entropy)
                turn = alone(collected, *arguments).value
                found[key, threads].append(turn)
                say(rows, columns, key, threads, {k: turn[k] for k in turn if k != "ranges"})
    return [row_of(found, threads, [rows, columns, count]) for threads in given.threads]


def row_of(found: dict[tuple[str, int], list[dict]], threads: int, size: list[int]) -> dict:
    """Return what was found with so many threads, compared with the others and with one thread."""
    turns = {key: measured for (key, count), measured in found.items() if count == threads}
    record = {"height": size[0], "width": size[1], "frames": size[2], "threads": threads}
    for key, measured in turns.items():
        record[key] = {
            what: [turn[what] for turn in measured] for what in measured[0] if what != "ranges"
        } | {"median_seconds": statistics.median(turn["seconds"] for turn in measured)}
        if threads > 1 and (key, 1) in found:
            pair = ([turn["seconds"] for turn in way] for way in (found[key, 1], measured))
            record[key]["times_as_fast_as_one_thread"] = ratios(*pair)
            if key == "ours":
                one, more = (min(t["fastest_frames"] for t in w) for w in (found[key, 1], measured))
                record[key]["fastest_frames_as_fast_as_one_thread"] = round(one / more, 3)
    if "ours" in turns:
        for key in turns.keys() - {"ours"}:
            record[f"ours_to_{key}"] = {
                clock: ratios(*([turn[clock] for turn in turns[one]] for one in ("ours", key)))
                for clock in ("seconds", "cpu_seconds")
            }
        record["difference_in_bins"] = differences({k: way[0] for k, way in turns.items()})
    return record


def exported(path: str, size: list[int], width: float) -> None:
    """Write an untrained network; here torch costs no memory of what is measured."""
    from benchmarks.networks import network, smooth_images
    from engines.onnx_export import export_onnx

    spec = spec_of(*size, width)
    export_onnx(network(spec), spec, Path(path), frames=smooth_images(1, *size))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", nargs=3, type=int, action="append",
                        metavar=("ROWS", "COLUMNS", "FRAMES"))  # fmt: skip
    parser.add_argument("--frames", nargs="*", type=Path, default=[], help="photos")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))


def measure(given: argparse.Namespace) -> dict:
    if not importlib.util.find_spec("nncf"):
        given.only = [key for key in given.only if key != "nncf"]
    return {
        "schema": "edgeuda.benchmark.ranges/2",
        "results": [row for size in given.size or SIZES for row in at(*size, given)],
    }
