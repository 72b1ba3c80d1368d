"""BiSeNet V1: structure, sizes, gradients, AdaBN."""

import pytest
import torch

from edgeuda.methods.adabn import adapt_batch_norm
from edgeuda.models.bisenet import BiSeNet
from edgeuda.spec import Preprocessing


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_are_the_published_ones():
    model = BiSeNet(19)
    assert parameters(model.context.trunk) == 11_176_512
    aux = parameters(model.aux8) + parameters(model.aux16)
    assert round((parameters(model) - aux) / 1e6, 2) == 13.28
    assert round(parameters(model) / 1e6, 2) == 13.43


@pytest.mark.parametrize("width", [0.125, 0.5])
def test_heads_have_input_resolution(width):
    model = BiSeNet(11, width)
    x = torch.randn(2, 3, 64, 96)
    assert len(model(x).heads()) == 1
    for head in model(x, aux=True).heads():
        assert head.shape == (2, 11, 64, 96)


def test_every_parameter_gets_a_gradient_with_auxiliary_heads():
    model = BiSeNet(3, 0.125).train()
    heads = model(torch.randn(2, 3, 64, 64), aux=True).heads()
    torch.stack([head.square().mean() for head in heads]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_upsampling_is_bilinear_without_aligned_corners():
    """A head on a ramp continues the ramp at half-pixel positions."""
    head = BiSeNet(1, 0.125).main.eval()
    ramp = torch.arange(4.0).view(1, 1, 1, 4)
    head.conv = torch.nn.Identity()
    head.classifier = torch.nn.Identity()
    out = head(ramp)[0, 0, 0]
    expected = ((torch.arange(32) + 0.5) / 8 - 0.5).clamp(0, 3)
    assert torch.allclose(out, expected, atol=1e-5)


def test_adabn_sets_statistics_to_those_of_the_target_and_nothing_else():
    torch.manual_seed(0)
    model = BiSeNet(3, 0.125)
    weights = [p.clone() for p in model.parameters()]
    pre = Preprocessing(64, 64)
    images = [torch.rand(4, 3, 64, 64) * 0.3 for _ in range(3)]
    assert adapt_batch_norm(model, images, pre) == []
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    first = model.spatial[0]
    mean, std = torch.tensor(pre.mean).view(1, 3, 1, 1), torch.tensor(pre.std).view(1, 3, 1, 1)
    features = torch.stack([first[0]((x - mean) / std).mean((0, 2, 3)) for x in images])
    assert torch.allclose(first[1].running_mean, features.mean(0), atol=1e-4)
    assert first[1].momentum == 0.1
    with pytest.raises(ValueError, match="at least one batch"):
        adapt_batch_norm(model, [], pre)
