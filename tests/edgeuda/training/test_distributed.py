"""Two gloo ranks on one machine train what one rank with their joint batch trains."""

import csv
import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file

import processes
from edgeuda.labels import SPACES
from edgeuda.records.identity import MODEL_FILE
from edgeuda.street import write_dataset
from edgeuda.training.trainer import CHECKPOINT_FILE, read_log
from places import ROOT

pytestmark = pytest.mark.slow

COMMON = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=3", "source.batch=4", "adabn.batches=2", "adabn.batch=4", "monitor.frames=4",
    "monitor.every=2", "monitor.on_collapse=continue", "stage1.steps=4", "stage1.log_every=1",
    "stage2.steps=3", "stage2.log_every=1", "stage2.mix.long_tail=0.5", "stage2.teacher.decay=0.9",
    # A threshold that some pixels pass, and steps that move the weights.
    "stage1.threshold.initial=0.2", "stage1.target_weight=1.0", "stage1.lr=5e-4",
    "stage2.threshold.initial=0.2", "stage2.target_weight=1.0", "stage2.lr=5e-4",
    "adversarial.steps=3", "adversarial.weight=0.1", "hiast.steps=2", "hiast.factors=[1.0, 0.5]",
    "hiast.selection.initial=0.05", "lse.steps=2", "lse.portion=3.0", "lse.last=3.0",
    "adversarial.lr=5e-4", "hiast.lr=5e-4", "lse.lr=5e-4", "adversarial.log_every=1",
    "hiast.log_every=1", "lse.log_every=1",
)  # fmt: skip


COMPANIONS = ("adversarial", "hiast", "lse")


def edgeuda(*argv, ranks=1):
    done = subprocess.run(
        processes.command(*argv, ranks=ranks),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def settings(batch):
    stages = ("stage1", "stage2", *COMPANIONS)
    overrides = (*COMMON, *(f"{stage}.batch={batch}" for stage in stages))
    return [item for override in overrides for item in ("--set", override)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 8, seed, 64, 128, SPACES["camvid-11"])
    source, target = ("--source", root / "source"), ("--target", root / "target")
    edgeuda("train", *source, "--recipe", "small", *settings(2), "--out", root / "run")
    for stages in (("stage1",), ("stage2",), COMPANIONS):  # each from the same network
        for name, ranks, batch in (("one", 1, 4), ("two", 2, 2)):
            edgeuda(
                "adapt", "--model", root / "run", *source, *target, "--recipe", "small",
                *settings(batch), "--set", f"stages={json.dumps(['adabn', *stages])}",
                "--out", root / f"{name}-{stages[0]}", "--log", "csv", ranks=ranks,
            )  # fmt: skip
    return root


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_ranks_equal_one_with_twice_the_batch(runs, stage):
    one, two = (read_log(runs / f"{name}-{stage}" / stage) for name in ("one", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for a, b in zip(one, two, strict=True):
        # Rounding differs with the number of images in a batch, and moves pixels across bins.
        assert b["thresholds"] == pytest.approx(a["thresholds"], abs=5e-4)
        assert b["keep"] == pytest.approx(a["keep"], abs=2e-3)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
    assert one[0]["thresholds"] != [0.2] * 11
    assert 0 < one[0]["keep"] < 1
    before = load_file(runs / f"one-{stage}" / "adabn" / MODEL_FILE)
    a, b = (load_file(runs / f"{name}-{stage}" / MODEL_FILE) for name in ("one", "two"))
    moved = max(
        float((a[key] - before[key]).abs().max()) for key in a if a[key].is_floating_point()
    )
    apart = max(float((a[key] - b[key]).abs().max()) for key in a if a[key].is_floating_point())
    assert moved > 3e-4
    assert apart < 2e-2 * moved  # a gradient that is not shared would set them apart by itself


def test_companions_on_two_ranks(runs):
    """One after the other, so that differences in rounding add up."""
    for stage in COMPANIONS:
        one, two = (read_log(runs / f"{name}-adversarial" / stage) for name in ("one", "two"))
        assert [line["step"] for line in two] == [line["step"] for line in one]
        for a, b in zip(one, two, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=3e-3)
        if stage == "hiast":
            assert 0 < one[0]["labelled"] < 1
    folders = [runs / f"{name}-adversarial" for name in ("one", "two")]
    a, b = (load_file(folder / MODEL_FILE) for folder in folders)
    before = load_file(folders[0] / "adabn" / MODEL_FILE)
    keys = [key for key in a if a[key].is_floating_point()]
    moved, apart = (max(float((a[k] - x[k]).abs().max()) for k in keys) for x in (before, b))
    assert moved > 3e-4
    assert apart < 0.02 * moved


def test_one_rank_alone_logs_to_trackers(runs):
    for name in ("one", "two"):
        with (runs / f"{name}-stage1/logs/csv/stage1/metrics.csv").open(newline="") as stream:
            steps = [row["step"] for row in csv.DictReader(stream) if row["loss/total"]]
        assert steps == ["1", "2", "3", "4"]


def test_one_rank_writes_and_all_watch_the_same(runs):
    signals = (runs / "two-stage1" / "stage1" / "signals.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in signals] == [0, 2, 4]
    state = torch.load(runs / "two-stage2" / "stage2" / CHECKPOINT_FILE, weights_only=True)
    assert state["step"] == 3
    assert (runs / "two-stage2" / MODEL_FILE).exists()
