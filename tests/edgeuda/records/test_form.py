"""Every record reads what it wrote, and says of another what was expected and what to do."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import pytest

from edgeuda import schemas
from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.errors import DataError
from edgeuda.files import read_json
from edgeuda.records.adaptation import AdaptationRecord
from edgeuda.records.bench import BenchRecord
from edgeuda.records.calibration import CalibrationRecord
from edgeuda.records.comparison import ComparisonRecord
from edgeuda.records.form import OMIT, SPELT, Record, entries, parse
from edgeuda.records.live import LiveRecord
from edgeuda.records.tradeoff import TradeoffRecord
from places import ROOT
from report_records import adaptation, bench, calibration, comparison, drive, rate, stage, sweep

KINDS: dict[str, type[Record]] = {
    schema: kind
    for kind in (BenchRecord, ComparisonRecord, TradeoffRecord)
    for schema in (kind.SCHEMA, *kind.OLDER)
}
RESULTS = [
    path
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    if read_json(path)["schema"] in {schemas.EVALUATION, *KINDS}
]
"""Published records that are not read by their benchmark alone."""


@dataclass(frozen=True)
class Part:
    number: int
    share: float
    since: str = field(metadata={SPELT: "from"})
    kind: Literal["a", "b"] | Literal["c"] = "a"
    pair: tuple[float, int] | None = None
    note: str | None = field(default=None, metadata={OMIT: True})


@dataclass(frozen=True)
class Whole(Record):
    SCHEMA: ClassVar[str] = "edgeuda.whole/2"
    OLDER: ClassVar[tuple[str, ...]] = ("edgeuda.whole/1",)
    AGAIN: ClassVar[str] = "Make it again"

    parts: dict[str, Part]
    rows: tuple[tuple[int, ...], ...] = ()
    names: frozenset[str] = frozenset()
    rest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def modern(cls, record: dict[str, Any]) -> dict[str, Any]:
        if record["schema"] == "edgeuda.whole/1":
            return {"parts": {"only": record["part"]}}
        return record


PART = {"number": 1, "share": 0.5, "from": "here"}


def test_what_is_written_is_read():
    part = Part(1, 0.5, "here", "c", (1.0, 2))
    whole = Whole({"x": part}, ((1,), (2, 3)), frozenset("ab"), {"y": 1})
    record = json.loads(whole.to_json())
    assert record == {
        "schema": "edgeuda.whole/2", "rows": [[1], [2, 3]], "names": ["a", "b"], "rest": {"y": 1},
        "parts": {"x": {"number": 1, "share": 0.5, "from": "here", "kind": "c", "pair": [1.0, 2]}},
    }  # fmt: skip
    assert Whole.from_record(record, "x.json") == whole
    assert entries(replace(part, note="seen"))["note"] == "seen"


def test_an_older_form_is_translated_and_another_is_refused_by_name():
    old = {"schema": "edgeuda.whole/1", "part": PART}
    assert Whole.from_record(old, "x.json") == Whole({"only": Part(1, 0.5, "here")})
    with pytest.raises(DataError, match=r"x\.json: its 'edgeuda.whole/1' .* no 'part'. Make it"):
        Whole.from_record({"schema": "edgeuda.whole/1"}, "x.json")
    with pytest.raises(DataError, match=r"expected schema '.*/2', found 'edgeuda\.whole/3'"):
        Whole.from_record({"schema": "edgeuda.whole/3"}, "x.json")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"number": "1"}, "expected a whole number for 'parts.x.number', found '1'"),
        ({"number": True}, "expected a whole number"),
        ({"number": 1.5}, "expected a whole number"),
        ({"share": "half"}, "expected a finite number for 'parts.x.share'"),
        ({"share": float("inf")}, "expected a finite number"),
        ({"share": 10**400}, "int too large"),
        ({"from": 3}, "expected text for 'parts.x.from', found 3"),
        ({"kind": "d"}, "expected one of 'a', 'b', 'c' for 'parts.x.kind', found 'd'"),
        ({"kind": ["a"]}, "expected one of 'a', 'b', 'c'"),
        ({"pair": [1]}, r"expected a list of 2 for 'parts.x.pair', found \[1\]"),
        ({"pair": [1, "x"]}, r"for 'parts.x.pair\[1\]'"),
        ({"number": None}, "expected a whole number for 'parts.x.number', found None"),
    ],
)  # fmt: skip
def test_a_misfit_is_named_with_its_place(change, why):
    record = {"schema": "edgeuda.whole/2", "parts": {"x": PART | change}}
    with pytest.raises(DataError, match=rf"x\.json: its .* is damaged: .*{why}.*\. Make it again"):
        Whole.from_record(record, "x.json")


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({}, "expected 'parts', found no such entry"),
        ({"parts": {"x": {"number": 1, "share": 1}}}, "expected 'parts.x.from', found no such"),
        ({"parts": []}, r"expected entries for 'parts', found \[\]"),
        ({"parts": {}, "rows": 5}, "expected a list for 'rows', found 5"),
        ({"parts": {"x": "y" * 99}}, "found 'y{55} [.]{3}"),
    ],
)
def test_what_is_missing_is_named(record, why):
    with pytest.raises(DataError, match=why):
        Whole.from_record({"schema": "edgeuda.whole/2", **record}, "x.json")
    with pytest.raises(DataError, match=f"a part: is damaged: .*{why}"):
        parse(Whole, record, "a part")


def test_entries_of_a_later_version_are_passed_over():
    record = {"schema": "edgeuda.whole/2", "parts": {"x": PART | {"colour": "red"}}, "more": 1}
    assert Whole.from_record(record, "x.json") == Whole({"x": Part(1, 0.5, "here")})


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        (BenchRecord, bench()), (BenchRecord, rate()), (TradeoffRecord, sweep()),
        (TradeoffRecord, sweep(None)), (ComparisonRecord, comparison()), (LiveRecord, drive()),
        (CalibrationRecord, calibration()),
        (AdaptationRecord, adaptation(stage(remarks=["It hardly trains."]))),
    ],
)  # fmt: skip
def test_every_record_comes_back_as_it_was(kind, record, tmp_path):
    read = kind.from_record(record, "a record")
    read.write(tmp_path / "r.json")
    assert kind.read(tmp_path / "r.json") == read
    written = read_json(tmp_path / "r.json")
    assert record.keys() <= written.keys()
    holds(written, record)
    assert written["schema"] == kind.SCHEMA


def holds(ours: Any, theirs: Any) -> None:
    """Whether nothing that we know of a record was lost or changed."""
    if isinstance(ours, dict):
        for key in ours.keys() & theirs.keys():
            holds(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            holds(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_published_record_is_read(path):
    record = read_json(path)
    if record["schema"] == schemas.EVALUATION:
        Evaluation.from_record(record, str(path))
    else:
        kind = KINDS[record["schema"]]
        read = kind.read(path)
        if record["schema"] == kind.SCHEMA:
            holds(read.to_record(), record)


def test_a_calibration_of_before_calls_its_runtime_target():
    old = calibration(schema="edgeuda.calibration/1", target="tensorrt")
    del old["runtime"]
    read = CalibrationRecord.from_record(old, "x.json")
    assert read.runtime == "tensorrt"
    assert read.to_record()["schema"] == "edgeuda.calibration/2"
    assert "target" not in read.to_record()
