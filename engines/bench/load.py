"""Load patterns: when frames come, and what is measured of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

from edgeuda.data.images import Image
from edgeuda.errors import ConfigError
from edgeuda.records.names import Arrival, PresetName
from edgeuda.records.percentiles import samples_needed
from engines.bench.frame_path import STAGES, FramePath, Shot

WARMUP_WINDOW = 20
WARMUP_TOLERANCE = 0.02
WARMUP_LIMITS = (10, 30)
"""Times the shortest warm-up after which it ends, settled or not; the second where models are so
slow that the first does not hold two windows."""


@dataclass(frozen=True)
class Load:
    """A load pattern.

    Attributes:
        arrival: ``closed loop``: a frame comes when the one before is done, models take turns.
            ``frame rate``: frames come at a camera's rate, whether or not the last is done.
            ``offline``: as many as the machine can do, in batches.
        samples: Frames per model (offline: batches), at least.
        seconds: Duration per model, at least.
        fps: Frames per second of each camera; for ``frame rate``.
        cameras: Cameras that are triggered together; their frames are segmented in turn.
        drop: Whether a camera's new frame replaces one that still waits, as opposed to queueing.
        batch: Images per inference; for ``offline``.
        percentile: The percentile that the pattern is about.
        preset: Name of the preset it came from.
    """

    arrival: Arrival = "closed loop"
    samples: int = 700
    seconds: float = 0.0
    fps: float | None = None
    cameras: int = 1
    drop: bool = False
    batch: int = 1
    percentile: float | None = None
    preset: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.samples < samples_needed(50):
            problems.append(f"at least {samples_needed(50)} samples (for a median)")
        if (self.fps is not None) != (self.arrival == "frame rate"):
            problems.append("a frame rate for arrival at a frame rate, and for no other")
        if self.fps is not None and not self.fps > 0:
            problems.append("a frame rate above 0")
        if self.arrival != "frame rate" and (self.cameras > 1 or self.drop):
            problems.append("a frame rate with several cameras, or with frames that are dropped")
        if self.arrival != "offline" and self.batch > 1:
            problems.append("batches above 1 only offline")
        if min(self.cameras, self.batch) < 1 or self.seconds < 0:
            problems.append("at least one camera, one image per batch, and no negative seconds")
        if problems:
            msg = f"Load: expected {'; '.join(problems)}; found {self}"
            raise ConfigError(msg)

    @property
    def period_ms(self) -> float | None:
        """Milliseconds between a camera's frames."""
        return None if self.fps is None else 1e3 / self.fps


PRESETS: Mapping[PresetName, Load] = {
    "mlperf-singlestream": Load(
        samples=6636, seconds=600, percentile=99.9, preset="mlperf-singlestream"
    ),
    "mlperf-constantstream": Load(
        "frame rate", 100_000, 600, fps=15, percentile=99.9, preset="mlperf-constantstream"
    ),
}
"""MLPerf Automotive v0.5's rules for the segmentation task."""


def preset(name: PresetName) -> Load:
    """Return a preset.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in PRESETS:
        msg = f"Preset: expected one of {', '.join(PRESETS)}, found {name!r}"
        raise ConfigError(msg)
    return replace(PRESETS[name])


@dataclass
class Series:
    """What was measured of one model, an entry per frame (offline: per batch), in their order.

    Attributes:
        start_s: When its work began (``frame rate``: when it came), by the run's clock.
        stages: Milliseconds by stage.
        run: Number of the repeated run.
        camera: Number of the camera.
        dropped: Frames that were replaced before their turn.
        longest_queue: Most frames that waited at once.
        busy_s: Seconds from the first to the last entry of the runs.
    """

    start_s: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    run: list[int] = field(default_factory=list)
    camera: list[int] = field(default_factory=list)
    dropped: int = 0
    longest_queue: int = 0
    busy_s: float = 0.0

    def add(self, start_ns: int, stages: Mapping[str, int], run: int, camera: int = 0) -> None:
        """Add a frame's nanoseconds by stage."""
        self.start_s.append(start_ns / 1e9)
        for name, nanoseconds in stages.items():
            self.stages.setdefault(name, []).append(nanoseconds / 1e6)
        self.run.append(run)
        self.camera.append(camera)

    def arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return all columns of equal length, stages in the order of `STAGES`."""
        return {
            "start_s": np.asarray(self.start_s, np.float64),
            "run": np.asarray(self.run, np.float64),
            "camera": np.asarray(self.camera, np.float64),
            **{
                name: np.asarray(self.stages[name], np.float64)
                for name in STAGES
                if len(self.stages.get(name, ())) == len(self.start_s)
            },
        }


@dataclass
class BenchState:
    """Where a run has got to.

    Attributes:
        series: By model.
        origin_ns: Zero of the run's clock.
        progress: Told the frames done and to do of the whole benchmark.
        total: Frames to do.
    """

    series: list[Series]
    origin_ns: int
    progress: Callable[[int, int], None] | None
    total: int

    def tick(self) -> None:
        """Report progress."""
        if self.progress is not None:
            done = sum(len(one.start_s) for one in self.series)
            self.progress(min(done, self.total), self.total)


def closed_loop(
    paths: Sequence[FramePath], shots: Sequence[Shot], load: Load, run: int, state: BenchState
) -> None:
    """Feed frames back to back; models take turns in each round, in an order drawn anew."""
    order = random.Random(run)
    begin = perf_counter_ns()
    done = 0
    while _goes_on(load, begin, done):
        for turn, start, stages in _round(paths, shots[done % len(shots)], order):
            state.series[turn].add(start - state.origin_ns, stages, run)
        done += 1
        state.tick()
    for one in state.series:
        one.busy_s += sum(one.stages["total"][-done:]) / 1e3


def _goes_on(load: Load, begin_ns: int, done: int) -> bool:
    """Whether a repeat still lacks samples or time."""
    return done < load.samples or perf_counter_ns() - begin_ns < load.seconds * 1e9


def _round(
    paths: Sequence[FramePath], shot: Shot, order: random.Random
) -> list[tuple[int, int, dict[str, int]]]:
    turns = list(range(len(paths)))
    order.shuffle(turns)  # else one model would always find the caches as another left them
    return [(turn, perf_counter_ns(), paths[turn].whole(shot)) for turn in turns]


def at_frame_rate(
    path: FramePath,
    shots: Sequence[Shot],
    load: Load,
    run: int,
    state: BenchState,
    series: Series,
) -> None:
    """Feed frames of cameras at their rate; latency counts from when a frame comes.

    With ``drop``, the newest frame of a camera is taken and older ones are counted as dropped;
    else frames queue, first come, first served, and a model that is too slow falls behind without
    bound, as it would.
    """
    assert load.fps is not None  # `Load` checks it
    period = 1e9 / load.fps
    next_frame = [0] * load.cameras
    begin = perf_counter_ns()
    done = 0
    while _goes_on(load, begin, done):
        camera = done % load.cameras
        number = next_frame[camera]
        newest = int((perf_counter_ns() - begin) // period)
        if load.drop and newest > number:
            series.dropped += newest - number
            number = newest
        series.longest_queue = max(series.longest_queue, newest - number)
        next_frame[camera] = number + 1
        due = begin + round(number * period)
        _sleep_until(due)
        start = perf_counter_ns()
        shot = shots[(number + camera) % len(shots)]
        stages, _ = path.labels([shot.image], [shot.origin])
        stages["waiting"] = start - due
        stages["total"] += stages["waiting"]
        series.add(due - state.origin_ns, stages, run, camera)
        done += 1
        state.tick()
    series.busy_s += (perf_counter_ns() - begin) / 1e9


def offline(
    path: FramePath,
    shots: Sequence[Shot],
    load: Load,
    run: int,
    state: BenchState,
    series: Series,
) -> None:
    """Segment batches back to back."""
    begin = perf_counter_ns()
    done = 0
    while _goes_on(load, begin, done):
        first = done * load.batch
        images, origins = _batch(shots, first, load.batch)
        start = perf_counter_ns()
        series.add(start - state.origin_ns, path.labels(images, origins)[0], run)
        done += 1
        state.tick()
    series.busy_s += (perf_counter_ns() - begin) / 1e9


def warm_up(
    paths: Sequence[FramePath], shots: Sequence[Shot], seconds: float, batch: int = 1
) -> tuple[int, float, bool]:
    """Run models in turn until latencies settle.

    Returns:
        Rounds, seconds, and whether the median inference time of the last `WARMUP_WINDOW` rounds
        came within `WARMUP_TOLERANCE` of that of as many before, for every model.
    """
    inference: list[list[int]] = [[] for _ in paths]
    start = perf_counter_ns()
    while True:
        first = len(inference[0]) * batch
        images, origins = _batch(shots, first, batch)
        for history, path in zip(inference, paths, strict=True):
            history.append(path.labels(images, origins)[0]["inference"])
        elapsed = (perf_counter_ns() - start) / 1e9
        stable = all(map(_settled, inference))
        judged = len(inference[0]) >= 2 * WARMUP_WINDOW
        limit = WARMUP_LIMITS[0 if judged else 1] * seconds
        if elapsed >= seconds and (stable or elapsed >= limit):
            return len(inference[0]), elapsed, stable


def _batch(shots: Sequence[Shot], first: int, count: int) -> tuple[list[Image], list[Path]]:
    """Return images and files of the next frames, in turn."""
    chosen = [shots[(first + i) % len(shots)] for i in range(count)]
    return [shot.image for shot in chosen], [shot.origin for shot in chosen]


def _settled(history: Sequence[int]) -> bool:
    if len(history) < 2 * WARMUP_WINDOW:
        return False
    before = median(history[-2 * WARMUP_WINDOW : -WARMUP_WINDOW])
    return abs(median(history[-WARMUP_WINDOW:]) - before) <= WARMUP_TOLERANCE * before


def _sleep_until(due_ns: int) -> None:
    while (left := due_ns - perf_counter_ns()) > 0:
        time.sleep(left / 1e9)
