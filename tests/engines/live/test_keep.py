"""Frames to bring home: the ones that teach most, spread, within the budget, whatever happens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from calibration.reference import write_reference
from cli.app import app
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import list_images, read_image
from edgeuda.errors import (
    ConfigError,
    ModelError,
    OutputError,
    OutputExistsError,
)
from edgeuda.labels import SPACES
from edgeuda.records.keep import KeepBudget, KeptRecord
from edgeuda.records.live import LiveRecord
from edgeuda.records.predictions import ModelFile
from edgeuda.records.reference import BINS, COLUMNS
from edgeuda.street import write_dataset
from engines.live import keep as module
from engines.live.keep import Keeper, redactor
from engines.signals import GRID, FrameStatistics
from live_results import result, smooth
from tiny_models import exported, random_frames, write_frames

MODEL = ModelFile("a.onnx", "0" * 64)
CLASSES = ("road", "sky", "sign")
REGIONS = GRID[0] * GRID[1]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """What changed is written with each frame, where a test does not ask for more."""
    monkeypatch.setattr(module, "HELD", 0.0)


def said(confidence=0.9, shares=(0.5, 0.5, 0.0), layout=None):
    counts = np.round(1000 * np.array(shares)).astype(int)
    classes = np.tile(counts, (REGIONS + 1, 1)) if layout is None else layout
    values = np.array([confidence, *[100.0] * (len(COLUMNS) - 1)])
    ones = np.ones(REGIONS + 1)
    return FrameStatistics(
        np.zeros((REGIONS + 1, BINS), int), classes, ones, ones, values, None
    )  # fmt: skip


def drawn(rng):
    """Statistics of a frame with a layout of its own."""
    regions = rng.multinomial(1000, rng.dirichlet([1, 1, 0.2]), REGIONS)
    return said(rng.uniform(0.6, 0.95), layout=np.vstack([regions, regions.sum(0)]))


def keeper(folder, frames=10, megabytes=10.0, model=MODEL, **more):
    return Keeper(folder, KeepBudget(frames, megabytes), model, CLASSES, **more)


def play(keep, statistics, start=0.0, step=1.0):
    """Play frames at a second each; an image is told by the number in its name."""
    for n, one in enumerate(statistics):
        given = result(n, image=smooth(n), said=one, time_ns=int(1e9 * (1e9 + start + n * step)))
        keep.write(replace(given, seconds=n * step))


def consistent(folder):
    """The record, after a look at whether it tells the files that there are."""
    record = KeptRecord.read(folder / "kept.json")
    files = {path.relative_to(folder).as_posix() for path in folder.glob("images/*")}
    assert files == {one.file for one in record.frames}
    assert all((folder / one.file).stat().st_size == one.bytes for one in record.frames)
    assert len(files) <= record.budget.frames
    assert sum(one.bytes for one in record.frames) <= 1e6 * record.budget.megabytes
    return record


def places(record):
    return [int(one.file.split("_")[-1][:-4]) for one in record.frames]


def test_a_long_drive_stays_within_both_budgets_at_every_moment(tmp_path):
    rng = np.random.default_rng(0)
    keep = keeper(tmp_path, frames=8, megabytes=0.02)
    for n in range(200):
        given = result(n, image=smooth(n), said=drawn(rng), time_ns=int(1e9 * (1e9 + n)))
        keep.write(replace(given, seconds=float(n)))
        consistent(tmp_path)
    keep.close()
    record = consistent(tmp_path)
    assert record.seen == 200
    assert len(record.frames) >= 3
    counted = keep.counts(dropped=2)
    assert (counted.considered, counted.dropped) == (200, 2)
    assert counted.kept == counted.new == len(record.frames)


def test_what_is_soon_replaced_is_never_written(tmp_path, monkeypatch):
    """The record of many frames takes its time: it is written now and then."""
    monkeypatch.setattr(module, "HELD", 3600.0)
    rng = np.random.default_rng(0)
    keep = keeper(tmp_path, frames=3)
    play(keep, [drawn(rng) for _ in range(50)])
    assert not consistent(tmp_path).frames
    assert len(keep._waiting) == 3  # memory is that of the budget
    keep.close()
    assert len(consistent(tmp_path).frames) == 3
    keep = keeper(tmp_path, frames=3)
    play(keep, [replace(drawn(rng), values=said(0.3).values) for _ in range(3)], start=100.0)
    assert len(consistent(tmp_path).frames) == 3
    keep.close()
    assert len(consistent(tmp_path).frames) == 3
    assert keep.counts(0).new >= 1


def full(path, write, durable=True):
    msg = f"{path}: cannot be written: the disk is full"
    raise OutputError(msg)


def test_a_disk_that_takes_no_record_loses_what_waited_and_nothing_else(tmp_path, monkeypatch):
    keep = keeper(tmp_path, frames=4)
    play(keep, [said()] * 2)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", full)
        play(keep, [said()] * 3, start=10.0)
        assert not keep._waiting
    keep.close()
    assert len(consistent(tmp_path).frames) == 2
    assert keep.counts(0).unwritten == 3


def test_frames_that_follow_at_once_are_not_weighed(tmp_path):
    keep = keeper(tmp_path)
    assert [keep.due(at) for at in (0.0, 0.1, 0.25, 0.3, 0.5)] == [True, False, True, False, True]
    keep.close()
    every = keeper(tmp_path, every=0.0)
    assert all(every.due(n / 30) for n in range(5))
    every.close()


def test_unsure_frames_and_rare_classes_are_kept(tmp_path):
    rng = np.random.default_rng(1)
    frames = [drawn(rng) for _ in range(200)]
    frames = [replace(one, values=np.array([0.9, *one.values[1:]])) for one in frames]
    for at in (30, 90, 150):
        frames[at] = replace(frames[at], values=np.array([0.4, *frames[at].values[1:]]))
    keep = keeper(tmp_path, frames=12)
    play(keep, frames)
    keep.close()
    record = consistent(tmp_path)
    assert {30, 90, 150} <= set(places(record))
    unsure = [one for one in record.frames if one.confidence < 0.5]
    assert {one.reason for one in unsure} == {"unsure"}
    # In a drive of roads and skies, signs are rare.
    keep = keeper(tmp_path / "rare", frames=12)
    play(
        keep,
        [said(shares=(0.3, 0.3, 0.4) if n in (44, 120) else (0.5, 0.5, 0)) for n in range(160)],
    )
    keep.close()
    record = consistent(tmp_path / "rare")
    assert {44, 120} <= set(places(record))
    assert [one.reason for one in record.frames].count("rare") >= 2


def test_what_is_kept_is_spread_over_the_drive(tmp_path):
    """Frames at a red light are alike: many of them are worth no more than some."""
    rng = np.random.default_rng(2)
    light = drawn(rng)
    # Two thirds of the drive it stands, as unsure as it ever is.
    light = replace(light, values=np.array([0.6, *light.values[1:]]))
    frames = [light if 50 <= n < 250 else drawn(rng) for n in range(300)]
    keep = keeper(tmp_path, frames=20)
    play(keep, frames)
    keep.close()
    found = np.array(places(consistent(tmp_path)))
    assert ((found >= 50) & (found < 250)).sum() <= 2
    assert (found < 50).sum() >= 5
    assert (found >= 250).sum() >= 5


def test_times_and_signals_are_told(tmp_path):
    keep = keeper(tmp_path)
    play(keep, [said(0.8, (0.25, 0.25, 0.5))])
    keep.close()
    (frame,) = consistent(tmp_path).frames
    assert frame.file == "images/20010909T014640000000Z_f_000.jpg"
    assert frame.time == "2001-09-09T01:46:40.000000+00:00"
    assert frame.confidence == 0.8
    assert frame.classes == (0.25, 0.25, 0.5)
    assert frame.distance is None
    picture = read_image(tmp_path / frame.file)
    assert np.abs(picture.astype(int) - smooth(0)).mean() < 5


def test_another_drive_goes_on_under_the_same_budget(tmp_path):
    rng = np.random.default_rng(3)
    for drive in range(3):
        keep = keeper(tmp_path, frames=9)
        play(keep, [drawn(rng) for _ in range(60)], start=1000.0 * drive)
        keep.close()
        record = consistent(tmp_path)
        assert len(record.frames) == 9
    assert record.seen == 180
    assert record.seconds == pytest.approx(3 * 59)
    days = [(one.time_ns // 10**9 - 10**9) // 1000 for one in record.frames]
    assert {0, 1, 2} == set(days)
    assert keep.counts(0).new == days.count(2)
    keeper(tmp_path, frames=4).close()  # a smaller budget holds at once
    assert len(consistent(tmp_path).frames) == 4


def test_what_a_kill_left_is_put_right_and_said(tmp_path, caplog):
    keep = keeper(tmp_path)
    play(keep, [said()] * 5)
    keep._open.close()  # the process is gone
    first, second, *others = sorted((tmp_path / "images").glob("*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    (tmp_path / "images/20010909T014640000000Z_gone_000.jpg").write_bytes(b"evicted")
    (tmp_path / "images/.x.tmp.jpg").write_bytes(b"half of one")
    keeper(tmp_path).close()
    assert "2 frames of its record are missing or cut off, and 3 images" in caplog.text
    assert len(consistent(tmp_path).frames) == len(others)
    assert not list((tmp_path / "images").glob(".*"))


@pytest.mark.parametrize("step", ["write_atomic", "unlink"])
def test_a_kill_at_any_step_of_an_exchange(tmp_path, monkeypatch, step):
    class Killed(BaseException):
        pass

    for die_at in range(1, 5):
        folder = tmp_path / str(die_at)
        rng = np.random.default_rng(4)
        keep = keeper(folder, frames=5)
        play(keep, [drawn(rng) for _ in range(5)])
        calls = 0

        def die(*given, real, at=die_at, **more):
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return real(*given, **more)

        with monkeypatch.context() as patch:
            owner = module if step == "write_atomic" else module.Path
            real = getattr(owner, step)
            patch.setattr(owner, step, lambda *g, r=real, **m: die(*g, real=r, **m))
            with pytest.raises(Killed):
                play(keep, [drawn(rng) for _ in range(60)], start=100.0)
        keep._open.close()
        assert len(list((folder / "images").glob("*.jpg"))) <= 5
        keeper(folder, frames=5).close()
        assert 4 <= len(consistent(folder).frames) <= 5


def test_a_full_disk_ends_nothing(tmp_path, monkeypatch, caplog):
    keep = keeper(tmp_path, frames=4)
    play(keep, [said()] * 2)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", full)
        play(keep, [said()] * 3, start=10.0)
    assert caplog.text.count("the disk is full") == 1
    play(keep, [said()], start=20.0)
    keep.close()
    assert len(consistent(tmp_path).frames) == 3
    counted = keep.counts(0)
    assert counted.unwritten == 3
    assert "the disk is full" in counted.error


def test_a_frame_larger_than_the_budget_is_not_kept(tmp_path):
    keep = keeper(tmp_path, megabytes=0.0005)
    play(keep, [said()])
    keep.close()
    assert not consistent(tmp_path).frames
    assert "more than all may have" in keep.counts(0).error


def raises(image):
    msg = "no faces today"
    raise RuntimeError(msg)


@pytest.mark.parametrize(
    "bad", [raises, lambda image: None, lambda image: image[:-1], lambda image: image / 1.0]
)
def test_what_cannot_be_redacted_is_not_written(tmp_path, caplog, bad):
    keep = keeper(tmp_path, redact=("my:blur", bad))
    play(keep, [said()] * 3)
    keep.close()
    assert not consistent(tmp_path).frames
    assert keep.counts(0).unredacted == 3
    assert caplog.text.count("my:blur failed: its frame is not written") == 1


def test_images_are_written_as_the_function_returns_them(tmp_path):
    def black(image):
        image[:] = 0  # in place, which is nobody else's picture
        return image

    given = smooth(0)
    keep = keeper(tmp_path, redact=("my:black", black))
    keep.write(result(0, image=given, said=said()))
    keep.close()
    (frame,) = consistent(tmp_path).frames
    assert not read_image(tmp_path / frame.file).any()
    assert given.any()
    with pytest.raises(OutputExistsError, match="the function that redacts was my:black"):
        keeper(tmp_path)


@pytest.mark.parametrize("text", ["os", "os:", "no_such_module:f", "os:no_such", "os:sep"])
def test_a_function_that_is_not_there_is_named(text):
    with pytest.raises(ConfigError, match=r"expected package\.module:function, found"):
        redactor(text)


def test_other_folders_are_refused_by_name(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("x")
    with pytest.raises(OutputExistsError, match="letters: expected an empty folder"):
        keeper(tmp_path)
    own = tmp_path / "own"
    keep = keeper(own)
    with pytest.raises(OutputExistsError, match="another process"):
        keeper(own)
    keep.close()
    with pytest.raises(OutputExistsError, match="the model was 0000"):
        keeper(own, model=ModelFile("b.onnx", "1" * 64))
    (own / "images").mkdir(exist_ok=True)
    (own / "images/mine.jpg").write_bytes(b"x")
    with pytest.raises(OutputExistsError, match=r"mine\.jpg: expected an empty folder"):
        keeper(own)


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driven")
    model = folder / "model.onnx"
    model.write_bytes(exported(confidence=True))
    images = random_frames(60, 64, 128)
    write_frames(folder / "normal", images)
    write_reference(model, frame_folder(folder / "normal"), 40, threads=1)
    return folder


def drive(driven, tmp_path, *more, model=None):
    command = ["run", "--model", model or driven / "model.onnx", "--target", driven / "normal"]
    command += ["--out", tmp_path / "drive", "--threads", "1", *more]
    return CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)


def test_the_verb_keeps_frames_that_other_verbs_take(driven, tmp_path):
    kept = tmp_path / "kept"
    done = drive(driven, tmp_path, "--keep", kept, "--keep-frames", "6")
    assert done.exit_code == 0, done.output
    assert "6 frames kept" in done.output
    record = consistent(kept)
    assert len(record.frames) == 6
    assert record.reference
    assert all(one.distance is not None for one in record.frames)
    counted = LiveRecord.read(tmp_path / "drive/run.json").keep
    assert counted.kept == 6
    assert counted.considered == record.seen == 60  # images have no times: all are weighed
    assert counted.error is None
    assert [path.name for path in list_images(kept)] == [
        Path(one.file).name for one in record.frames
    ]


def test_a_model_without_confidence_is_refused(driven, tmp_path):
    (tmp_path / "plain.onnx").write_bytes(exported())
    with pytest.raises(ModelError, match="confidence"):
        drive(driven, tmp_path, "--keep", tmp_path / "k", model=tmp_path / "plain.onnx")
    assert not (tmp_path / "k").exists()


def test_a_function_needs_a_folder_to_keep(driven, tmp_path):
    with pytest.raises(ConfigError, match="expected --keep beside it"):
        drive(driven, tmp_path, "--redact", "os:getcwd")


@pytest.fixture(scope="module")
def kept(driven, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    done = drive(driven, folder, "--keep", folder / "kept", "--keep-frames", "8")
    assert done.exit_code == 0, done.output
    return folder / "kept"


@pytest.mark.parametrize(
    "verb",
    [
        ["calibrate", "--min-agreement", "0", "--min-class-agreement", "0", "--threads", "1"],
        ["data", "select", "--count", "3"],
    ],
    ids=lambda verb: verb[0],
)
def test_other_verbs_take_the_folder(driven, kept, tmp_path, verb):
    out = tmp_path / ("out.txt" if verb[0] == "data" else "out.onnx")
    command = [*verb, "--model", driven / "model.onnx", "--target", kept, "--out", out]
    done = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert out.exists()


@pytest.mark.slow
def test_a_network_adapts_to_the_folder(kept, tmp_path):
    write_dataset(tmp_path / "source", "simulator", 6, 0, 64, 128, SPACES["camvid-11"])
    little = (
        "model.width=0.125", "model.pretrained=none", "model.input=[64, 128]",
        "geometry.crop=[64, 128]", "source.steps=2",
        "source.batch=2", "adabn.batches=2", "adabn.batch=2", "stage1.steps=2", "stage1.batch=2",
        "stage2.steps=2", "stage2.batch=2",
    )  # fmt: skip
    settings = [part for one in little for part in ("--set", one)]
    source, run = ["--source", tmp_path / "source"], tmp_path / "run"
    for command in (
        ["train", *source, "--out", run],
        ["adapt", "--model", run, *source, "--target", kept, "--out", tmp_path / "adapted"],
    ):
        done = CliRunner().invoke(app, [*map(str, command), *settings], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "adapted/model.safetensors").exists()


def test_frames_are_redacted_on_the_way(driven, tmp_path, monkeypatch):
    (tmp_path / "privacy_of_mine.py").write_text("def black(image):\n    return 0 * image\n")
    monkeypatch.syspath_prepend(tmp_path)
    more = ["--keep", tmp_path / "k", "--redact", "privacy_of_mine:black"]
    done = drive(driven, tmp_path, *more)
    assert done.exit_code == 0, done.output
    record = consistent(tmp_path / "k")
    assert record.redact == "privacy_of_mine:black"
    assert record.frames
    assert not any(read_image(tmp_path / "k" / one.file).any() for one in record.frames)


def test_the_folder_is_not_that_of_the_run(driven, tmp_path):
    with pytest.raises(ConfigError, match="expected another folder than --out"):
        drive(driven, tmp_path, "--keep", tmp_path / "drive")
