"""What confidence means: calibration error, temperature, held-out images, idle stages."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgeuda.errors import ConfigError, DataError
from edgeuda.labels import IGNORE, SPACES
from edgeuda.methods.base import Batch
from edgeuda.methods.distil import Distil
from edgeuda.methods.losses import cross_entropy_map, ohem
from edgeuda.methods.mixing import MixSettings, mix
from edgeuda.methods.supervised import Supervised
from edgeuda.methods.teacher import Teacher
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.checkpoint import load_model, save_model
from edgeuda.models.network import Logits
from edgeuda.models.reliability import KEPT, fit_temperature, reliability
from edgeuda.records.identity import MODEL_FILE
from edgeuda.records.labelling import ReliabilityRecord
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.street import write_dataset
from edgeuda.training.confidence import RELIABILITY_FILE, temperature_of
from edgeuda.training.pipeline import ADAPTATION_FILE, RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe
from edgeuda.training.remarks import remarks

SPACE = SPACES["carla-3"]
SPEC = ModelSpec("bisenet", 0.125, SPACE, Preprocessing(32, 64))


class Fixed(nn.Module):
    """Gives the logits that are written in the image's number."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.anchor, self.calls = logits, nn.Parameter(torch.zeros(1)), 0

    def forward(self, x):
        self.calls += 1
        return Logits(self.logits[self.calls - 1][None])


def labelled(truths):
    return [(np.zeros((32, 64, 3), np.uint8), truth.numpy().astype(np.uint8)) for truth in truths]


def drawn(temperature, count=4, seed=0):
    """Logits, and labels drawn from softmax(logits / temperature): calibrated at that."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 3, 32, 64, generator=generator)
    p = (logits / temperature).softmax(1).permute(0, 2, 3, 1).reshape(-1, 3)
    truth = torch.multinomial(p, 1, generator=generator).view(count, 32, 64)
    return logits, truth


def test_figures_equal_the_slow_definition():
    logits, truth = drawn(2.0)
    truth[0, :5] = IGNORE
    found = reliability(Fixed(logits), SPEC, labelled(truth))
    sure, winner = logits.softmax(1).max(1)
    known = truth != IGNORE
    sure, right = sure[known], (winner == truth)[known].float()
    error = 0.0
    for low in range(50):
        cell = (sure * 50).long().clamp(max=49) == low
        if cell.any():
            error += abs(float((sure[cell] - right[cell]).sum())) / len(sure)
    assert math.isclose(found.error(), error, abs_tol=1e-5)
    for threshold in (0.5, 0.8):
        above = (sure * 50).long() >= round(threshold * 50)
        share, accuracy = found.kept(threshold)
        assert math.isclose(share, float(above.float().mean()), abs_tol=1e-6)
        assert math.isclose(accuracy, float(right[above].mean()), abs_tol=1e-6)
    figures = found.figures(SPACE.classes)
    assert math.isclose(figures.accuracy, float(right.mean()), abs_tol=1e-4)
    assert [row.above for row in figures.kept] == list(KEPT)
    assert math.isclose(sum(row.share for row in figures.by_class.values()), 1, abs_tol=1e-3)
    record = ReliabilityRecord(1.0, figures, figures)
    assert ReliabilityRecord.from_record(json.loads(record.to_json()), "x") == record


def test_nothing_above_a_threshold_has_no_accuracy():
    found = reliability(Fixed(torch.zeros(1, 3, 32, 64)), SPEC, labelled(torch.zeros(1, 32, 64)))
    assert found.kept(0.9)[0] == 0
    assert math.isnan(found.kept(0.9)[1])
    assert found.figures(SPACE.classes).kept[-1].accuracy is None


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    logits, truth = drawn(temperature)
    found = fit_temperature(Fixed(logits), SPEC, labelled(truth))
    assert found == pytest.approx(temperature, rel=0.1)
    before = reliability(Fixed(logits), SPEC, labelled(truth)).error()
    after = reliability(Fixed(logits), SPEC, labelled(truth), found).error()
    assert after <= before + 1e-3
    assert after < 0.03


def test_labels_that_are_all_ignored_are_an_error():
    blank = torch.full((1, 32, 64), IGNORE)
    for measure in (reliability, fit_temperature):
        with pytest.raises(DataError, match="labelled pixel"):
            measure(Fixed(torch.zeros(1, 3, 32, 64)), SPEC, labelled(blank))


def test_a_teacher_reads_confidence_by_its_temperature():
    torch.manual_seed(0)
    network = BiSeNet(3, 0.125).eval()
    images = torch.rand(1, 3, 32, 64)
    plain, soft = (
        Teacher(network, temperature=t).probabilities(images, SPEC.preprocessing)
        for t in (1.0, 3.0)
    )
    assert torch.allclose((plain.log() / 3).softmax(1), soft, atol=1e-5)


def source_batch(step):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 32, 64, generator=generator)
    label = torch.randint(0, 3, (2, 32, 64), generator=generator)
    return Batch(step, images, label, None, None, None, (), ())


def test_hard_examples_give_way_to_all_pixels():
    torch.manual_seed(0)
    network = BiSeNet(3, 0.125).eval()
    network.main.classifier.bias.data = torch.tensor([3.0, 0.0, 0.0])  # sure of some pixels
    method = Supervised("ohem", torch.ones(3), None, hard_steps=2)
    found = [method.step(network, source_batch(step), SPEC.preprocessing) for step in (1, 2)]
    given = source_batch(0)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.preprocessing.mean, SPEC.preprocessing.std)
    )
    logits = network((given.source - mean) / std, aux=True).main
    loss = cross_entropy_map(logits, given.source_label)
    hard = ohem(loss, given.source_label != IGNORE)
    assert torch.allclose(found[0].terms["main"], hard, atol=1e-4)
    assert torch.allclose(found[1].terms["main"], loss.mean(), atol=1e-4)
    assert not torch.allclose(hard, loss.mean())


def test_class_weights_do_not_make_a_pixel_hard():
    torch.manual_seed(0)
    network = BiSeNet(3, 0.125).eval()
    network.main.classifier.bias.data = torch.tensor([3.0, 0.0, 0.0])  # sure of some pixels
    weights, given = torch.tensor([20.0, 0.5, 1.0]), source_batch(0)
    given.source_label[:, :4] = IGNORE
    found = Supervised("ohem", weights, None).step(network, given, SPEC.preprocessing)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.preprocessing.mean, SPEC.preprocessing.std)
    )
    probability = network((given.source - mean) / std, aux=True).main.softmax(1)
    label = given.source_label
    of_truth = probability.gather(1, label.clamp(max=2)[:, None])[:, 0]
    hard = (of_truth < 0.7) & (label != IGNORE)
    assert 0 < hard.sum() < (label != IGNORE).sum()
    expected = (-of_truth[hard].log() * weights[label[hard]]).mean()
    assert torch.allclose(found.terms["main"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("trust", "wanted"), [("share", 0.25), ("confidence", 0.55), ("none", 1.0)]
)
def test_trust_in_an_image(trust, wanted):
    confidence = torch.full((1, 4, 4), 0.4)
    confidence[:, 0] = 1.0
    mixed = mix(
        torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), torch.rand(1, 3, 4, 4),
        torch.ones(1, 4, 4, dtype=torch.int64), confidence, torch.ones(3),
        MixSettings(trust=trust), torch.eye(3, dtype=torch.bool), None,
        [torch.Generator().manual_seed(0)],
    )  # fmt: skip
    assert mixed.trust.item() == pytest.approx(wanted)


class TestRemarks:
    def test_a_threshold_that_keeps_nothing_or_all(self):
        (low,) = remarks("stage1", [{"keep": 0.01}, {"keep": 0.03}])
        assert "keep is 2.0%" in low
        assert "stage1.threshold.initial" in low
        (high,) = remarks("stage1", [{"keep": 0.995}])
        assert "holds nothing back" in high

    def test_trust_that_is_next_to_nothing(self):
        (found,) = remarks("stage2", [{"trust": 0.006}])
        assert "0.6%" in found
        assert "stage2.mix.trust" in found

    def test_a_term_beside_the_supervised_one(self):
        (found,) = remarks("stage1", [{"supervised": 0.218, "target": 0.0003}])
        assert "0.14%" in found
        assert "stage1.target_weight" in found

    def test_a_healthy_stage_is_left_in_peace(self):
        line = {"supervised": 0.2, "target": 0.02, "mix": 0.1, "keep": 0.7, "trust": 0.6}
        assert remarks("stage2", [line]) == []
        assert remarks("adabn", []) == []


TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=8", "source.batch=2", "source.warmup=0", "adabn.batches=2", "adabn.batch=2",
    "stage2.steps=2", "stage2.batch=2", "stage2.log_every=1", "distil.steps=4", "distil.batch=2",
    "distil.log_every=1", "distil.large.pretrained=none", "distil.large.width=0.25",
    "monitor.frames=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("confidence")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 6, seed, 64, 128, SPACES["camvid-11"])
    recipe = load_recipe("small", (*TINY, "source.held=0.3", "source.tail=0.5"))
    train_source(recipe, root / "source", None, RunOptions(root / "run"))
    return root


def run(data, out, *overrides, resume=False):
    recipe = load_recipe("small", (*TINY, *overrides))
    adapt(recipe, data / "run", data / "source", data / "target", RunOptions(out, resume))
    return json.loads((out / ADAPTATION_FILE).read_text())


def test_held_out_images_are_not_trained_on_and_give_the_temperature(data):
    record = json.loads((data / "run" / RELIABILITY_FILE).read_text())
    assert len(record["images"]) == 2
    assert temperature_of(data / "run") == record["temperature"]
    assert temperature_of(data / "run" / MODEL_FILE) == record["temperature"]
    assert record["calibrated"]["calibration_error"] <= record["as it is"]["calibration_error"]


def test_a_network_without_a_fitted_temperature_is_taken_as_it_is(tmp_path, caplog):
    caplog.set_level("INFO")
    assert temperature_of(tmp_path) == 1.0
    assert "source.held" in caplog.text


def test_a_stage_that_trains_nothing_says_so(data, tmp_path, caplog):
    record = run(data, tmp_path / "out", 'stages=["stage2"]', "stage2.mix.trusted=1.0")
    found = record["stages"][0]["remarks"]
    assert any("stage2.mix.trust" in remark for remark in found)
    assert "stage2.mix.trust" in caplog.text


@pytest.mark.parametrize("teacher", ["large", "self"])
def test_a_distillation_that_was_killed_ends_with_the_same_weights(
    teacher, data, tmp_path, monkeypatch
):
    keys = ('stages=["distil"]', f"distil.teacher={teacher}", "distil.checkpoint_every=1")
    whole = run(data, tmp_path / "whole", *keys)
    assert [stage["name"] for stage in whole["stages"]] == ["distil"]
    assert (teacher == "large") == any(tmp_path.glob("whole/large-*/adabn/model.safetensors"))
    real = Distil.step

    class KilledError(Exception):
        pass

    def killed(self, model, batch, preprocessing):
        if batch.step == 2:
            raise KilledError
        return real(self, model, batch, preprocessing)

    monkeypatch.setattr(Distil, "step", killed)
    with pytest.raises(KilledError):
        run(data, tmp_path / "cut", *keys)
    monkeypatch.setattr(Distil, "step", real)
    run(data, tmp_path / "cut", *keys, resume=True)
    expected, found = (load_file(tmp_path / name / MODEL_FILE) for name in ("whole", "cut"))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_stored_network_teaches(data, tmp_path):
    path = json.dumps(str(data / "run"))
    run(data, tmp_path / "out", 'stages=["distil"]', f"distil.teacher={path}")
    assert load_model(tmp_path / "out")[1].width == 0.125


def test_a_teacher_of_other_classes_is_refused(data, tmp_path):
    save_model(BiSeNet(3, 0.125), SPEC, tmp_path / "other.safetensors")
    path = json.dumps(str(tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match=r"other\.safetensors.*classes"):
        run(data, tmp_path / "out", 'stages=["distil"]', f"distil.teacher={path}")
