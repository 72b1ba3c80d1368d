"""Latency of models on this machine, from a decoded camera frame to a label map of its size."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

from edgeuda.data.folders import spread
from edgeuda.data.images import Image, read_image, resize_image, resize_label
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import sha256, write_json
from engines.machine import identity
from engines.onnxruntime_session import Device, usable_cores
from engines.opening import open_runner
from engines.percentiles import LatencySummary, median_interval, samples_needed, summarise
from engines.runner import Runner

STAGES = ("preprocess", "inference", "postprocess", "total")
MAX_FRAMES = 32
"""Frames held decoded in memory; more would measure the memory of the machine, not the models."""
WARMUP_WINDOW = 20
WARMUP_TOLERANCE = 0.02

Sample = tuple[int, int, int, int]
"""Nanoseconds of each of `STAGES`."""


@dataclass(frozen=True)
class Method:
    """How the latencies were measured.

    Attributes:
        batch: Images per inference.
        threads: Threads of one operator.
        samples: Measured rounds, each with one sample of every model.
        warmup: The rule that ended the warm-up.
        warmup_rounds: Rounds before the first measured one.
        warmup_seconds: Their duration.
        warmup_stable: Whether the medians had settled, as opposed to the time limit having passed.
        interleaved: Whether the models took turns within a round.
        order: The order of the models within a round.
        timer: The clock.
        frames: Distinct frames, used in turn; all models see the same one in a round.
        arrival: When a frame comes, relative to the end of the one before.
    """

    batch: int
    threads: int
    samples: int
    warmup: str
    warmup_rounds: int
    warmup_seconds: float
    warmup_stable: bool
    interleaved: bool
    order: str
    timer: str
    frames: int
    arrival: str


@dataclass(frozen=True)
class ModelLatency:
    """One model's latencies in milliseconds.

    Attributes:
        name: What the report calls it.
        file: Name of its file.
        sha256: Checksum of the file.
        precision: ``fp32`` or ``int8``.
        head: What its graph returns; with ``logits`` the argmax counts as inference.
        backend: Runtime, version and device.
        input: Height and width of the network's input.
        size_bytes: Size of the file.
        stages: Summaries by stage; ``total`` is end to end.
        samples_ms: All samples by stage, in the order of measurement.
    """

    name: str
    file: str
    sha256: str
    precision: str
    head: str
    backend: str
    input: tuple[int, int]
    size_bytes: int
    stages: dict[str, LatencySummary]
    samples_ms: dict[str, list[float]]


@dataclass(frozen=True)
class Ratio:
    """Inference time of the first model over that of another, round by round.

    Attributes:
        baseline: Name of the first model.
        candidate: Name of the other.
        inference_median: Median of the ratios; above 1 the candidate is faster.
        low: Lower end of the median's 95 % interval.
        high: Upper end.
    """

    baseline: str
    candidate: str
    inference_median: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchRecord:
    """One benchmark run.

    Attributes:
        created: UTC time in ISO 8601.
        machine: See `engines.machine.identity`; read before the run.
        method: How it was measured.
        models: In the order given.
        ratios: Every further model against the first.
    """

    created: str
    machine: dict[str, str]
    method: Method
    models: tuple[ModelLatency, ...]
    ratios: tuple[Ratio, ...]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, ``edgeuda.bench/1``."""
        return {"schema": "edgeuda.bench/1", **asdict(self)}


def bench(
    models: Sequence[Path],
    frames: Sequence[Path],
    out: Path | None = None,
    *,
    threads: int | None = None,
    device: Device = "cpu",
    samples: int = 700,
    warmup_seconds: float = 2.0,
    names: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BenchRecord:
    """Measure the latency of models side by side.

    The models take turns within each round, in an order drawn anew, so that what disturbs the
    machine disturbs all of them; speed ratios come from the samples of the same round.

    Args:
        models: ONNX files written by this project; the first is the baseline of the ratios.
        frames: Image files; at most `MAX_FRAMES`, evenly chosen, are decoded before the run.
        out: Where to write the record as JSON, if anywhere.
        threads: Threads of one operator; None takes every usable core.
        device: Where ONNX files run, see `open_session`.
        samples: Rounds; 662 support the 99th percentile, 6636 the 99.9th.
        warmup_seconds: Shortest warm-up; it goes on until the medians settle, up to ten times this.
        names: Names of the models, by default their files' names without suffix.
        progress: Called between rounds with the rounds done and ``samples``.

    Raises:
        ConfigError: If there are too few samples for a median, no models, or ambiguous names.
        DataError: If there are no frames or one cannot be read.
        ModelError: If a model is not one of this project's.
        DependencyError: If ``onnxruntime`` is not installed.
    """
    names = _names(models, names)
    if samples < samples_needed(50):
        msg = f"Expected at least {samples_needed(50)} samples (for a median), found {samples}"
        raise ConfigError(msg)
    if not frames:
        msg = "Expected at least one frame to run the models on, found none"
        raise DataError(msg)
    images = [read_image(path) for path in spread(frames, MAX_FRAMES)]
    machine = identity()
    threads = threads or usable_cores()
    with ExitStack() as stack:
        runners: list[Runner] = [
            stack.enter_context(open_runner(m, threads, device)) for m in models
        ]
        warmup_rounds, seconds, stable = _warm_up(runners, images, warmup_seconds)
        rounds = _measure(runners, images, samples, progress)
        latencies = tuple(
            _latency(name, path, runner, [turn[index] for turn in rounds])
            for index, (name, path, runner) in enumerate(zip(names, models, runners, strict=True))
        )
    method = Method(
        batch=1,
        threads=threads,
        samples=samples,
        warmup=f"at least {warmup_seconds:g} s, until the median inference time of "
        f"{WARMUP_WINDOW} rounds is within {WARMUP_TOLERANCE:.0%} of that of the "
        f"{WARMUP_WINDOW} before, at most {10 * warmup_seconds:g} s",
        warmup_rounds=warmup_rounds,
        warmup_seconds=round(seconds, 3),
        warmup_stable=stable,
        interleaved=True,
        order="drawn anew in each round, seed 0",
        timer="perf_counter_ns",
        frames=len(images),
        arrival="closed loop",
    )
    ratios = tuple(_ratio(latencies[0], other) for other in latencies[1:])
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = BenchRecord(created, machine, method, latencies, ratios)
    if out is not None:
        write_json(out, record.to_record())
    return record


def _names(models: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    chosen = [path.stem for path in models] if names is None else list(names)
    if not models or len(chosen) != len(models) or len(set(chosen)) != len(chosen):
        msg = (
            f"Expected one or more models with a name of its own each, found {len(models)} "
            f"model(s) and the names {chosen}. Give the names if files are called the same"
        )
        raise ConfigError(msg)
    return chosen


def _sample(runner: Runner, frame: Image) -> Sample:
    """Time `engines.runner.segment` stage by stage."""
    size = runner.spec.preprocessing
    start = perf_counter_ns()
    image = resize_image(frame, size.height, size.width)[None]
    resized = perf_counter_ns()
    labels = runner(image)
    inferred = perf_counter_ns()
    resize_label(labels[0], *frame.shape[:2])
    end = perf_counter_ns()
    return resized - start, inferred - resized, end - inferred, end - start


def _round(runners: Sequence[Runner], frame: Image, order: random.Random) -> list[Sample]:
    """Take one sample of every model; the result is in the order of ``runners``."""
    turns = list(range(len(runners)))
    order.shuffle(turns)  # else one model would always find the caches as another left them
    taken = {turn: _sample(runners[turn], frame) for turn in turns}
    return [taken[index] for index in range(len(runners))]


def _measure(
    runners: Sequence[Runner],
    images: Sequence[Image],
    samples: int,
    progress: Callable[[int, int], None] | None,
) -> list[list[Sample]]:
    order = random.Random(0)
    rounds = []
    for index in range(samples):
        rounds.append(_round(runners, images[index % len(images)], order))
        if progress is not None:
            progress(index + 1, samples)
    return rounds


def _warm_up(
    runners: Sequence[Runner], images: Sequence[Image], seconds: float
) -> tuple[int, float, bool]:
    """Run rounds until latencies settle; return their number, duration and whether they did."""
    order = random.Random(1)
    inference: list[list[int]] = [[] for _ in runners]
    start = perf_counter_ns()
    while True:
        frame = images[len(inference[0]) % len(images)]
        for history, sample in zip(inference, _round(runners, frame, order), strict=True):
            history.append(sample[1])
        elapsed = (perf_counter_ns() - start) / 1e9
        stable = all(map(_settled, inference))
        if elapsed >= seconds and (stable or elapsed >= 10 * seconds):
            return len(inference[0]), elapsed, stable


def _settled(history: Sequence[int]) -> bool:
    if len(history) < 2 * WARMUP_WINDOW:
        return False
    before = median(history[-2 * WARMUP_WINDOW : -WARMUP_WINDOW])
    return abs(median(history[-WARMUP_WINDOW:]) - before) <= WARMUP_TOLERANCE * before


def _latency(name: str, path: Path, runner: Runner, samples: Sequence[Sample]) -> ModelLatency:
    by_stage = {
        stage: [nanoseconds / 1e6 for nanoseconds in column]
        for stage, column in zip(STAGES, zip(*samples, strict=True), strict=True)
    }
    size = runner.spec.preprocessing
    return ModelLatency(
        name=name,
        file=path.name,
        sha256=sha256(path),
        precision=runner.precision,
        head=runner.head,
        backend=runner.backend,
        input=(size.height, size.width),
        size_bytes=path.stat().st_size,
        stages={stage: summarise(values) for stage, values in by_stage.items()},
        samples_ms=by_stage,
    )


def _ratio(baseline: ModelLatency, candidate: ModelLatency) -> Ratio:
    pairs = zip(baseline.samples_ms["inference"], candidate.samples_ms["inference"], strict=True)
    ratios = [slow / fast for slow, fast in pairs]
    interval = median_interval(ratios)
    assert interval is not None  # `bench` takes no fewer samples than the interval needs
    return Ratio(baseline.name, candidate.name, median(ratios), *interval)
