"""Latency of models on this machine: load patterns, stages of a frame, the machine's state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda.data.folders import spread
from edgeuda.data.frames import FrameFolder
from edgeuda.data.treatment import applied_to, treatment_of
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import now_utc, sha256, write_npz
from edgeuda.records.bench import (
    BenchMethod,
    BenchRecord,
    Deadline,
    ModelLatency,
    Ratio,
    SamplesFile,
    samples_path,
)
from edgeuda.records.names import DeviceName
from edgeuda.records.percentiles import (
    drift,
    percentile_interval,
    samples_needed,
    summarise,
)
from engines.bench.frame_path import FramePath, Shot, read_shot
from engines.bench.load import (
    WARMUP_LIMITS,
    WARMUP_TOLERANCE,
    WARMUP_WINDOW,
    BenchState,
    Load,
    Series,
    at_frame_rate,
    closed_loop,
    offline,
    warm_up,
)
from engines.machine.hardware import identity
from engines.machine.vitals import OTHER_LOAD, Monitor, Vitals, energy_per_frame
from engines.onnx.session import usable_cores
from engines.opening import open_runner
from engines.runner import Runner

MAX_FRAMES = 32
"""Frames held decoded in memory; more would measure the memory of the machine, not the models."""


def bench(
    models: Sequence[Path],
    frames: Sequence[Path],
    out: Path | None = None,
    *,
    load: Load | None = None,
    threads: int | None = None,
    device: DeviceName | Sequence[DeviceName] = "cpu",
    repeats: int = 3,
    deadline_ms: float | None = None,
    warmup_seconds: float = 2.0,
    names: Sequence[str] | None = None,
    graphs: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> BenchRecord:
    """Measure the latency of models.

    In a closed loop the models take turns within each round, in an order drawn anew, so that what
    disturbs the machine disturbs all of them; speed ratios come from the samples of one round. At
    a frame rate and offline they run one after the other. Stopped by Ctrl-C, what was measured
    is kept and the record says that it is not complete.

    Args:
        models: ONNX files or engines; the first is the baseline of the ratios.
        frames: Image files, or a folder of which some may be broken; at most `MAX_FRAMES`, evenly
            chosen, are decoded before the run.
        out: Where to write the record as JSON, with all samples beside it, see `samples_path`.
        load: The load pattern; None is a closed loop of 700 samples.
        threads: Threads of one operator; None takes every usable core.
        device: Where ONNX files run, see `open_session`; one for all, or one for each.
        repeats: Times everything is opened, warmed up and measured anew; samples are shared out.
        deadline_ms: Longest ``total`` allowed; by default the camera's period, if there is one.
        warmup_seconds: Shortest warm-up; it goes on until the medians settle, within
            `engines.bench.load.WARMUP_LIMITS`.
        names: Names of the models, by default their files' names without suffix.
        graphs: Whether engines replay CUDA graphs; without, copies are told from execution.
        progress: Called between frames with those done and those to do.

    Raises:
        ConfigError: If there are no models, ambiguous names or less than one repeat.
        DataError: If there are no frames or one cannot be read.
        ModelError: If a model is not one of this project's.
        DependencyError: If ``onnxruntime`` is not installed.
    """
    names = _names(models, names)
    load = load or Load()
    if not 1 <= repeats <= load.samples // samples_needed(50):
        msg = (
            f"Expected 1 to {load.samples // samples_needed(50)} repeats of at least "
            f"{samples_needed(50)} samples each, found {repeats} of {load.samples} samples"
        )
        raise ConfigError(msg)
    if not frames:
        msg = "Expected at least one frame to run the models on, found none"
        raise DataError(msg)
    footage = frames if isinstance(frames, FrameFolder) else None
    chosen = spread(frames, MAX_FRAMES) if footage is None else footage.sample(MAX_FRAMES)
    shots = [read_shot(path) for path in chosen]
    broken = [] if footage is None else [f"Skipped: {why}" for why in footage.broken.values()]
    machine = identity()
    threads = threads or usable_cores()
    created = now_utc()
    devices: list[DeviceName] = [device] * len(models) if isinstance(device, str) else list(device)
    placed = list(zip(models, devices, strict=True))
    turns = [placed] if load.arrival == "closed loop" else [[one] for one in placed]
    share = _share(load, repeats)
    state = BenchState(
        [Series() for _ in models],
        perf_counter_ns(),
        progress,
        len(models) * repeats * share.samples,
    )
    warmups: list[tuple[int, float, bool]] = []
    facts: dict[int, dict[str, Any]] = {}
    complete = True
    with Monitor(state.origin_ns) as vitals:
        try:
            for run in range(repeats):
                first = 0
                for group in turns:
                    series = state.series[first : first + len(group)]
                    with ExitStack() as stack:
                        runners = [
                            stack.enter_context(open_runner(m, threads, d, graphs=graphs))
                            for m, d in group
                        ]
                        paths = [FramePath(runner) for runner in runners]
                        try:
                            warmups.append(warm_up(paths, shots, warmup_seconds, load.batch))
                            _measure(paths, shots, share, run, state, series)
                        finally:  # only after it ran a runner knows how
                            facts |= {n: _facts(one, shots) for n, one in enumerate(runners, first)}
                    first += len(group)
        except KeyboardInterrupt:
            complete = False
            if len(facts) < len(models) or any(len(s.start_s) < 2 for s in state.series):
                raise  # nothing that could be reported
    limit = deadline_ms if deadline_ms is not None else load.period_ms
    latencies = tuple(
        _latency(
            name, path, one, facts[index], limit, load,
            vitals if len(models) == 1 or load.arrival != "closed loop" else None,
        )
        for index, (name, path, one) in enumerate(zip(names, models, state.series, strict=True))
    )  # fmt: skip
    samples = min(len(one.start_s) for one in state.series)
    preset_met = complete and samples >= load.samples if load.preset else None
    method = BenchMethod(
        arrival=load.arrival,
        fps=load.fps,
        cameras=load.cameras,
        late_frames=None if load.fps is None else "dropped" if load.drop else "queued",
        batch=load.batch,
        preset=load.preset,
        preset_met=preset_met,
        threads=threads,
        samples=samples,
        repeats=repeats,
        order="models take turns in each round, in an order drawn anew"
        if load.arrival == "closed loop"
        else "one model after the other",
        warmup=f"at least {warmup_seconds:g} s, until the median inference time of "
        f"{WARMUP_WINDOW} rounds is within {WARMUP_TOLERANCE:.0%} of that of the "
        f"{WARMUP_WINDOW} before, at most {WARMUP_LIMITS[0] * warmup_seconds:g} s "
        f"({WARMUP_LIMITS[1] * warmup_seconds:g} s if those rounds take longer)",
        warmup_rounds=[rounds for rounds, _, _ in warmups],
        warmup_seconds=[round(seconds, 3) for _, seconds, _ in warmups],
        warmup_stable=all(stable for _, _, stable in warmups),
        timer="perf_counter_ns; stages named gpu by CUDA events",
        frames=len(shots),
        outliers="none removed",
        complete=complete,
    )
    record = BenchRecord(
        created,
        machine,
        method,
        latencies,
        _ratios(latencies, state.series) if load.arrival == "closed loop" else (),
        _noise(latencies),
        vitals.summary(),
        (*_warnings(method, latencies, vitals), *_unlike(shots, facts), *broken),
        None if out is None else _write_samples(samples_path(out), state.series, vitals),
    )
    if out is not None:
        record.write(out)
    return record


def _facts(runner: Runner, shots: Sequence[Shot]) -> dict[str, Any]:
    """Return what `ModelLatency` says of a runner."""
    size = runner.spec.preprocessing
    shown = applied_to([shot.origin for shot in shots], size.geometry)
    if shown and size.geometry is not None:
        done = shown["geometry"]
        shown["geometry"] = (
            f"{size.geometry.describe()}; applied to {done['applied']} of {len(shots)} frames, the "
            "others were so already"
        )
    return {
        "precision": runner.precision, "head": runner.head, "backend": runner.backend,
        "input": (size.height, size.width), "execution": {**runner.execution, **shown},
        "fallbacks": list(runner.fallbacks),
    }  # fmt: skip


def _unlike(shots: Sequence[Shot], facts: dict[int, dict[str, Any]]) -> list[str]:
    """Say that a model was timed on frames that the vehicle will not give it."""
    treatments = dict.fromkeys(treatment_of(shot.origin) for shot in shots)
    known = all("geometry" in fact["execution"] for fact in facts.values())
    return [
        f"{one.record}: frames were {one.words} before; a vehicle's are larger or other ones"
        for one in treatments
        if one is not None and one.changes and not known
    ]


def _share(load: Load, repeats: int) -> Load:
    """Return what one repeat does of a load."""
    return replace(load, samples=-(-load.samples // repeats), seconds=load.seconds / repeats)


def _measure(
    paths: Sequence[FramePath],
    shots: Sequence[Shot],
    load: Load,
    run: int,
    state: BenchState,
    series: Sequence[Series],
) -> None:
    if load.arrival == "closed loop":
        closed_loop(paths, shots, load, run, state)
    else:
        pattern = at_frame_rate if load.arrival == "frame rate" else offline
        pattern(paths[0], shots, load, run, state, series[0])


def _names(models: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    chosen = [path.stem for path in models] if names is None else list(names)
    if not models or len(chosen) != len(models) or len(set(chosen)) != len(chosen):
        msg = (
            f"Expected one or more models with a name of its own each, found {len(models)} "
            f"model(s) and the names {chosen}. Give the names if files are called the same"
        )
        raise ConfigError(msg)
    return chosen


def _latency(
    name: str,
    path: Path,
    series: Series,
    facts: dict[str, Any],
    limit: float | None,
    load: Load,
    alone: Vitals | None,
) -> ModelLatency:
    columns = series.arrays()
    total, run = columns["total"], columns["run"]
    deadline = None
    if limit is not None:
        misses = int((total > limit).sum()) + series.dropped
        deadline = Deadline(limit, misses, misses / (len(total) + series.dropped))
    frames = len(total) * load.batch
    stages = [key for key in columns if key not in ("start_s", "run", "camera")]
    energy = [
        energy_per_frame(alone, *_span(columns, number), int((run == number).sum()) * load.batch)
        for number in np.unique(run)
        if alone is not None
    ]
    known = [value for value in energy if value is not None]
    return ModelLatency(
        name=name,
        file=path.name,
        sha256=sha256(path),
        **facts,
        size_bytes=path.stat().st_size,
        stages={stage: summarise(columns[stage].tolist()) for stage in stages},
        drift=drift(total.tolist()),
        run_medians=[float(np.median(total[run == number])) for number in np.unique(run)],
        deadline=deadline,
        dropped=series.dropped,
        longest_queue=series.longest_queue,
        frames_per_second=frames / series.busy_s if series.busy_s else 0.0,
        energy_per_frame_j=float(np.mean(known)) if known else None,
    )


def _span(columns: dict[str, Any], run: float) -> tuple[float, float]:
    """Return when a repeat began and ended, in seconds of the run's clock."""
    chosen = columns["run"] == run
    start = columns["start_s"][chosen]
    return float(start[0]), float(start[-1] + columns["total"][chosen][-1] / 1e3)


def _ratios(models: Sequence[ModelLatency], series: Sequence[Series]) -> tuple[Ratio, ...]:
    found = []
    first = series[0].arrays()
    for model, one in zip(models[1:], series[1:], strict=True):
        other = one.arrays()
        n = min(len(first["run"]), len(other["run"]))  # a run that was stopped ends within a round
        run = first["run"][:n]
        inference, total = (first[s][:n] / other[s][:n] for s in ("inference", "total"))
        low, high = _median_interval(inference)
        total_low, total_high = _median_interval(total)
        found.append(
            Ratio(
                baseline=models[0].name,
                candidate=model.name,
                inference_median=float(np.median(inference)),
                low=low,
                high=high,
                total_median=float(np.median(total)),
                total_low=total_low,
                total_high=total_high,
                runs=[float(np.median(inference[run == number])) for number in np.unique(run)],
            )
        )
    return tuple(found)


def _median_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the median's interval; after a run that was stopped early, the extremes."""
    return percentile_interval(values.tolist(), 50) or (float(values.min()), float(values.max()))


def _noise(models: Sequence[ModelLatency]) -> float | None:
    spreads = [
        (max(m.run_medians) - min(m.run_medians)) / median(m.run_medians)
        for m in models
        if len(m.run_medians) >= 3
    ]
    return max(spreads, default=None)


def _warnings(method: BenchMethod, models: Sequence[ModelLatency], vitals: Vitals) -> list[str]:
    found = []
    if not method.complete:
        found.append("The run was stopped before its end")
    if method.preset and not method.preset_met:
        found.append(f"{method.preset} was not met: too few samples")
    if not method.warmup_stable:
        found.append("Latencies had not settled when a warm-up ended")
    load = vitals.other_load
    if load is not None and load > OTHER_LOAD * usable_cores():
        found.append(f"Other processes took {load:.2f} of {usable_cores()} usable cores on average")
    if vitals.throttled:
        found.append("Clocks were throttled during the run")
    found += [f"{model.name}: {what}" for model in models for what in model.fallbacks]
    found += [
        f"{model.name} drifted: its last third took {model.drift.ratio:.3f} times its first"
        for model in models
        if model.drift is not None
        and model.drift.significant
        and abs(model.drift.ratio - 1) > WARMUP_TOLERANCE
    ]
    return found


def _write_samples(path: Path, series: Sequence[Series], vitals: Vitals) -> SamplesFile:
    columns = {
        f"{index}.{name}": values
        for index, one in enumerate(series)
        for name, values in one.arrays().items()
    }
    columns |= {f"state.{name}": values for name, values in vitals.arrays().items()}
    write_npz(path, columns)
    return SamplesFile(path.name, sha256(path))
