"""What verbs write with workers of a cluster is what one process writes, to the byte."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from calibration.frames import FrameFiles
from calibration.placement import ORT_X86
from calibration.range_file import RangeFile, RangeOrigin
from cli import options
from cli.app import app
from edgeuda.cluster import LOCAL, Cluster, shards_folder
from edgeuda.data.images import write_label
from edgeuda.errors import ConfigError, DataError, Interrupted, OutputExistsError
from edgeuda.methods.selection import SelectorSettings
from edgeuda.models.checkpoint import save_model
from edgeuda.records.dataset import DatasetRecord
from edgeuda.training.pseudo_labels import label_footage
from engines.onnx.index import index
from engines.prediction import predict
from engines.scoring import score_exported
from places import ROOT
from tiny_models import SPEC, exported, random_frames, random_network, write_frames

slow = pytest.mark.slow  # starts Ray, which takes seconds


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A model, and ten labelled images."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "model.onnx").write_bytes(exported())
    rng = np.random.default_rng(0)
    for path in write_frames(tmp_path / "data/images", random_frames(10, 90, 200)):
        coarse = rng.integers(0, len(SPEC.label_space), (9, 20), np.uint8)
        write_label(tmp_path / "data/labels" / path.name, coarse.repeat(10, 0).repeat(10, 1))
    space = {"schema": DatasetRecord.SCHEMA, "label_space": SPEC.label_space.name}
    (tmp_path / "data/dataset.json").write_text(json.dumps(space))
    return tmp_path


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (["--ray"], ["--ray", LOCAL]),
        (["--ray", "--csv"], ["--ray", LOCAL, "--csv"]),
        (["--csv", "--ray", "10.0.0.1:6379"], ["--csv", "--ray", "10.0.0.1:6379"]),
        (["--name", "ray"], ["--name", "ray"]),
    ],
)
def test_ray_may_stand_without_an_address(said, read):
    assert options.with_address(said) == read


@slow
def test_evaluate_writes_the_same_files(data, monkeypatch):
    monkeypatch.chdir(data)  # relative paths, which workers see all the same
    written = {}
    for name, how in (("one", ["--threads", "1"]), ("two", ["--ray"])):
        command = ["evaluate", "--model", "model.onnx", "--data", "data", "--out", f"{name}.json"]
        more = ["--csv", "--boundary", "0.02", "--name", "network", *how]
        done = CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
        assert done.exit_code == 0
        record = json.loads((data / f"{name}.json").read_text())
        assert record.pop("created")
        tables = [(data / f"{name}.{what}.csv").read_bytes() for what in ("classes", "images")]
        written[name] = record, *tables
        assert not shards_folder(data / f"{name}.json").exists()
    assert written["one"] == written["two"]
    assert written["one"][2].count(b"\n") == 11


@slow
def test_an_image_that_cannot_be_scored_is_named_by_its_place_among_all(data):
    write_label(data / "data/labels/007.png", np.full((90, 200), 77, np.uint8))
    with pytest.raises(DataError, match=r"007\.png: expected ids 0 to 10"):
        score_exported(
            data / "model.onnx", data / "data", "network", cluster=Cluster(workers=2),
            shards=data / "shards",
        )  # fmt: skip


@slow
def test_ranges_are_the_same_file(data, monkeypatch):
    monkeypatch.setattr("calibration.ranges.CHUNK_BYTES", 1 << 20)
    model = onnx.load_from_string(exported("labels"))
    tensors = ORT_X86.place(index(model.graph), frozenset()).measured()[:3]
    frames = FrameFiles.of(sorted((data / "data/images").iterdir()), SPEC.preprocessing)
    size = SPEC.preprocessing
    origin = RangeOrigin("0" * 64, tuple(map(str, range(10))), size.height, size.width, 64)
    one, two = data / "one.npz", data / "two.npz"
    RangeFile.open(one, origin).collect(model, tensors, frames, threads=1)
    steps = []
    RangeFile.open(two, origin).collect(
        model, tensors, frames, cluster=Cluster(workers=2),
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert one.read_bytes() == two.read_bytes()
    assert steps[-1] == (20, 20)
    assert not shards_folder(two).exists()


@slow
@pytest.mark.parametrize("confidence", [False, True])
def test_predict_writes_the_same_folder_around_a_broken_frame(data, monkeypatch, confidence):
    """Files are numbered by the frames that could be read, also behind the one that could not."""
    monkeypatch.setattr("edgeuda.data.frames.MAX_BAD_SHARE", 0.2)
    monkeypatch.chdir(data)
    (data / "data/images/003.png").write_bytes(b"no image")
    (data / "model.onnx").write_bytes(exported(confidence=confidence))
    written = {}
    for name, how in (("one", {"threads": 1}), ("two", {"cluster": Cluster(workers=2)})):
        out = data / name / "predicted"
        record = predict("model.onnx", "data/images", out, confidence=confidence, **how)
        assert record.skipped == ["data/images/003.png"]
        assert [path.name for path in (data / name).iterdir()] == ["predicted"]
        written[name] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}
    assert len(written["one"]) == (2 + confidence) * 9 + 1
    assert "labels/000003_004.png" in written["one"]
    assert written["one"] == written["two"]


@pytest.mark.parametrize(
    ("target", "frames", "why"),
    [("0", 1_000_000, "found a video or camera"), ("data/images", 3, "all 10 frames")],
)
def test_predict_divides_all_frames_of_a_folder_or_nothing(data, monkeypatch, target, frames, why):
    monkeypatch.chdir(data)
    with pytest.raises(ConfigError, match=why):
        predict("model.onnx", target, "out", frames=frames, cluster=Cluster())


@slow
@pytest.mark.parametrize("selector", ["instance-adaptive", "class-balanced"])
def test_pseudo_labels_are_the_same_folder_around_a_broken_frame(data, monkeypatch, selector):
    """Thresholds of a batch follow from the batches before it, whoever counted these."""
    monkeypatch.setattr("edgeuda.data.frames.MAX_BAD_SHARE", 0.2)
    monkeypatch.setattr("edgeuda.training.label_shards.LARGEST", 2)
    monkeypatch.chdir(data)
    (data / "data/images/003.png").write_bytes(b"no image")
    save_model(random_network(), SPEC, data / "model.safetensors")
    written = {}
    for name, cluster in (("one", None), ("two", Cluster(workers=2))):
        out, steps = data / name / "labelled", []
        settings = SelectorSettings(selector=selector, keep=0.5, initial=0.12)
        label_footage(
            Path("model.safetensors"), Path("data/images"), out, settings, soft=True,
            cluster=cluster, progress=lambda *now, steps=steps: steps.append(now),
        )  # fmt: skip
        assert [path.name for path in (data / name).iterdir()] == ["labelled"]
        written[name] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}
    assert steps[-1] == (20, 20)
    record = json.loads(written["one"]["pseudo-labels.json"])
    assert 0 < record["labelled_share"] < 1
    assert len({frame["label"] for frame in record["frames"]}) == 9
    assert written["one"] == written["two"]


@slow
def test_pseudo_labels_go_on_where_they_were_stopped(data, monkeypatch):
    monkeypatch.chdir(data)
    save_model(random_network(), SPEC, data / "model.safetensors")
    where = Path("model.safetensors"), Path("data/images"), data / "out"

    def stop(done, _total):
        if done >= 14:  # in the second pass
            raise KeyboardInterrupt

    settings = SelectorSettings(initial=0.12)
    with pytest.raises(Interrupted):
        label_footage(*where, settings, cluster=Cluster(workers=1), progress=stop)
    kept = {path: path.stat().st_mtime_ns for path in shards_folder(data / "out").rglob("*.npz")}
    assert len(kept) > 5  # a batch each
    with pytest.raises(OutputExistsError, match="begun on a cluster"):
        label_footage(*where, settings, resume=True)
    with pytest.raises(DataError, match="those of another model, other frames or other settings"):
        label_footage(*where, SelectorSettings(initial=0.3), cluster=Cluster(workers=1))
    steps = []
    label_footage(
        *where, settings, cluster=Cluster(workers=1), progress=lambda done, _: steps.append(done)
    )
    assert steps[0] > 14
    label_footage(*where[:2], data / "whole", settings)
    names = [path.name for path in (data / "whole").iterdir()]
    assert sorted(names) == sorted(path.name for path in (data / "out").iterdir())
    for path in (data / "whole").rglob("*.*"):
        assert path.read_bytes() == (data / "out" / path.relative_to(data / "whole")).read_bytes()


@slow
def test_select_ranks_the_same_frames(data, monkeypatch):
    monkeypatch.setattr("edgeuda.data.frames.MAX_BAD_SHARE", 0.2)
    monkeypatch.chdir(data)
    (data / "data/images/003.png").write_bytes(b"no image")
    save_model(random_network(), SPEC, data / "model.safetensors")
    for model, more in (("model.onnx", ["--frames", "4"]), ("model.safetensors", [])):
        found = []
        for name, how in (("one", ["--threads", "1"]), ("two", ["--ray"])):
            command = ["data", "select", "--model", model, "--target", "data/images"]
            out = data / name / "selected.txt"
            rest = ["--out", str(out), "--count", "3", *more, *how]
            done = CliRunner().invoke(app, [*command, *rest], catch_exceptions=False)
            assert done.exit_code == 0
            found.append([path.read_bytes() for path in sorted(out.parent.iterdir())])
            shutil.rmtree(out.parent)
        assert len(found[0]) == 2
        assert found[0] == found[1]


def test_a_checkpoint_is_not_scored_on_a_cluster(tmp_path):
    command = ["evaluate", "--model", "run", "--data", "data", "--out", "x.json", "--ray"]
    with pytest.raises(ConfigError, match="a checkpoint is scored in one process"):
        CliRunner().invoke(app, command, catch_exceptions=False)
