"""The report's chapters on time: latency, the machine's state, machines side by side."""

from __future__ import annotations

from edgeuda.records.bench import MachineState, ModelLatency
from edgeuda.records.form import entries
from engines.report import latency_plots as plots
from engines.report.parts import Chapter, Grid
from engines.report.records import Bench, Records
from engines.report.text import (
    DASH,
    as_interval,
    as_ms,
    as_time,
    distinct,
    flatten,
    signed,
)
from engines.report.trust import DRIFT, disturbances, falls_behind

LOAD = ("arrival", "fps", "cameras", "late_frames", "batch")
"""What of the method must be the same for latencies to be compared."""
DRAWN = 4
"""Models whose latency is drawn over time; more would be a knot."""


def timings(records: Records) -> Chapter | None:
    """Return the chapter on latency: distribution, course over time, every stage."""
    svgs, grids = [], []
    for bench in records.benches:
        place = bench.machine_name
        names = distinct([m.name for m in bench.models])
        shown = {
            name: bench.series(i)[m.end_to_end_stage]
            for i, (name, m) in enumerate(zip(names, bench.models, strict=True))
            if m.end_to_end_stage in bench.series(i)
        }
        if shown:
            few = dict(list(shown.items())[:DRAWN])
            limit = deadline_of(bench)
            label = f"Share of frames done within a time on {place}: {', '.join(shown)}"
            svgs.append(plots.latency_ecdf(shown, label, limit))
            label = f"Histogram of the latency on {place}: {', '.join(few)}"
            svgs.append(plots.latency_histogram(few, label, limit))
            svgs.append(_course(bench, names, limit))
        if bench.models:
            grids += [_stage_grid(bench), _latency_grid(bench)]
        if bench.ratios:
            troubles = disturbances(bench)
            rows = [
                [
                    r.candidate, r.baseline, f"{r.inference_median:.3f}",
                    f"{r.low:.3f} to {r.high:.3f}",
                    "no verdict"
                    if troubles
                    else "faster"
                    if r.low > 1
                    else "slower"
                    if r.high < 1
                    else "within noise",
                ]
                for r in bench.ratios
            ]  # fmt: skip
            columns = ["model", "against", "speed-up", "interval", "reading"]
            grids.append(
                Grid(f"Inference speed-up, median of the ratios, on {place}", columns, rows)
            )
    if not grids:
        return None
    text = [
        "Milliseconds. Total is from a frame in memory to a label map of its size; end to end adds "
        "the decoding of the image file and the overlay for people, which a vehicle may not have. "
        "Stages do not add up to the total's median or percentiles, because each is ordered by "
        "itself.",
        "Brackets hold 95 % intervals by order statistics, as if successive samples were "
        "independent. Every sample counts, none was removed as an outlier; a dash is a percentile "
        "that the number of samples does not support, or a value that was not recorded. Drift is "
        "the median of the last third of the samples against the first third.",
    ]
    return Chapter("latency", "Latency", text, svgs=svgs, grids=grids)


def deadline_of(bench: Bench) -> float | None:
    """Return the deadline in milliseconds that frames were held against."""
    return next((m.deadline.limit_ms for m in bench.models if m.deadline), None)


def _course(bench: Bench, names: list[str], limit: float | None) -> str:
    series = {
        name: (bench.series(i)["start_s"], bench.series(i)[m.end_to_end_stage])
        for i, (name, m) in list(enumerate(zip(names, bench.models, strict=True)))[:DRAWN]
        if m.end_to_end_stage in bench.series(i) and "start_s" in bench.series(i)
    }
    label = f"Latency over time on {bench.machine_name}, with the machine's state below"
    return plots.course(series, _state_panels(bench), limit, label)


def _state_panels(bench: Bench) -> dict[str, plots.Panel]:
    """Return what of the machine's state is drawn: by heading, time axis and channels."""
    vitals = bench.columns.get("state", {})
    time = vitals.get("time_s")
    if time is None:
        return {}
    units = {"power": "power, W", "temperature": "temperature, °C", "clock": "clock, MHz"}
    found: dict[str, plots.Panel] = {}
    for kind, title in units.items():
        lines = {k: v for k, v in vitals.items() if k.startswith(f"{kind}.")}
        if lines:
            found[title] = time, dict(list(lines.items())[:DRAWN])
    load = {k: v for k, v in vitals.items() if k in ("load.other", "load.own")}
    if load:
        found["load, cores"] = time, load
    return found


def _stage_grid(bench: Bench) -> Grid:
    """Return medians, a row per stage: where a frame's time goes."""
    stages = list(dict.fromkeys(stage for m in bench.models for stage in m.stages))
    rows = [
        [stage.replace("_", " "), *(_median(m, stage) for m in bench.models)] for stage in stages
    ]
    strong = frozenset(i for i, stage in enumerate(stages) if stage in ("total", "end_to_end"))
    names = distinct([m.name for m in bench.models])
    caption = f"Where the time goes on {bench.machine_name}: medians in ms"
    return Grid(caption, ["stage", *names], rows, strong)


def _median(model: ModelLatency, stage: str) -> str:
    return as_ms(model.stages[stage].median) if stage in model.stages else DASH


def _latency_grid(bench: Bench) -> Grid:
    totals = [m.end_to_end for m in bench.models]
    percents = sorted({p for t in totals for p in t.percentiles}, key=float)
    columns = [
        "model", "n", "min", "mean", *(f"p{p}" for p in percents), "max", "jitter", "drift",
        "frames/s", "missed", "J per frame",
    ]  # fmt: skip
    rows: list[list[str]] = []
    for m, t in zip(bench.models, totals, strict=True):
        values = [
            as_ms(t.percentiles[p]) + as_interval(t.intervals.get(p))
            if p in t.percentiles
            else DASH
            for p in percents
        ]
        rows.append(
            [
                m.name, str(t.n), as_ms(t.min), as_ms(t.mean), *values, as_ms(t.max),
                as_ms(t.jitter), _drift(bench, m),
                f"{m.frames_per_second:.1f}",
                f"{100 * m.deadline.share:.2f} %" if m.deadline else DASH,
                "not available" if m.energy_per_frame_j is None else f"{m.energy_per_frame_j:.3f}",
            ]
        )  # fmt: skip
    limit = deadline_of(bench)
    beyond = "" if limit is None else f"; missed is over {as_ms(limit)} ms"
    caption = (
        f"{bench.models[0].end_to_end_stage.replace('_', ' ').capitalize()} on "
        f"{bench.machine_name}, measured {as_time(bench.created)}{beyond}"
    )
    return Grid(caption, columns, rows)


def _drift(bench: Bench, model: ModelLatency) -> str:
    """Return the change over the run; of frames that queue it says nothing about the machine."""
    if model.drift is None:
        return DASH
    change = model.drift.ratio - 1
    text = f"{signed(100 * change)} %"
    if falls_behind(bench, model) and not model.dropped:
        return "the queue grows"
    if model.drift.significant:
        return text
    # Intervals that overlap show no drift; only a small one is thereby known to be none.
    return text + (" (noise)" if abs(change) <= max(DRIFT, bench.noise or 0) else " (not certain)")


def machine_state(records: Records) -> Chapter | None:
    """Return the chapter on power, temperature, clocks, throttling and other load."""
    if not records.benches:
        return None
    grids = []
    for bench in records.benches:
        rows = [
            [
                name, entry.unit,
                *(f"{x:.4g}" for x in (entry.start, entry.mean, entry.min, entry.max, entry.end)),
            ]
            for name, entry in sorted(bench.state.channels.items())
        ]  # fmt: skip
        rows += [
            [kind, "not available", why, "", "", "", ""]
            for kind, why in bench.state.not_available.items()
        ]
        if bench.state == MachineState():
            rows = [["state", "not available", "not recorded", "", "", "", ""]]
        columns = ["channel", "unit", "start", "mean", "min", "max", "end"]
        grids.append(Grid(f"During {bench.origin} on {bench.machine_name}", columns, rows))
    text = [
        "Read ten times a second during the run, on the clock of the latencies. Other load is what "
        "other processes took of the cores this one may use."
    ]
    return Chapter("state", "State of the machine", text, grids=grids)


def side_by_side(records: Records) -> Chapter | None:
    """Return the chapter that compares runs of the same files: machines, or dates."""
    found: dict[str, list[tuple[Bench, ModelLatency]]] = {}
    for bench in records.benches:
        for model in bench.models:
            found.setdefault(model.sha256 or model.name, []).append((bench, model))
    rows = []
    for runs in found.values():
        if len(runs) < 2:
            continue
        (first, base), *_ = runs
        for bench, model in runs:
            t = model.end_to_end
            rows.append(
                [
                    model.name, f"{bench.machine_name}, {as_time(bench.created)}",
                    bench.method.arrival, str(bench.method.threads),
                    as_ms(t.median) + as_interval(t.interval),
                    f"{as_ms(t.percentiles[t.tail])} (p{t.tail})",
                    "reference" if model is base else _reading(first, base, bench, model),
                ]
            )  # fmt: skip
    if not rows:
        return None
    columns = [
        "model", "machine and date", "arrival", "threads", "median ms [interval]", "tail ms",
        "against the first",
    ]  # fmt: skip
    text = [
        "The same files, by checksum, measured on several machines or dates. A difference is "
        "within noise if the intervals of the medians overlap, or if it is no larger than what "
        "repeated runs of one model differed by."
    ]
    grid = Grid("The same models, run by run", columns, rows)
    return Chapter("runs", "Machines and dates side by side", text, grids=[grid])


def _reading(first: Bench, base: ModelLatency, bench: Bench, model: ModelLatency) -> str:
    if any(getattr(first.method, key) != getattr(bench.method, key) for key in LOAD):
        return "another load: not compared"
    a, b = base.end_to_end, model.end_to_end
    ratio = b.median / a.median
    if disturbances(first) or disturbances(bench):
        return f"{ratio:.3f} times: no verdict, a machine was busy or drifting"
    noise = max((x for x in (first.noise, bench.noise) if x is not None), default=0.0)
    overlap = (
        a.interval is not None
        and b.interval is not None
        and a.interval[0] <= b.interval[1]
        and b.interval[0] <= a.interval[1]
    )
    if overlap or abs(ratio - 1) <= noise:
        return f"{ratio:.3f} times: difference within noise"
    return f"{ratio:.3f} times: {'slower' if ratio > 1 else 'faster'}"


def machines(records: Records) -> Chapter | None:
    """Return the chapter on machine and method."""
    if not records.benches:
        return None
    grids = []
    for bench in records.benches:
        method = flatten(entries(bench.method))
        method["noise_floor"] = (
            "not known, fewer than three repeats"
            if bench.noise is None
            else f"medians of repeated runs differ by up to {100 * bench.noise:.2f} %"
        )
        for what, facts in (("Machine", bench.machine), ("Method", method)):
            rows = [[key.replace("_", " "), value] for key, value in facts.items()]
            caption = f"{what} of {bench.origin}, {as_time(bench.created)}"
            grids.append(Grid(caption, ["fact", "value"], rows or [["not recorded", DASH]]))
    return Chapter("machine", "Machine and method of measurement", grids=grids)
