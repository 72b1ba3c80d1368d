"""Label-free signals, the collapse alarm and the choice of a network."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeuda.errors import ConfigError, TrainingError
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.network import Logits
from edgeuda.models.predictor import normalise
from edgeuda.records.form import entries
from edgeuda.spec import Preprocessing
from edgeuda.training.monitor import RANKED, Probe, choose, collapse, divergence
from edgeuda.training.monitor import neighbourhood_density as density

K, H, W = 4, 32, 64
PREPROCESSING = Preprocessing(H, W)
FREQUENCIES = torch.tensor([0.4, 0.3, 0.2, 0.1])
NAMES = ("road", "sky", "car", "person")


class Net(nn.Module):
    """Turns images into logits by a function; the parameter gives it a device."""

    def __init__(self, logits):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm2d(3)
        self.logits = logits
        self.batches = []

    def forward(self, x):
        assert not self.norm.training
        self.batches.append(len(x))
        return Logits(self.logits(x))


def constant(*values):
    return Net(lambda x: torch.tensor(values).view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:]))


def fixed(labels):
    """A network that gives ``[H, W]`` labels whatever the image."""
    one_hot = 20.0 * nn.functional.one_hot(labels, K).permute(2, 0, 1).float()
    return Net(lambda x: one_hot.expand(len(x), -1, -1, -1))


def frames(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, H, W), dtype=torch.uint8, generator=generator)


def probe(count=3, seed=0):
    return Probe(frames(count), PREPROCESSING, FREQUENCIES, seed)


@pytest.fixture(scope="module")
def bisenet():
    torch.manual_seed(0)
    return BiSeNet(K, width=0.125)


@pytest.fixture(scope="module")
def signals(bisenet):
    return probe().start(bisenet)


def test_uniform_softmax():
    found = probe().start(constant(0.0, 0.0, 0.0, 0.0))
    assert found.entropy == pytest.approx(1)
    assert found.confidence == pytest.approx(1 / K)
    # All samples alike: each row is uniform over the others, of 2001 pixels (667 of 3 frames).
    assert found.neighbourhood_density == pytest.approx(math.log(2000), rel=1e-4)


def test_a_constant_class_fools_every_agreement_but_not_the_alarm():
    found = probe().start(constant(0.0, 0.0, 0.0, 60.0))
    assert found.flip_agreement == found.view_agreement == found.confidence == 1
    assert found.entropy == pytest.approx(0, abs=1e-9)
    assert found.histogram == (0, 0, 0, 1)
    alarm = collapse([0.3, 0.3, 0.3, 0.1], found.histogram, FREQUENCIES.tolist(), NAMES)
    assert alarm is not None
    assert "'person' swallows" in alarm
    assert "100.00%" in alarm
    assert "10.00% at the start" in alarm


def test_confidence_and_entropy_of_given_probabilities():
    p = np.array([0.7, 0.1, 0.1, 0.1])
    found = probe().start(constant(*np.log(p).astype(np.float32).tolist()))
    assert found.confidence == pytest.approx(0.7)
    assert found.entropy == pytest.approx(-(p * np.log(p)).sum() / np.log(4))


def test_agreements_and_histogram_of_given_labels():
    labels = torch.zeros(H, W, dtype=torch.int64)
    labels[:, : W // 4] = 1  # its mirror image differs in the first and the last quarter
    watched = probe()
    first = watched.start(fixed(labels))
    assert first.histogram == (0.75, 0.25, 0, 0)
    assert first.flip_agreement == 0.5
    assert first.view_agreement == 1  # colour is ignored, absent classes do not count
    assert first.start_agreement == 1
    labels = labels.clone()
    labels[: H // 8] = 2
    assert watched.measure(fixed(labels)).start_agreement == 1 - 1 / 8
    assert watched.start(fixed(labels)).start_agreement == 1


def test_a_network_that_undoes_the_flip_agrees_with_it():
    """Labels follow the image, so they flip with it; frames are further than one batch."""
    found = probe(9).start(Net(lambda x: torch.cat([x, x[:, :1] * 0 - 9], 1)))
    assert found.flip_agreement == 1
    assert found.view_agreement < 1


def test_signals_against_a_slow_reference(bisenet, signals):
    bisenet.eval()
    with torch.no_grad():
        x = frames().float() / 255
        p = bisenet(normalise(x, PREPROCESSING)).main.double().softmax(1).numpy()
    label = p.argmax(1)
    entropies = [
        -sum(v * math.log(v) for v in p[n, :, i, j])
        for n in range(3)
        for i in range(H)
        for j in range(0, W)
    ]
    assert signals.entropy == pytest.approx(np.mean(entropies) / math.log(K), rel=1e-5)
    assert signals.confidence == pytest.approx(p.max(1).mean(), rel=1e-5)
    assert signals.histogram == pytest.approx([(label == k).mean() for k in range(K)])
    assert len(set(signals.histogram)) > 2, "the network must predict several classes"


def test_view_agreement_is_the_mean_iou_over_classes_in_either_map():
    """The coloured view gives another map: the network counts its calls."""
    clean, other = torch.zeros(H, W, dtype=torch.int64), torch.zeros(H, W, dtype=torch.int64)
    clean[0], other[:2] = 1, 1
    other[-1] = 2
    network = fixed(clean)

    def logits(x):
        labels = other if len(network.batches) == 3 else clean  # frames, flipped, coloured
        return 20.0 * nn.functional.one_hot(labels, K).permute(2, 0, 1)[None].float()

    network.logits = logits
    ious = [29 / 31, 1 / 2, 0 / 1]  # of 32 rows
    assert probe(1).start(network).view_agreement == pytest.approx(np.mean(ious))


def test_density_against_a_double_loop():
    p = torch.rand(40, K, generator=torch.Generator().manual_seed(3)).softmax(1)
    rows = p.double().numpy()
    rows = rows / np.sqrt((rows**2).sum(1))[:, None]
    total = 0.0
    for i in range(40):
        weights = [math.exp(float(rows[i] @ rows[j]) / 0.05) for j in range(40) if j != i]
        for weight in weights:
            q = weight / sum(weights)
            total -= q * math.log(q)
    assert density(p) == pytest.approx(total / 40, rel=1e-4)


def test_density_prefers_large_neighbourhoods():
    groups = torch.eye(4).repeat_interleave(25, 0)
    assert density(groups) == pytest.approx(math.log(24), abs=1e-3)
    assert density(torch.eye(2).repeat_interleave(50, 0)) > density(groups)


def test_divergence_by_hand():
    p, q = [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]
    middle = [0.375, 0.375, 0.25]
    left = sum(a * math.log2(a / m) for a, m in zip(p, middle, strict=True) if a)
    right = sum(a * math.log2(a / m) for a, m in zip(q, middle, strict=True) if a)
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (p, q)]
    assert divergence(*tensors) == pytest.approx((left + right) / 2)
    assert divergence(tensors[0], tensors[0]) == 0
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert divergence(*apart) == pytest.approx(1)


def test_measurements_repeat_and_the_seed_matters(bisenet, signals):
    torch.manual_seed(99)
    again = probe().start(bisenet)
    assert again == signals
    other = probe(seed=1).start(bisenet)
    assert other.neighbourhood_density != signals.neighbourhood_density
    assert other.view_agreement != signals.view_agreement
    assert other.entropy == signals.entropy


def test_float_frames_equal_bytes(bisenet, signals):
    found = Probe(frames().float() / 255, PREPROCESSING, FREQUENCIES).start(bisenet)
    assert found == signals


def test_three_passes_in_batches_of_at_most_eight():
    network = constant(1.0, 0.0, 0.0, 0.0)
    probe(10).start(network)
    assert sum(network.batches) == 30
    assert max(network.batches) == 8


def test_every_frame_has_a_coloured_view_of_its_own_and_the_same_at_every_measurement():
    seen = []
    network = Net(lambda x: (seen.append(x), torch.cat([x, x[:, :1]], 1))[1])
    watched = Probe(frames(1).repeat(2, 1, 1, 1), PREPROCESSING, FREQUENCIES)
    watched.start(network)
    watched.measure(network)
    clean, _, coloured, _, _, again = seen
    assert torch.equal(clean[0], clean[1])
    assert not torch.equal(coloured[0], coloured[1])
    assert torch.equal(coloured, again)


@pytest.mark.parametrize("training", [True, False])
def test_modes_statistics_and_gradients_are_left_alone(training):
    torch.manual_seed(0)
    network = BiSeNet(K, width=0.125).train(training)
    network.context.eval()  # a part that is frozen stays frozen
    before = {name: value.clone() for name, value in network.state_dict().items()}
    probe().start(network)
    assert network.training is training
    assert network.spatial.training is training
    assert not network.context.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite(bad):
    network = constant(bad, 0.0, 0.0, 0.0).train()
    with pytest.raises(TrainingError, match=r"not finite.*learning rate"):
        probe().start(network)
    assert network.training


def test_record_is_plain_json(signals):
    record = entries(signals)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert all(type(v) is float for v in record.values() if not isinstance(v, list))
    assert sum(record["histogram"]) == pytest.approx(1)


EVEN = [0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("start", "now", "source", "expected"),
    [
        (EVEN, EVEN, EVEN, None),
        # Vanishing: under 5 % of the smaller of two shares that are at least 2 %.
        ([0.2, 0.7, 0.0, 0.1], [0.3, 0.6949, 0.0, 0.0051], [0.2, 0.4, 0.2, 0.2], None),
        ([0.2, 0.7, 0.0, 0.1], [0.3, 0.6951, 0.0, 0.0049], [0.2, 0.4, 0.2, 0.2], "'person' has"),
        ([0.3, 0.4, 0.2, 0.1], [0.3, 0.4, 0.297, 0.003], [0.3, 0.3, 0.36, 0.04], None),
        ([0.3, 0.4, 0.28, 0.02], [0.3, 0.4, 0.3, 0.0], [0.3, 0.3, 0.3, 0.1], "'person' has"),
        ([0.3, 0.4, 0.281, 0.019], [0.3, 0.4, 0.3, 0.0], [0.3, 0.3, 0.3, 0.1], None),
        ([0.3, 0.4, 0.2, 0.1], [0.3, 0.4, 0.3, 0.0], [0.3, 0.3, 0.381, 0.019], None),
        # Swallowing: half of the pixels and twice the larger share.
        (EVEN, [0.5, 0.2, 0.2, 0.1], EVEN, "'road' swallows"),
        (EVEN, [0.499, 0.201, 0.2, 0.1], EVEN, None),
        ([0.26, 0.24, 0.25, 0.25], [0.51, 0.2, 0.2, 0.09], EVEN, None),
        (EVEN, [0.51, 0.2, 0.2, 0.09], [0.26, 0.24, 0.25, 0.25], None),
        # Swallowing: 98 % of the pixels from under 90 %, however common the class was.
        ([0.89, 0.11, 0.0, 0.0], [0.98, 0.02, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0], "'road' swallows"),
        ([0.89, 0.11, 0.0, 0.0], [0.979, 0.021, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0], None),
        ([0.9, 0.1, 0.0, 0.0], [0.98, 0.02, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0], None),
        # What swallows is the cause and is named before what vanished.
        (EVEN, [0.0, 0.0, 0.0, 1.0], EVEN, "'person' swallows"),
    ],
)
def test_collapse_at_its_borders(start, now, source, expected):
    alarm = collapse(start, now, source, NAMES)
    assert (alarm is None) if expected is None else (alarm is not None and expected in alarm)


def test_the_best_by_each_signal_and_the_first_of_equals(signals):
    for name, larger in RANKED.items():
        three = [replace(signals, **{name: value}) for value in (0.4, 0.6, 0.2, 0.6, 0.2)]
        assert choose(three, name) == (1 if larger else 2)
    assert choose([signals, signals], "entropy") == 0


@pytest.mark.parametrize("name", ["start_agreement", "histogram", "miou"])
def test_a_signal_that_does_not_rank_is_refused(signals, name):
    with pytest.raises(ConfigError, match=f"entropy, confidence.*{name}"):
        choose([signals], name)
