"""How far a benchmark's figures can be relied on, and what went wrong while it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeuda.records.bench import ModelLatency
from engines.report.records import Bench, Records
from engines.report.text import as_ms

BUSY = 0.15
"""Share of the usable cores that other processes may take; beyond, the record itself warns."""
DRIFT = 0.02
"""Change between the first and the last third beyond which latencies drift."""
KEPT = 0.99
"""Share of the deadlines, and of a camera's frames, that a model must keep to be called in time."""


def disturbances(bench: Bench) -> list[str]:
    """Return why a benchmark's figures are no ground for a verdict; empty if nothing is known.

    What became slower because frames queued is no disturbance of the machine, see `falls_behind`.
    """
    found = []
    if not bench.method.complete:
        found.append("the run was stopped before its end")
    load, cores = bench.state.other_load_cores, bench.machine.get("cores_usable", "")
    if load is not None and cores.isdecimal() and load > BUSY * int(cores):
        found.append(f"other processes took {load:.1f} of {cores} cores")
    if bench.state.throttled:
        found.append("clocks were throttled")
    drifted = [m for m in bench.models if drifts(m) and not falls_behind(bench, m)]
    if drifted:
        worst = max(drifted, key=lambda m: abs(_change(m)))
        found.append(
            f"{worst.name} became {100 * abs(_change(worst)):.0f} % "
            f"{'slower' if _change(worst) > 0 else 'faster'} from the first to the last third"
        )
    return found


def _change(model: ModelLatency) -> float:
    return model.drift.ratio - 1 if model.drift else 0.0


def drifts(model: ModelLatency) -> bool:
    """Whether its latencies changed over the run, beyond chance and by more than a little."""
    return model.drift is not None and model.drift.significant and abs(_change(model)) > DRIFT


def falls_behind(bench: Bench, model: ModelLatency) -> str:
    """Say by how much a model does not keep a camera's rate; nothing if it does."""
    rate = camera_rate(bench)
    done = model.frames_per_second
    if rate is None or done >= KEPT * rate:
        return ""
    text = f"{done:.1f} of {rate:g} frames/s"
    if model.dropped:
        return f"{text}, {model.dropped} frames dropped"
    if model.longest_queue:
        return f"{text}, the queue grew to {model.longest_queue} frames"
    return text


def camera_rate(bench: Bench) -> float | None:
    """Return the frames per second that came from all cameras; None where none set the pace."""
    method = bench.method
    if method.arrival != "frame rate" or method.fps is None:
        return None
    return method.fps * method.cameras


def missed(model: ModelLatency) -> str:
    """Say how many deadlines a model missed; nothing if none, or without a deadline."""
    late = model.deadline
    if late is None or not late.share:
        return ""
    return f"misses {100 * late.share:.1f} % of the deadlines of {as_ms(late.limit_ms)} ms"


def went_wrong(records: Records) -> list[str]:
    """Return what happened that a reader must know before any figure: the gravest first."""
    late, other = [], []
    busy = _busy({bench.origin: disturbances(bench) for bench in records.benches})
    for bench in records.benches:
        for m in bench.models:
            said = [text for text in (missed(m), falls_behind(bench, m)) if text]
            if said:
                late.append(f"{m.name} {at_load(bench)} {'; '.join(said)} ({bench.origin}).")
        other += [f"{bench.origin}: {line}." for line in _warnings(bench)]
    for name, drive in records.drives:
        if dropped := drive.frames.dropped:
            whole = drive.frames.segmented + dropped
            late.append(f"{dropped} of {whole} frames of the drive {name} were dropped.")
        if drive.watch is not None and drive.watch.alarms:
            other.append(f"The drive {name} no longer looked as calibrated: {drive.watch}.")
    alarms = [
        f"{t.name}, step {line.step}: {line.alarm}."
        for t in records.stages
        for line in t.signals
        if line.alarm
    ]
    alarms += [f"{said.removesuffix('.')}." for one in records.adaptations for said in one.said()]
    for name, record in records.comparisons:
        failed = [f"{m.name}, seed {s}" for m in record.methods for s in m.failed]
        if failed:
            alarms.append(f"Training failed in {name}: {', '.join(failed)}.")
    return [*busy, *late, *alarms, *other, *_unread(records.damaged)]


def _busy(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """Say which benchmarks were disturbed, and by what, in one sentence."""
    disturbed = {origin: found for origin, found in reasons.items() if found}
    if not disturbed:
        return []
    first, found = next(iter(disturbed.items()))
    others = list(disturbed)[1:]
    text = f"Not fit for a verdict on time: {first}, as {'; '.join(found)}"
    if others:
        text += f"; likewise {', '.join(others)}, see State of the machine"
    return [f"{text}."]


def _warnings(bench: Bench) -> list[str]:
    """Return the record's own warnings less those that are said in other words."""
    said = ("Other processes took", "Clocks were throttled", "The run was stopped")
    drifted = [f"{m.name} drifted" for m in bench.models]
    return [line for line in bench.warnings if not line.startswith((*said, *drifted))]


def _unread(damaged: Sequence[str]) -> list[str]:
    if not damaged:
        return []
    if len(damaged) == 1:
        return [damaged[0]]
    return [f"{len(damaged)} files could not be used; they are named under Left out."]


def at_load(bench: Bench) -> str:
    """Say under which load a benchmark ran, to follow a model's name."""
    rate = camera_rate(bench)
    if rate is not None:
        return f"at {rate:g} frames/s"
    return f"in {bench.method.arrival}"
