"""Verbs on frames that lie in an object store or in shards."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.data.shards import write_shards
from engines.onnx_export import export_onnx
from tiny_models import SPEC, random_frames, random_network, write_frames

fsspec = pytest.importorskip("fsspec", reason="needs the extra s3")
COUNT = 6


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model and its frames: in a store, and in shards there."""
    folder = tmp_path_factory.mktemp("places")
    frames = random_frames(COUNT, 64, 128)
    write_frames(folder / "drive", frames)
    write_shards(folder / "drive", folder / "shards" / "s-%02d.tar", 10**5)
    export_onnx(random_network(), SPEC, folder / "m.onnx", head="labels", frames=frames[:1])
    store = fsspec.filesystem("memory")
    for name in ("drive", "shards"):
        store.put(str(folder / name), f"/fleet/{name}", recursive=True)
    yield folder
    store.rm("/fleet", recursive=True)


PLACES = ["memory://fleet/drive", "memory://fleet/shards/s-{00..01}.tar", "shards/s-{00..01}.tar"]


@pytest.fixture(params=PLACES)
def target(request, work, monkeypatch):
    monkeypatch.chdir(work)
    return request.param


def call(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_frames_of_a_place_are_predicted_and_found_again(work, target, tmp_path):
    call("predict", "--model", work / "m.onnx", "--target", target, "--out", tmp_path / "p")
    record = json.loads((tmp_path / "p/predictions.json").read_text())
    assert len(record["frames"]) == COUNT
    assert all(str(tmp_path) not in entry["frame"] for entry in record["frames"])
    call("report", tmp_path / "p", "--out", tmp_path / "r.html")
    assert "data:image" in (tmp_path / "r.html").read_text()


def test_the_other_verbs_take_it(work, target, tmp_path):
    call("run", "--model", work / "m.onnx", "--target", target, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["frames"]
    call("calibrate", "--model", work / "m.onnx", "--target", target, "--out", tmp_path / "q.onnx",
         "--frames", 4, "--min-agreement", 0)  # fmt: skip
    call("data", "check", "--target", target, "--out", tmp_path / "c.html")
    call("data", "frames", "--footage", target, "--out", tmp_path / "f")
    assert len(list(Path(tmp_path / "f/images").iterdir())) == COUNT
