"""Two gloo ranks adapt to shards of which each draws its own; a stopped run goes on exactly."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

import processes
from edgeuda.data.shards import write_shards
from edgeuda.labels import SPACES
from edgeuda.records.identity import MODEL_FILE
from edgeuda.records.run import RUN_FILE
from edgeuda.street import write_dataset
from edgeuda.training.trainer import read_log
from places import ROOT

pytestmark = pytest.mark.slow

SETTINGS = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=2", "source.batch=2", "adabn.batches=2", "adabn.batch=2", "monitor.frames=4",
    "monitor.every=4", "monitor.on_collapse=continue", "stage1.steps=12", "stage1.log_every=1",
    "stage1.batch=2", "stage1.lr=1e-4", "stage2.steps=3", "stage2.log_every=1",
    "stage2.batch=2", "stage2.lr=1e-4", "stage2.teacher.offline=true",
)  # fmt: skip


def command(*argv, ranks=1):
    settings = [item for override in SETTINGS for item in ("--set", override)]
    return processes.command(*argv, "--recipe", "small", *settings, ranks=ranks)


def run(argv, cache, **how):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "EDGEUDA_CACHE": str(cache)}
    return subprocess.run(
        argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False, **how
    )


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A network, shards, and what an adaptation by two ranks came to."""
    root = tmp_path_factory.mktemp("shards")
    write_dataset(root / "source", "simulator", 4, 0, 64, 128, SPACES["camvid-11"])
    write_dataset(root / "target", "camera", 8, 1000, 64, 128, SPACES["camvid-11"])
    size = max(path.stat().st_size for path in (root / "target/images").rglob("*.png"))
    write_shards(root / "target/images", root / "s-%02d.tar", 2 * (size + 500))
    last = len(list(root.glob("s-*.tar"))) - 1
    assert last == 3
    done = run(command("train", "--source", root / "source", "--out", root / "run"), root / "cache")
    assert done.returncode == 0, done.stderr
    done = run(adapt(root, "whole"), root / "cache")
    assert done.returncode == 0, done.stderr
    return root


def adapt(root, out, *more, ranks=2, stages=("adabn", "stage1", "stage2")):
    return command(
        "adapt", "--model", root / "run", "--source", root / "source",
        "--target", root / "s-{00..03}.tar", "--out", root / out,
        "--set", f"stages={json.dumps(stages)}", *more, ranks=ranks,
    )  # fmt: skip


def test_both_ranks_draw_from_shards(adapted):
    assert len(read_log(adapted / "whole/stage1")) == 12
    labels = (adapted / "whole/stage2/pseudo/labels").iterdir()
    assert sorted(path.stem for path in labels) == [f"{index:06d}" for index in range(8)]
    assert json.loads((adapted / "whole" / RUN_FILE).read_text())["data"]["target_frames"] == 8


def test_a_stopped_run_goes_on_exactly(adapted):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "EDGEUDA_CACHE": str(adapted / "cache")}
    command_ = adapt(adapted, "cut")
    torchrun = subprocess.Popen(
        command_, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    log = adapted / "cut/stage1/log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert torchrun.poll() is None
        time.sleep(0.02)
    torchrun.send_signal(signal.SIGTERM)
    torchrun.wait()
    assert not (adapted / "cut" / MODEL_FILE).exists()
    done = run([*command_, "--resume"], adapted / "cache")
    assert done.returncode == 0, done.stderr
    one, two = (load_file(adapted / name / MODEL_FILE) for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_another_number_of_ranks_is_another_run(adapted):
    done = run([*adapt(adapted, "whole", ranks=1), "--resume"], adapted / "cache")
    assert done.returncode == 6
    assert "how many ranks there are counts, too" in " ".join(done.stderr.split())


def test_a_stage_that_needs_all_frames_says_so(adapted):
    done = run(adapt(adapted, "rounds", "--set", "hiast.steps=1", stages=("hiast",)), adapted)
    said = " ".join(done.stderr.split())
    assert "each rank lists the frames of all shards, because these stages need them: hiast" in said
