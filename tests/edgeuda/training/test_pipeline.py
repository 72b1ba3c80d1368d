"""Whole training runs on rendered streets: they learn, stop, resume, and refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeuda.data.replay import Replay
from edgeuda.errors import ModelError, OutputExistsError, TrainingError
from edgeuda.labels import SPACES
from edgeuda.methods.settings import Optimisation
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.checkpoint import load_model
from edgeuda.models.fcn import FCN8s
from edgeuda.records.identity import MODEL_FILE
from edgeuda.street import write_dataset
from edgeuda.training.loader import (
    ClassCrops,
    Images,
    RareClasses,
    StepData,
    Views,
    batches,
    holders,
    sample,
)
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe
from edgeuda.training.trainer import (
    CHECKPOINT_FILE,
    LOG_FILE,
    make_optimizer,
    read_log,
    schedule_factor,
)
from places import ROOT
from tiny_models import quick_first

SIZE = (64, 128)
TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]",
    "precision=32-true", "source.steps=12",
    "source.batch=4", "source.checkpoint_every=5", "source.log_every=1", "adabn.batches=2",
    "adabn.batch=4", "stage1.steps=6", "stage1.batch=2", "stage1.checkpoint_every=2",
    "stage1.log_every=1", "stage2.steps=4", "stage2.batch=2", "stage2.log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 12, seed, *SIZE, SPACES["camvid-11"])
    return root


def recipe(*overrides):
    return load_recipe("small", (*TINY, *overrides))


def weights(folder):
    return load_file(folder / MODEL_FILE)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "source"
    train_source(recipe(), data / "source", None, RunOptions(out))
    return out


@pytest.fixture(scope="module")
def adapted(data, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "adapted"
    adapt(recipe(), trained, data / "source", data / "target", RunOptions(out))
    return out


def test_a_run_leaves_recipe_log_checkpoint_and_model(trained):
    names = {"recipe.toml", "run.json", LOG_FILE, CHECKPOINT_FILE, MODEL_FILE}
    assert {path.name for path in trained.iterdir()} == names
    assert [line["step"] for line in read_log(trained)] == list(range(1, 13))
    model, spec = load_model(trained)
    assert not model.training
    assert spec.label_space == SPACES["camvid-11"]


def test_adaptation_stages_change_what_they_should(trained, adapted):
    source, adabn, stage1, stage2 = (
        weights(f) for f in (trained, *(adapted / s for s in ("adabn", "stage1", "stage2")))
    )
    statistics = {k for k in source if "running" in k or "num_batches" in k}
    assert all(torch.equal(source[k], adabn[k]) for k in source.keys() - statistics)
    assert any(not torch.equal(source[k], adabn[k]) for k in statistics)
    # batch-norm statistics are frozen in both stages, weights move
    for before, after in ((adabn, stage1), (stage1, stage2)):
        assert all(torch.equal(before[k], after[k]) for k in statistics)
        assert any(not torch.equal(before[k], after[k]) for k in source.keys() - statistics)
    assert same(weights(adapted), stage2)
    record = json.loads((adapted / "adaptation.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["AdaBN", "stage 1", "stage 2"]
    thresholds = np.array(record["stages"][1]["curve"]["threshold"])
    assert thresholds.shape == (6, 11)
    assert (thresholds[-1] != 0.8).any()
    assert "mix" in read_log(adapted / "stage2")[0]
    assert "mix" not in read_log(adapted / "stage1")[0]


def test_old_frames_are_replayed_and_a_resumed_run_is_the_same(data, trained, adapted, tmp_path):
    replay = Replay(data / "source", 0.25)
    whole, parts = (
        RunOptions(tmp_path / name, resume=True, replay=replay) for name in ("whole", "parts")
    )
    adapt(recipe(), trained, data / "source", data / "target", whole)
    adapt(recipe(), trained, data / "source", data / "target", parts)
    shutil.rmtree(parts.out / "stage2")  # as if it had been stopped before
    (parts.out / MODEL_FILE).unlink()
    adapt(recipe(), trained, data / "source", data / "target", parts)
    assert same(weights(whole.out), weights(parts.out))
    assert not same(weights(whole.out), weights(adapted))
    statistics = [k for k in weights(adapted) if "running_mean" in k]
    old, new = weights(adapted / "adabn"), weights(whole.out / "adabn")
    assert any(not torch.equal(old[k], new[k]) for k in statistics)
    known = json.loads((whole.out / "run.json").read_text())["data"]
    assert (known["target_frames"], known["replay_frames"], known["replay_share"]) == (12, 12, 0.25)
    other = RunOptions(parts.out, resume=True, replay=Replay(data / "source", 0.5))
    with pytest.raises(OutputExistsError, match="expected the run that these settings started"):
        adapt(recipe(), trained, data / "source", data / "target", other)


def test_target_labels_are_never_opened(data, trained, adapted, tmp_path):
    target = tmp_path / "target"
    (target / "images").mkdir(parents=True)
    (target / "labels").mkdir()
    for path in (data / "target" / "images").iterdir():
        (target / "images" / path.name).write_bytes(path.read_bytes())
        (target / "labels" / f"{path.stem}.png").write_bytes(b"not a label")
    adapt(recipe(), trained, data / "source", target, RunOptions(tmp_path / "out"))
    assert same(weights(tmp_path / "out"), weights(adapted))


def test_supervised_training_lowers_the_loss(data, tmp_path):
    settings = recipe("source.steps=60", "source.loss=ce", "source.log_every=5")
    train_source(settings, data / "source", None, RunOptions(tmp_path / "run"))
    losses = [line["loss"] for line in read_log(tmp_path / "run")]
    assert np.mean(losses[-3:]) < 0.85 * np.mean(losses[:3])


def start(argv, env=None):
    return subprocess.Popen(
        [sys.executable, "-c", "from cli import main; main()", *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=ROOT,
    )  # fmt: skip


def wait_for_step(folder, step, process):
    for _ in range(6000):
        lines = read_log(folder)
        if lines and lines[-1]["step"] >= step:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    pytest.fail(f"no step {step} in {folder}")


def arguments(verb, out, *extra):
    settings = [item for override in TINY for item in ("--set", override)]
    return [verb, "--out", str(out), "--recipe", "small", *settings, *extra]


@pytest.mark.parametrize("how", quick_first([signal.SIGKILL, signal.SIGTERM], [signal.SIGKILL]))
def test_a_killed_run_resumes_to_the_same_weights(data, tmp_path, monkeypatch, how):
    """Kill training mid-epoch; the resumed run must equal an uninterrupted one, bit by bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    longer = ("--source", str(data / "source"), "--set", "source.steps=60")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(arguments("train", whole, *longer))
    assert process.wait() == 0, process.stdout.read()
    process = start(arguments("train", cut, *longer))
    wait_for_step(cut, 17, process)
    process.send_signal(how)
    code = process.wait()
    assert not (cut / MODEL_FILE).exists()
    if how == signal.SIGTERM:
        assert code == 130
        assert "--resume" in process.stdout.read()
    else:
        assert code == -signal.SIGKILL
    done = torch.load(cut / CHECKPOINT_FILE, weights_only=True)["step"]
    assert 15 <= done < 60
    process = start(arguments("train", cut, *longer, "--resume"))
    assert process.wait() == 0, process.stdout.read()
    assert same(weights(whole), weights(cut))
    assert [line["step"] for line in read_log(cut)] == list(range(1, 61))


def test_an_interrupted_adaptation_resumes_within_its_stage(data, trained, adapted, tmp_path):
    """Drop the end of stage 1 and all after it; thresholds come back from the checkpoint."""
    out = tmp_path / "out"
    process = start([
        *arguments("adapt", out), "--model", str(trained), "--source", str(data / "source"),
        "--target", str(data / "target"),
    ])  # fmt: skip
    wait_for_step(out / "stage1", 3, process)
    process.kill()
    process.wait()
    adapt(recipe(), trained, data / "source", data / "target", RunOptions(out, resume=True))
    for key, value in weights(adapted).items():
        assert torch.allclose(value.float(), weights(out)[key].float(), atol=1e-4), key


def test_existing_runs_are_not_overwritten(data, trained):
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    with pytest.raises(OutputExistsError, match="exists already"):
        train_source(recipe(), data / "source", None, RunOptions(trained))
    with pytest.raises(OutputExistsError, match="another recipe"):
        train_source(recipe("seed=5"), data / "source", None, RunOptions(trained, resume=True))
    train_source(recipe(), data / "source", None, RunOptions(trained, resume=True))  # done: no work
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir()} == before


def test_checkpoints_of_other_models_are_refused(data, trained, tmp_path):
    for settings, found in ((recipe("model.input=[64,64]"), "64x64"), (recipe(), "edgeuda.spec")):
        init = trained
        if found == "edgeuda.spec":
            init = tmp_path / "foreign.safetensors"
            save_file({"conv.weight": torch.zeros(1)}, init)
        with pytest.raises(ModelError, match=found):
            adapt(settings, init, data / "source", data / "target", RunOptions(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "x.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"x\.safetensors.*cannot be read"):
        load_model(tmp_path / "x.safetensors")


def test_a_loss_that_is_not_finite_stops_with_step_term_and_files(data, tmp_path):
    with pytest.raises(TrainingError, match=r"Step \d+: loss term 'main' is (nan|inf).*images/0"):
        train_source(recipe("source.lr=1e18"), data / "source", None, RunOptions(tmp_path / "run"))
    assert not (tmp_path / "run" / MODEL_FILE).exists()


def test_each_epoch_shows_every_image_once():
    def draw():
        slices = (range(4 * step, 4 * step + 4) for step in range(6))
        return [index for positions in slices for index in sample(8, positions, 1, 0)]

    seen = draw()
    for epoch in range(3):
        assert sorted(seen[8 * epoch : 8 * epoch + 8]) == list(range(8))
    assert seen[:8] != seen[8:16]
    assert seen == [
        index for step in range(6) for index in sample(8, range(4 * step, 4 * step + 4), 1, 0)
    ]


def test_batches_depend_on_seed_and_step_only_and_labels_follow_images(data):
    from edgeuda.data.folders import labelled_folder

    folder = labelled_folder(data / "source")
    images = Images(folder, SIZE)
    steps = StepData(images, None, 3, Views((32, 64), (1.0, 1.5), 0.5), 7, 4)
    whole = list(batches(steps, 0, torch.device("cpu")))
    resumed, *_ = batches(steps, 2, torch.device("cpu"))
    assert resumed.step == 2
    assert torch.equal(whole[2].source, resumed.source)
    for ours, theirs in zip(whole[2].generators, resumed.generators, strict=True):
        assert torch.equal(torch.rand(3, generator=ours), torch.rand(3, generator=theirs))
    seen = [torch.rand(1, generator=g).item() for batch in whole for g in batch.generators]
    assert len(set(seen)) == 12
    assert resumed.source.shape == (3, 3, 32, 64)
    assert resumed.source_label.shape == (3, 32, 64)
    # An image whose pixels spell its labels stays aligned through scale, crop and flip.
    labels = np.stack(list(images.labels()))
    spelled = [
        (np.repeat((label * 20)[..., None], 3, 2).astype(np.uint8), label) for label in labels
    ]
    images._cache = spelled
    nearest = [
        (batch.source[:, 0] * 255 / 20, batch.source_label)
        for batch in batches(steps, 0, torch.device("cpu"))
    ]
    for spelt, label in nearest:
        exact = (spelt - label).abs() < 0.03
        assert exact[label != 255].float().mean() > 0.75  # bilinear edges differ


def test_rare_classes_are_drawn_more_often_and_absent_ones_never():
    counts = np.array([[90, 10, 0, 0], [80, 0, 20, 0], [100, 0, 0, 0]])  # 90, 3.3, 6.7, 0 %
    rare = RareClasses.of(counts, 0.5)
    shares = counts.sum(0) / 300
    weights = np.where(shares > 0, np.exp((1 - shares) / 0.5), 0)
    assert rare.probability == pytest.approx(weights / weights.sum())
    rng = np.random.default_rng(0)
    drawn = np.bincount([rare.draw(rng) for _ in range(3000)], minlength=3) / 3000
    holding = [[0, 1, 2], [0], [1]]
    expected = [
        sum(p / len(h) for p, h in zip(rare.probability, holding, strict=False) if i in h)
        for i in range(3)
    ]
    assert drawn == pytest.approx(expected, abs=0.03)
    assert RareClasses.of(counts, 1e-4).probability == pytest.approx([0, 1, 0, 0])


def test_crops_hold_their_class_and_are_drawn_from_all_of_its_images(data):
    from edgeuda.data.folders import class_counts, labelled_folder

    folder = labelled_folder(data / "source")
    images = Images(folder, SIZE)
    counts = class_counts(images.labels(), len(folder.space))
    crops = ClassCrops(images, holders(counts), (32, 64))
    for index in range(len(folder.space)):
        found = [crops(index, torch.Generator().manual_seed(seed)) for seed in range(8)]
        if counts[:, index].sum() == 0:
            assert found == [None] * 8
            continue
        for pixels, label in found:
            assert (pixels.shape, label.shape) == ((3, 32, 64), (32, 64))
            assert (label == index).any()
            assert 0 <= pixels.min() <= pixels.max() <= 1
        assert len({label.numpy().tobytes() for _, label in found}) > 1
    larger = ClassCrops(images, holders(counts), (96, 160))(0, torch.Generator())
    assert larger[1].shape == (96, 160)


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet_lite0"])
def test_learning_rates_are_those_of_the_released_code(encoder):
    """CoinCheung and TUFL: ten times the rate for feature fusion and output layers alone."""
    model = BiSeNet(3, 0.125, encoder)
    optimiser = make_optimizer(model, Optimisation(steps=1, batch=1, lr=0.5, head_factor=10.0))
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    fast = {name.split(".")[0] for name, rate in found.items() if rate == 5.0}
    slow = {name.split(".")[0] for name, rate in found.items() if rate == 0.5}
    assert fast == {"fusion", "main", "aux8", "aux16"}
    assert slow == {"context", "spatial"}
    assert len(rates) == len(found)


def test_biases_of_convolutions_have_a_rate_of_their_own():
    """LSE's code: Adam(0.9, 0.99), the biases of FCN8s at twice the rate of its weights."""
    model = FCN8s(3, 0.125)
    section = load_recipe("lse-fcn8s-gta5-to-cityscapes").lse
    optimiser = make_optimizer(model, section)
    assert isinstance(optimiser, torch.optim.Adam)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (2e-6 if name.endswith(".bias") else 1e-6)
    assert {group["betas"] for group in optimiser.param_groups} == {(0.9, 0.99)}
    assert {group["weight_decay"] for group in optimiser.param_groups} == {0.0}
    assert schedule_factor(9_000, section) == 1.0


def test_shifts_of_batch_norm_are_no_biases():
    model = BiSeNet(3, 0.125)
    plan = Optimisation(steps=1, batch=1, lr=1.0, bias_factor=2.0)
    rates = {id(p): g["lr"] for g in make_optimizer(model, plan).param_groups for p in g["params"]}
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        bias = name.endswith(".bias") and id(parameter) not in norms
        assert rates[id(parameter)] == (2.0 if bias else 1.0)


def test_optimiser_groups_stay_as_checkpoints_have_them():
    plan = Optimisation(steps=1, batch=1, lr=1.0, head_factor=10.0)
    assert len(make_optimizer(BiSeNet(3, 0.125), plan).param_groups) == 4


def test_a_schedule_that_is_longer_than_the_stage():
    plan = Optimisation(steps=6200, decay_steps=9300, batch=1, lr=1.0, schedule="cosine")
    assert schedule_factor(6200, plan) == pytest.approx(0.001 + 0.999 * 0.25)
    whole = Optimisation(steps=6200, batch=1, lr=1.0, schedule="cosine")
    assert schedule_factor(6200, whole) == pytest.approx(0.001)
    with pytest.raises(ValueError, match="at least the 100 of steps"):
        Optimisation(steps=100, decay_steps=99, batch=1, lr=1.0)


def test_schedule():
    plan = Optimisation(steps=100, batch=1, lr=1.0, warmup=10, power=0.9)
    assert schedule_factor(0, plan) == pytest.approx(0.1)
    assert schedule_factor(10, plan) == 1
    assert schedule_factor(55, plan) == pytest.approx(0.5**0.9)
