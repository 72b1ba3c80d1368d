"""Methods from outside are found, validated, trained, resumed and recorded like our own."""

import itertools
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from edgeuda.errors import ConfigError, TrainingError
from edgeuda.labels import SPACES
from edgeuda.methods.base import Losses, Method
from edgeuda.methods.entropy import EntropySettings
from edgeuda.methods.losses import cross_entropy_map
from edgeuda.methods.registry import METHODS, MethodType, forget_method, register_method
from edgeuda.methods.settings import Optimisation, StageSettings, Weight
from edgeuda.models.network import upsample
from edgeuda.models.predictor import normalise
from edgeuda.records.identity import MODEL_FILE
from edgeuda.street import write_dataset
from edgeuda.training.pipeline import ADAPTATION_FILE, RECIPE_FILE, RunOptions, adapt, train_source
from edgeuda.training.procedures import procedure
from edgeuda.training.recipe import load_recipe, parse_recipe
from edgeuda.training.trainer import read_log

TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=3", "source.batch=2", "adabn.batches=2", "adabn.batch=4", "monitor.frames=2",
)  # fmt: skip
PLAN = ("steps=3", "batch=2", "lr=1e-3", "log_every=1", "checkpoint_every=1")
STREAMS = {
    "source": 0, "adabn": 1, "stage1": 2, "stage2": 3, "entropy": 4, "adversarial": 5, "ass": 5,
    "hiast": 6, "distil": 6, "lse": 7,
}  # fmt: skip


class ToySettings(Optimisation):
    pull: Weight = 0.1


class Toy(Method):
    """Supervised on source, while target predictions are pulled to the target's own mean."""

    fails_at = None

    def __init__(self, settings, stage):
        self.settings, self.weights, self.steps_seen = settings, stage.weights, 0
        assert stage.counts.shape == (4, len(stage.spec.label_space))

    def step(self, model, batch, preprocessing):
        if self.steps_seen == self.fails_at:
            raise TrainingError("stopped by the test")
        self.steps_seen += 1
        target = batch.require_target()
        ours, theirs = (
            upsample(model(normalise(x, preprocessing)).main.float(), x.shape[2:])
            for x in (batch.source, target)
        )
        labelled = cross_entropy_map(ours, batch.source_label, self.weights).mean()
        return Losses({"supervised": labelled, "pull": self.settings.pull * theirs.var()})

    def state(self):
        return {"seen": self.steps_seen}

    def load_state(self, state):
        self.steps_seen = state["seen"]


TOY = MethodType("toy", ToySettings, title="a toy of the tests", label="Toy", build=Toy)


@pytest.fixture
def toy():
    yield register_method(TOY)
    forget_method("toy")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 4, seed, 64, 128, SPACES["camvid-11"])
    train_source(load_recipe("small", TINY), root / "source", None, RunOptions(root / "run"))
    return root


def run(data, out, stage, *overrides, resume=False):
    own = [f"{stage}.{item}" for item in PLAN]
    recipe = load_recipe("small", (*TINY, f'stages=["adabn", "{stage}"]', *own, *overrides))
    adapt(recipe, data / "run", data / "source", data / "target", RunOptions(out, resume))
    return load_file(out / MODEL_FILE)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_method_of_the_users_trains_resumes_and_is_recorded(toy, data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "whole", "toy")
    assert [line["step"] for line in read_log(tmp_path / "whole/toy")] == [1, 2, 3]
    record = json.loads((tmp_path / "whole" / ADAPTATION_FILE).read_text())
    assert [(s["name"], s["method"], s["steps"]) for s in record["stages"]] == [
        ("AdaBN", "batch-norm statistics", 2), ("Toy", "a toy of the tests", 3),
    ]  # fmt: skip
    assert "[toy]" in (tmp_path / "whole" / RECIPE_FILE).read_text()
    monkeypatch.setattr(Toy, "fails_at", 2)
    with pytest.raises(TrainingError, match="stopped by the test"):
        run(data, tmp_path / "cut", "toy")
    monkeypatch.undo()
    assert same(run(data, tmp_path / "cut", "toy", resume=True), whole)
    assert not same(run(data, tmp_path / "other", "toy", "seed=1"), whole)


def test_recipes_know_the_section_of_a_registered_method(toy):
    recipe = load_recipe("small", ("toy.steps=2", "toy.batch=2", "toy.lr=0.1", "toy.pull=3"))
    assert recipe.section("toy") == ToySettings(steps=2, batch=2, lr=0.1, pull=3.0)
    assert parse_recipe(recipe.to_toml(), "again") == recipe
    assert json.loads(recipe.model_dump_json())["toy"]["pull"] == 3.0
    for override, message in (
        ("toy.pul=1", r"unknown key 'toy\.pul'; did you mean 'pull'"),
        ("toy.pull=-1", r"toy\.pull: .*greater than or equal to 0, found -1"),
        ("pull=1", r"it is a key of sections: toy\.pull"),
        ('stages=["toy"]', r"stages names 'toy', expected a section \[toy\]"),
        ('stages=["toi"]', r"'lse' or 'toy', found 'toi'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_recipe("small", (override,))


def test_a_method_that_nobody_uses_changes_no_digest(toy):
    with_toy = load_recipe("small").digest()
    forget_method("toy")
    assert load_recipe("small").digest() == with_toy
    with pytest.raises(ConfigError, match="unknown key 'toy'"):
        load_recipe("small", ("toy.steps=1",))


QUIET = """
from edgeuda.methods.entropy import EntropyMinimisation, EntropySettings
from edgeuda.methods.registry import MethodType

class QuietSettings(EntropySettings):
    volume: float = 1.0

def build(settings, stage):
    return EntropyMinimisation(settings, settings.volume * stage.weights)

QUIET = MethodType("quiet", QuietSettings, title="a method of another package", label="Quiet",
                   build=build)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with an entry point where Python looks for packages."""

    def install(source, name="quiet", target="quiet_method:QUIET"):
        site = tmp_path / "site"
        info = site / "quiet_method-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "quiet_method.py").write_text(source)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quiet-method\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[edgeuda.methods]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(site)

    yield install
    monkeypatch.undo()
    forget_method("quiet")
    METHODS.broken.clear()
    sys.modules.pop("quiet_method", None)


def test_a_method_of_an_installed_package_is_found(installed, data, tmp_path):
    assert "quiet" not in METHODS
    installed(QUIET)
    run(data, tmp_path / "out", "quiet", "quiet.volume=0.5", "quiet.steps=1")
    record = json.loads((tmp_path / "out" / ADAPTATION_FILE).read_text())
    assert record["stages"][1]["method"] == "a method of another package"
    assert issubclass(METHODS["quiet"].settings, EntropySettings)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("import a_module_that_is_not_there", "quiet", "No module named 'a_module"),
        ("QUIET = 3", "quiet", "expected a MethodType called 'quiet', found int"),
        (QUIET, "loud", "expected a MethodType called 'loud', found 'quiet'"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(installed, caplog, source, name, message):
    installed(source, name)
    load_recipe("small")  # which needs it not
    assert [message in record.getMessage() for record in caplog.records] == [True]
    for override in (f'stages=["{name}"]', f"{name}.steps=1"):
        with pytest.raises(ConfigError, match=f"method '{name}': entry point quiet_.*{message}"):
            load_recipe("small", (override,))
    with pytest.raises(ConfigError, match=message):
        METHODS[name]


def test_what_a_method_must_be(toy):
    assert register_method(TOY) is TOY
    again = MethodType("toy", EntropySettings, title="another", label="Toy", build=Toy)
    with pytest.raises(ConfigError, match="one of this name already"):
        register_method(again)

    class Bare(StageSettings):
        """No optimiser, no steps."""

    for kind, message in (
        ({"name": "Two words"}, "small letters"),
        ({"settings": Bare}, "derive from Optimisation, found Bare"),
        ({"stream": 8}, "from 0 to 7, found 8"),
    ):
        given = {"name": "new", "settings": ToySettings, "title": "", "label": "", "build": Toy}
        with pytest.raises(ConfigError, match=message):
            MethodType(**given | kind)
    register_method(MethodType("seed", ToySettings, title="", label="", build=Toy))
    try:
        with pytest.raises(ConfigError, match="recipes have something else of this name"):
            load_recipe("small")
    finally:
        forget_method("seed")
    with pytest.raises(KeyError, match="did you mean 'toy'"):
        METHODS["toyy"]


def test_a_stage_that_is_a_procedure(data, tmp_path):
    kind = register_method(MethodType("still", ToySettings, title="does nothing", label="Still"))
    try:
        with pytest.raises(ConfigError, match="nobody says what it does"):
            run(data, tmp_path / "out", "still")
        assert not (tmp_path / "out").exists()
        seen = []

        @procedure(kind)
        def still(recipe, section, model, domains, job):
            seen.append((section.pull, len(domains.target), job.folder.name))

        run(data, tmp_path / "out", "still")
        assert seen == [(0.1, 4, "still")]
        record = json.loads((tmp_path / "out" / ADAPTATION_FILE).read_text())
        assert record["stages"][1]["steps"] == 3
    finally:
        forget_method("still")


def test_streams_of_earlier_versions_stay():
    assert {name: METHODS[name].stream for name in METHODS} == STREAMS
    for name, seed, number in itertools.product(STREAMS, (0, 1, 7), (0, 1, 3)):
        found = METHODS[name].stream_of(seed, number)
        assert found == 8 * seed + STREAMS[name] + 1_000_003 * number


def test_no_stream_of_another_name_is_a_stream_of_another_seed():
    names, seeds, rounds = [f"method{i}" for i in range(20)], range(100), range(4)
    kinds = [MethodType(name, ToySettings, title="", label="") for name in names]
    found = {k.stream_of(s, n) for k, s, n in itertools.product(kinds, seeds, rounds)}
    assert len(found) == len(names) * len(seeds) * len(rounds)
    assert min(found) > METHODS["lse"].stream_of(2**50, 1000)
    torch.Generator().manual_seed(max(found))
    # What a name draws is written down: another formula would be another run.
    assert TOY.stream_of(0) == 7630350110045762114


def test_sections_stand_in_the_order_that_digests_depend_on():
    assert list(METHODS) == [
        "source", "adabn", "entropy", "stage1", "stage2", "distil", "adversarial", "ass", "hiast",
        "lse",
    ]  # fmt: skip
