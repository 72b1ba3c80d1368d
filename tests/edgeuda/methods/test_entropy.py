"""MinEnt and MaxSquare against limits, slow loops and finite differences."""

import math

import pytest
import torch

from edgeuda.methods.base import Batch
from edgeuda.methods.entropy import (
    EntropyMinimisation,
    EntropySettings,
    entropy_map,
    image_wise_weights,
    max_square_map,
)
from edgeuda.models.bisenet import BiSeNet
from edgeuda.spec import Preprocessing


def test_limits():
    flat, sharp = torch.zeros(1, 4, 1, 1), torch.tensor([50.0, 0, 0, 0]).view(1, 4, 1, 1)
    assert entropy_map(flat).item() == pytest.approx(1)
    assert entropy_map(sharp).item() == pytest.approx(0, abs=1e-6)
    assert max_square_map(flat).item() == pytest.approx(-1 / 8)
    assert max_square_map(sharp).item() == pytest.approx(-0.5)


@pytest.mark.parametrize("loss", [entropy_map, max_square_map])
def test_gradients_by_finite_differences(loss):
    z = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x).sum(), (z,))


def test_gradient_of_maximum_squares_grows_linearly_where_that_of_entropy_blows_up():
    """Two classes, with respect to p: 1 - 2p against log(p / (1 - p)), the paper's argument."""
    p = torch.tensor([0.6, 0.8, 0.99], dtype=torch.float64, requires_grad=True)
    logits = torch.stack([p.log(), (1 - p).log()], 1)[:, :, None, None]
    (square,) = torch.autograd.grad(max_square_map(logits).sum(), p, retain_graph=True)
    assert square.tolist() == pytest.approx((1 - 2 * p).tolist())
    (entropy,) = torch.autograd.grad(entropy_map(logits).sum(), p)
    assert entropy.tolist() == pytest.approx((((1 - p) / p).log() / math.log(2)).tolist())


def test_image_wise_weights_against_a_loop():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5)
    logits[1, 0] += 100  # one class everywhere: the others' counts are zero
    weights = image_wise_weights(logits, ratio=0.2)
    for n in range(2):
        winner = logits[n].argmax(0)
        for row in range(4):
            for column in range(5):
                count = int((winner == winner[row, column]).sum())
                expected = 20 / (count**0.2 * 20**0.8 * 3)
                assert weights[n, row, column].item() == pytest.approx(expected, rel=1e-5)
    assert weights[1].unique().numel() == 1


def test_image_wise_loss_is_the_published_sum_over_pixels_per_image_and_class():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    p, winner, total = logits.softmax(1), logits.argmax(1), 0.0
    for n in range(2):
        for k in range(3):
            pixels = winner[n] == k
            factor = max(1, int(pixels.sum())) ** 0.2 * 20**0.8
            total -= 0.5 * float(p[n, :, pixels].square().sum()) / factor
    loss = (max_square_map(logits) * image_wise_weights(logits, ratio=0.2)).mean()
    assert loss.item() == pytest.approx(total / (2 * 3), rel=1e-6)


@pytest.mark.parametrize("loss", ["min-entropy", "max-square"])
def test_steps_make_predictions_sharper(loss):
    torch.manual_seed(0)
    model = BiSeNet(3, 0.125).eval()
    settings = EntropySettings(
        steps=4, batch=2, lr=1e-3, loss=loss, image_wise=loss == "max-square",
        weight=1, auxiliary_weight=1,
    )  # fmt: skip
    method = EntropyMinimisation(settings, torch.zeros(3))  # no supervision
    generators = [torch.Generator().manual_seed(place) for place in range(2)]
    batch = Batch(
        0, torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64).long(), torch.rand(2, 3, 64, 64),
        None, None, generators, (),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(4):
        losses = method.step(model, batch, Preprocessing(64, 64))
        seen.append((losses.terms["target"].item(), losses.figures["confidence"].item()))
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
    assert seen[-1][0] < seen[0][0]
    assert seen[-1][1] > seen[0][1]
