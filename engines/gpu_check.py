"""The acceptance test that a first owner of a GPU runs: what passed, failed, or is not there."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda.accuracy.evaluation import agreement
from edgeuda.data.images import resize_image
from edgeuda.data.treatment import read_frame
from edgeuda.errors import DataError, DependencyError, DeviceError, EdgeudaError, ParityError
from edgeuda.files import now_utc, sha256
from edgeuda.records.build import BuildOptions
from edgeuda.records.gpu_check import GpuCheckRecord, Row
from edgeuda.records.names import Head, LibraryName, ProviderName
from engines.cuda.check import check_device, kernel_in_a_fresh_process
from engines.cuda.device import DEVICES, open_device
from engines.cuda.driver import cuda_devices, driver_version, gpu_title
from engines.doctor import examine, record_of
from engines.machine.hardware import identity
from engines.machine.vitals import Monitor
from engines.onnx.graphs import load_graph
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import Runner
from engines.tensorrt.builder import strongly_typed
from engines.tensorrt.cache import Engine, cached_engine
from engines.tensorrt.library import Library, load_tensorrt
from engines.tensorrt.runner import TensorRTRunner

Forms = Mapping[tuple[Head, str], Path]
"""ONNX files by head and arithmetic: fp32, fp16, int8, int8+fp16."""
LEAST = {"fp32": 0.999, "fp16": 0.99, "int8": 0.97, "int8+fp16": 0.97}
"""Smallest share of pixels on which an engine and ONNX Runtime on the CPU have to agree."""
SLOWER = 1.05
"""How much longer than ``trtexec`` on the same engine is allowed."""
RUNS = 200
FrameArrays = Sequence[npt.NDArray[np.uint8]]


class _DoesNotApplyError(Exception):
    """What is checked does not exist for this GPU or this TensorRT."""


@dataclass
class _Check:
    """Collects rows."""

    skip: Sequence[str]
    say: Callable[[Row], None]
    rows: list[Row] = field(default_factory=list)

    def run(self, name: str, check: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Run a check, whatever comes of it; returns its figures if it passed."""
        row = self._row(name, check)
        self.rows.append(row)
        self.say(row)
        return row.figures if row.status == "passed" else None

    def _row(self, name: str, check: Callable[[], dict[str, Any]]) -> Row:
        if any(fnmatch(name, pattern) for pattern in self.skip):
            return Row(name, "skipped", "as asked")
        try:
            return Row(name, "passed", figures=check())
        except _DoesNotApplyError as err:
            return Row(name, "skipped", str(err))
        except DependencyError as err:
            return Row(name, "not installed", str(err))
        except EdgeudaError as err:
            return Row(name, "failed", str(err))
        except Exception as err:  # native libraries raise what they like
            return Row(name, "failed", f"{type(err).__name__}: {err}")


def gpu_check(
    forms: Forms,
    frames: Sequence[Path],
    folder: Path,
    *,
    skip: Sequence[str] = (),
    seconds: float = 60.0,
    say: Callable[[Row], None] = lambda _: None,
) -> GpuCheckRecord:
    """Try all that this project does on a GPU, against ONNX Runtime on the CPU.

    Args:
        forms: The model with every head and in every arithmetic.
        frames: At least two different frames of the target domain.
        folder: Where engines go.
        skip: Names of checks that are not wanted; ``*`` stands for anything.
        seconds: How long the last check runs.
        say: Told each row.

    Returns:
        The record.

    Raises:
        DataError: If there are fewer than two frames.
    """
    if len(frames) < 2:  # a graph that replays its first frame would pass on one
        msg = f"Expected at least two frames, found {len(frames)}"
        raise DataError(msg)
    check = _Check(skip, say)
    if check.run("machine", _machine) is not None:
        _devices(check)
        _onnxruntime(check, forms, frames)
        engines: dict[str, Engine] = {}
        names: tuple[LibraryName, ...] = ("tensorrt", "tensorrt_rtx")
        for name in names:
            engines |= _tensorrt(check, name, forms, frames, folder)
        check.run("soak", lambda: _soak(engines, forms, frames, seconds))
    counted = dict.fromkeys(("passed", "failed", "not installed", "skipped"), 0)
    for row in check.rows:
        counted[row.status] += 1
    return GpuCheckRecord(
        now_utc(),
        identity(),
        record_of(examine()).to_record(),
        {f"{h} {a}": sha256(path) for (h, a), path in forms.items()},
        len(frames),
        check.rows,
        counted,
    )


def require_passed(record: GpuCheckRecord) -> None:
    """Raise unless every check passed or was skipped.

    Raises:
        DeviceError: If any failed.
        DependencyError: If none failed and something is not installed.
    """
    if failed := record.named("failed"):
        msg = f"Failed: {', '.join(failed)}"
        raise DeviceError(msg)
    if absent := record.named("not installed"):
        msg = (
            f"Not installed: {', '.join(absent)}. Install them, or say which are "
            "not wanted: `skip` NAME"
        )
        raise DependencyError(msg)


def _machine() -> dict[str, Any]:
    devices = cuda_devices()
    found = identity()
    wanted = ("gpu_clocks_mhz", "gpu_clock_lock", "nvpmodel", "gpu_power_limit_w", "l4t")
    return {
        "devices": devices, "device": gpu_title(),
        "cuda_of_the_driver": ".".join(map(str, driver_version())),
        **{key: found[key] for key in wanted},
    }  # fmt: skip


def _devices(check: _Check) -> None:
    def package(name: str) -> dict[str, Any]:
        return dict(check_device(open_device(name)))

    for name in DEVICES:
        check.run(f"device {name}", partial(package, name))

    def kernel() -> dict[str, Any]:
        return _at_least(0.999, kernel_in_a_fresh_process(), "kernel and host")

    check.run("kernel", kernel)


def _at_least(least: float, found: float, what: str) -> dict[str, Any]:
    if not found >= least:
        msg = f"{what} agree on {found:.3%} of the pixels, expected at least {least:.1%}"
        raise ParityError(msg)
    return {"agreement": round(found, 6)}


def _images(runner: Runner, frames: Sequence[Path]) -> FrameArrays:
    size = runner.spec.preprocessing
    return [
        resize_image(read_frame(p, size.geometry), size.height, size.width)[None] for p in frames
    ]


def _agreement(
    runner: Runner, reference: Path, frames: Sequence[Path], least: float
) -> dict[str, Any]:
    """Compare image by image, with one call for each: all but the first are replays.

    Each frame is followed by its mirror image, so that what was replayed on the frame before is
    far from right, however alike the frames are.
    """
    with OnnxRunner(reference) as cpu:
        equal = [
            agreement(runner(image)[0], cpu(image)[0])
            for frame in _images(cpu, frames)
            for image in (frame, np.ascontiguousarray(frame[:, :, ::-1]))
        ]
    found = _at_least(least, float(np.mean(equal)), f"{runner.backend} and ONNX Runtime on the CPU")
    return {
        **found, "worst": round(min(equal), 6), "backend": runner.backend,
        "execution": dict(runner.execution), "fallbacks": list(runner.fallbacks),
    }  # fmt: skip


def _as_asked(runner: Runner) -> None:
    if runner.fallbacks:
        raise DeviceError("; ".join(runner.fallbacks))


def _onnxruntime(check: _Check, forms: Forms, frames: Sequence[Path]) -> None:
    head = next(iter(forms))[0]

    def provider(device: ProviderName, arithmetic: str) -> dict[str, Any]:
        reference = _reference(forms, head, arithmetic)
        with OnnxRunner(forms[head, arithmetic], device=device) as runner:
            # Single nodes that run elsewhere are listed, and no failure.
            found = _agreement(runner, reference, frames, LEAST[arithmetic])
            return {**found, **_times(runner, frames)}

    devices: tuple[ProviderName, ...] = ("cuda", "tensorrt")
    for device in devices:
        for arithmetic in ("fp32", "int8"):
            name = f"onnxruntime {device} {arithmetic}"
            check.run(name, partial(provider, device, arithmetic))


def _reference(forms: Forms, head: Head, arithmetic: str) -> Path:
    """Return what is run on the CPU: half precision is held against what it is made from."""
    return forms[head, "int8" if arithmetic.startswith("int8") else "fp32"]


def _times(runner: Runner, frames: Sequence[Path]) -> dict[str, float]:
    """Return medians in milliseconds, by the host's clock and, if it tells, the device's."""
    images = _images(runner, frames)
    host, device = [], []
    for number in range(RUNS):
        start = perf_counter_ns()
        runner(images[number % len(images)])
        host.append((perf_counter_ns() - start) / 1e6)
        device.append(runner.parts.get("gpu", 0) / 1e6)
    found = {"median_ms": median(host[RUNS // 10 :])}
    if any(device):
        found["gpu_median_ms"] = median(device[RUNS // 10 :])
    return {key: round(value, 4) for key, value in found.items()}


def _tensorrt(
    check: _Check, name: LibraryName, forms: Forms, frames: Sequence[Path], folder: Path
) -> dict[str, Engine]:
    """Check one TensorRT; returns its engines that agree, by name."""
    loaded: list[Library] = []

    def load() -> dict[str, Any]:
        loaded.append(load_tensorrt(name))
        return {"version": loaded[0].title}

    if check.run(name, load) is None:
        return {}
    library = loaded[0]
    made: dict[str, Engine] = {}

    def build(head: Head, arithmetic: str, **options: Any) -> Engine:
        half = arithmetic.endswith("fp16") and not strongly_typed(library)
        base = {"fp16": "fp32", "int8+fp16": "int8"}.get(arithmetic, arithmetic)
        path = forms[head, base if half else arithmetic]
        return cached_engine(library, path, BuildOptions(half=half, **options), folder)

    def engine(head: Head, arithmetic: str, title: str = "", **options: Any) -> dict[str, Any]:
        built = build(head, arithmetic, **options)
        with TensorRTRunner(built.path, library) as runner:
            reference = _reference(forms, head, arithmetic)
            found = _agreement(runner, reference, frames, LEAST[arithmetic])
            found |= _times(runner, frames)
            _as_asked(runner)
        made[title or f"{name} {head} {arithmetic}"] = built
        kept = ("precision", "rest", "seconds", "plan_bytes", "dla_layers")
        record = built.record.to_record()
        return {**found, "build": {key: record[key] for key in kept}}

    for head, arithmetic in forms:
        title = f"{name} {head} {arithmetic}"
        check.run(title, partial(engine, head, arithmetic))
    head = next(iter(forms))[0]
    check.run(
        f"{name} two batch sizes",
        lambda: _two_batches(build(head, "fp32", batch=(1, 1, 2)), library, forms, frames),
    )
    if name == "tensorrt":
        title = "tensorrt version-compatible"
        check.run(title, lambda: engine(head, "fp32", title, version_compatible=True))
        check.run("tensorrt dla", lambda: _on_dla(library, engine, head))
        int8 = made.get(f"tensorrt {head} int8")
        check.run("tensorrt int8 layers", lambda: _int8_layers(int8, forms[head, "int8"]))
        check.run("trtexec", lambda: _trtexec(int8, library, frames))
    return made


def _two_batches(
    built: Engine, library: Library, forms: Forms, frames: Sequence[Path]
) -> dict[str, Any]:
    head = next(iter(forms))[0]
    with TensorRTRunner(built.path, library) as runner, OnnxRunner(forms[head, "fp32"]) as cpu:
        one, two, *_ = _images(cpu, frames)
        both = np.concatenate([one, two])
        expected = cpu(both)
        equal = [
            agreement(found, right)
            for batch, rights in ((both, expected), (one, expected[:1]), (both, expected)) * 2
            for found, right in zip(runner(batch), rights, strict=True)
        ]
        _as_asked(runner)
    return _at_least(LEAST["fp32"], min(equal), "two batch sizes and the CPU")


def _on_dla(library: Library, engine: Callable[..., dict[str, Any]], head: Head) -> dict[str, Any]:
    logger, _ = library.logger()
    if not library.module.Builder(logger).num_DLA_cores:
        msg = "this GPU has no deep learning accelerator"
        raise _DoesNotApplyError(msg)
    if strongly_typed(library):
        msg = f"{library.title} takes precision from the graph, which excludes the accelerator"
        raise _DoesNotApplyError(msg)
    return engine(head, "fp16", "tensorrt dla", dla_core=0)


def _int8_layers(built: Engine | None, model: Path) -> dict[str, Any]:
    """Count convolutions that TensorRT's inspector says are INT8, and list reformats."""
    if built is None:
        msg = "there is no INT8 engine that agrees"
        raise DeviceError(msg)
    graph = load_graph(model, "build").graph
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    wanted = sum(n.op_type == "Conv" and set(n.input[:2]) <= dequantized for n in graph.node)
    layers = built.record.engine_layers or []
    kinds = [str(one.get("ParameterType", one.get("LayerType", ""))) for one in layers]
    convolutions = [one for one, kind in zip(layers, kinds, strict=True) if "Conv" in kind]
    int8 = sum("INT8" in str(one.get("Inputs", "")).upper() for one in convolutions)
    reformats = [one["Name"] for one, kind in zip(layers, kinds, strict=True) if "eformat" in kind]
    if int8 < wanted:
        msg = (
            f"{int8} of {len(convolutions)} convolutions are INT8 by TensorRT's inspector, "
            f"expected at least the {wanted} that are quantized"
        )
        raise DeviceError(msg)
    return {"int8_convolutions": int8, "quantized": wanted, "reformats": reformats}


def _trtexec(built: Engine | None, library: Library, frames: Sequence[Path]) -> dict[str, Any]:
    """Hold our time on the device, copies included, against that of NVIDIA's program."""
    program = shutil.which("trtexec") or "/usr/src/tensorrt/bin/trtexec"
    if not Path(program).exists():
        msg = "trtexec is part of TensorRT: apt install libnvinfer-bin"
        raise DependencyError(msg)
    if built is None:
        msg = "there is no INT8 engine that agrees"
        raise DeviceError(msg)
    done = subprocess.run(
        [program, f"--loadEngine={built.path}", "--iterations=200", "--useCudaGraph"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    said = re.search(r"\bLatency:.*?median = ([\d.]+) ms", done.stdout)
    if done.returncode or said is None:
        msg = f"trtexec ended with {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
        raise DeviceError(msg)
    with TensorRTRunner(built.path, library) as runner:
        ours = _times(runner, frames)["gpu_median_ms"]
    theirs = float(said[1])
    if ours > SLOWER * theirs:
        msg = f"the runner takes {ours:.3f} ms on the device, trtexec {theirs:.3f} ms"
        raise DeviceError(msg)
    return {"gpu_median_ms": ours, "trtexec_ms": theirs}


def _soak(
    engines: Mapping[str, Engine], forms: Forms, frames: Sequence[Path], seconds: float
) -> dict[str, Any]:
    """Run without a pause; fails if clocks are throttled."""
    if not engines:
        msg = "there is no engine that agrees"
        raise DeviceError(msg)
    names = sorted(engines, key=lambda name: ("int8" not in name, name))
    chosen = engines[names[0]]
    count, begin = 0, perf_counter()
    with TensorRTRunner(chosen.path) as runner, Monitor(perf_counter_ns()) as vitals:
        images = _images(runner, frames)
        while perf_counter() - begin < seconds or not count:
            runner(images[count % len(images)])
            count += 1
        _as_asked(runner)
    if vitals.throttled:
        msg = f"clocks were throttled within {seconds:.0f} s"
        raise DeviceError(msg)
    state = asdict(vitals.summary())
    return {"engine": names[0], "frames": count, "seconds": seconds, "state": state}
