"""Training and adaptation that are killed at any change of the disk end as if they had not been."""

import pytest

from edgeuda.labels import SPACES
from edgeuda.records.identity import MODEL_FILE
from edgeuda.street import write_dataset
from edgeuda.training.compare import Track, compare, load_plan
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe
from edgeuda.training.trainer import read_log
from edgeuda.training.watch import read_signals
from interruptions import require_same
from tiny_models import quick_first

SECTIONS = ("source", "entropy", "stage1", "stage2", "adversarial", "ass", "hiast", "lse", "distil")
TINY = (
    "model.width=0.125", "model.input=[32, 64]", "geometry.crop=[32, 64]", "precision=32-true",
    "adabn.batches=1", "adabn.batch=2", "monitor.frames=2", "monitor.every=1",
    *(f"{name}.{key}" for name in SECTIONS for key in (
        "steps=2", "batch=2", "lr=1e-4", "checkpoint_every=1", "log_every=1", "warmup=0",
    )),
    "source.held=0.3", "ass.labels=2", "hiast.selection.selector=all", "hiast.factors=[1.0, 1.0]",
    "lse.portion=8.0", "lse.growth=1.0", "lse.last=8.0", "lse.patches=1", "lse.epochs=1",
    "distil.large.encoder=resnet18", "distil.large.pretrained=none", "distil.large.width=0.125",
    "distil.large.lr=1e-4",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 4, seed, 32, 64, SPACES["camvid-11"])
    recipe = load_recipe("small", TINY)
    train_source(recipe, root / "source", None, RunOptions(root / "run"))
    return root


PLAN = """
[source-only]
stages = []
[entropy]
stages = ["adabn", "entropy"]
[oracle]
stages = []
trains_on = "oracle"
"""
CASES = {
    "adabn": ('stages=["adabn", "stage1"]',),
    "entropy": ('stages=["entropy", "adabn"]',),
    "stage2": ('stages=["stage1", "stage2"]', "stage2.teacher.offline=true"),
    "moving teacher": ('stages=["stage2"]', "stage2.teacher.decay=0.5"),
    "distil": ('stages=["distil"]', "distil.labels.offline=true", "distil.labels.decay=1"),
    "distil-self": ('stages=["distil"]', "distil.teacher=self"),
    "ass": ('stages=["ass"]',),
    "hiast": ('stages=["hiast"]',),
    "lse": ('stages=["lse"]',),
    "refused": ('stages=["hiast"]', "monitor.guard=divergence"),
}


@pytest.mark.parametrize("case", quick_first(CASES, ["adabn", "stage2", "moving teacher"]))
def test_an_adaptation_ends_as_if_it_had_not_been_killed(case, data, tmp_path):
    recipe = load_recipe("small", (*TINY, *CASES[case]))

    def work(out):
        adapt(recipe, data / "run", data / "source", data / "target", RunOptions(out, resume=True))

    require_same(work, tmp_path, 3, after=MODEL_FILE)
    signals = read_signals(tmp_path / "whole" / recipe.stages[-1])
    refused = [line for line in signals if "refused" in line]
    assert len(refused) == (case == "refused")


@pytest.mark.parametrize("stage", ["entropy", "hiast"])
def test_what_the_watch_has_ended_stays_ended(stage, data, tmp_path, monkeypatch):
    """Two alarms in a row end a stage early, at a step that has a checkpoint of its own or not."""
    monkeypatch.setattr("edgeuda.training.watch.collapse", lambda *_: "a class has vanished")
    keys = (f"{stage}.steps=5", f"{stage}.checkpoint_every=10", "hiast.factors=[1.0]")
    recipe = load_recipe("small", (*TINY, f'stages=["{stage}"]', *keys))

    def work(out):
        adapt(recipe, data / "run", data / "source", data / "target", RunOptions(out, resume=True))
        assert len(read_log(out / stage)) == 2

    require_same(work, tmp_path, 3, after=MODEL_FILE)


@pytest.mark.slow
def test_every_folder_of_a_comparison_ends_as_if_it_had_not_been_killed(data, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    variants = load_plan(str(plan), "small", TINY)
    track = Track(data / "source", data / "target", data / "target", oracle=data / "target")

    def work(out):
        record = compare(variants, track, [0], out, keep=out / "networks")
        record.write(out / "comparison.json")

    require_same(work, tmp_path, 3, after=MODEL_FILE)


def test_training_ends_as_if_it_had_not_been_killed(data, tmp_path):
    recipe = load_recipe("small", TINY)

    def work(out):
        train_source(recipe, data / "source", None, RunOptions(out, resume=True))

    require_same(work, tmp_path, 12, after=MODEL_FILE)
