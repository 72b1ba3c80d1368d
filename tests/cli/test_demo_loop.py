"""The demo of the loop: an alarm in the evening, kept frames, a next bundle, all of it again."""

import json

import pytest

from cli.verbs import demo_loop, shared
from edgeuda.errors import ConfigError, OutputExistsError, ParityError
from edgeuda.files import sha256
from edgeuda.records.live import LiveRecord
from edgeuda.records.update import UpdateRecord
from engines import installation
from engines.bundle import open_bundle

TINY = [
    "model.width=0.125", "model.input=[32, 64]", "geometry.crop=[32, 64]", "precision=32-true",
    "source.steps=40", "source.batch=4", "adabn.batches=4", "adabn.batch=4", "monitor.frames=2",
    "stage1.steps=2", "stage1.batch=2", "stages=[\"adabn\", \"stage1\"]",
]  # fmt: skip


def test_too_few_images_and_a_folder_that_exists_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--images: expected 64 or more with --loop, found 16"):
        demo_loop.loop(tmp_path / "out", "small", None, None, False, 16)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OutputExistsError):
        demo_loop.loop(tmp_path, "small", None, None, False, 64)


def test_a_verdict_that_refuses_does_not_end_the_demo(capsys):
    def refused():
        raise ParityError("it forgets [road]")

    assert not shared.allowed(refused)
    assert shared.allowed(lambda: None)
    assert "it forgets [road]" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loop_closes(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_loop, "SIZE", (32, 64))
    monkeypatch.setattr(installation, "TIMED", 2)
    out = tmp_path / "loop"
    demo_loop.loop(out, "small", TINY, 0, False, 64)
    drive = LiveRecord.read(out / "drive/run.json")
    first = drive.watch.alarms[0]
    assert first.at > 40  # a third is by day
    assert first.kind in ("light", "blur")  # images this small lose their sharpness with the light
    assert first.until is None
    kept = json.loads((out / "kept/kept.json").read_text())
    assert len(kept["frames"]) == demo_loop.KEPT
    record = UpdateRecord.read(out / "next/update.json")
    assert record.new.frames == demo_loop.KEPT
    assert record.old.with_labels.data.images == 16
    history = installation.read(out / "vehicle").history
    if record.bundle is not None:
        assert [one.parent for one in history] == [None, sha256(out / "last/last.edgeuda")]
        assert open_bundle(out / "vehicle/current.edgeuda").manifest.lineage == record.lineage
    page = (out / "report.html").read_text()
    for said in ("The next network", "alarm: ", "seconds of the drive"):
        assert said in page
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.onnx")}
    demo_loop.loop(out, "small", TINY, 0, True, 64)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.onnx")}
