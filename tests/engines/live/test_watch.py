"""Alarms: as many false ones as was allowed, and true ones soon."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from calibration.reference import write_reference
from cli.app import app
from edgeuda.data.frames import frame_folder
from edgeuda.errors import ConfigError, DataError
from edgeuda.records.arrays import Floats
from edgeuda.records.live import LiveRecord
from edgeuda.records.predictions import ModelFile
from edgeuda.records.reference import BINS, COLUMNS, Reference, Region, Spread, Stretch
from engines.live.watch import Watch, WatchSettings, normal, student_quantile
from engines.packing import pack
from engines.signals import GRID, FrameStatistics
from tiny_models import exported, random_frames, write_frames

REGIONS = GRID[0] * GRID[1]
USUAL = np.array([0.9, 110, 400, 100, 110, 120, 50, 50, 50])
SHARP = np.linspace(200, 600, REGIONS)


def drive(count, seed, between=0.05, within=0.05, follow=0.9, places=1):
    """Frames ``[count, columns]`` whose level wanders, drawn anew at each place."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(places):
        level = rng.normal(size=len(COLUMNS)) * between
        now = rng.normal(size=len(COLUMNS)) * within
        for _ in range(count // places):
            now = follow * now + np.sqrt(1 - follow**2) * within * rng.normal(size=len(COLUMNS))
            rows.append(USUAL * (1 + level + now))
    return np.array(rows)


def reference(values, stretch=16):
    region = Region((0,) * BINS, (1.0,), Spread(110.0, 5.0), Spread(400.0, 40.0))
    parts = tuple(replace(region, sharpness=Spread(float(s), float(s) / 10)) for s in SHARP)
    stretches = tuple(Stretch(3 * n, stretch) for n in range(0, len(values), stretch))
    return Reference(
        "2026-01-01", ModelFile("a.onnx", "0" * 64), None, "numpy", ("road",), 64, 128,
        len(values), 3 * len(values), stretches, GRID, region, parts, COLUMNS, Floats.of(values),
        (None,) * len(COLUMNS),
    )  # fmt: skip


def said(row, sharpness=SHARP):
    whole = np.array([*sharpness, row[2]])
    return FrameStatistics(
        np.zeros((REGIONS + 1, BINS), int), np.zeros((REGIONS + 1, 1), int), whole, whole, row, None
    )


def play(watch, rows, start=0.0, step=1.0, **more):
    return [
        found
        for n, row in enumerate(rows)
        if (found := watch.add(start + n * step, said(row, **more)))
    ]


@pytest.fixture(scope="module")
def known():
    return reference(drive(16 * 60, 0, places=60))


@pytest.mark.parametrize(
    ("chance", "freedom", "table"),
    [(0.025, 1, 12.7062), (0.0005, 3, 12.924), (0.005, 10, 3.1693), (0.0005, 30, 3.646),
     (1e-6, 1000, 4.7816), (0.5, 5, 0.0)],
)  # fmt: skip
def test_students_distribution(chance, freedom, table):
    assert student_quantile(chance, freedom) == pytest.approx(table, abs=6e-4)


def test_false_alarms_come_at_most_as_often_as_was_allowed(known):
    """Twenty hours of other drives, each of ten minutes, at one allowed alarm in an hour."""
    alarms = windows = 0
    for seed in range(1, 121):
        watch = Watch(known, WatchSettings(per_hour=1.0))
        # A street for a minute, then another one.
        alarms += len(play(watch, drive(300, seed, places=10), step=2.0))
        windows += watch.record().tested
    assert windows > 120 * 110
    assert alarms <= 20


def test_a_change_is_noticed_within_two_windows_and_ends(known):
    watch = Watch(known, WatchSettings(per_hour=0.1))
    assert not play(watch, drive(300, 7))
    darker = drive(120, 8) * np.where(np.isin(COLUMNS, ["confidence", "sharpness"]), 1, 0.6)
    (found,) = play(watch, darker, start=300)
    assert 300 < found.at <= 320
    assert found.kind == "light"
    assert found.apart["brightness"] < 0
    assert watch.alarm == found
    assert not play(watch, drive(120, 9), start=420)
    (ended,) = watch.record().alarms
    assert watch.alarm is None
    assert 420 < ended.until <= 440
    assert max(watch.record().timeline, key=lambda one: one.ratio).ratio > 1


@pytest.mark.parametrize(
    ("columns", "factor", "regions", "kind"),
    [
        (["sharpness"], 0.1, SHARP * 0.1, "blur"),
        (["confidence"], 0.5, SHARP, "scene"),
        (["brightness", "red"], 1.7, SHARP, "light"),
        (["brightness", "red"], 0.5, SHARP * 0.25, "light"),
        (["confidence"], 0.5, SHARP * np.where(np.arange(REGIONS) < 4, 0.1, 1), "covered"),
    ],
)
def test_what_a_change_looks_like(known, columns, factor, regions, kind):
    watch = Watch(known, WatchSettings())
    rows = drive(60, 5) * np.where(np.isin(COLUMNS, columns), factor, 1)
    (found,) = play(watch, rows, sharpness=regions)
    assert found.kind == kind


def test_fewer_places_make_wider_limits(known):
    few = reference(drive(16 * 16, 3, places=16))
    wide, narrow = (Watch(one, WatchSettings()).record().limits for one in (few, known))
    pairs = [(a, b) for a, b in zip(wide, narrow, strict=True) if a.limit is not None]
    assert len(pairs) > 4
    assert all(a.limit > b.limit for a, b in pairs)
    assert all(a.blocks < b.blocks for a, b in zip(wide, narrow, strict=True))


def test_frames_of_one_place_say_too_little(known):
    with pytest.raises(DataError, match="as little of how much normal varies"):
        Watch(reference(drive(16, 3)), WatchSettings())
    # Many frames that creep from one level to another are few, too.
    creeping = np.linspace(0, 1, 16 * 20)[:, None] + np.zeros(3)
    with pytest.raises(DataError, match="Calibrate on footage of more places"):
        normal(creeping, [len(creeping)], 16, 1e-5)


def test_a_column_of_which_little_is_known_is_not_tested_and_costs_the_others_nothing():
    rng = np.random.default_rng(0)
    sure = rng.normal(size=(16 * 40, 2))
    creeping = np.linspace(0, 9, len(sure))[:, None]
    alone = normal(sure, [16] * 40, 16, 1e-4)
    both = normal(np.hstack([sure, creeping]), [16] * 40, 16, 1e-4)
    assert both.limit[2] == np.inf
    assert both.limit[:2] == pytest.approx(alone.limit)


def test_each_column_is_measured_by_the_longest_blocks_of_which_there_are_enough():
    rng = np.random.default_rng(1)
    quick, noise = rng.normal(size=(2, 320))
    slow = noise.copy()
    for n in range(1, 320):
        slow[n] = 0.94 * slow[n - 1] + 0.6 * noise[n]
    both = normal(np.stack([quick, slow], 1), [320], 16, 1e-4)
    alone = [normal(one[:, None], [320], 16, 5e-5) for one in (quick, slow)]
    short = normal(np.stack([quick, slow], 1), [320], 4, 1e-4)
    assert both.unit == pytest.approx([one.unit[0] for one in alone])
    assert both.limit == pytest.approx([one.limit[0] for one in alone])
    assert both.unit[0] < short.unit[0]  # means of 16 frames vary less than those of 4
    # Of the other one too few long blocks are independent, and enough of the short ones.
    assert (both.unit[1], both.blocks[1]) == (short.unit[1], short.blocks[1])
    assert np.isfinite(both.limit).all()


def test_what_the_reference_holds_is_no_alarm():
    values = drive(16 * 30, 4, places=30)
    values[:16] *= 3  # a tunnel
    found = normal(values, [16] * 30, 16, 0.05)
    tunnel = np.abs(values[:16].mean(0) - found.mean) / found.unit
    assert (tunnel <= found.limit + 1e-9).all()


def test_gaps_are_counted_and_not_judged(known):
    watch = Watch(known, WatchSettings())
    play(watch, drive(30, 5))
    play(watch, drive(30, 6), start=500)
    record = watch.record()
    assert record.untested >= (500 - 30 - 10) / 5 - 1
    assert record.tested < 12
    assert not record.alarms


def test_the_timeline_stays_bounded_and_keeps_what_is_far(known, monkeypatch):
    monkeypatch.setattr("engines.live.watch.ENTRIES", 16)
    watch = Watch(known, WatchSettings())
    rows = drive(600, 5)
    rows[300:310] *= 2
    play(watch, rows)
    record = watch.record()
    assert len(record.timeline) <= 16
    assert record.tested > 100
    assert max(one.ratio for one in record.timeline) > 1


def test_frames_that_follow_at_once_are_not_looked_at(known):
    watch = Watch(known, WatchSettings())
    assert watch.due(0)
    play(watch, drive(1, 5))
    assert not watch.due(0.1)
    assert watch.due(0.25)


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """A model with its reference, alone and in a bundle, and frames of which the last are dark."""
    folder = tmp_path_factory.mktemp("drive")
    model = folder / "model.onnx"
    model.write_bytes(exported(confidence=True))
    images = [frame for seed in range(20) for frame in random_frames(1, 64, 128, seed) * 4]
    write_frames(folder / "normal", images)
    write_reference(model, frame_folder(folder / "normal"), 80, threads=1)
    pack([model], folder / "model.edgeuda")
    dark = [np.asarray(frame // 5, np.uint8) for frame in images[:40]]
    write_frames(folder / "target", images[:40] + dark)
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "model.edgeuda"])
def test_the_verb_says_when_the_stream_is_no_longer_normal(driven, tmp_path, name):
    command = ["run", "--model", driven / name, "--target", driven / "target"]
    command += ["--out", tmp_path / "d"]
    more = ["--watch", "--alarms-per-hour", "1", "--watch-window", "0.8", "--threads", "1"]
    done = CliRunner().invoke(app, [*map(str, command), *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = LiveRecord.read(tmp_path / "d/run.json").watch
    assert found is not None
    assert found.per_hour == 1
    assert found.tested > 3
    assert found.alarms
    assert found.alarms[-1].apart.keys() & {"brightness", "red", "green", "blue"}


def test_a_model_without_a_reference_is_not_watched(driven, tmp_path):
    (tmp_path / "model.onnx").write_bytes((driven / "model.onnx").read_bytes())
    command = ["run", "--model", tmp_path / "model.onnx", "--target", driven / "target", "--watch"]
    with pytest.raises(DataError, match=r"expected what is normal for model\.onnx"):
        CliRunner().invoke(
            app, [*map(str, command), "--out", str(tmp_path / "d")], catch_exceptions=False
        )


@pytest.mark.parametrize("settings", [{"per_hour": 0}, {"window": -1}])
def test_settings_are_positive(settings):
    with pytest.raises(ConfigError, match="expected positive numbers"):
        WatchSettings(**settings)
