"""How two domains share the batch norm of one network."""

import copy

import pytest
import torch
from torch import nn

from edgeuda.methods.batchnorm import FROZEN, forward
from edgeuda.models.bisenet import BiSeNet

MODES = ("frozen", "joint", "domain", "split")


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = BiSeNet(3, 0.125)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return model


def images(seed, brightness):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(4, 3, 64, 64, generator=generator) + brightness


def passed(model, mode):
    """Outputs of both domains, and the network after them, in the mode the trainer sets."""
    model = copy.deepcopy(model).train(mode not in FROZEN)
    source, target = forward(model, images(0, 0.0), [images(1, 2.0)], mode)
    return source.main, target.main, model


def alone(model, x, training):
    return copy.deepcopy(model).train(training)(x, aux=True, upsample=False).main


def statistics(model):
    return {k: v for k, v in model.state_dict().items() if k.endswith(("running_mean", "var"))}


@pytest.mark.parametrize(
    ("mode", "source_by_batch", "target_by_batch"),
    [("frozen", False, False), ("domain", True, True), ("split", True, False)],
)
def test_whose_statistics_normalise(mode, source_by_batch, target_by_batch, network):
    source, target, _ = passed(network, mode)
    assert torch.allclose(source, alone(network, images(0, 0.0), source_by_batch), atol=5e-3)
    assert torch.allclose(target, alone(network, images(1, 2.0), target_by_batch), atol=5e-3)
    assert not torch.allclose(
        alone(network, images(0, 0.0), True), alone(network, images(0, 0.0), False), atol=0.1
    )


@pytest.mark.parametrize("mode", MODES)
def test_which_running_statistics_move(mode, network):
    before = statistics(network)
    after = statistics(passed(network, mode)[2])
    same = all(torch.equal(before[key], after[key]) for key in before)
    assert same == (mode in FROZEN)
    if mode == "domain":  # the target's alone
        other = copy.deepcopy(network).train()
        other(images(1, 2.0), aux=True)
        theirs = statistics(other)
        assert all(torch.allclose(theirs[key], after[key], atol=1e-5) for key in after)


@pytest.mark.parametrize("mode", MODES)
def test_modes_and_momenta_are_put_back(mode, network):
    norms = [m for m in passed(network, mode)[2].modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert {norm.training for norm in norms} == {mode not in FROZEN}
