"""The records a report is made of, read from JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.data.walk import names_under
from edgeuda.errors import DataError, EdgeudaError
from edgeuda.files import read_json, sha256
from edgeuda.labels import LabelSpace
from edgeuda.records import schemas
from engines.report.networks import Network, network_of, network_of_row
from engines.report.old_records import TRADEOFF_1
from engines.report.samples import Columns, read_samples
from engines.report.text import DASH, as_text, flatten, printable
from engines.report.words import said_of

REPORT_SCHEMA = schemas.REPORT
MOST_NESTED = 50
"""Levels of lists and objects in a record. Ours have ten; a thousand end a reader."""
DAMAGE = (
    EdgeudaError, KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError,
    RecursionError, MemoryError,
)  # fmt: skip
"""What reading a record of unknown origin may raise."""


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
    longest_queue: int = 0
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
    """An ``edgeuda.bench/2`` record; ``origin`` names its file among those of the report."""

    path: Path
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
    """An ``edgeuda.predictions/1`` record: label maps and notes by image file.

    Frames that were undistorted and cropped are known by their raw file; ``shown`` has what is
    under their labels.
    """

    name: str
    space: LabelSpace
    labels: Mapping[Path, Path]
    notes: Mapping[Path, str] = field(default_factory=dict)
    shown: Mapping[Path, Path] = field(default_factory=dict)
    model_sha256: str = ""


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
    """Everything that was read, by schema, in the order of the stages.

    ``notes`` name what was left out, of which ``damaged`` is what ought to have been usable.
    ``others`` were named one by one and are of a schema that no chapter judges: their facts are
    shown, so that nothing named is missing.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    benches: list[Bench] = field(default_factory=list)
    calibrations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    predictions: list[Predictions] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    tradeoffs: list[dict[str, Any]] = field(default_factory=list)
    drives: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    comparisons: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    others: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def leave_out(self, why: str) -> None:
        """Note a file that ought to have been usable and is not."""
        self.notes.append(printable(why))
        self.damaged.append(printable(why))

    def comparable(self) -> list[list[Evaluation]]:
        """Return the evaluations grouped by the labels they were scored on."""
        groups: dict[tuple[str, tuple[str, ...]], list[Evaluation]] = {}
        for e in self.evaluations:
            groups.setdefault((e.labels_sha256, e.label_space.classes), []).append(e)
        return list(groups.values())


def read_records(
    inputs: Sequence[Path],
    skip: Path | None = None,
    unusable: Mapping[Path, BaseException] = MappingProxyType({}),
) -> Records:
    """Read every record under ``inputs``; what cannot be used is named in ``notes``.

    A folder may hold anything. A file that was named is wanted: if it cannot be used, nothing is.

    Args:
        inputs: JSON records, or folders that are searched for them.
        skip: The report's own record, which is not read.
        unusable: Files, resolved, that were found to be damaged once they had been read.

    Raises:
        DataError: If an input does not exist, a named file is damaged, or nothing usable was
            found.
    """
    records = Records()
    seen: set[Path] = set()
    unknown: dict[str, list[Path]] = {}
    wanted = {path.resolve() for path in inputs if path.is_file()}
    for path in _json_files(inputs, records):
        if path.resolve() in seen:
            continue
        named = path.resolve() in wanted
        seen.add(path.resolve())
        if skip is not None and path.resolve() == skip.resolve():
            if named:
                records.notes.append(f"{printable(path)}: is the report that is written anew")
            continue
        try:
            if path.resolve() in unusable:
                raise unusable[path.resolve()]
            record = _read(path)
            used = _add(records, path, record)
        except DAMAGE as err:
            why = _why(path, err)
            if named:
                msg = f"{printable(why)}. It was named, so no report was written without it"
                raise DataError(msg) from err
            records.leave_out(why)
            continue
        if not used and record["schema"] == REPORT_SCHEMA:
            if named:
                records.notes.append(
                    f"{printable(path)}: is a report; name the records that it was made of"
                )
            continue
        if not used and named:
            records.others.append((path.name, record))
        elif not used:
            unknown.setdefault(str(record["schema"]), []).append(path)
            continue
        entry = {"file": printable(path), "sha256": sha256(path), "record": record}
        records.raw.append(entry)
        records.files.append(path)
    records.notes += [
        f"{printable(paths[0])}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: "
        f"schema {schema!r} is not part of a report"
        for schema, paths in unknown.items()
    ]
    if not records.raw:
        places = ", ".join(map(printable, inputs)) or "no input"
        msg = (
            f"{places}: expected records of evaluation, bench, tradeoff, calibration, "
            f"predictions, comparison or adaptation, found none. {' '.join(records.notes)}".rstrip()
        )
        raise DataError(msg)
    records.benches = _told_apart(records.benches)
    # Stable sorts: records of one rank stay in the order they were given.
    records.evaluations.sort(key=lambda e: (e.precision == "int8", network_of(e).order))
    scored = {e.model_sha256: e for e in records.evaluations if e.model_sha256}

    def place(one: Predictions) -> tuple[bool, int]:
        e = scored.get(one.model_sha256)
        network = Network(one.name, None, None) if e is None else network_of(e)
        return "int8" in one.name.lower(), network.order

    records.predictions.sort(key=place)
    return records


def _told_apart(benches: Sequence[Bench]) -> list[Bench]:
    """Return benchmarks whose origins differ: as much of each path as that takes."""
    found = []
    for bench in benches:
        others = [other.path.parts for other in benches if other is not bench]
        parts = bench.path.parts
        depth = next(
            (
                n
                for n in range(1, len(parts) + 1)
                if all(other[-n:] != parts[-n:] for other in others)
            ),
            len(parts),
        )
        found.append(replace(bench, origin=printable(Path(*parts[-depth:]))))
    return found


def _why(path: Path, err: BaseException) -> str:
    """Say in a sentence why a record cannot be used."""
    if isinstance(err, EdgeudaError):
        return str(err)
    if isinstance(err, KeyError):
        return f"{path}: expected all that its schema asks for, found no {err}"
    return f"{path}: expected the form of its schema, found another ({err})"


def _read(path: Path) -> dict[str, Any]:
    """Read a record that the rest of the report can walk through, print and write again.

    Raises:
        DataError: If it is no record, nested too deeply, or holds NaN or text that is not Unicode.
    """
    record = read_json(path)
    level: list[Any] = [record]
    for _ in range(MOST_NESTED):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            break
    else:
        msg = (
            f"{path}: expected a record of at most {MOST_NESTED} levels, found one that is nested "
            "more deeply"
        )
        raise DataError(msg)
    try:
        json.dumps(record, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError as err:
        msg = f"{path}: expected text in Unicode, found half of a surrogate pair"
        raise DataError(msg) from err
    except ValueError as err:
        msg = f"{path}: expected finite numbers, found NaN or infinity"
        raise DataError(msg) from err
    return record


def _json_files(inputs: Sequence[Path], records: Records) -> list[Path]:
    """Return the files to read; what has their name and is none is noted."""
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found += _json_files_under(path, records)
        elif path.is_file():
            found.append(path)
        else:
            msg = (
                f"{printable(path)}: expected a JSON record or a folder of them, found no such file"
            )
            raise DataError(msg)
    return found


def _json_files_under(folder: Path, records: Records) -> list[Path]:
    def named(name: str) -> None:
        records.leave_out(
            f"{folder / name}: is a folder with the name of a record; what lies in it was searched"
        )

    try:
        paths = sorted(folder / name for name in names_under(folder, {".json"}, named))
    except OSError as err:
        msg = f"{printable(err.filename)}: cannot be searched for records: {err.strerror}"
        raise DataError(msg) from err
    found = []
    for path in paths:
        if path.is_file():
            found.append(path)
        else:
            records.leave_out(f"{path}: is no file that can be read")
    return found


def _add(records: Records, path: Path, record: dict[str, Any]) -> bool:
    """Parse one record into its list; return whether its schema is known."""
    schema = record["schema"]
    if schema == schemas.EVALUATION:
        records.evaluations.append(Evaluation.from_record(record, str(path)))
    elif schema == schemas.BENCH:
        records.benches.append(_bench(record, path, records))
    elif schema == schemas.CALIBRATION:
        records.calibrations.append((path.name, record))
    elif schema == schemas.PREDICTIONS:
        records.predictions.append(_predictions(record, path))
    elif schema == schemas.ADAPTATION:
        records.trainings.extend([_training(stage, record) for stage in record["stages"]])
    elif schema in (TRADEOFF_1, schemas.TRADEOFF):
        records.tradeoffs.append(_tradeoff(record))
    elif schema == schemas.COMPARISON:
        records.comparisons.append((path.name, _comparison(record)))
    elif schema == schemas.LIVE:
        _ = record["frames"]["segmented"], record["latency_ms"]["percentiles"]
        records.drives.append((str(path), record))
    else:
        return False
    return True


def _tradeoff(record: dict[str, Any]) -> dict[str, Any]:
    """Check what the report reads of a sweep's record."""
    tail = record["tail"]
    _ = said_of(record), [network_of_row(row) for row in record["variants"]]
    _ = record["budget"]["latency_ms"], record["budget"]["min_accuracy"], record["machine"]["cpu"]
    for row in record["variants"]:
        _ = float(row["total_ms"]["50"]), float(row["total_ms"][tail])
        _ = [float(row["accuracy"][key]) for key in ("value", "low", "high")]
    return record


def _comparison(record: dict[str, Any]) -> dict[str, Any]:
    """Check what the report reads of a comparison's record."""
    classes = [str(name) for name in record["classes"]]
    _ = [int(seed) for seed in record["seeds"]], int(record["images"])
    if not record["methods"]:
        msg = "no methods were compared"
        raise ValueError(msg)
    for method in record["methods"]:
        _ = str(method["name"]), str(method["trains_on"]), dict(method["failed"])
        for key in ("miou", "gain"):
            values = method[key]
            _ = [None if value is None else float(value) for value in values["runs"]]
            _ = [None if values[x] is None else float(values[x]) for x in ("mean", "stdev")]
        _ = [[None if v is None else float(v) for v in method["iou"][name]] for name in classes]
    return record


def _bench(record: dict[str, Any], path: Path, records: Records) -> Bench:
    columns, problem = read_samples(record.get("samples"), path)
    if problem:
        records.leave_out(problem)
    state = dict(record.get("state") or {})
    return Bench(
        path=path.absolute(),
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
        longest_queue=int(model.get("longest_queue", 0)),
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
    labels, notes, shown = {}, {}, {}

    def resolved(name: str) -> Path:
        beside = path.parent / name
        return (beside if beside.exists() else Path(name)).resolve()

    for entry in record["frames"]:
        found = resolved(entry["frame"])
        if "raw" in entry:
            shown[resolved(entry["raw"])] = found
            found = resolved(entry["raw"])
        labels[found] = path.parent / entry["labels"]
        if "note" in entry:
            notes[found] = str(entry["note"])
    return Predictions(
        str(record["name"]), LabelSpace.from_record(record["label_space"]), labels,
        notes, shown, str(record.get("model", {}).get("sha256", "")),
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
