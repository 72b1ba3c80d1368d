"""Frames that turn out to be broken while something learns from them, or labels them."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgeuda.data import frames as module
from edgeuda.data.folders import labelled_folder
from edgeuda.data.frames import DAMAGED_FILE, frame_folder
from edgeuda.data.images import read_image, write_image
from edgeuda.errors import DataError
from edgeuda.labels import SPACES
from edgeuda.methods.selection import SelectorSettings
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.checkpoint import save_model
from edgeuda.records.identity import MODEL_FILE
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.street import write_dataset
from edgeuda.training import loader, trainer
from edgeuda.training.loader import Images, StepData, Views, batches
from edgeuda.training.pipeline import ADAPTATION_FILE, RunOptions, adapt
from edgeuda.training.pseudo_labels import label_footage
from edgeuda.training.recipe import load_recipe

SIZE = (32, 64)
SPACE = SPACES["camvid-11"]
TINY = (
    "model.width=0.125", "model.input=[32, 64]", "geometry.crop=[32, 64]", "precision=32-true",
    'stages=["stage1"]', "stage1.steps=12", "stage1.batch=2", "stage1.checkpoint_every=2",
    "monitor.frames=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "source", "simulator", 4, 0, *SIZE, SPACE)
    for index in range(60):
        value = np.random.default_rng(index).integers(0, 255, (4, 8, 3), dtype=np.uint8)
        write_image(root / f"target/{index:02d}.png", value.repeat(8, 0).repeat(8, 1))
    for index in (20, 21, 59):
        (root / f"target/{index:02d}.png").write_bytes(b"broken")
    torch.manual_seed(0)
    spec = ModelSpec("bisenet", 0.125, SPACE, Preprocessing(*SIZE))
    save_model(BiSeNet(11, 0.125), spec, root / "start.safetensors")
    return root


@pytest.fixture
def uncached(monkeypatch):
    """A domain that does not fit into memory."""
    monkeypatch.setattr(loader, "CACHE_BYTES", 0)


def steps_of(data, size=SIZE):
    source = Images(labelled_folder(data / "source"), size)
    return StepData(
        source, Images(frame_folder(data / "target"), size), 4, Views(size, (1.0,), 0.5), 3, 20
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whoever_reads_them_and_each_file_is_said_once(
    data, uncached, workers, caplog
):
    steps = steps_of(data)
    found = [batch.target for batch in batches(steps, 0, torch.device("cpu"), workers)]
    assert steps.footage.broken.keys() == {20, 21, 59}
    assert sum("Skipped:" in record.message for record in caplog.records) == 3
    cached = Images(frame_folder(data / "target"), SIZE)
    cached._cache = [cached[index] for index in range(60)]
    whole = steps_of(data)
    whole.domains = (whole.domains[0], cached)
    again = list(batches(whole, 10, torch.device("cpu")))
    assert all(torch.equal(one, two.target) for one, two in zip(found[10:], again, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_stop_with_what_is_wrong(data, uncached, workers, tmp_path):
    shutil.copytree(data / "target", tmp_path / "target")
    shutil.copytree(data / "source", tmp_path / "source")
    steps = steps_of(tmp_path)
    for index in range(60):
        (tmp_path / f"target/{index:02d}.png").write_bytes(b"broken later")
    with pytest.raises(
        DataError, match=r"target: expected at most 5% unreadable images, found"
    ) as e:
        list(batches(steps, 0, torch.device("cpu"), workers))
    assert "worker" not in str(e.value)


def test_a_large_target_that_is_broken_is_refused_before_anything_is_made(data, uncached, tmp_path):
    shutil.copytree(data / "target", tmp_path / "target")
    (tmp_path / "target/30.png").write_bytes(b"broken")
    recipe = load_recipe("small", TINY)
    with pytest.raises(DataError, match="found 4 of 60"):
        adapt(recipe, data / "start.safetensors", data / "source", tmp_path / "target",
              RunOptions(tmp_path / "out"))  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_learns_the_same_and_records_them(data, uncached, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "LOOKED_AT", 1)  # the others are met in the batches
    recipe = load_recipe("small", TINY)

    def run(out, **options):
        adapt(recipe, data / "start.safetensors", data / "source", data / "target",
              RunOptions(out, **options))  # fmt: skip

    run(tmp_path / "whole")
    met = {json.loads(x)["index"] for x in (tmp_path / "whole" / DAMAGED_FILE).open()}
    assert met
    record = json.loads((tmp_path / "whole" / ADAPTATION_FILE).read_text())
    assert record["skipped"] == [str(data / f"target/{index}.png") for index in sorted(met)]

    class KilledError(Exception):
        pass

    real, calls = trainer._save, []

    def killed(*arguments, **names):
        real(*arguments, **names)
        calls.append(1)
        if len(calls) == 4:
            raise KilledError

    monkeypatch.setattr(trainer, "_save", killed)
    with pytest.raises(KilledError):
        run(tmp_path / "cut")
    monkeypatch.setattr(trainer, "_save", real)
    run(tmp_path / "cut", resume=True)
    one, two = (load_file(tmp_path / name / MODEL_FILE) for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert json.loads((tmp_path / "cut" / ADAPTATION_FILE).read_text())["skipped"]


class TestPseudoLabels:
    def test_each_frame_is_read_once_and_broken_ones_have_no_label(
        self, data, tmp_path, monkeypatch
    ):
        read = Counter()
        monkeypatch.setattr(
            module, "read_image", lambda path: read.update([path.name]) or read_image(path)
        )
        index = label_footage(
            data / "start.safetensors", data / "target", tmp_path / "out",
            SelectorSettings(selector="all", batch=3),
        )  # fmt: skip
        assert len(read) == 60
        assert set(read.values()) == {1}
        record = json.loads(index.read_text())
        broken = [str(data / f"target/{n}.png") for n in (20, 21, 59)]
        assert record["skipped"] == broken
        assert len(record["frames"]) == 57
        assert record["labelled_share"] == 1
        assert not (tmp_path / "out/labels/20.png").exists()
        folder = labelled_folder(tmp_path / "out")  # what was skipped is missed by nobody
        assert len(folder) == 57
        assert folder.read(0)[1].shape == SIZE

    def test_of_a_list_only_the_pairs_are_listed(self, data, tmp_path):
        names = "".join(f"{data}/target/{index:02d}.png\n" for index in range(30, 60))
        (tmp_path / "frames.txt").write_text(names)
        label_footage(data / "start.safetensors", tmp_path / "frames.txt", tmp_path / "out",
                      SelectorSettings())  # fmt: skip
        assert len(labelled_folder(tmp_path / "out/pairs.csv", SPACE)) == 29

    def test_nothing_but_broken_frames_are_an_error(self, data, tmp_path):
        for index in range(40):
            (tmp_path / "target").mkdir(exist_ok=True)
            (tmp_path / f"target/{index}.png").write_bytes(b"broken")
        with pytest.raises(DataError, match="expected at most 5% unreadable"):
            label_footage(data / "start.safetensors", tmp_path / "target", tmp_path / "out",
                          SelectorSettings())  # fmt: skip
