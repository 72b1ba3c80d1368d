"""The records a report is made of, read from JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda.errors import DataError, EdgeudaError
from edgeuda.evaluation import Evaluation
from edgeuda.files import read_json, sha256
from edgeuda.labels import LabelSpace
from engines.report_text import DASH, as_text, flatten

REPORT_SCHEMA = "edgeuda.report/1"


@dataclass(frozen=True)
class Timing:
    """Latency of one stage in milliseconds, as far as it was recorded."""

    n: int
    percentiles: Mapping[float, float]
    minimum: float | None
    mean: float | None
    maximum: float | None
    jitter: float | None
    intervals: Mapping[float, tuple[float, float]]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The median's interval."""
        return self.intervals.get(50.0)

    @property
    def tail(self) -> float:
        """The highest percentile there is."""
        return max(self.percentiles)

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentiles[50.0]


@dataclass(frozen=True)
class Timed:
    """A benchmarked model."""

    name: str
    file: str
    sha256: str
    precision: str
    backend: str
    input: str
    size_bytes: int | None
    stages: Mapping[str, Timing]
    samples: Mapping[str, npt.NDArray[np.float64]]
    drift: Mapping[str, Any] | None = None
    deadline: Mapping[str, Any] | None = None
    run_medians: Sequence[float] = ()
    dropped: int = 0
    frames_per_second: float | None = None
    energy_per_frame_j: float | None = None
    execution: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Sequence[str] = ()

    @property
    def end_to_end_stage(self) -> str:
        """The stage that covers a whole frame, ``total``; else inference, else the last one."""
        names = list(self.stages)
        return next((name for name in ("total", "inference") if name in self.stages), names[-1])

    @property
    def end_to_end(self) -> Timing:
        """Latency of a whole frame."""
        return self.stages[self.end_to_end_stage]


@dataclass(frozen=True)
class Ratio:
    """Median ratio of inference times, ``baseline`` over ``candidate``, with its interval."""

    baseline: str
    candidate: str
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Bench:
    """An ``edgeuda.bench/2`` record."""

    origin: str
    created: str
    machine: Mapping[str, str]
    method: Mapping[str, str]
    models: Sequence[Timed]
    ratios: Sequence[Ratio]
    noise: float | None = None
    warnings: Sequence[str] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    vitals: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    @property
    def machine_name(self) -> str:
        """What to call the machine in a sentence."""
        keys = ("name", "board", "device", "gpu", "cpu", "cpu_model", "model", "host")
        return next(
            (
                self.machine[key]
                for key in keys
                if self.machine.get(key) not in (None, "", "not available")
            ),
            "this machine",
        )


@dataclass(frozen=True)
class Predictions:
    """An ``edgeuda.predictions/1`` record: label maps and notes by image file."""

    name: str
    space: LabelSpace
    labels: Mapping[Path, Path]
    notes: Mapping[Path, str] = field(default_factory=dict)


SIGNALS: Mapping[str, tuple[str, float]] = {
    "flip_agreement": ("mirror image, %", 100),
    "view_agreement": ("recoloured, IoU %", 100),
    "start_agreement": ("as at the start, %", 100),
    "confidence": ("confidence, %", 100),
    "entropy": ("entropy, %", 100),
    "neighbourhood_density": ("density", 1),
    "divergence": ("divergence, %", 100),
}
"""Label-free signals of an adaptation's networks: what tables call them, and their factor there."""


@dataclass(frozen=True)
class Training:
    """A stage of an ``edgeuda.adaptation/1`` record."""

    name: str
    cells: Sequence[str]
    curve: Mapping[str, Sequence[Any]]
    signals: Sequence[Mapping[str, Any]]
    classes: Sequence[str]
    source_shares: Sequence[float]
    remarks: Sequence[str] = ()


@dataclass
class Records:
    """Everything that was read, by schema, in the order of the stages."""

    evaluations: list[Evaluation] = field(default_factory=list)
    benches: list[Bench] = field(default_factory=list)
    calibrations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    predictions: list[Predictions] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    tradeoffs: list[dict[str, Any]] = field(default_factory=list)
    drives: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def comparable(self) -> list[list[Evaluation]]:
        """Return the evaluations grouped by the labels they were scored on."""
        groups: dict[tuple[str, tuple[str, ...]], list[Evaluation]] = {}
        for e in self.evaluations:
            groups.setdefault((e.labels_sha256, e.label_space.classes), []).append(e)
        return list(groups.values())


def read_records(inputs: Sequence[Path], skip: Path | None = None) -> Records:
    """Read every record under ``inputs``; what cannot be used is named in ``notes``.

    Raises:
        DataError: If an input does not exist, or nothing usable was found.
    """
    records = Records()
    seen = set() if skip is None else {skip.resolve()}
    for path in _json_files(inputs):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            record = read_json(path)
            json.dumps(record, allow_nan=False)
            used = _add(records, path, record)
        except (EdgeudaError, KeyError, TypeError, ValueError, AttributeError, IndexError) as err:
            why = str(err) if isinstance(err, EdgeudaError) else f"{path}: damaged record ({err!r})"
            records.notes.append(why)
            continue
        if used:
            records.raw.append({"file": str(path), "sha256": sha256(path), "record": record})
        elif record["schema"] != REPORT_SCHEMA:
            records.notes.append(f"{path}: schema {record['schema']!r} is not part of a report")
    if not records.raw:
        places = ", ".join(map(str, inputs)) or "no input"
        msg = (
            f"{places}: expected records of evaluation, bench, tradeoff, calibration, "
            f"predictions or adaptation, found none. {' '.join(records.notes)}".rstrip()
        )
        raise DataError(msg)
    # Stable sorts: records of one rank stay in the order they were given.
    records.evaluations.sort(key=lambda e: (e.precision == "int8", stage_rank(e.name)))
    records.predictions.sort(key=lambda p: ("int8" in p.name.lower(), stage_rank(p.name)))
    return records


def stage_rank(name: str) -> int:
    """Return a name's place in the order ground truth, source-only, AdaBN, stage 1, 2, ..., other.

    Ranks 1 to 98 are adapted models, 0 is the model before adaptation.
    """
    name = name.lower()
    if re.search(r"ground.?truth|^labels?$", name):
        return -1
    if re.search(r"source.?only|^source$", name):
        return 0
    if stage := re.search(r"stage.?(\d+)", name):
        return min(10 + int(stage[1]), 97)
    if "adabn" in name:
        return 1
    return 98 if "adapt" in name else 99


def _json_files(inputs: Sequence[Path]) -> Iterable[Path]:
    for path in inputs:
        if path.is_dir():
            yield from (p for p in sorted(path.rglob("*.json")) if not _hidden(p, path))
        elif path.is_file():
            yield path
        else:
            msg = f"{path}: expected a JSON record or a folder of them, found no such file"
            raise DataError(msg)


def _hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def _add(records: Records, path: Path, record: dict[str, Any]) -> bool:
    """Parse one record into its list; return whether its schema is known."""
    schema = record["schema"]
    if schema == "edgeuda.evaluation/1":
        records.evaluations.append(Evaluation.from_record(record, str(path)))
    elif schema == "edgeuda.bench/2":
        records.benches.append(_bench(record, path, records.notes))
    elif schema == "edgeuda.calibration/1":
        records.calibrations.append((path.name, record))
    elif schema == "edgeuda.predictions/1":
        records.predictions.append(_predictions(record, path))
    elif schema == "edgeuda.adaptation/1":
        records.trainings.extend([_training(stage, record) for stage in record["stages"]])
    elif schema == "edgeuda.tradeoff/1":
        records.tradeoffs.append(_tradeoff(record))
    elif schema == "edgeuda.live/1":
        _ = record["frames"]["segmented"], record["latency_ms"]["percentiles"]
        records.drives.append((str(path), record))
    else:
        return False
    return True


def _tradeoff(record: dict[str, Any]) -> dict[str, Any]:
    """Check what the report reads of a sweep's record."""
    tail = record["tail"]
    _ = record["choice"]["name"], record["choice"]["why"], record["choice"]["int8"]
    _ = record["budget"]["latency_ms"], record["budget"]["min_accuracy"], record["machine"]["cpu"]
    for row in record["variants"]:
        _ = float(row["total_ms"]["50"]), float(row["total_ms"][tail])
        _ = [float(row["accuracy"][key]) for key in ("value", "low", "high")]
    return record


def _bench(record: dict[str, Any], path: Path, notes: list[str]) -> Bench:
    columns = _samples(record.get("samples"), path, notes)
    state = dict(record.get("state") or {})
    return Bench(
        origin=path.name,
        created=str(record.get("created", DASH)),
        machine=flatten(record.get("machine", {})),
        method=flatten(record.get("method", {})),
        models=[
            _timed(model, columns.get(str(i), {})) for i, model in enumerate(record["models"])
        ],
        ratios=[
            Ratio(
                str(r["baseline"]), str(r["candidate"]),
                *(float(r[key]) for key in ("inference_median", "low", "high")),
            )
            for r in record.get("ratios", [])
        ],
        noise=None if record.get("noise") is None else float(record["noise"]),
        warnings=[str(line) for line in record.get("warnings", [])],
        state=state,
        vitals=columns.get("state", {}),
    )  # fmt: skip


Columns = Mapping[str, npt.NDArray[np.float64]]


def _samples(
    entry: Mapping[str, str] | None, path: Path, notes: list[str]
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Return the arrays of a benchmark's samples, by model's number or ``state``, and column."""
    if entry is None:
        return {}
    beside = path.with_name(Path(str(entry["file"])).name)
    if not beside.exists():
        notes.append(f"{beside}: is missing, so latencies of {path.name} are not drawn")
        return {}
    if sha256(beside) != entry["sha256"]:
        notes.append(f"{beside}: is not the file that {path.name} was written with, so not drawn")
        return {}
    found: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    with np.load(beside, allow_pickle=False) as file:
        for key in file.files:
            group, _, column = key.partition(".")
            found.setdefault(group, {})[column] = np.asarray(file[key], np.float64)
    return found


def _timed(model: dict[str, Any], columns: Columns) -> Timed:
    size = model.get("size_bytes")
    if not model["stages"]:
        msg = f"model {model['name']!r} has no stages"
        raise ValueError(msg)
    optional = {
        key: None if model.get(key) is None else float(model[key])
        for key in ("frames_per_second", "energy_per_frame_j")
    }
    return Timed(
        name=str(model["name"]),
        file=str(model.get("file", DASH)),
        sha256=str(model.get("sha256", "")),
        precision=str(model.get("precision", DASH)),
        backend=str(model.get("backend", DASH)),
        input=" x ".join(map(str, model.get("input", []))) or DASH,
        size_bytes=None if size is None else int(size),
        stages={str(name): _timing(stage) for name, stage in model["stages"].items()},
        samples=columns,
        drift=model.get("drift"),
        deadline=model.get("deadline"),
        run_medians=[float(value) for value in model.get("run_medians", [])],
        dropped=int(model.get("dropped", 0)),
        execution={str(k): str(v) for k, v in model.get("execution", {}).items()},
        fallbacks=[str(line) for line in model.get("fallbacks", [])],
        **optional,
    )


def _timing(stage: dict[str, Any]) -> Timing:
    percentiles = {float(p): float(v) for p, v in stage["percentiles"].items()}
    if 50.0 not in percentiles:
        msg = "no median among the percentiles"
        raise ValueError(msg)
    minimum, mean, maximum, jitter = (
        None if stage.get(key) is None else float(stage[key])
        for key in ("min", "mean", "max", "jitter")
    )
    intervals = stage.get("intervals") or {}
    return Timing(
        int(stage["n"]), percentiles, minimum, mean, maximum, jitter,
        {float(p): (float(low), float(high)) for p, (low, high) in intervals.items()},
    )  # fmt: skip


def _predictions(record: dict[str, Any], path: Path) -> Predictions:
    labels, notes = {}, {}
    for entry in record["frames"]:
        frame = Path(entry["frame"])
        beside = path.parent / frame
        found = (beside if beside.exists() else frame).resolve()
        labels[found] = path.parent / entry["labels"]
        if "note" in entry:
            notes[found] = str(entry["note"])
    return Predictions(
        str(record["name"]), LabelSpace.from_record(record["label_space"]), labels,
        notes,
    )  # fmt: skip


def _training(stage: dict[str, Any], record: dict[str, Any]) -> Training:
    seconds = stage.get("seconds")
    curve = {str(k): list(v) for k, v in (stage.get("curve") or {}).items()}
    steps = curve.get("step", [])
    shapes = {"loss": 1, "keep": 1, "threshold": 2}
    for key, dimensions in shapes.items():  # checked here, so that plotting cannot fail
        values = np.asarray(curve.get(key, []), np.float64)
        if values.size and (values.ndim != dimensions or len(values) != len(steps)):
            msg = f"curve {key!r} of stage {stage['name']!r} does not fit its steps"
            raise ValueError(msg)
    return Training(
        str(stage["name"]),
        [
            str(stage["name"]), as_text(stage.get("method")), as_text(stage.get("steps")),
            DASH if seconds is None else f"{float(seconds):.0f}", as_text(stage.get("seed")),
            as_text(stage.get("recipe_sha256")),
        ],
        curve if len(steps) > 1 and any(curve.get(key) for key in shapes) else {},
        [
            {
                "step": int(line["step"]),
                "alarm": None if line["alarm"] is None else str(line["alarm"]),
                "chosen": bool(line["chosen"]),
                **{key: float(line[key]) for key in SIGNALS},
                "histogram": [float(share) for share in line["histogram"]],
            }
            for line in stage.get("signals") or []
        ],
        [str(name) for name in record.get("classes", [])],
        [float(share) for share in record.get("source_shares", [])],
        [str(remark) for remark in stage.get("remarks", [])],
    )  # fmt: skip
