"""HIAST, LSE and the adversarial methods: arithmetic against published numbers and slow loops."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgeuda.labels import IGNORE
from edgeuda.methods.adversarial import (
    Adversarial,
    AdversarialSettings,
    AssSettings,
    class_means,
    self_information,
)
from edgeuda.methods.base import Batch
from edgeuda.methods.hiast import HiastSettings, region_losses
from edgeuda.methods.lse import (
    class_confidence,
    class_normalised_entropy,
    focal_cross_entropy,
    patch,
    select_images,
)
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.discriminators import output_discriminator
from edgeuda.spec import Preprocessing
from edgeuda.views.hard_paste import HardPaste
from edgeuda.views.transforms import STRONG_POOL, strong_pool

PRE = Preprocessing(64, 64)
PLAN = {"steps": 1, "batch": 2, "lr": 1e-3}


class TestRegions:
    LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [0.0, 1.0, 3.0], [1.0, -1.0, 0.0]])
    LABELS = torch.tensor([0, 255, 2, 255])
    TEACHER = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.3, 0.5]])

    def losses(self, **changes):
        def as_map(rows):
            return rows.T.reshape(1, 3, 2, 2)

        return region_losses(
            as_map(self.LOGITS),
            self.LABELS.view(1, 2, 2),
            as_map(self.TEACHER),
            HiastSettings(**PLAN | {"confident_weight": 1.0, "consistency_weight": 1.0} | changes),
        )

    def test_released_numbers(self):
        found = self.losses()
        expected = {
            "pseudo": 0.1698460,
            "confident": 0.6121709,
            "ignored": 0.3177940,
            "consistency": 0.4192710,
        }
        assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, abs=1e-6)
        total = self.losses(confident_weight=0.1, consistency_weight=0.5)
        assert sum(total.values()).item() == pytest.approx(0.7584926, abs=1e-6)

    def test_consistency_everywhere(self):
        found = self.losses(consistency_region="all")["consistency"]
        assert found.item() == pytest.approx(0.3546098, abs=1e-6)

    def test_normaliser(self):
        found, per_pixel = self.losses(), self.losses(normaliser="pixel")
        assert per_pixel["ignored"].item() == pytest.approx(3 * found["ignored"].item())
        assert per_pixel["pseudo"] == found["pseudo"]

    @pytest.mark.parametrize("label", [0, 255])
    def test_an_empty_region_gives_zero_and_no_nan(self, label):
        logits = torch.randn(1, 3, 2, 2, requires_grad=True)
        label = torch.full((1, 2, 2), label)
        terms = region_losses(logits, label, logits.detach().softmax(1), HiastSettings(**PLAN))
        sum(terms.values()).backward()
        assert logits.grad.isfinite().all()
        empty = ("ignored", "consistency") if label[0, 0, 0] == 0 else ("pseudo", "confident")
        assert all(terms[name] == 0 for name in empty)

    def test_regularisers_have_their_extremes_where_they_should(self):
        uniform, sure = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
        sure[:, 0] = 50
        known = torch.zeros(1, 2, 2, dtype=torch.int64)
        least = region_losses(uniform, known, None, HiastSettings(**PLAN, confident_weight=1.0))
        assert least["confident"].item() == pytest.approx(math.log(3) / 3)
        unknown = torch.full_like(known, IGNORE)
        assert region_losses(sure, unknown, None, HiastSettings(**PLAN))["ignored"].item() < 1e-6


def test_hard_classes_choose_donors_by_doubt():
    pixels = np.ones((10, 3), np.int64)
    paste = HardPaste.of(lambda _: None, [0.95, 0.8, 0.6], pixels, 0.74)
    assert paste.probability == pytest.approx([0.01234568, 0.19753086, 0.79012346])
    assert paste.hard.tolist() == [1, 2]
    assert all(len(donors) == 9 for donors in paste.donors)


def frames(count=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, (count, 8, 8)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = IGNORE
    return images, labels


def test_only_hard_pixels_of_one_donor_are_pasted():
    images, labels = frames()
    pixels = np.stack([np.bincount(row.ravel(), minlength=256)[:4] for row in labels])
    paste = HardPaste.of(lambda i: (images[i], labels[i]), [0.9, 0.2, 0.5, 0.8], pixels, 0.5)
    rng = np.random.default_rng(1)
    before = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    for _ in range(20):
        image, label = paste(*before, rng)
        changed = label != before[1]
        assert set(label[changed]) <= {1, 2}
        donors = [
            i
            for i in range(6)
            if np.array_equal(changed, np.isin(labels[i], [1, 2]))
            and np.array_equal(image[changed], images[i][changed])
        ]
        assert len(donors) == 1
        assert not image[~changed].any()


def test_more_donors_until_enough_classes_are_there():
    images, labels = frames(4)
    for index in range(4):  # one class per image
        labels[index] = IGNORE
        labels[index, index] = index
    pixels = np.stack([np.bincount(row.ravel(), minlength=256)[:4] for row in labels])
    read = lambda i: (images[i], labels[i])  # noqa: E731
    blank = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), IGNORE, np.uint8)

    def pasted(most):
        paste = HardPaste.of(read, [0.5] * 4, pixels, 1.0, most)
        return len(np.unique(paste(*blank, np.random.default_rng(0))[1])) - 1

    assert pasted(1) == 1
    assert pasted(3) == 2  # half of the hard classes are enough


def test_classes_without_donors_are_never_drawn():
    images, labels = frames(3, classes=2)
    pixels = np.stack([np.bincount(row.ravel(), minlength=256)[:4] for row in labels])
    paste = HardPaste.of(lambda i: (images[i], labels[i]), [0.9, 0.8, 0.0, 0.0], pixels, 0.75)
    assert paste.probability[2:].tolist() == [0, 0]
    image, label = paste(images[0], labels[0], np.random.default_rng(0))
    assert image.shape == (8, 8, 3)
    assert set(np.unique(label)) <= {0, 1, IGNORE}
    nothing = HardPaste.of(lambda _: None, [0.0] * 4, np.zeros((3, 4), np.int64), 0.75)
    same = nothing(images[0], labels[0], np.random.default_rng(0))
    assert np.array_equal(same[0], images[0])
    assert np.array_equal(same[1], labels[0])


def test_donors_of_another_size_are_resized():
    images, labels = frames(1)
    pixels = np.ones((1, 4), np.int64)
    paste = HardPaste.of(lambda _: (images[0], labels[0]), [0.1] * 4, pixels, 1.0)
    blank = np.zeros((16, 24, 3), np.uint8), np.full((16, 24), IGNORE, np.uint8)
    image, label = paste(*blank, np.random.default_rng(0))
    assert image.shape == (16, 24, 3)
    assert (label != IGNORE).any()


class TestScaleInvariantExamples:
    P = torch.tensor(
        [
            [[0.9, 0.05, 0.05], [0.6, 0.3, 0.1]],
            [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1]],
            [[0.2, 0.7, 0.1], [0.05, 0.9, 0.05]],
        ]
    ).permute(2, 0, 1)

    def test_released_entropies(self):
        found = class_normalised_entropy(self.P)
        expected = torch.tensor([[0.0, 0.9173], [1.0, 0.6004], [1.0, 0.0]])
        assert torch.allclose(found, expected, atol=1e-4)

    def test_equal_entropies_count_as_sure(self):
        assert not class_normalised_entropy(torch.full((3, 4, 4), 1 / 3)).any()

    def test_released_loss(self):
        loss = torch.tensor([[[0.1, 9.0, 1.0, 2.0]]])
        mask = torch.tensor([[[True, False, True, True]]])
        found = focal_cross_entropy(loss, mask, 0.1, 3.0)
        assert found.item() == pytest.approx(1.0848531, abs=1e-6)
        assert focal_cross_entropy(loss, torch.zeros_like(mask), 0.1, 3.0) == 0

    def test_scores(self):
        confidence = torch.tensor([[0.9, 0.5], [0.7, 0.8]])
        label = torch.tensor([[0, 1], [0, 1]])
        found = class_confidence(confidence, label, 3)
        assert found[:2].tolist() == pytest.approx([0.8, 0.65])
        assert found[2].isnan()

    def test_selection_against_a_slow_loop(self):
        rng = np.random.default_rng(0)
        scores = rng.random((40, 5))
        scores[rng.random(scores.shape) < 0.4] = np.nan
        scores[:, 4] = np.nan
        found = select_images(scores, 0.5)
        union = []
        for c in range(4):
            ranked = sorted(
                (i for i in range(40) if not np.isnan(scores[i, c])), key=lambda i: -scores[i, c]
            )
            count = int(len(ranked) * 0.5 / 5)
            union += [i for i in ranked[:count] if i not in union]
            assert found.threshold_image[c] == ranked[count]
        assert found.images == union
        assert found.threshold_image[4] == -1

    def test_the_released_divisor_is_19_for_16_classes_too(self):
        scores = np.tile(np.linspace(1, 0, 400)[:, None], (1, 16))
        assert len(select_images(scores, 0.4).images) == int(400 * 0.4 / 16)
        assert len(select_images(scores, 0.4, 19).images) == int(400 * 0.4 / 19)

    def test_all_images_selected_leaves_the_last_as_threshold(self):
        scores = np.array([[0.5], [0.9], [0.7]])
        assert select_images(scores, 1.0).threshold_image.tolist() == [0]

    @pytest.mark.parametrize("rule", ["any", "nearest", "half"])
    def test_patch(self, rule):
        torch.manual_seed(0)
        probability = torch.randn(4, 16, 32).softmax(0)
        image = torch.rand(3, 16, 32)
        thresholds = torch.full((4,), 0.5)
        part, label = patch(probability, image, thresholds, (4, 8), 2.0, rule)
        assert part.shape == (3, 16, 32)
        assert label.shape == (16, 32)
        window = image[:, 4:12, 8:24]
        assert torch.allclose(part[:, 0, 0], window[:, 0, 0])
        assert torch.allclose(part[:, -1, -1], window[:, -1, -1])
        entropy, winner = class_normalised_entropy(probability), probability.argmax(0)
        for corner, at in (((0, 0), (4, 8)), ((-1, -1), (11, 23))):
            valid = entropy[at] < 0.5
            assert label[corner] == (winner[at] if valid else IGNORE)
        share = {r: self.labelled(probability, image, thresholds, r) for r in ("any", "half")}
        assert share["any"] > share["half"]

    @staticmethod
    def labelled(probability, image, thresholds, rule):
        return (patch(probability, image, thresholds, (0, 0), 2.0, rule)[1] != IGNORE).sum()

    def test_no_zoom_returns_the_whole_image(self):
        image = torch.rand(3, 8, 8)
        probability = torch.randn(3, 8, 8).softmax(0)
        part, label = patch(probability, image, torch.full((3,), 2.0), (0, 0), 1.0, "nearest")
        assert torch.equal(part, image)
        assert torch.equal(label, probability.argmax(0))


class TestAdversarial:
    def batch(self, labelled=True):
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(2, 3, 64, 64, generator=generator) for _ in range(3)]
        labels = [torch.randint(0, 3, (2, 64, 64), generator=generator) for _ in range(2)]
        labels[1][0, :32] = IGNORE
        return Batch(
            0, images[0], labels[0], images[1], None, None,
            [torch.Generator().manual_seed(i) for i in range(2)], (),
            labelled=(images[2], labels[1]) if labelled else None,
        )  # fmt: skip

    def method(self, steps=10, **changes):
        torch.manual_seed(0)
        network = BiSeNet(3, 0.125).eval()
        kind = AssSettings if "semantic" in changes else AdversarialSettings
        settings = kind(**PLAN, **changes)
        made = Adversarial(settings, torch.ones(3), network, steps, 0, torch.device("cpu"))
        return network, made

    def test_class_means_against_a_slow_loop(self):
        features = torch.randn(2, 5, 6, 7)
        label = torch.randint(0, 3, (2, 6, 7))
        label[1][label[1] == 2] = IGNORE
        found = class_means(features, label)
        rows = []
        for n in range(2):
            for c in range(3):
                mask = label[n] == c
                if mask.any():
                    rows.append((c, features[n][:, mask].mean(1)))
        assert found.classes.tolist() == [c for c, _ in rows]
        assert torch.allclose(found.values, torch.stack([v for _, v in rows]), atol=1e-5)

    def test_class_means_where_nothing_is_labelled(self):
        found = class_means(torch.randn(1, 5, 2, 2), torch.full((1, 2, 2), IGNORE))
        assert found.values.shape == (0, 5)

    def test_self_information_of_uniform_probabilities(self):
        assert self_information(torch.full((1, 4, 1, 1), 0.25)).sum().item() == pytest.approx(1.0)

    def test_published_discriminator(self):
        network = output_discriminator(19)
        assert sum(p.numel() for p in network.parameters()) == 2_781_121
        light = output_discriminator(19, light=True)
        assert sum(p.numel() for p in light.parameters()) == 191_364
        with torch.no_grad():
            assert network(torch.zeros(1, 19, 64, 128)).shape == (1, 1, 2, 4)

    @pytest.mark.parametrize("semantic", ["none", "feature-fc", "output-fc", "output-cnn"])
    @pytest.mark.parametrize("loss", ["bce", "ls"])
    def test_network_and_discriminators_learn_apart(self, semantic, loss):
        network, method = self.method(semantic=semantic, loss=loss, auxiliary_weight=1e-3)
        before = [p.clone() for p in method.discriminators.parameters()]
        losses = method.step(network, self.batch(), PRE)
        assert ("semantic" in losses.terms) == (semantic != "none")
        losses.total().backward()
        assert all(p.grad is None for p in method.discriminators.parameters())
        mine = [p.grad.clone() for p in network.parameters()]
        method.after_step(network)
        after = list(method.discriminators.parameters())
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(torch.equal(a, p.grad) for a, p in zip(mine, network.parameters(), strict=True))

    def test_the_adversary_pushes_target_towards_source(self):
        network, method = self.method(weight=1.0)
        terms = method.step(network, self.batch(labelled=False), PRE).terms
        name, ours, theirs = method._seen[0]
        verdict = method.discriminators[name](theirs)
        expected = functional.binary_cross_entropy_with_logits(verdict, torch.zeros_like(verdict))
        assert terms["adversarial"].item() == pytest.approx(expected.item(), rel=1e-5)
        assert not ours.requires_grad
        assert not theirs.requires_grad

    def test_discriminators_learn_to_tell_domains(self):
        network, method = self.method(steps=1000, discriminator_lr=1e-3)
        ours, theirs = torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64)
        ours[:, 0], theirs[:, 1] = 1, 1
        for _ in range(40):
            method._seen.append(("0", ours, theirs))
            method.after_step(network)
        with torch.no_grad():
            verdicts = [method.discriminators["0"](x).mean().item() for x in (ours, theirs)]
        assert verdicts[0] < 0 < verdicts[1]

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("polynomial", lambda done: (1 - done) ** 0.5),
            ("cosine", lambda done: 0.001 + 0.999 * (1 + math.cos(math.pi * done)) / 2),
            ("constant", lambda done: 1.0),
        ],
    )
    def test_discriminators_follow_their_schedule(self, schedule, expected):
        network, method = self.method(
            steps=10, discriminator_lr=0.02, discriminator_schedule=schedule, power=0.5,
            discriminator_betas=(0.9, 0.999),
        )  # fmt: skip
        rates = []
        for _ in range(4):
            method.step(network, self.batch(labelled=False), PRE)
            method.after_step(network)
            (group,) = method.optimizer.param_groups
            rates.append(group["lr"])
            assert group["betas"] == (0.9, 0.999)
        assert rates == pytest.approx([0.02 * expected(step / 10) for step in range(4)])

    def test_state_comes_back(self):
        network, method = self.method()
        method.step(network, self.batch(), PRE)
        method.after_step(network)
        _, again = self.method()
        again.load_state(copy.deepcopy(method.state()))
        for m in (method, again):
            m.step(network, self.batch(), PRE)
            m.after_step(network)
        pairs = zip(
            method.discriminators.parameters(), again.discriminators.parameters(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("operation", STRONG_POOL)
def test_colour_operations_stay_images(operation):
    x = torch.rand(1, 3, 32, 48)
    found = operation(x, torch.Generator().manual_seed(0)).clamp(0, 1)
    assert found.shape == x.shape
    assert not torch.equal(found, x)


def test_strong_pool_depends_on_each_images_generator_alone():
    images = torch.rand(4, 3, 32, 48)
    make = lambda: [torch.Generator().manual_seed(i) for i in range(4)]  # noqa: E731
    together = strong_pool(images, make())
    alone = torch.cat([strong_pool(images[i : i + 1], [make()[i]]) for i in range(4)])
    assert torch.equal(together, alone)
    assert (together != images).flatten(1).any(1).sum() >= 2
