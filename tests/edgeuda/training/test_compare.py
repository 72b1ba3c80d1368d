"""Comparisons: plans, shared runs, resumption, the record and its views; the label-free watch."""

import json

import pytest
import torch
from safetensors.torch import load_file

from edgeuda.errors import ConfigError
from edgeuda.labels import SPACES
from edgeuda.records.comparison import OverSeeds
from edgeuda.records.identity import MODEL_FILE
from edgeuda.street import write_dataset
from edgeuda.training import compare as module
from edgeuda.training.compare import Track, built_in_plans, compare, load_plan, markdown
from edgeuda.training.recipe import load_recipe
from edgeuda.training.watch import SNAPSHOTS, read_signals
from engines.report.plots import comparison
from tiny_models import quick_first

TINY = (
    "model.width=0.125", "model.input=[32, 64]", "geometry.crop=[32, 64]", "precision=32-true",
    "source.steps=3", "source.batch=4", "adabn.batches=1", "adabn.batch=4", "monitor.frames=2",
    "monitor.every=2", "entropy.steps=2", "stage1.steps=5", "stage1.batch=2", "stage2.steps=2",
    "stage2.batch=2", "entropy.batch=2", "entropy.lr=1e-5", "stage1.lr=1e-5", "stage2.lr=1e-5",
    "adversarial.steps=2", "adversarial.lr=1e-5", "ass.steps=2", "ass.lr=1e-5", "hiast.steps=1",
    "hiast.lr=1e-5", "lse.steps=1", "lse.lr=1e-5", "distil.steps=2", "distil.batch=2",
    "distil.lr=1e-5", "distil.large.encoder=resnet18", "distil.large.pretrained=none",
    "distil.large.width=0.125", "distil.large.lr=1e-5",
)  # fmt: skip


@pytest.fixture(scope="module")
def track(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    # ASS draws 16 labelled target images.
    for role, domain, count, seed in (("source", "simulator", 6, 0), ("target", "camera", 16, 99)):
        write_dataset(root / role, domain, count, seed, 32, 64, SPACES["camvid-11"])
    return Track(root / "source", root / "target", root / "target", oracle=root / "target")


@pytest.mark.parametrize("plan", quick_first(built_in_plans(), ["baselines"]))
def test_built_in_plans_run_on_the_small_recipe(plan, track, tmp_path):
    """Every method of every plan, once, at toy size."""
    record = compare(load_plan(plan, "small", TINY), track, [0], tmp_path)
    json.dumps(record.to_record(), allow_nan=False)
    for method in record.methods:
        assert 0 <= method.miou.mean <= 100
        assert 0 <= method.reliability[0].calibrated.calibration_error <= 1


def plan_file(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return str(path)


TWO = """
[source-only]
stages = []
[TUFL]
stages = ["adabn", "stage1"]
["TUFL + CIM"]
stages = ["adabn", "stage1", "stage2"]
[oracle]
stages = []
trains_on = "oracle"
"""


def test_common_parts_run_once_and_a_second_call_runs_nothing(track, tmp_path, monkeypatch):
    variants = load_plan(plan_file(tmp_path, TWO), "small", TINY)
    lines = []
    out, keep = tmp_path / "out", tmp_path / "networks"
    first = compare(variants, track, [0, 1], out, report=lines.append, keep=keep)
    assert len(list(keep.glob("*.safetensors"))) == 8
    assert (keep / "TUFL + CIM-1.safetensors").exists()
    assert len(lines) == 8
    folders = sorted(path.name.split("-")[0] for path in (tmp_path / "out/runs/seed0").iterdir())
    assert folders == ["adabn", "source", "source", "stage1", "stage2"]  # two sources: the oracle's

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(module, "run_source", fail)
    monkeypatch.setattr("edgeuda.training.fitting.fit", fail)
    again = compare(variants, track, [0, 1], tmp_path / "out")
    assert again == first
    other = load_plan(plan_file(tmp_path, TWO), "small", (*TINY, "source.lr=0.001"))
    with pytest.raises(AssertionError):  # other settings are other runs
        compare(other, track, [0], tmp_path / "out")


def test_the_record_and_its_views(track, tmp_path):
    variants = load_plan(plan_file(tmp_path, TWO), "small", TINY)
    record = compare(variants, track, [0, 1], tmp_path / "out")
    base, tufl, _, oracle = record.methods
    runs = [a - b for a, b in zip(tufl.miou.runs, base.miou.runs, strict=True)]
    assert tufl.gain.runs == pytest.approx(runs, abs=0.011)
    assert tufl.miou.mean == pytest.approx(sum(tufl.miou.runs) / 2, abs=0.011)
    assert base.gain.mean == 0
    assert oracle.gap_closed == 1
    assert tufl.signals[0]["chosen"]
    assert all(seconds > 0 for seconds in tufl.seconds)
    assert all(0 <= share < 1 for share in tufl.waiting_for_data)
    text = markdown(record)
    assert text.count("\n| ") == 5  # the rule and four methods
    assert "± " in text
    svg = comparison(record)
    assert svg.startswith("<svg xmlns=")
    assert "TUFL + CIM" in svg
    without = compare(variants, Track(track.source, track.target, track.data), [0], tmp_path / "b")
    assert [method.gap_closed for method in without.methods] == [None] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1", r"a: expected a table"),
        ("[a]\nsteps = 3", r"a: small\.toml: unknown key 'steps'"),
        ('[a]\ntrains_on = "target"', "expected 'source' or 'oracle', found 'target'"),
        ("[a", "expected TOML"),
        ('[a]\nlike = "b"\n[b]', "a.like: expected an earlier table's name, found 'b'"),
        ('[a]\nstages = ["stage1", "stage1"]', "each stage once"),
    ],
)
def test_bad_plans_are_named(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_plan(plan_file(tmp_path, text), "small")


def test_methods_of_one_comparison_share_the_input_size(track, tmp_path):
    text = "[a]\nstages = []\n[b]\nstages = []\n[b.model]\ninput = [64, 64]\n"
    variants = load_plan(plan_file(tmp_path, text), "small", TINY[:1])
    with pytest.raises(ConfigError, match=r"share model\.input"):
        compare(variants, track, [0], tmp_path / "out")


def test_tables_build_on_earlier_ones(tmp_path):
    text = '[a]\nstages = []\n[a.source]\nlr = 0.5\n[b]\nlike = "a"\n[b.source]\nsteps = 9\n'
    _, found = load_plan(plan_file(tmp_path, text), "small")
    assert (found.recipe.stages, found.recipe.source.lr, found.recipe.source.steps) == ((), 0.5, 9)


def test_unknown_plans_list_the_known_ones():
    with pytest.raises(ConfigError, match="baselines"):
        load_plan("best", "small")


def stage1(track, out, *overrides):
    """Run source, AdaBN and stage 1; returns the folders of stage 1 and AdaBN."""
    plan = '[x]\nstages = ["adabn", "stage1"]\n'
    (out / "p.toml").write_text(plan)
    compare(load_plan(str(out / "p.toml"), "small", (*TINY, *overrides)), track, [0], out)
    return next((out / "runs/seed0").glob("stage1-*")), next((out / "runs/seed0").glob("adabn-*"))


def test_the_watch_measures_selects_and_keeps(track, tmp_path):
    folder, _ = stage1(track, tmp_path, "monitor.keep_all=true", "monitor.select=confidence")
    lines = read_signals(folder)
    assert [line["step"] for line in lines] == [0, 2, 4, 5]
    best = max(lines, key=lambda line: line["confidence"])
    assert [line["chosen"] for line in lines] == [line is best for line in lines]
    snapshots = {path.stem: load_file(path) for path in (folder / SNAPSHOTS).iterdir()}
    assert len(snapshots) == 4
    result = load_file(folder / MODEL_FILE)
    chosen = snapshots[f"step-{best['step']:06d}"]
    assert all(torch.equal(result[key], chosen[key]) for key in result)
    last = snapshots["step-000005"]
    assert any(not torch.equal(last[key], snapshots["step-000000"][key]) for key in last)


ALWAYS = "class 'road' vanished: for the test"


@pytest.mark.parametrize("reaction", ["rollback", "stop", "continue"])
@pytest.mark.parametrize("alarms", [(2, 3), (3,)])
def test_a_collapse_rolls_back_stops_or_goes_on(
    reaction, alarms, track, tmp_path, monkeypatch, caplog
):
    """Measured at steps 1 to 5: two alarms in a row are a collapse, one is not."""
    seen = []

    def alarm(*_):
        seen.append(1)
        return ALWAYS if len(seen) in alarms else None

    monkeypatch.setattr("edgeuda.training.watch.collapse", alarm)
    settings = f"monitor.on_collapse={reaction}", "monitor.every=1"
    if reaction == "stop" and len(alarms) == 2:
        stage1(track, tmp_path, *settings)
        seen.clear()
        variants = load_plan(str(tmp_path / "p.toml"), "small", (*TINY, *settings))
        record = compare(variants, track, [0], tmp_path / "again")
        failed = record.methods[0]
        assert "collapsed by step 3" in failed.failed["0"]
        assert "last healthy network" in failed.failed["0"]
        assert failed.miou == OverSeeds([None], None, None)
        assert "| failed |" in markdown(record)
        assert comparison(record).startswith("<svg")
        return
    folder, _ = stage1(track, tmp_path, *settings)
    assert ALWAYS in caplog.text
    rolled_back = reaction == "rollback" and len(alarms) == 2
    lines = read_signals(folder)
    assert [line["alarm"] for line in lines] == [
        ALWAYS if step in alarms else None for step in range(4 if rolled_back else 6)
    ]
    assert [line["step"] for line in lines if line["chosen"]] == [1 if rolled_back else 5]
    assert not (folder / SNAPSHOTS).exists()  # only the chosen network stays


def test_recipes_extend_each_other(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "small"\nname = "a"\n[stage1]\nlr = 0.5\n')
    (tmp_path / "b.toml").write_text(f'extends = "{tmp_path}/a.toml"\nname = "b"\n')
    found = load_recipe(str(tmp_path / "b.toml"))
    small = load_recipe("small")
    assert (found.name, found.stage1.lr, found.stage1.steps) == ("b", 0.5, small.stage1.steps)
    (tmp_path / "a.toml").write_text(f'extends = "{tmp_path}/b.toml"\n')
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(str(tmp_path / "b.toml"))


def test_published_recipes_have_a_weight_for_each_class():
    for name, space in (
        ("gta5-to-cityscapes", "cityscapes-19"), ("synthia-to-cityscapes-16", "cityscapes-16"),
        ("synthia-to-cityscapes-13", "cityscapes-13"), ("cityscapes-to-rome", "cityscapes-13"),
        ("cityscapes-to-rio", "cityscapes-13"), ("cityscapes-to-tokyo", "cityscapes-13"),
        ("cityscapes-to-taipei", "cityscapes-13"),
    ):  # fmt: skip
        recipe = load_recipe(name)
        classes = SPACES[space].classes
        assert len(recipe.class_weights) == len(classes)
        weights = dict(zip(classes, recipe.class_weights, strict=True))
        assert weights["bicycle"] > 20  # the rare two-wheelers are doubled
        assert weights["road"] < 4
