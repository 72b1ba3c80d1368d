"""The report: what it says, that it is one safe file, and what it does with half of the data."""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import json
import os
import re
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import pytest

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.decision import dominators
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import sha256, write_json
from edgeuda.labels import IGNORE, SPACES, LabelSpace
from engines.report import plots
from engines.report.choice import choice_figures, choice_verdicts
from engines.report.comparison import LABELS_WORTH
from engines.report.findings import evidence, unknowns, verdicts
from engines.report.latency_plots import Point, latency_ecdf
from engines.report.latency_plots import tradeoff as tradeoff_plot
from engines.report.networks import KnownNetwork
from engines.report.page import build_report
from engines.report.parts import Grid
from engines.report.records import Records, read_records
from engines.report.sections import before_and_after, sections_of
from engines.report.text import DASH, as_ms, as_points, flatten
from engines.report.trust import went_wrong
from engines.report.updates import update_verdicts
from places import ROOT
from report_records import (
    INT8,
    SOURCE,
    STAGE2,
    THREE,
    adaptation,
    bench,
    calibration,
    comparison,
    drive,
    evaluation,
    everything,
    next_network,
    predictions,
    rate,
    stage,
    sweep,
    timed,
    watched_drive,
    write_bench,
)

VOID = {"meta", "link", "img", "input", "br", "hr", "path", "use", "rect"}


class Page(HTMLParser):
    """Collects a page's elements, and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID or self.open[-1:] == ["svg"]:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def measured(step: int, flip: float, **more: Any) -> dict[str, Any]:
    signals = dict.fromkeys(
        ("view_agreement", "start_agreement", "confidence", "entropy", "neighbourhood_density",
         "divergence"), 0.5,
    )  # fmt: skip
    line = {"step": step, "flip_agreement": flip, "histogram": [0.8, 0.2], **signals}
    return {**line, "alarm": None, "chosen": False, **more}


def watched(*lines: dict[str, Any]) -> dict[str, Any]:
    stages = stage(signals=list(lines))
    return adaptation(stages, classes=["road", "sky"], source_shares=[0.7, 0.3])


def read(tmp_path: Path, *records: dict[str, Any]) -> Records:
    for index, record in enumerate(records):
        write_json(tmp_path / "in" / f"{index}.json", record)
    return read_records([tmp_path / "in"])


def build(tmp_path: Path) -> tuple[Page, dict[str, Any], str]:
    page, data, markdown, _ = build_report([tmp_path / "in"], tmp_path / "out" / "report.html")
    return (
        Page(page.read_text(encoding="utf-8")),
        json.loads(data.read_text(encoding="utf-8")),
        markdown.read_text(encoding="utf-8"),
    )


def test_a_complete_report_names_every_model_class_and_chapter(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    page, data, markdown = build(tmp_path)
    words = page.words()
    for part in (
        "source-only", "stage 2", "stage 2 INT8", "road", "sidewalk", "other", "Test CPU",
        "40 images of city/val", "2.00x", "AdaBN", "20 entries", "30 entries", SOURCE, INT8,
        "frame0.png", "frame8.png", "ground truth", "closed loop", "2025-01-02 03:04 UTC",
    ):  # fmt: skip
        assert part in words
        if part != "ground truth":
            assert part in markdown.replace("\\", "")
    assert [r["record"]["schema"] for r in data["records"]].count("edgeuda.evaluation/1") == 3
    assert data["schema"] == "edgeuda.report/1"
    assert not data["notes"]
    images = [a for tag, a in page.elements if tag == "img"]
    assert len(images) == 2 + 6 * 3  # before and after; six frames: camera, ground truth, stage 2
    # trade-off, classes, latency three times, training, calibration twice
    assert [tag for tag, _ in page.elements].count("svg") == 8


def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    page, _, _ = build(tmp_path)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = [a["content"] for _, a in page.elements if a.get("http-equiv")]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'; img-src data:;")
    # The one script that runs is ours, by its checksum; the other holds data.
    (script,) = (s for s in page.scripts if not s.startswith("{"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy[0]
    assert [a.get("type") for tag, a in page.elements if tag == "script"] == [
        "application/json", None,
    ]  # fmt: skip


def test_a_page_without_frames_has_no_script_that_runs(tmp_path: Path) -> None:
    write_json(tmp_path / "in" / "r.json", evaluation("model", STAGE2, 0.5))
    page, _, _ = build(tmp_path)
    assert [a.get("type") for tag, a in page.elements if tag == "script"] == ["application/json"]
    (policy,) = [a["content"] or "" for _, a in page.elements if a.get("http-equiv")]
    assert "script-src" not in policy


def test_the_page_can_be_used_without_sight_or_mouse(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    page, _, _ = build(tmp_path)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    anchors = [a["href"] or "" for tag, a in page.elements if tag == "a"]
    assert {anchor[1:] for anchor in anchors} <= set(ids)
    assert all(a.get("alt") for tag, a in page.elements if tag == "img")
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if attributes.get("class") in ("scroll", "strip"):
            assert attributes["tabindex"] == "0"
    assert any("road" in (a.get("alt") or "") for tag, a in page.elements if tag == "img")


def test_the_data_in_the_page_is_the_data_beside_it(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    page, data, _ = build(tmp_path)
    assert json.loads(page.scripts[0]) == data


def test_samples_are_drawn_only_if_they_are_those_of_the_record(tmp_path: Path) -> None:
    def drawn() -> tuple[list[str], int]:
        found = read_records([tmp_path])
        section = next(s for s in sections_of(found) if s.anchor == "latency")
        return found.notes, len(section.svgs)

    write_bench(tmp_path / "bench.json", bench())
    assert drawn() == ([], 3)
    beside = tmp_path / "bench.samples.npz"
    beside.write_bytes(beside.read_bytes() + b"x")
    notes, count = drawn()
    assert (len(notes), count) == (1, 0)
    assert "not the file that bench.json was written with" in notes[0]
    beside.unlink()
    assert "is missing" in drawn()[0][0]


def test_the_machine_is_drawn_on_the_time_axis_of_the_latencies(tmp_path: Path) -> None:
    record = bench() | {
        "state": {
            "channels": {
                "power.gpu": dict.fromkeys(("mean", "min", "max", "start", "end"), 7.5)
                | {"unit": "W", "n": 50}
            },
            "not_available": {"temperature": "no sensor"},
        }
    }
    time = np.linspace(0, 5, 50)
    state = {"state.time_s": time, "state.power.gpu": np.full(50, 7.5)}
    write_bench(tmp_path / "bench.json", record, **state)
    records = read_records([tmp_path])
    sections = {s.anchor: s for s in sections_of(records)}
    assert "power, W" in sections["latency"].svgs[2]
    rows = sections["state"].grids[0].rows
    assert ["power.gpu", "W", "7.5", "7.5", "7.5", "7.5", "7.5"] in rows
    assert ["temperature", "not available", "no sensor", "", "", "", ""] in rows
    assert any("not available in every benchmark: temperature" in x for x in unknowns(records))


def test_a_deadline_is_stated_and_drawn(tmp_path: Path) -> None:
    record = bench()
    for model, share in zip(record["models"], (0.25, 0.0), strict=True):
        model["deadline"] = {"limit_ms": 33.3, "misses": 35, "share": share}
    write_bench(tmp_path / "bench.json", record)
    records = read_records([tmp_path])
    section = next(s for s in sections_of(records) if s.anchor == "latency")
    assert all("deadline 33.3 ms" in svg for svg in section.svgs)
    grid = next(g for g in section.grids if "missed" in g.columns)
    column = list(grid.columns).index("missed")
    assert [row[column] for row in grid.rows] == ["25.00 %", "0.00 %"]
    assert not any("deadline was checked" in line for line in unknowns(records))


def later(factor: float, noise: float | None = None) -> dict[str, Any]:
    record = bench() | {"machine": {"cpu": "Other CPU"}, "noise": noise}
    record["models"] = [timed("renamed", STAGE2, "fp32", 40 * factor)]
    return record


@pytest.mark.parametrize(
    ("factor", "noise", "reading"),
    [
        (1.0, None, "1.000 times: difference within noise"),
        (1.015, None, "1.015 times: difference within noise"),  # intervals of one percent overlap
        (1.1, None, "1.100 times: slower"),
        (0.9, 0.02, "0.900 times: faster"),
        (1.1, 0.15, "1.100 times: difference within noise"),  # repeats differ by more
    ],
)
def test_machines_side_by_side(
    tmp_path: Path, factor: float, noise: float | None, reading: str
) -> None:
    write_json(tmp_path / "a.json", bench())
    write_json(tmp_path / "b.json", later(factor, noise))
    records = read_records([tmp_path / "a.json", tmp_path / "b.json"])
    section = next(s for s in sections_of(records) if s.anchor == "runs")
    rows = section.grids[0].rows
    assert [row[-1] for row in rows] == ["reference", reading]
    assert ["Test CPU" in rows[0][1], "Other CPU" in rows[1][1]] == [True, True]


def test_other_loads_are_not_compared(tmp_path: Path) -> None:
    other = later(2.0)
    other["method"] = {**other["method"], "arrival": "frame rate", "fps": 30.0}
    write_json(tmp_path / "a.json", bench())
    write_json(tmp_path / "b.json", other)
    section = next(s for s in sections_of(read_records([tmp_path])) if s.anchor == "runs")
    assert section.grids[0].rows[1][-1] == "another load: not compared"


def test_the_table_for_spreadsheets_joins_scores_and_latencies(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    *_, path = build_report([tmp_path / "in"], tmp_path / "report.html")
    with path.open(encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["stage 2", "stage 2 INT8", "source-only"]
    assert float(rows["stage 2"]["median_ms"]) == 40
    assert float(rows["stage 2"]["median_low_ms"]) == pytest.approx(39.6)
    assert float(rows["stage 2"]["miou"]) == pytest.approx(0.55, abs=1e-3)
    assert rows["stage 2"]["p99_ms"] == ""
    assert rows["source-only"]["median_ms"] == ""


def test_a_cell_is_no_formula(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", evaluation("=1+1", STAGE2, 0.5))
    *_, path = build_report([tmp_path / "r.json"], tmp_path / "report.html")
    assert "\n'=1+1," in path.read_text(encoding="utf-8")


WORTH = "INT8 is worth it: fast takes 0.50 of the time of slow and changes accuracy by −1.0 points."  # noqa: RUF001
RESULTS = ROOT / "benchmarks" / "results"


def test_a_sweeps_choice_is_the_first_thing_said(tmp_path: Path) -> None:
    write_json(tmp_path / "in" / "t.json", sweep())
    page, data, markdown = build(tmp_path)
    assert [v["headline"] for v in data["verdicts"]] == ["Take fast.", WORTH]
    assert "1 of 2 variants keep p99 of 33 ms" in page.words()
    assert "latency budget" in page.words()
    assert "misses the deadline at p99" in markdown
    chapters = [a["id"] for tag, a in page.elements if tag == "section"]
    assert chapters[0] == "summary"
    inside = itertools.takewhile(lambda x: x[1].get("id") != chapters[1], page.elements)
    assert "svg" in [tag for tag, _ in inside]
    write_json(tmp_path / "in" / "t.json", sweep(None))
    _, data, _ = build(tmp_path)
    assert data["verdicts"][0] == {
        "topic": "Choice", "status": "bad", "headline": "No variant keeps the budget.",
        "text": (
            "No variant keeps p99 of 10 ms. Fastest: fast: p99 22.0 ms, mIoU 59.0 %. "
            "Most accurate: slow: p99 44.0 ms, mIoU 60.0 %."
        ),
    }  # fmt: skip


def test_a_sweep_of_before_is_read_by_its_sentences(tmp_path: Path) -> None:
    said = {"name": "fast", "why": "It keeps the budget.", "int8": "INT8 is worth it: faster."}
    old = sweep() | {"schema": "edgeuda.tradeoff/1", "choice": said}
    write_json(tmp_path / "in" / "t.json", old)
    page, data, _ = build(tmp_path)
    assert [(v["status"], v["headline"]) for v in data["verdicts"]] == [
        ("good", "Take fast."), ("good", "INT8 is worth it: faster."),
    ]  # fmt: skip
    assert "It keeps the budget." in page.words()
    busily = choice_verdicts(read(tmp_path / "busy", old, busy(timed_sweep()[1])))
    assert busily[1].headline == "Whether INT8 is worth it is unknown. It read: faster."
    not_worth = old | {"choice": said | {"int8": "INT8 is not worth it here: slow."}}
    (_, verdict) = choice_verdicts(read(tmp_path / "not", not_worth))
    assert (verdict.status, verdict.headline) == ("even", "INT8 is not worth it here: slow.")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("tradeoff-*.json")), ids=lambda p: p.stem)
def test_the_published_sweeps_are_still_read(path: Path, tmp_path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    if not record["schema"].startswith("edgeuda.tradeoff/"):
        return
    assert record["schema"] == "edgeuda.tradeoff/1"
    _, data, *_ = build_report([path], tmp_path / "report.html")
    take, int8 = json.loads(data.read_text(encoding="utf-8"))["verdicts"]
    assert take["headline"] == f"Take {record['choice']['name']}."
    assert take["text"] == record["choice"]["why"]
    assert int8["headline"] == record["choice"]["int8"].replace("-0.0", "0.0")


def test_models_are_joined_by_checksum_and_not_by_name(tmp_path: Path) -> None:
    records = read(
        tmp_path,
        evaluation("accurate", STAGE2, 0.5),
        evaluation("stage 2 INT8", "f" * 64, 0.5),  # the benchmark's name, another file
        bench(),
    )
    section = next(s for s in sections_of(records) if s.anchor == "tradeoff")
    assert [row[0] for grid in section.grids for row in grid.rows] == ["accurate"]
    assert section.grids[0].rows[0][3:5] == ["50.0 %", "40.0 [39.6, 40.4]"]
    assert section.text[-2].endswith(": stage 2 INT8.")


def test_an_empty_checksum_joins_nothing(tmp_path: Path) -> None:
    untraceable = bench()
    untraceable["models"][0]["sha256"] = ""
    records = read(tmp_path, evaluation("stage 2", "", 0.5), untraceable)
    section = next(s for s in sections_of(records) if s.anchor == "tradeoff")
    assert not section.grids


def test_dominators_against_the_definition() -> None:
    points = [(float(x), float(y)) for x, y in itertools.product(range(3), range(3))]
    for chosen in (points, points[:4], points[5:], [(1.0, 1.0), (1.0, 1.0)]):
        for (x, y), by in zip(chosen, dominators(chosen), strict=True):
            better = [
                i
                for i, (a, b) in enumerate(chosen)
                if (a < x and b >= y) or (a <= x and b > y)
            ]  # fmt: skip
            assert by in better if better else by is None


@pytest.mark.parametrize(
    ("before", "after", "status", "words"),
    [
        (0.40, 0.55, "good", "raises mIoU on city/val by 15.0 points, from 40.0 % to 55.0 %"),
        (0.55, 0.40, "bad", "lowers mIoU on city/val by 15.0 points"),
        (0.55, 0.552, "even", "no difference beyond noise on city/val: +0.2 points"),
    ],
)
def test_verdict_on_adaptation(
    tmp_path: Path, before: float, after: float, status: str, words: str
) -> None:
    records = read(
        tmp_path, evaluation("stage 2", STAGE2, after), evaluation("source-only", SOURCE, before)
    )
    (verdict,) = verdicts(records)
    assert verdict.status == status
    assert words in verdict.headline


def test_adaptation_is_only_judged_on_the_same_labels(tmp_path: Path) -> None:
    elsewhere = evaluation("source-only", SOURCE, 0.4)
    elsewhere["data"]["labels_sha256"] = "e" * 64
    records = read(tmp_path, evaluation("stage 2", STAGE2, 0.55), elsewhere)
    assert verdicts(records)[0].status == "unknown"
    assert any("same labels" in line for line in unknowns(records))


def test_labels_without_a_counted_pixel_leave_adaptation_unknown(tmp_path: Path) -> None:
    nothing = {"confusion": [[0] * 3] * 3}
    records = read(
        tmp_path,
        evaluation("source-only", SOURCE, 0.4, **nothing),
        evaluation("stage 2", STAGE2, 0.4, **nothing),
    )
    assert verdicts(records)[0].status == "unknown"
    assert sections_of(records)


@pytest.mark.parametrize(
    ("drop", "ratio", "status", "words"),
    [
        (0.000, (2.0, 1.9, 2.1), "good", "INT8 is worth it on Test CPU: inference runs at 2.00x"),
        (0.002, (2.0, 1.9, 2.1), "good", "within noise"),
        (0.008, (2.0, 1.9, 2.1), "good", "−0.8 points, within the limit"),  # noqa: RUF001
        (0.020, (2.0, 1.9, 2.1), "bad", "not worth it on Test CPU: it costs 2.00 points mIoU"),
        (0.000, (1.0, 0.98, 1.03), "bad", "an interval that includes 1"),
        (0.000, (1.1, 1.0, 1.2), "bad", "an interval that includes 1"),
        (0.000, (0.8, 0.7, 0.9), "bad", "not worth it on Test CPU: it is slower"),
        (None, (0.8, 0.7, 0.9), "bad", "it is slower"),
        (None, (2.0, 1.9, 2.1), "unknown", "Not recorded: its mIoU beside FP32"),
        (0.000, None, "unknown", "Not recorded: its speed-up over FP32"),
        (0.020, None, "bad", "it costs 2.00 points"),
    ],
)
def test_verdict_on_int8(
    tmp_path: Path,
    drop: float | None,
    ratio: tuple[float, float, float] | None,
    status: str,
    words: str,
) -> None:
    scored = [] if drop is None else [evaluation("stage 2 INT8", INT8, 0.55 - drop, "int8")]
    records = read(tmp_path, evaluation("stage 2", STAGE2, 0.55), bench(ratio), *scored)
    (verdict,) = verdicts(records)
    assert verdict.status == status
    assert words in verdict.headline


def test_int8_is_held_against_its_own_stage(tmp_path: Path) -> None:
    against_source = bench()
    against_source["models"][0] |= {"name": "source-only", "sha256": SOURCE}
    against_source["ratios"][0]["baseline"] = "source-only"
    records = read(
        tmp_path,
        evaluation("source-only", SOURCE, 0.40),
        evaluation("stage 2", STAGE2, 0.57),
        evaluation("stage 2 INT8", INT8, 0.55, "int8"),
        against_source,
    )
    assert "it costs 2.0" in verdicts(records)[-1].headline


def test_an_int8_model_without_labels_shows_agreement_as_what_it_is(tmp_path: Path) -> None:
    records = read(tmp_path, bench(), calibration(agreement=0.971))
    text = " ".join(f.text for f in evidence(records))
    assert "97.1 %" in text
    assert "agreement, not accuracy" in text


def test_classes_that_lost_are_named(tmp_path: Path) -> None:
    before = evaluation("source-only", SOURCE, 0.4, confusion=[[90, 10, 0], [0, 10, 90], [0, 0, 9]])
    after = evaluation("stage 2", STAGE2, 0.4, confusion=[[60, 40, 0], [0, 90, 10], [0, 0, 9]])
    text = evidence(read(tmp_path, before, after))[0].text
    assert "lost a point or more: road −30.0" in text  # noqa: RUF001
    assert "sidewalk" not in text.split("lost")[1]


def test_the_latency_card_states_median_and_highest_percentile(tmp_path: Path) -> None:
    card = evidence(read(tmp_path, bench()))[-1]
    assert card.headline == "20.0 ms median, p95 20.6 ms"
    assert "stage 2: 40.0 ms median, p95 41.2 ms, n = 140." in card.text


def test_what_is_unknown_is_said(tmp_path: Path) -> None:
    only_bench = " ".join(unknowns(read(tmp_path, bench())))
    for word in ("Accuracy", "fewer than three", "other than Test CPU", "closed loop", "power"):
        assert word in only_bench
    settled = bench() | {"warnings": ["Latencies had not settled when a warm-up ended"]}
    assert "had not settled" in " ".join(went_wrong(read(tmp_path / "c", settled)))
    only_accuracy = read(tmp_path / "b", evaluation("stage 2", STAGE2, 0.5))
    assert any(line.startswith("Latency: no benchmark") for line in unknowns(only_accuracy))
    assert any(line.startswith("INT8: no INT8") for line in unknowns(only_accuracy))


def test_stages_come_in_the_order_of_the_work(tmp_path: Path) -> None:
    names = ["ground truth", "source-only", "AdaBN", "stage 1", "stage 2", "adapted", "other"]
    assert sorted(set(names), key=lambda name: KnownNetwork(name, None, None).order) == names
    records = read(
        tmp_path,
        evaluation("source-only INT8", INT8, 0.4, "int8"),
        *(evaluation(name, SOURCE, 0.4) for name in reversed(names[1:])),
    )
    assert [e.name for e in records.evaluations] == [*names[1:], "source-only INT8"]


def test_several_passes_and_smaller_label_sets_are_on_the_page(tmp_path):
    """What SYNTHIA papers read off 16 classes, and how the frames were really looked at."""
    space = SPACES["cityscapes-16"]
    matrix = np.diag(np.arange(1, 17)) + 1
    looked = {"scale": 1.0, "windows": 3, "frames": 40}
    looked |= {"frame": [1024, 2048], "seen": [512, 1024], "window": [512, 512]}
    scored = Evaluation(
        "ours", "a.safetensors", SOURCE, "checkpoint", "fp32", "city", 40, "d" * 64, space,
        matrix.astype(np.int64), "scales 1, windows", passes=[looked],
    )  # fmt: skip
    write_json(tmp_path / "in" / "e.json", scored.to_record())
    write_json(
        tmp_path / "in" / "damaged.json", scored.to_record() | {"passes": [{"frame": "wide"}]}
    )
    build_report([tmp_path / "in"], tmp_path / "r.html")
    words = Page((tmp_path / "r.html").read_text(encoding="utf-8")).words()
    (name, kept), *_ = scored.subsets().items()
    assert f"mIoU of {name}: 13 of 16 classes {100 * scored.miou_over(kept):.1f}" in words
    assert "ours 40 2048 x 1024 1 1024 x 512 512 x 512 3" in words
    assert "damaged.json" in words


HOSTILE = "$\\frac$ </script x><script>alert(1)</script><img src=x onerror=alert(1)>|`& \"'"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    space = LabelSpace("x", (HOSTILE, "_hidden"), ((1, 2, 3), (4, 5, 6)))
    matrix = np.array([[5, 1], [1, 5]], np.int64)
    for index, name in enumerate((f"source-only {HOSTILE}", f"stage 2 {HOSTILE}")):
        record = Evaluation(
            name, HOSTILE, str(index) * 64, "onnx", "fp32", HOSTILE, 1, HOSTILE, space, matrix
        ).to_record()
        write_json(tmp_path / "in" / f"{index}.json", record)
    machine = bench()
    machine |= {"machine": {"cpu": HOSTILE, HOSTILE: HOSTILE}, "created": HOSTILE}
    machine["models"][0] |= {"name": HOSTILE, "sha256": "0" * 64}
    machine["models"][1]["name"] = "_hidden"
    write_json(tmp_path / "in" / "bench.json", machine)
    stages = stage(HOSTILE, curve={"step": [0, 1], "loss": [1, 2]})
    write_json(tmp_path / "in" / "a.json", adaptation(stages))
    write_json(tmp_path / "in" / "c.json", calibration(folders={HOSTILE: 3}, model=HOSTILE))
    predictions(tmp_path / "in" / "p", HOSTILE, ["frame.png"])
    write_json(tmp_path / "in" / "u.json", {"schema": HOSTILE})
    page, markdown, data = tmp_path / "r.html", tmp_path / "r.md", tmp_path / "r.json"
    build_report([tmp_path / "in"], page, title=HOSTILE)
    parsed = Page(page.read_text(encoding="utf-8"))
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert not [a for tag, a in parsed.elements if "onerror" in a or a.get("src") == "x"]
    assert " ".join(HOSTILE.split()) in parsed.words()
    assert json.loads(parsed.scripts[0]) == json.loads(data.read_text(encoding="utf-8"))
    assert "<" not in parsed.scripts[0]  # browsers end a script at more than "</script>"
    text = markdown.read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<", text)
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in text.split("\n")]
    for above, below in itertools.pairwise(bars):
        assert above == below or 0 in (above, below)  # rows of a table have equally many cells


def test_a_stage_that_trained_nothing_is_a_finding(tmp_path):
    record = watched(measured(0, 0.61, chosen=True))
    remark = f"The threshold lets next to nothing through {HOSTILE}"
    record["stages"][0]["remarks"] = [remark]
    write_json(tmp_path / "in" / "a.json", record)
    build_report([tmp_path / "in"], tmp_path / "r.html")
    (found,) = [
        finding
        for finding in json.loads((tmp_path / "r.json").read_text())["evidence"]
        if finding["topic"] == "Self-training that hardly trains"
    ]
    assert found["status"] == "bad"
    assert remark in found["headline"]
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "next to nothing through" in page.words()


def test_without_labels_the_report_shows_what_the_networks_say_of_themselves(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    alarm = "class 'road' vanished"
    record = watched(
        measured(0, 0.61), measured(50, 0.873, chosen=True), measured(100, 0.999, alarm=alarm)
    )
    write_json(folder / "adaptation.json", record)
    page, data, markdown = build(tmp_path)
    topics = {finding["topic"]: finding for finding in data["evidence"]}
    assert "87.3 %" in topics["Without labels"]["headline"]
    assert "61.0 %" in topics["Without labels"]["headline"]
    assert alarm in topics["Collapse alarm"]["headline"]
    assert topics["Collapse alarm"]["status"] == "bad"
    for text in (page.words(), markdown):
        assert "50, taken" in text
        assert "no substitute for mIoU" in text
        assert "70.00" in text  # of the source labels are road
        assert "80.00" in text  # of the predictions
    write_json(folder / "evaluation.json", evaluation("stage 2", STAGE2, 0.5))
    again = tmp_path / "again.html"
    build_report([folder], again)
    labelled = json.loads(again.with_suffix(".json").read_text())
    assert "Without labels" not in {finding["topic"] for finding in labelled["evidence"]}
    assert "50, taken" in again.read_text()  # the table stays


def test_unusable_files_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    everything(folder)
    write_json(folder / "other.json", {"schema": "somebody.else/3"})
    (folder / "broken.json").write_text("{", encoding="utf-8")
    (folder / "list.json").write_text("[1]", encoding="utf-8")
    (folder / "nan.json").write_text('{"schema": "edgeuda.calibration/1", "x": NaN}')
    write_json(folder / "half.json", {"schema": "edgeuda.bench/2", "models": [{"name": "x"}]})
    write_json(folder / "flat.json", {"schema": "edgeuda.adaptation/1", "stages": 3})
    write_json(folder / "bare.json", {"schema": "edgeuda.evaluation/1", "name": "x"})
    uneven = {"name": "s", "curve": {"step": [1, 2], "loss": [1]}}
    write_json(folder / "uneven.json", {"schema": "edgeuda.adaptation/1", "stages": [uneven]})
    page, data, markdown = build(tmp_path)
    names = ("other", "broken", "list", "nan", "half", "flat", "bare", "uneven")
    assert len(data["notes"]) == len(names)
    for name in names:
        assert f"{name}.json" in page.words()
        assert f"{name}.json" in markdown
    assert "somebody.else/3" in page.words()


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"schema": "edgeuda.run/1"})
    with pytest.raises(DataError, match=r"found none.*edgeuda\.run/1"):
        build_report([tmp_path], tmp_path / "out" / "report.html")
    with pytest.raises(DataError, match="no such file"):
        build_report([tmp_path / "absent.json"], tmp_path / "out" / "report.html")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "record",
    [
        evaluation("model", STAGE2, 0.5),
        bench(None),
        calibration(),
        calibration(assignment=None, convergence=[]),
        adaptation(stage()),
        adaptation(),
        bench(None) | {"models": []},
        drive(),
        watched_drive(),
        next_network(),
        {
            "schema": "edgeuda.predictions/1",
            "name": "p",
            "model": {"file": "", "sha256": ""},
            "label_space": THREE.to_record(),
            "frames": [],
        },
    ],
)
def test_each_record_makes_a_report_alone(tmp_path: Path, record: dict[str, Any]) -> None:
    write_json(tmp_path / "in" / "r.json", record)
    page, data, _ = build(tmp_path)
    assert len(data["records"]) == 1
    assert record["schema"] in page.words()


def test_the_alarms_of_a_drive_are_a_timeline(tmp_path: Path) -> None:
    records = read(tmp_path, watched_drive())
    section = next(s for s in sections_of(records) if s.anchor == "drives")
    (svg,) = section.svgs
    for shown in ("alarm: light", "alarm: blur", "seconds of the drive"):
        assert shown in svg
    assert "alarm: scene" not in svg
    facts, watch, alarms = section.grids
    # A thousand windows are a plot, not rows of a table.
    assert not any("timeline" in row[0] for row in facts.rows)
    assert ["figures of which the reference says too little to test", "red"] in watch.rows
    assert alarms.rows == [
        ["light", "105", "115", "brightness -13.8"], ["blur", "200", DASH, "sharpness -6.5"],
    ]  # fmt: skip
    said = "2 alarms in 40 windows of 10 s (light at 105 s, blur at 200 s)"
    (found,) = (one for one in evidence(records) if one.topic == "Watched drive")
    assert found.headline == said
    assert any(said in line for line in went_wrong(records))
    calm = watched_drive()
    calm["watch"]["alarms"] = []
    records = read(tmp_path, calm)
    (found,) = (one for one in evidence(records) if one.topic == "Watched drive")
    assert found.headline == "0 alarms in 40 windows of 10 s"
    assert not any("no longer" in line for line in went_wrong(records))


def verdict(status: str, reason: str) -> dict[str, Any]:
    return next_network()["verdict"] | {"status": status, "reason": reason}


def unlabelled(name: str) -> dict[str, Any]:
    return next_network()[name] | {"with_labels": None}


@pytest.mark.parametrize(
    ("fields", "status", "headline", "why"),
    [
        (
            {}, "good", "Take the next network.",
            "On 40 labelled old frames mIoU changes by −0.3 points (−0.7 to +0.1); 1 point may "  # noqa: RUF001
            "be lost there. On 30 labelled new frames mIoU changes by +6.2 points (+5.8 to +6.6).",
        ),
        (
            {"verdict": verdict("refused", "forgets"), "bundle": None}, "bad",
            "Do not take the next network: it has forgotten too much.",
            "Its bundle was not written.",
        ),
        (
            {"verdict": verdict("refused", "forgets"), "overridden": True}, "bad",
            "Do not take the next network: it has forgotten too much.",
            "Its bundle was written all the same, as somebody asked for it.",
        ),
        (
            {"verdict": verdict("refused", "worse on new frames"), "bundle": None}, "bad",
            "Do not take the next network: it is worse on the frames that it was made for.",
            "Its bundle was not written.",
        ),
        (
            {
                "verdict": verdict("refused", "INT8 not accepted"), "bundle": None,
                "int8": [next_network()["int8"][0] | {"reasons": ["too few pixels"]}],
            },
            "bad",
            "Do not take the next network: a form in INT8 is not the same network any more.",
            "net-int8.onnx: too few pixels. Its bundle was not written.",
        ),
        (
            {"verdict": verdict("not judged", "no labels"), "old": unlabelled("old")}, "unknown",
            "The next network is not judged: what it has forgotten is not known.",
            "The last network and the next one give 91.0 % of their pixels the same class",
        ),
    ],
)  # fmt: skip
def test_the_next_network_has_a_verdict_in_words(
    tmp_path: Path, fields: dict[str, Any], status: str, headline: str, why: str
) -> None:
    records = read(tmp_path, next_network(**fields))
    (found,) = update_verdicts(records)
    assert (found.status, found.headline) == (status, headline)
    assert why in found.text
    assert not verdicts(records)


def test_the_chapter_on_the_next_network_shows_both_parts_and_the_descent(tmp_path: Path) -> None:
    records = read(tmp_path, next_network(new=unlabelled("new")))
    section = next(s for s in sections_of(records) if s.anchor == "update")
    parts, classes, descent, int8 = section.grids
    assert parts.rows[0] == [
        "old", "90", "10", "91.0", "80.0", "85.0", "40", "50.0 [49.6, 50.4]", "49.7 [49.3, 50.1]",
        "−0.3 [−0.7, +0.1]",  # noqa: RUF001
    ]  # fmt: skip
    assert parts.rows[1][-4:] == ["0", DASH, DASH, DASH]
    assert classes.rows[0] == [THREE.classes[0], "25.0", "50.0", "25.0", "50.0"]
    assert ["1 before: bundle, network", f"{'4' * 12}, {SOURCE[:12]}"] in descent.rows
    assert int8.rows == [["net-int8.onnx", "98.0", "yes", ""]]
    unknown = unknowns(records)
    assert unknown[0].endswith("An update's mIoU is of its last and next network.")
    assert not any(line.startswith("INT8") for line in unknown)
    learned = next_network()
    learned["old"]["with_labels"]["in_source"] = 12
    (found,) = update_verdicts(read(tmp_path / "learned", learned))
    assert "12 of which it learned from" in found.text


def test_a_drive_says_what_it_was_adapted_to_and_what_was_decided(tmp_path: Path) -> None:
    sample = {
        "seen": 900, "estimating": 32, "judging": 31, "seconds": 90.0, "megabytes": 9.3,
        "began": "2026-12-01T17:00:00+00:00", "ended": "2026-12-01T17:01:30+00:00",
    }  # fmt: skip
    shift = {
        "agreement": 0.912, "confidence": [0.81, 0.79], "entropy": [0.5, 0.6],
        "shares": [[0.5, 0.5], [0.4, 0.6]], "class_distance": 0.071, "acceptance": 0.973,
    }  # fmt: skip
    found = {
        "decision": "refused", "reasons": ["less alike"], "sample": sample, "prior": 16.0,
        "shift": shift, "sha256": "a" * 64, "seconds": 12.5,
    }  # fmt: skip
    section = next(
        s for s in sections_of(read(tmp_path, drive(adaptation=found))) if s.anchor == "drives"
    )
    facts, adapted = section.grids
    assert not any("adaptation" in row[0] for row in facts.rows)
    rows = dict(adapted.rows)
    assert rows["decision"] == "refused"
    assert rows["why"].startswith("it calls too much of the drive something else")
    assert rows["frames: estimated on, judged on"] == "32, 31"
    assert rows["pixels of the drive called alike by both"] == "91.2 %"
    assert rows["mean confidence before, after"] == "81.00 %, 79.00 %"
    assert any("not that it is better" in text for text in section.text)
    none = found | {"decision": "nothing made", "reasons": ["too short"], "shift": None}
    records = read(tmp_path, drive(adaptation=none))
    section = next(s for s in sections_of(records) if s.anchor == "drives")
    assert dict(section.grids[1].rows)["why"] == "the drive was too short"


def test_a_missing_frame_or_label_is_named(tmp_path: Path) -> None:
    predictions(tmp_path / "in" / "p", "stage 2", ["a.png", "b.png"])
    (tmp_path / "in" / "frames" / "a.png").unlink()
    (tmp_path / "in" / "p" / "b.png").unlink()
    page, data, _ = build(tmp_path)
    assert ["a.png" in data["notes"][0], "b.png" in data["notes"][1]] == [True, True]
    assert [tag for tag, _ in page.elements].count("img") == 1


def test_a_percentile_without_enough_samples_is_a_dash(tmp_path: Path) -> None:
    record = bench()
    record["models"][1]["stages"]["total"]["percentiles"] = {"50": 20}
    section = next(s for s in sections_of(read(tmp_path, record)) if s.anchor == "latency")
    grid = next(g for g in section.grids if "p95" in g.columns)
    column = list(grid.columns).index("p95")
    totals = {row[0]: row[column] for row in grid.rows}
    assert totals == {"stage 2": "41.2", "stage 2 INT8": "–"}  # noqa: RUF001


def test_only_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    write_json(tmp_path / "eval.json", evaluation("stage 2", STAGE2, 0.5))
    with pytest.raises(OutputExistsError, match=r"eval\.json"):
        build_report([tmp_path], tmp_path / "eval.html")
    build_report([tmp_path], tmp_path / "report.html")
    build_report([tmp_path], tmp_path / "report.html")  # and does not read itself
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert len(data["records"]) == 1
    assert not data["notes"]
    with pytest.raises(ConfigError, match=r"\.html"):
        build_report([tmp_path], tmp_path / "report.pdf")
    (tmp_path / "own.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match=r"own\.csv"):
        build_report([tmp_path / "eval.json"], tmp_path / "own.html")
    assert (tmp_path / "own.csv").read_text(encoding="utf-8") == "mine"


def decode(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    data = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1], np.uint8)


def test_overlay_paints_classes_and_leaves_ignored_pixels() -> None:
    image = np.full((100, 200, 3), 100, np.uint8)
    label = np.full((50, 100), IGNORE, np.uint8)
    label[:, :50] = 0
    shown = decode(plots.overlay(image, label, THREE, width=80))
    assert shown.shape == (40, 80, 3)
    painted = 0.4 * 100 + 0.6 * np.array(THREE.palette[0])
    np.testing.assert_allclose(shown[20, 10], painted, atol=6)
    np.testing.assert_allclose(shown[20, 70], [100] * 3, atol=6)
    assert decode(plots.overlay(image[:, :40])).shape == (100, 40, 3)  # never enlarged


def test_plots_leave_matplotlib_as_it_was_and_are_the_same_each_time() -> None:
    before = dict(mpl.rcParams)
    first = latency_ecdf({"m": np.array([1.0, 2.0, 90.0])}, "label")
    assert first == latency_ecdf({"m": np.array([1.0, 2.0, 90.0])}, "label")
    assert first.startswith('<svg role="img" aria-label="label"')
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (as_points(0.0123), "+1.2"),
        (as_points(-0.0004), "0.0"),
        (as_points(float("nan")), "–"),  # noqa: RUF001
        (as_ms(123.4), "123"),
        (as_ms(12.34), "12.3"),
        (as_ms(1.234), "1.23"),
        (as_ms(0.1234), "0.123"),
    ],
)
def test_numbers(found: str, expected: str) -> None:
    assert found == expected


def test_flatten() -> None:
    record = {"a": {"b": [1, 2.5, None], "c": True}, "d": list(range(9)), "e": [{}], "f": []}
    assert flatten(record) == {
        "a.b": "1, 2.5, –",  # noqa: RUF001
        "a.c": "yes",
        "d": "9 entries",
        "e": "1 entries",
        "f": "–",  # noqa: RUF001
    }


def busy(record: dict[str, Any], cores: float = 1.4) -> dict[str, Any]:
    machine = record["machine"] | {"cores_usable": "2"}
    return record | {"machine": machine, "state": {"other_load_cores": cores, "channels": {}}}


def scored() -> list[dict[str, Any]]:
    return [evaluation("stage 2", STAGE2, 0.55), evaluation("stage 2 INT8", INT8, 0.55, "int8")]


def test_one_model_has_one_verdict_whatever_else_was_timed(tmp_path: Path) -> None:
    records = read(tmp_path, *scored(), bench(), rate())
    said = [v.headline for v in verdicts(records) if v.topic == "INT8"]
    assert len(said) == 1
    assert said[0].startswith("INT8 is worth it on Test CPU")
    assert "unknown" not in " ".join(f.headline for f in evidence(records))


def test_beside_a_sweep_nothing_else_judges_int8(tmp_path: Path) -> None:
    records = read(tmp_path, sweep(), *scored(), rate())
    said = [*choice_verdicts(records), *verdicts(records)]
    assert [v.headline for v in said if "INT8" in v.headline] == [WORTH]
    assert any("not a variant of the sweep" in line for line in unknowns(records))


def test_benchmarks_that_contradict_each_other_are_no_verdict(tmp_path: Path) -> None:
    records = read(tmp_path, *scored(), bench(), bench((0.8, 0.7, 0.9)))
    (verdict,) = (v for v in verdicts(records) if v.topic == "INT8")
    assert verdict.status == "unknown"
    assert "contradict" in verdict.headline
    assert "0.json" not in verdict.headline  # evaluations
    assert "2.json" in verdict.headline
    assert "3.json" in verdict.headline


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (busy, "other processes took 1.4 of 2 cores"),
        (lambda r: r | {"state": {"throttled": True}}, "clocks were throttled"),
        (lambda r: r | {"method": {**r["method"], "complete": False}}, "stopped before its end"),
        (
            lambda r: r | {"models": [m | {"drift": DRIFTED} for m in r["models"]]},
            "became 30 % slower",
        ),
    ],
)
def test_what_was_timed_on_a_disturbed_machine_is_no_verdict(
    tmp_path: Path, change: Any, why: str
) -> None:
    records = read(tmp_path, *scored(), change(bench()))
    (verdict,) = (v for v in verdicts(records) if v.topic == "INT8")
    assert verdict.status == "unknown"
    assert why in verdict.headline
    assert "2.00x" in verdict.headline  # the reading is there, as a reading
    assert why in went_wrong(records)[0]
    statuses = {f.topic.split(",")[0]: f.status for f in evidence(records)}
    assert statuses["Inference speed"] == "reading"
    ratios = next(
        g
        for s in sections_of(records)
        if s.anchor == "latency"
        for g in s.grids
        if g.columns[-1] == "reading"
    )
    assert [row[-1] for row in ratios.rows] == ["no verdict"]


DRIFTED = {"first": 1.0, "last": 1.3, "ratio": 1.3, "significant": True}


def test_a_loss_of_accuracy_is_a_verdict_on_any_machine(tmp_path: Path) -> None:
    lost = [evaluation("stage 2", STAGE2, 0.55), evaluation("stage 2 INT8", INT8, 0.50, "int8")]
    (verdict,) = (v for v in verdicts(read(tmp_path, *lost, busy(bench()))) if v.topic == "INT8")
    assert verdict.status == "bad"
    assert "costs 5" in verdict.headline


def timed_sweep() -> tuple[dict[str, Any], dict[str, Any]]:
    """A sweep, and the benchmark that timed its variants."""
    record, timings = sweep(), bench(None)
    timings["models"] = [
        timed(r["name"], r["sha256"], r["precision"], 20) for r in record["variants"]
    ]
    return record, timings


def test_a_sweep_that_was_timed_on_a_busy_machine_is_provisional(tmp_path: Path) -> None:
    record, timings = timed_sweep()
    quiet = choice_verdicts(read(tmp_path / "quiet", record, timings))
    assert [v.status for v in quiet] == ["good", "good"]
    found = choice_verdicts(read(tmp_path / "busy", record, busy(timings)))
    assert [v.status for v in found] == ["unknown", "unknown"]
    assert found[0].headline == "Take fast: provisional, not a verdict."
    assert "1.4 of 2 cores" in found[0].text
    assert found[1].headline == (
        f"Whether INT8 is worth it is unknown. It read: {WORTH.partition(': ')[2]}"
    )
    figures = choice_figures(read(tmp_path / "again", record, busy(timings)))
    assert figures[0].status == "reading"


def test_a_choice_that_misses_deadlines_at_a_cameras_rate_is_not_taken(tmp_path: Path) -> None:
    record, _ = timed_sweep()
    chosen = {"sha256": record["variants"][1]["sha256"], "name": "fast"}
    (choice, _) = choice_verdicts(read(tmp_path / "a", record, rate(33.3, 0.5, **chosen)))
    assert choice.status == "bad"
    assert "not at a camera's pace" in choice.headline
    assert "misses 50.0 % of the deadlines of 33.3 ms" in choice.text
    # A deadline tighter than the budget contradicts nothing.
    (choice, _) = choice_verdicts(read(tmp_path / "b", record, rate(16.7, 0.5, **chosen)))
    assert choice.headline == "Take fast."
    # That it cannot follow is said all the same.
    assert "At 30 frames/s it falls behind: 12.5 of 30 frames/s" in choice.text


def test_two_sweeps_say_which_one_is_meant(tmp_path: Path) -> None:
    other = sweep() | {"created": "2025-02-03T04:05:06+00:00"}
    first, *_ = choice_verdicts(read(tmp_path, sweep(), other))
    assert first.headline == "Sweep of 2025-01-02 03:04 UTC on Test CPU: Take fast."


def test_a_zero_has_no_sign_also_in_a_record_of_before(tmp_path: Path) -> None:
    record = sweep() | {"schema": "edgeuda.tradeoff/1"}
    said = "INT8 is worth it: it changes accuracy by -0.0 points."
    record["choice"] = {"name": "fast", "why": "", "int8": said}
    assert "by 0.0 points" in choice_verdicts(read(tmp_path, record))[1].headline


def test_adaptation_within_a_sweeps_intervals_is_noise(tmp_path: Path) -> None:
    record = sweep()
    for row, sha, miou in zip(record["variants"], (SOURCE, STAGE2), (0.40, 0.43), strict=True):
        row |= {"sha256": sha, "accuracy": {"value": miou, "low": miou - 0.02, "high": miou + 0.02}}
    pair = [evaluation("source-only", SOURCE, 0.40), evaluation("stage 2", STAGE2, 0.43)]
    (apart,) = verdicts(read(tmp_path / "a", *pair))
    assert apart.status == "good"
    records = read(tmp_path / "b", *pair, record)
    (verdict,) = verdicts(records)
    assert verdict.status == "even"
    assert "[38.0, 42.0] and [41.0, 45.0]" in verdict.headline
    assert evidence(records)[0].status == "even"


def test_what_a_sweep_tells_is_not_called_unknown(tmp_path: Path) -> None:
    record = sweep()
    for row, name in zip(record["variants"], ("source-only", "stage 2"), strict=True):
        row |= {"name": f"{name} 64x128 FP32", "network": name, "precision": "fp32"}
    lines = " ".join(unknowns(read(tmp_path, record)))
    assert "Accuracy" not in lines
    assert "Gain from adaptation" not in lines
    assert "Latency: no benchmark" not in lines
    gain = next(f for f in choice_figures(read(tmp_path / "b", record)) if "adapted" in f.topic)
    assert gain.headline == "−1.0 points"  # noqa: RUF001
    assert gain.status == "even"  # the intervals overlap
    unlabelled = sweep() | {"measure": "mean IoU with FP32", "data": None}
    assert "agreement with FP32" in " ".join(unknowns(read(tmp_path / "c", unlabelled)))


def test_a_camera_is_not_said_to_be_missing_beside_one(tmp_path: Path) -> None:
    both = unknowns(read(tmp_path / "both", bench(), rate()))
    (line,) = (line for line in both if "back to back" in line)
    assert line.startswith("Behaviour of stage 2 at a camera's frame rate")  # INT8 had its camera
    followed = bench()
    followed["models"] = followed["models"][1:]
    assert "back to back" not in " ".join(unknowns(read(tmp_path / "all", followed, rate())))


def test_a_growing_queue_is_no_noise_and_no_drift(tmp_path: Path) -> None:
    records = read(tmp_path, rate())
    grid = next(
        g
        for s in sections_of(records)
        if s.anchor == "latency"
        for g in s.grids
        if "drift" in g.columns
    )
    assert grid.rows[0][list(grid.columns).index("drift")] == "the queue grows"
    card = evidence(records)[-1]
    assert card.status == "late"
    assert "fastest" not in card.headline + card.text
    (line,) = went_wrong(records)
    assert line == (
        "stage 2 INT8 at 30 frames/s misses 100.0 % of the deadlines of 33.3 ms; 12.5 of 30 "
        "frames/s, the queue grew to 138 frames (0.json)."
    )


def test_a_large_change_that_may_be_chance_is_not_called_noise(tmp_path: Path) -> None:
    record = bench()
    for model, ratio in zip(record["models"], (1.894, 1.01), strict=True):
        model["drift"] = {"first": 1.0, "last": ratio, "ratio": ratio, "significant": False}
    section = next(s for s in sections_of(read(tmp_path, record)) if s.anchor == "latency")
    grid = next(g for g in section.grids if "drift" in g.columns)
    column = list(grid.columns).index("drift")
    assert [row[column] for row in grid.rows] == ["+89.4 % (not certain)", "+1.0 % (noise)"]


def test_a_model_in_time_is_said_to_be(tmp_path: Path) -> None:
    record = rate(66.7, 0.0, frames_per_second=30.0, longest_queue=0)
    card = evidence(read(tmp_path, record))[-1]
    assert (card.status, card.headline) == ("kept", "stage 2 INT8 is in time")
    assert went_wrong(read(tmp_path / "b", record)) == []


def test_what_went_wrong_is_on_the_first_screen(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    predictions(tmp_path / "in" / "before", "source-only", [f"frame{i}.png" for i in range(9)], 1)
    write_json(tmp_path / "in" / "rate.json", rate())
    page, data, markdown = build(tmp_path)
    assert data["wrong"][0].startswith("stage 2 INT8 at 30 frames/s misses 100.0 %")
    words = page.words()
    first = words[: words.index("The same frames before and after", words.index("What to take"))]
    for heading in (
        "One frame, before and after", "What to take", "What it costs", "What went wrong",
        "What is uncertain", "misses 100.0 % of the deadlines",
    ):  # fmt: skip
        assert heading in first
    assert "misses 100.0 % of the deadlines" in markdown.replace("\\", "")


def test_the_frames_come_before_the_tables(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    anchors = [section.anchor for section in sections_of(read_records([tmp_path / "in"]))]
    assert anchors[0] == "frames"


def test_the_frame_of_the_first_screen_is_a_typical_one(tmp_path: Path) -> None:
    predictions(tmp_path / "in" / "p", "source-only", ["a.png", "b.png"])
    predictions(tmp_path / "in" / "q", "stage 2", ["a.png", "b.png"])
    path = tmp_path / "in" / "p" / "predictions.json"
    record = json.loads(path.read_text())
    record["frames"][0]["note"], record["frames"][1]["note"] = "among the worst", "typical"
    write_json(path, record)
    pair = before_and_after(sections_of(read_records([tmp_path / "in"])))
    assert pair is not None
    assert pair[0].frame == "b.png: typical"
    assert [picture.name for picture in pair[0].pictures] == ["source-only", "stage 2"]


def test_a_comparison_has_a_chapter_and_a_figure(tmp_path: Path) -> None:
    write_json(tmp_path / "in" / "comparison.json", comparison())
    page, data, markdown = build(tmp_path)
    (card,) = (f for f in data["evidence"] if "compared" in f["topic"])
    assert (card["status"], card["headline"]) == ("good", "+6.0 points")
    assert "3 of 3 trainings" in card["text"]
    for text in (page.words(), markdown):
        assert "+6.0 ± 2.0" in text
        assert "55.0, 56.0, 57.0" in text
        assert "40.5" in text  # the mean of the seeds that have a value
    assert not data["notes"]
    two = comparison(seeds=[0, 1])
    (card,) = (f for f in evidence(read(tmp_path / "two", two)) if "compared" in f.topic)
    assert card.status == "even"
    assert "Fewer than three seeds" in card.text


def test_what_confident_labels_are_worth_is_shown(tmp_path: Path) -> None:
    path = RESULTS / "pretrained-carla-to-camvid.json"
    ((_, record),) = read_records([path]).comparisons
    adabn = record.methods[1]
    read = [
        found["calibrated"] for found in json.loads(path.read_text())["methods"][1]["reliability"]
    ]
    kept = {one.above: one for one in adabn.labels_kept()}
    for above, found in kept.items():
        rows = [next(row for row in one["kept"] if row["above"] == above) for one in read]
        assert found.share == pytest.approx(np.mean([row["share"] for row in rows]))
        assert found.accuracy == pytest.approx(np.mean([row["accuracy"] for row in rows]))
    (chapter,) = (s for s in sections_of(read_records([path])) if s.anchor == "comparison")
    assert LABELS_WORTH in chapter.text
    titles = [grid.caption for grid in chapter.grids]
    assert [title.split(",")[0] for title in titles[2:]] == [
        "Labels by confidence", "Labels that are right"
    ]  # fmt: skip
    shown = dict(zip(chapter.grids[2].columns[2:], chapter.grids[2].rows[1][2:], strict=False))
    assert shown["above 0.8, %"] == f"{100 * kept[0.8].share:.1f}"
    right = np.mean([100 * one["by_class"]["sidewalk"]["accuracy"] for one in read])
    assert chapter.grids[3].rows[1][2] == f"{right:.1f}"
    drawn = RESULTS / "pretrained-carla-to-camvid-confidence.svg"
    assert drawn.read_text(encoding="utf-8") == plots.confidence_file(record)


def test_confidence_that_nobody_measured_is_not_shown(tmp_path: Path) -> None:
    (chapter,) = (
        s for s in sections_of(read(tmp_path, comparison())) if s.anchor == "comparison"
    )  # fmt: skip
    assert LABELS_WORTH not in chapter.text
    assert len(chapter.grids) == 2


def test_a_real_comparison_is_read() -> None:
    path = RESULTS / "carla-to-camvid.json"
    records = read_records([path])
    assert [name for name, _ in records.comparisons] == ["carla-to-camvid.json"]
    assert "comparison" in [section.anchor for section in sections_of(records)]


def test_no_record_that_was_named_is_dropped(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    doctor = {"schema": "edgeuda.doctor/1", "providers": ["CPUExecutionProvider"]}
    write_json(tmp_path / "doctor.json", doctor)
    write_json(tmp_path / "in" / "found.json", {"schema": "edgeuda.run/1", "verb": "train"})
    write_json(tmp_path / "in" / "more.json", {"schema": "edgeuda.run/1", "verb": "adapt"})
    said: list[str] = []
    out = tmp_path / "r.html"
    build_report([tmp_path / "in", tmp_path / "doctor.json"], out, say=said.append)
    words = Page(out.read_text(encoding="utf-8")).words()
    assert "CPUExecutionProvider" in words
    assert "doctor.json, edgeuda.doctor/1" in words
    (note,) = said
    assert "found.json and 1 more: schema 'edgeuda.run/1' is not part of a report" in note
    assert note in words


def test_a_report_that_is_named_is_not_read_but_said(tmp_path: Path) -> None:
    write_json(tmp_path / "eval.json", evaluation("stage 2", STAGE2, 0.5))
    out = tmp_path / "r.html"
    build_report([tmp_path / "eval.json"], out)
    said: list[str] = []
    build_report([tmp_path / "eval.json", tmp_path / "r.json"], out, say=said.append)
    assert "is the report that is written anew" in said[0]
    other = tmp_path / "other.html"
    build_report([tmp_path / "eval.json", tmp_path / "r.json"], other, say=said.append)
    assert "name the records that it was made of" in said[1]


def deep(levels: int) -> str:
    return '{"schema": "edgeuda.calibration/1", "x": ' + "[" * levels + "]" * levels + "}"


DAMAGED = {
    "deep.json": (deep(100_000).encode(), "nested too deeply"),
    "deeper.json": (deep(200).encode(), "at most 50 levels"),
    "latin.json": (b'{"schema": "edgeuda.bench/2", "x": "\xe9"}', "in UTF-8"),
    "half.json": (
        b'{"schema": "edgeuda.bench/2", "models": "\\ud800"}',
        "half of a surrogate pair",
    ),
    "huge.json": (json.dumps(bench() | {"noise": 10**400}).encode(), "is damaged: int too large"),
    "nan.json": (b'{"schema": "edgeuda.bench/2", "noise": NaN, "models": []}', "finite numbers"),
    "lacks.json": (
        b'{"schema": "edgeuda.bench/2"}',
        "expected 'created', found no such entry. Measure again with `edgeuda bench`",
    ),
    "old.json": (
        b'{"schema": "edgeuda.bench/1"}',
        "expected schema 'edgeuda.bench/2', found 'edgeuda.bench/1', which this version does not",
    ),
    "digits.json": (b'{"schema": "edgeuda.bench/2", "x": ' + b"9" * 5000 + b"}", "something else"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_one_damaged_record_does_not_end_the_report(tmp_path: Path, name: str) -> None:
    content, why = DAMAGED[name]
    everything(tmp_path / "in")
    (tmp_path / "in" / name).write_bytes(content)
    page, data, _ = build(tmp_path)
    (note,) = data["notes"]
    assert name in note
    assert why in note
    assert note in page.words()
    assert note in data["wrong"]
    assert len(data["records"]) == 8
    with pytest.raises(DataError, match=rf"{name}.*{why}.*It was named"):
        build_report([tmp_path / "in", tmp_path / "in" / name], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_folder_with_the_name_of_a_record_is_searched_and_said(tmp_path: Path) -> None:
    write_json(tmp_path / "in" / "x.json" / "e.json", evaluation("stage 2", STAGE2, 0.5))
    (tmp_path / "in" / "gone.json").symlink_to(tmp_path / "nowhere")
    _, data, _ = build(tmp_path)
    assert len(data["records"]) == 1
    found = sorted(data["notes"])
    assert "gone.json: is no file that can be read" in found[0]
    assert "x.json: is a folder with the name of a record" in found[1]


def test_folders_of_records_are_walked_as_those_of_images(tmp_path: Path) -> None:
    """Links are followed, circles are not, and what begins with a dot is nobody's record."""
    elsewhere = tmp_path / "elsewhere"
    write_json(elsewhere / "e.json", evaluation("stage 2", STAGE2, 0.5))
    inputs = tmp_path / "in"
    for name in (".e.tmp.json", ".earlier/1/e.json", ".earlier.json/e.json"):
        write_json(inputs / name, evaluation("stage 1", STAGE2, 0.4))
    (inputs / "linked").symlink_to(elsewhere, target_is_directory=True)
    (inputs / "back").symlink_to(inputs, target_is_directory=True)
    _, data, _ = build(tmp_path)
    assert [Path(entry["file"]).name for entry in data["records"]] == ["e.json"]
    assert data["records"][0]["record"]["name"] == "stage 2"
    assert data["notes"] == []


def test_a_file_name_that_is_no_text_is_written_as_one(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    (tmp_path / "in" / os.fsdecode(b"\xff.json")).write_text("{", encoding="utf-8")
    page, data, _ = build(tmp_path)
    assert "\\udcff.json" in data["notes"][0]
    assert "\\udcff.json" in page.words()


def samples(path: Path, arrays: dict[str, Any]) -> None:
    """A benchmark beside the samples given."""
    beside = path.with_suffix(".samples.npz")
    np.savez_compressed(beside, **arrays)
    write_json(path, bench() | {"samples": {"file": beside.name, "sha256": sha256(beside)}})


def test_samples_that_would_unpack_for_minutes_are_not_unpacked(tmp_path: Path) -> None:
    beside = tmp_path / "b.samples.npz"
    block = bytes(2**20)
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as packed:
        for column in ("start_s", "total"):
            with packed.open(f"0.{column}.npy", "w") as stream:
                header = {"descr": "<f8", "fortran_order": False, "shape": (2**25,)}
                np.lib.format.write_array_header_1_0(stream, header)
                for _ in range(256):
                    stream.write(block)
    assert beside.stat().st_size < 2**20
    digest = sha256(beside)
    write_json(tmp_path / "b.json", bench() | {"samples": {"file": beside.name, "sha256": digest}})
    started = time.monotonic()
    records = read_records([tmp_path])
    assert time.monotonic() - started < 1
    (note,) = records.damaged
    assert "b.samples.npz: expected at most 4096 arrays of 256 MiB together, found 2 of 512" in note
    assert [s.anchor for s in sections_of(records)]


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"0.start_s": np.arange(3.0), "0.total": np.arange(4.0)}, "equal length"),
        ({"0.start_s": np.zeros((2, 2)), "0.total": np.zeros((2, 2))}, "equal length"),
        ({"0.start_s": np.arange(2.0), "0.total": np.array([1.0, np.nan])}, "finite times"),
        ({"0.start_s": np.arange(0.0), "0.total": np.arange(0.0)}, "found none"),
        ({"0.total": np.array(["a"])}, "cannot be read as samples"),
        ({"0.total": np.array([{}], object)}, "cannot be read as samples"),
    ],
)
def test_samples_that_cannot_be_drawn_are_named(
    tmp_path: Path, arrays: dict[str, Any], why: str
) -> None:
    samples(tmp_path / "b.json", arrays)
    records = read_records([tmp_path])
    (note,) = records.damaged
    assert why in note
    assert not next(s for s in sections_of(records) if s.anchor == "latency").svgs


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.samples.npz").write_bytes(b"PK no zip")
    entry = {"file": "b.samples.npz", "sha256": sha256(tmp_path / "b.samples.npz")}
    write_json(tmp_path / "b.json", bench() | {"samples": entry})
    assert "cannot be read as samples" in read_records([tmp_path]).damaged[0]


def test_benchmarks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a/results", "b/results"):
        write_json(tmp_path / folder / "bench.json", bench())
    write_json(tmp_path / "b/results/rate.json", rate())
    origins = [found.origin for found in read_records([tmp_path]).benches]
    assert origins == ["a/results/bench.json", "b/results/bench.json", "rate.json"]


def spans(text: str) -> float:
    """How much the numbers on the vertical axis of a plot span."""
    parts = re.findall(r'id="[^"]*ytick_\d+".*?<text[^>]*>([^<]*)</text>', text, re.DOTALL)
    numbers = [float(part.replace("\u2212", "-")) for part in parts]
    return max(numbers) - min(numbers)


def test_no_axis_makes_noise_look_like_a_difference() -> None:
    points = [
        Point(name, ms, None, miou, front=True)
        for name, ms, miou in (("a", 10.0, 0.550), ("b", 20.0, 0.551))
    ]
    assert spans(tradeoff_plot(points, "label")) >= 3
    assert spans(plots.drop_curve([(90.0, 0.0), (100.0, 0.1)], 1.0, "mIoU", "label")) >= 3
    assert spans(plots.convergence([0.9990, 0.9995, 1.0], "label")) >= 5


def test_a_wide_table_says_once_what_is_the_same_in_every_row() -> None:
    columns = ["model", "width", *"abcdef"]
    rows = [["m", "0.5", *"123456"], ["n", "0.5", *"654321"]]
    assert Grid("wide", columns, rows).constant == {1: "0.5"}
    assert Grid("narrow", columns[:4], [row[:4] for row in rows]).constant == {}
    assert Grid("one row", columns, rows[:1]).constant == {}


def test_the_class_table_stands_beside_its_plot(tmp_path: Path) -> None:
    everything(tmp_path / "in")
    section = next(
        s for s in sections_of(read_records([tmp_path / "in"])) if s.anchor == "accuracy"
    )
    captions = [grid.caption for grid in section.beside]
    assert any(caption.startswith("IoU in percent") for caption in captions)
    assert any(caption.startswith("Changes of IoU") for caption in captions)


def test_classes_that_adaptation_costs_are_a_figure_of_their_own(tmp_path: Path) -> None:
    before = evaluation("source-only", SOURCE, 0.4, confusion=[[90, 10, 0], [0, 10, 90], [0, 0, 9]])
    after = evaluation("stage 2", STAGE2, 0.4, confusion=[[60, 40, 0], [0, 90, 10], [0, 0, 9]])
    card = evidence(read(tmp_path, before, after))[1]
    assert card.status == "bad"
    assert card.headline == "road −30.0 points"  # noqa: RUF001


@pytest.mark.parametrize(
    "record",
    [
        calibration(acceptance=5),
        calibration(assignment={"curve": [[], []]}),
        calibration(convergence=["x", "y"]),
        drive(seconds="x"),
        next_network(new=5),
        adaptation(stage(curve={"step": [0, 1], "threshold": [[0.5], [0.5, 0.6]]})),
    ],
)  # fmt: skip
def test_damage_deep_in_a_record_does_not_end_the_report(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    everything(tmp_path / "in")
    write_json(tmp_path / "in" / "spoiled.json", record)
    page, data, _ = build(tmp_path)
    (note,) = data["notes"]
    assert "spoiled.json: its " in note
    assert note in page.words()
    assert len(data["records"]) == 8
    with pytest.raises(DataError, match=r"spoiled\.json.*It was named"):
        build_report([tmp_path / "in", tmp_path / "in" / "spoiled.json"], tmp_path / "r.html")


def test_what_was_not_recorded_of_one_model_is_no_verdict_beside_anothers(tmp_path: Path) -> None:
    untimed = evaluation("stage 2 INT8 for TensorRT", "9" * 64, 0.55, "int8")
    records = read(tmp_path, *scored(), untimed, bench())
    (verdict,) = (v for v in verdicts(records) if "INT8" in v.headline)
    assert verdict.headline.startswith("INT8 is worth it")
    line = "Speed of stage 2 INT8 for TensorRT: not measured beside FP32."
    assert line in unknowns(records)
    alone = read(tmp_path / "alone", evaluation("stage 2", STAGE2, 0.55), untimed)
    assert [v.status for v in verdicts(alone)] == ["unknown"]


def test_one_network_is_shown_beside_the_bare_frame(tmp_path: Path) -> None:
    predictions(tmp_path / "in" / "p", "stage 2", ["a.png"])
    page, _, _ = build(tmp_path)
    words = page.words()
    assert "One frame, and what the network sees in it" in words
    assert "before: camera" not in words
