"""The records a report is made of, read from JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgeuda import schemas
from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.data.stores import located
from edgeuda.data.walk import names_under
from edgeuda.errors import DataError, EdgeudaError
from edgeuda.files import read_json, sha256
from edgeuda.labels import LabelSpace
from edgeuda.records.adaptation import AdaptationRecord, StageRecord
from edgeuda.records.bench import BenchRecord
from edgeuda.records.calibration import CalibrationRecord
from edgeuda.records.comparison import ComparisonRecord
from edgeuda.records.live import LiveRecord
from edgeuda.records.predictions import PredictionsRecord
from edgeuda.records.tradeoff import TradeoffRecord
from edgeuda.records.update import UpdateRecord
from engines.report.networks import KnownNetwork, network_of
from engines.report.samples import Columns, read_samples
from engines.report.text import printable

REPORT_SCHEMA = schemas.REPORT
MOST_NESTED = 50
"""Levels of lists and objects in a record. Ours have ten; a thousand end a reader."""
DAMAGE = (
    EdgeudaError, KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError,
    RecursionError, MemoryError,
)  # fmt: skip
"""What reading a record of unknown origin may raise."""


@dataclass(frozen=True)
class Bench(BenchRecord):
    """A benchmark, where it lies, and its samples.

    Attributes:
        path: Its file.
        origin: Names the file among those of the report.
        columns: Samples by model's number or ``state``, and column, see `read_samples`.
    """

    path: Path
    origin: str
    columns: Mapping[str, Columns]

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

    def series(self, index: int) -> Columns:
        """Return the samples of a model by its number; none where they cannot be drawn."""
        return self.columns.get(str(index), {})


@dataclass(frozen=True)
class Predictions:
    """Label maps of one model, and notes, by image file.

    Frames that were undistorted and cropped are known by their raw file; ``shown`` has what is
    under their labels.
    """

    name: str
    space: LabelSpace
    labels: Mapping[Path, Path]
    notes: Mapping[Path, str] = field(default_factory=dict)
    shown: Mapping[Path, Path] = field(default_factory=dict)
    model_sha256: str = ""


@dataclass
class Records:
    """Everything that was read, by schema, in the order of the stages.

    ``notes`` name what was left out, of which ``damaged`` is what ought to have been usable.
    ``others`` were named one by one and are of a schema that no chapter judges: their facts are
    shown, so that nothing named is missing.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    benches: list[Bench] = field(default_factory=list)
    calibrations: list[tuple[str, CalibrationRecord]] = field(default_factory=list)
    predictions: list[Predictions] = field(default_factory=list)
    adaptations: list[AdaptationRecord] = field(default_factory=list)
    tradeoffs: list[TradeoffRecord] = field(default_factory=list)
    drives: list[tuple[str, LiveRecord]] = field(default_factory=list)
    comparisons: list[tuple[str, ComparisonRecord]] = field(default_factory=list)
    updates: list[tuple[str, UpdateRecord]] = field(default_factory=list)
    others: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def leave_out(self, why: str) -> None:
        """Note a file that ought to have been usable and is not."""
        self.notes.append(printable(why))
        self.damaged.append(printable(why))

    @property
    def stages(self) -> list[StageRecord]:
        """The stages of all adaptations."""
        return [stage for record in self.adaptations for stage in record.stages]

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
        network = KnownNetwork(one.name, None, None) if e is None else network_of(e)
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
    """Parse one record into its list; return whether its kind is known, in whatever version."""
    kind, origin = str(record["schema"]).rpartition("/")[0], str(path)
    if kind == _kind(schemas.EVALUATION):
        records.evaluations.append(Evaluation.from_record(record, origin))
    elif kind == _kind(schemas.BENCH):
        records.benches.append(_bench(BenchRecord.from_record(record, origin), path, records))
    elif kind == _kind(schemas.CALIBRATION):
        records.calibrations.append((path.name, CalibrationRecord.from_record(record, origin)))
    elif kind == _kind(schemas.PREDICTIONS):
        found = PredictionsRecord.from_record(record, origin)
        records.predictions.append(_predictions(found, path))
    elif kind == _kind(schemas.ADAPTATION):
        records.adaptations.append(AdaptationRecord.from_record(record, origin))
    elif kind == _kind(schemas.TRADEOFF):
        records.tradeoffs.append(TradeoffRecord.from_record(record, origin))
    elif kind == _kind(schemas.COMPARISON):
        records.comparisons.append((path.name, ComparisonRecord.from_record(record, origin)))
    elif kind == _kind(schemas.LIVE):
        records.drives.append((origin, LiveRecord.from_record(record, origin)))
    elif kind == _kind(schemas.UPDATE):
        records.updates.append((origin, UpdateRecord.from_record(record, origin)))
    else:
        return False
    return True


def _kind(schema: str) -> str:
    return schema.rpartition("/")[0]


def _bench(record: BenchRecord, path: Path, records: Records) -> Bench:
    for model in record.models:
        if any("50" not in stage.percentiles for stage in model.stages.values()):
            msg = f"{path}: expected a median of every stage of {model.name!r}, found none"
            raise DataError(msg)
    columns, problem = read_samples(record.samples, path)
    if problem:
        records.leave_out(problem)
    return Bench(**vars(record), path=path.absolute(), origin=path.name, columns=columns)


def _predictions(record: PredictionsRecord, path: Path) -> Predictions:
    labels, notes, shown = {}, {}, {}

    def resolved(name: str) -> Path:
        beside = path.parent / name
        return (beside if beside.exists() else located(name)).resolve()

    for entry in record.frames:
        found = resolved(entry.frame)
        if entry.raw is not None:
            shown[resolved(entry.raw)] = found
            found = resolved(entry.raw)
        labels[found] = path.parent / entry.labels
        if entry.note is not None:
            notes[found] = entry.note
    return Predictions(record.name, record.label_space, labels, notes, shown, record.model.sha256)
