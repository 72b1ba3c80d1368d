"""Losses against published vectors, derived gradients and finite differences."""

import math

import pytest
import torch

from edgeuda.methods.losses import (
    class_weights,
    cross_entropy_map,
    masked_mean,
    ohem,
    unsupervised_focal,
)

WEAK, STRONG = (2.0, 0.5, -1.0), (1.0, 1.0, -0.5)
GRAD_WEAK = [-0.298742, 0.196277, 0.102464]
VECTORS = [
    ("one-minus-q", 1, None, 0.471829, [-0.396978, 0.324559, 0.072419], GRAD_WEAK),
    ("one-minus-q", 2, None, 0.259593, [-0.335180, 0.274034, 0.061145], GRAD_WEAK),
    ("difference", 1, None, 0.287961, [-0.324985, 0.265700, 0.059286], GRAD_WEAK),
    ("difference", 2, None, 0.096692, [-0.180389, 0.147481, 0.032908], GRAD_WEAK),
    (
        "one-minus-q", 2, (2, 5, 10), 0.864103, [-0.866450, 0.756786, 0.109664],
        [-1.454681, 0.591122, 0.863559],
    ),
    (
        "difference", 2, (2, 5, 10), 0.321856, [-0.507615, 0.433040, 0.074575],
        [-1.454681, 0.591122, 0.863559],
    ),
]  # fmt: skip


def pixel(values, requires_grad=True):
    return torch.tensor(values).view(1, -1, 1, 1).requires_grad_(requires_grad)


@pytest.mark.parametrize(("modulator", "gamma", "weights", "value", "strong", "weak"), VECTORS)
def test_published_vectors(modulator, gamma, weights, value, strong, weak):
    z_w, z_s = pixel(WEAK), pixel(STRONG)
    w = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    loss = unsupervised_focal(z_w, z_s, modulator=modulator, gamma=gamma, weights=w).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(value, abs=2e-6)
    assert z_s.grad.flatten().tolist() == pytest.approx(strong, abs=2e-6)
    assert z_w.grad.flatten().tolist() == pytest.approx(weak, abs=2e-6)


def test_neutral_cross_entropy_is_the_unmodulated_case():
    z_w, z_s = pixel(WEAK), pixel(STRONG)
    neutral = unsupervised_focal(z_w, z_s, modulator="none").loss
    assert neutral.item() == pytest.approx(0.857585, abs=2e-6)
    for modulator in ("one-minus-q", "difference"):
        flat = unsupervised_focal(z_w, z_s, modulator=modulator, gamma=0.0).loss
        assert torch.allclose(flat, neutral)


@pytest.mark.parametrize("modulator", ["one-minus-q", "difference"])
def test_gradients_match_the_derivation(modulator):
    """Equations (5) to (7), written out, and central differences through the strong view."""
    torch.manual_seed(0)
    gamma, w = 2.0, torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    z_w = torch.randn(1, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    z_s = torch.randn(1, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    p, q = z_w.detach().softmax(1), z_s.detach().softmax(1)
    k = p.argmax(1, keepdim=True)
    e = torch.zeros_like(p).scatter_(1, k, 1.0)
    q_k = q.gather(1, k)
    delta = (1 if modulator == "one-minus-q" else p.gather(1, k)) - q_k
    wc = w.view(1, -1, 1, 1)
    cross = -(wc * p * q.log()).sum(1, keepdim=True)
    total = (wc * p).sum(1, keepdim=True)
    expected_strong = (
        delta.abs() ** gamma * (q * total - wc * p)
        - gamma * delta.sign() * (delta.abs() ** (gamma - 1)) * q_k * (e - q) * cross
    )
    inner = (wc * p * (p.log() + 1)).sum(1, keepdim=True)
    expected_weak = -wc * p * (p.log() + 1) + p * inner
    unsupervised_focal(z_w, z_s, modulator=modulator, gamma=gamma, weights=w).loss.sum().backward()
    assert torch.allclose(z_s.grad.double(), expected_strong, atol=1e-5)
    assert torch.allclose(z_w.grad.double(), expected_weak, atol=1e-5)

    step = 1e-2
    for c in range(4):
        shift = torch.zeros_like(z_s)
        shift[:, c] = step
        up, down = (
            unsupervised_focal(
                z_w.detach(), z_s.detach() + sign * shift, modulator=modulator, weights=w
            ).loss
            for sign in (1, -1)
        )
        assert torch.allclose((up - down).double() / (2 * step), expected_strong[:, c], atol=2e-3)


def test_agreeing_views_give_no_gradient_under_the_difference_modulator():
    z_w = torch.randn(2, 5, 4, 4)
    z_s = z_w.clone().requires_grad_()
    unsupervised_focal(z_w, z_s, modulator="difference", gamma=2.0).loss.sum().backward()
    assert z_s.grad.abs().max() < 1e-7


def test_empty_mask_gives_zero_with_zero_gradient():
    values = torch.tensor([[1.0, float("inf")]], requires_grad=True)
    loss = masked_mean(values, torch.zeros(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert values.grad.abs().sum() == 0


def test_masked_mean_averages_selected_pixels_only():
    values = torch.tensor([1.0, 2.0, 30.0])
    assert masked_mean(values, torch.tensor([True, True, False])).item() == 1.5


def test_hard_mining_averages_the_largest_of_the_selected():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0])
    mask = torch.tensor([True, True, True, True, False])
    assert masked_mean(values, mask, 0.5).item() == 3.5
    assert masked_mean(values, mask, 0.01).item() == 4  # at least one pixel
    assert masked_mean(values, ~mask & False, 0.5).item() == 0


def test_the_focal_loss_returns_the_weak_view_s_prediction():
    weak = torch.randn(2, 5, 3, 4)
    found = unsupervised_focal(weak, torch.randn(2, 5, 3, 4), modulator="none")
    assert torch.equal(found.winner, weak.argmax(1))
    assert torch.allclose(found.confidence, weak.softmax(1).max(1).values)


def test_ignored_pixels_count_as_zero_in_the_map():
    logits = torch.randn(1, 3, 1, 2)
    labels = torch.tensor([[[1, 255]]])
    loss = cross_entropy_map(logits, labels, torch.tensor([1.0, 2.0, 1.0]))
    expected = -2 * logits.log_softmax(1)[0, 1, 0, 0]
    assert loss[0, 0, 0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss[0, 0, 1] == 0


def test_ohem_keeps_hard_pixels_or_the_hardest_sixteenth():
    easy = torch.full((1, 8, 8), 0.01)
    easy[0, 0, :4] = torch.tensor([0.1, 0.2, 0.3, 0.02])  # none above -ln(0.7) = 0.357
    valid = torch.ones_like(easy, dtype=torch.bool)
    assert ohem(easy, valid).item() == pytest.approx((0.1 + 0.2 + 0.3 + 0.02) / 4)
    hard = easy.clone()
    hard[0, 4] = 2.0
    assert ohem(hard, valid).item() == pytest.approx(2.0)
    assert ohem(hard, ~valid).item() == 0


def test_ohem_is_hard_by_probability_and_weighs_only_the_loss():
    """A rare class's pixel at 0.9 is not hard, though its weighted loss is that of one at 0.12."""
    torch.manual_seed(0)
    probability = torch.rand(2, 8, 8)
    probability[0, 0] = 0.9
    factors = torch.ones(2, 8, 8)
    factors[0, 0] = 20.0
    factors[1, 4:] = 0.05
    valid = torch.rand(2, 8, 8) > 0.1
    hard = [
        (-math.log(probability[n, y, x]), factors[n, y, x].item())
        for n in range(2)
        for y in range(8)
        for x in range(8)
        if valid[n, y, x] and probability[n, y, x] < 0.7
    ]
    assert len(hard) > 8
    expected = sum(loss * factor for loss, factor in hard) / len(hard)
    found = ohem(-probability.log(), valid, weights=factors)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_hardest_sixteenth_is_that_of_least_probability():
    loss = torch.full((1, 4, 16), 0.01)
    loss[0, 0, :4] = torch.tensor([0.30, 0.31, 0.32, 0.33])  # all surer than 0.7
    factors = torch.ones(1, 4, 16)
    factors[0, 1] = 1000.0
    factors[0, 0, 0] = 7.0
    found = ohem(loss, torch.ones_like(loss, dtype=torch.bool), weights=factors)
    assert found.item() == pytest.approx((7 * 0.30 + 0.31 + 0.32 + 0.33) / 4)


def test_class_weights_follow_the_published_formula():
    frequencies = torch.tensor([0.36, 0.64, 0.0])
    raw = class_weights(frequencies, "raw")
    assert raw.tolist() == pytest.approx([1 / math.log(1.1 + f) for f in (0.36, 0.64, 0.0)])
    assert class_weights(frequencies, "normalised").mean().item() == pytest.approx(1)
    assert class_weights(frequencies, "none").tolist() == [1, 1, 1]
