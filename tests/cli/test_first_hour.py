"""What a new user types wrong or too small in the first hour, and what is said to do next."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import options
from cli.app import app
from cli.verbs.shared import choose_device
from edgeuda.accuracy.scoring import _cell
from edgeuda.data.images import write_image
from edgeuda.errors import ConfigError, DeviceError
from edgeuda.labels import SPACES
from edgeuda.street import write_dataset
from tiny_models import exported

SMALL = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "source.steps=3",
    "source.batch=2", "adabn.batches=2", "adabn.batch=2", "stages=['adabn']", "monitor.frames=2",
)  # fmt: skip


def edgeuda(*arguments, cwd=None, environment=None):
    code = "from cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "my source"
    write_dataset(folder, "simulator", 4, 0, 64, 128, SPACES["camvid-11"])
    return folder


def settings(*more):
    return [part for setting in (*SMALL, *more) for part in ("--set", setting)]


def test_the_recipes_are_listed_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['edgeuda', 'recipes']\n"
        "from cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lite" in done.stdout
    assert "stages: source, adabn, stage1, stage2" in done.stdout


def test_the_hint_after_training_runs_as_it_is(source, tmp_path):
    """With a blank in a path, a label space, settings and a seed of one's own."""
    (source / "dataset.json").rename(source / "kept.json")  # so that the label space is needed
    try:
        run = tmp_path / "a run"
        done = edgeuda(
            "train", "--source", source, "--label-space", "camvid-11", "--recipe", "small",
            *settings(), "--seed", 3, "--out", run,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (hint,) = [x for x in done.stdout.splitlines() if x.startswith("next: ")]
        words = shlex.split(hint.removeprefix("next: "))
        assert words[0] == "edgeuda"
        frames, out = str(source / "images"), str(tmp_path / "adapted")
        words = [{"FRAMES": frames, "ADAPTED": out}.get(word, word) for word in words[1:]]
        done = edgeuda(*words)
        assert done.returncode == 0, done.stderr
    finally:
        (source / "kept.json").rename(source / "dataset.json")


def test_a_command_is_typed_as_a_shell_reads_it():
    text = options.command("train", source="a b", recipe="small", resume=True, seed=None)
    assert shlex.split(text) == [
        "edgeuda", "train", "--source", "a b", "--recipe", "small", "--resume",
    ]  # fmt: skip


def test_a_batch_of_one_is_explained_and_the_folder_is_free_again(source, tmp_path):
    out = tmp_path / "run"
    base = ("train", "--source", source, "--recipe", "small", "--out", out)
    done = edgeuda(*base, *settings("source.batch=1"))
    assert done.returncode == 4, done.stderr
    assert "A batch of 1 image(s) is too small here" in done.stderr
    assert not out.exists()
    done = edgeuda(*base, *settings("model.pretrained=/nowhere/weights.pth"))
    assert "Pretrained weights fit width 1.0 only" in done.stderr
    assert not out.exists()
    assert edgeuda(*base, *settings()).returncode == 0


def test_devices(monkeypatch):
    for name in ("gpu", "cuda:", "cuda:x"):
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda or a GPU"):
            choose_device(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    choose_device("cpu")
    import os

    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="--device cuda:1: torch finds no such GPU"):
            choose_device("cuda:1")


@pytest.fixture
def deployed(tmp_path):
    (tmp_path / "m.onnx").write_bytes(exported("labels"))
    for index in range(2):
        write_image(tmp_path / f"frames/{index}.png", np.full((64, 128, 3), 90, np.uint8))
    return tmp_path


def test_models_and_footage_that_are_none(deployed):
    done = edgeuda("run", "--model", deployed, "--target", deployed / "frames", "--out", "x")
    assert done.returncode == 5, done.stderr
    assert "found a folder. Export the network of a run" in done.stderr
    done = edgeuda(
        "run", "--model", deployed / "m.onnx", "--target", "nope.avi", "--out", deployed / "x"
    )
    assert done.returncode == 3, done.stderr
    assert "nope.avi: expected a video, found no file" in done.stderr


def test_the_fewest_samples_that_help_allows_are_enough(deployed):
    done = edgeuda(
        "bench", "--model", deployed / "m.onnx", "--target", deployed / "frames", "--samples", 11,
        "--out", deployed / "b.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_miou_is_in_percent_everywhere(deployed):
    done = edgeuda(
        "tradeoff", "--model", deployed / "m", "--target", deployed / "frames", "--data", deployed,
        "--min-miou", "0.6", "--out", deployed / "t",
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "--min-miou 0.6: expected percent, as all figures here are: 60%" in done.stderr


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("-a.png", "'-a.png"), ("-1.5", "-1.5"), ("+2e-3", "+2e-3"), ("a", "a")],
)
def test_no_cell_is_a_formula(text, cell):
    assert _cell(text) == cell


@pytest.mark.parametrize(
    ("words", "both"),
    [
        ("bench --model a.onnx --target f --out o.json --preset mlperf-singlestream --fps 30 "
         "--batch 8", "--preset mlperf-singlestream and --fps, --batch contradict"),
        ("bench --model a.onnx --target f --out o.json --arrival offline --fps 30",
         "--arrival offline and --fps contradict"),
        ("run --model a.onnx --out x --ros2 /image --video --frames 3",
         "--ros2 and --video, --frames contradict"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(words, both, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words.split())
    assert isinstance(done.exception, ConfigError)
    assert both in str(done.exception)


def test_verbs_are_in_panels_and_one_that_is_nearly_known_is_asked_about():
    text = CliRunner().invoke(app, ["--help"]).output
    order = ["Data", "Adapt", "Deploy", "On the vehicle", "Everything"]
    places = [re.search(rf"─ {panel} ─", text).start() for panel in order]
    assert places == sorted(places)
    assert "--install-completion" in text
    assert "Did you mean 'adapt'?" in CliRunner().invoke(app, ["adpt"]).output
