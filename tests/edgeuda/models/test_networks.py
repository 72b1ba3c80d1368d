"""What every network owes the methods, and the weights they start from."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from edgeuda.errors import ConfigError, ModelError
from edgeuda.labels import SPACES
from edgeuda.methods.adabn import adapt_batch_norm
from edgeuda.models.checkpoint import ARCHITECTURES, build, load_model, save_model
from edgeuda.models.deeplab import DeepLabV2, MultiLevelDeepLabV2
from edgeuda.models.fcn import FCN8s
from edgeuda.models.network import upsample
from edgeuda.models.resnet import Bottleneck, ResNet, resnet18
from edgeuda.models.timm_library import timm
from edgeuda.spec import ModelSpec, Preprocessing

PRE = Preprocessing(64, 96)


@pytest.fixture(params=ARCHITECTURES)
def spec(request):
    return ModelSpec(request.param, 0.125, SPACES["camvid-11"], PRE)


@pytest.fixture
def network(spec):
    torch.manual_seed(0)
    return build(spec).eval()


def test_heads(network):
    x = torch.randn(2, 3, 64, 96)
    alone, full = network(x), network(x, aux=True)
    assert alone.auxiliary == ()
    assert len(full.heads()) == len(network.heads) == len(network.head_weights)
    assert torch.allclose(alone.main, full.main, atol=1e-5)
    assert all(head.shape == (2, 11, 64, 96) for head in full.heads())
    assert full.features.shape[:2] == (2, network.channels)


def test_batch_norm_of_deeplab_learns_scale_and_shift_when_told(network, spec, tmp_path):
    """IAST: in source training; its later stages, and files, keep them."""
    network.learn_affine()
    assert all(parameter.requires_grad for parameter in network.parameters())
    save_model(network, spec, tmp_path / "model.safetensors")
    again, _ = load_model(tmp_path)
    kept = [n for n, p in again.named_parameters() if not p.requires_grad]
    assert bool(kept) == isinstance(network, DeepLabV2)


def test_network_of_lse_is_that_of_adaptsegnet_without_its_auxiliary_head():
    spec = ModelSpec("deeplabv2-r101-single", 0.125, SPACES["camvid-11"], PRE)
    single = build(spec)
    multi = build(dataclasses.replace(spec, architecture="deeplabv2-r101-multi"))
    without = {k: v for k, v in multi.state_dict().items() if not k.startswith("aux.")}
    single.load_state_dict(without)
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(single.eval()(x).main, multi.eval()(x).main)
    assert single.heads == ("main",)
    assert [convolution.dilation for convolution in single.main] == [(6, 6), (12, 12)]


def test_low_resolution_logits_up_sample_to_the_full_ones(network):
    x = torch.randn(1, 3, 64, 96)
    low, full = network(x, aux=True, upsample=False), network(x, aux=True)
    for small, large in zip(low.heads(), full.heads(), strict=True):
        assert small.shape[2] in (4, 8)
        assert torch.allclose(upsample(small, (64, 96)), large, atol=1e-5)


def test_every_parameter_that_trains_gets_a_gradient(network):
    network.train()
    heads = network(torch.randn(2, 3, 64, 64), aux=True).heads()
    network.weigh([head.square().mean() for head in heads]).backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    fixed = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert all("bn" in name or "downsample.1" in name for name in fixed)
    assert bool(fixed) == isinstance(network, DeepLabV2)


def test_base_rate_prefixes_split_the_parameters(network):
    names = [name for name, _ in network.named_parameters()]
    base = [name for name in names if name.startswith(network.base_rate)]
    assert 0 < len(base) < len(names)
    assert not any(name.startswith("main") for name in base)


def test_stored_and_loaded(network, spec, tmp_path):
    save_model(network, spec, tmp_path / "model.safetensors")
    again, found = load_model(tmp_path)
    assert found == spec
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(network(x).main, again(x).main)


def test_loss_of_the_heads_is_weighed_by_the_network():
    network = MultiLevelDeepLabV2(3, 0.125)
    assert network.weigh([torch.tensor(2.0), torch.tensor(13.0)]).item() == pytest.approx(3.0)


def test_published_sizes():
    def count(network):
        return round(sum(p.numel() for p in network.parameters()) / 1e6, 2)

    with torch.device("meta"):
        # 42.50 M of the trunk, 9 * 2048 * 19 weights per branch.
        assert count(DeepLabV2(19)) == 43.90
        assert count(MultiLevelDeepLabV2(19)) == 43.55
        assert count(FCN8s(19)) == 134.35


def test_first_blocks_dilate_as_in_the_released_codes():
    """HIAST and IAST as torchvision, AdaptSegNet and LSE evenly."""

    def dilations(kind):
        trunk = kind(3, 0.125).resnet
        layers = (trunk.layer3, trunk.layer4)
        return [
            {block.conv2.dilation[0] for block in part} for x in layers for part in (x[:1], x[1:])
        ]

    assert dilations(DeepLabV2) == [{1}, {2}, {2}, {4}]
    assert dilations(MultiLevelDeepLabV2) == [{2}, {2}, {4}, {4}]


def test_dilated_trunk_equals_timms():
    torch.manual_seed(0)
    ours = ResNet(Bottleneck, (1, 1, 2, 2), dilations=(1, 1, 2, 4)).eval()
    kinds = timm().models.resnet
    theirs = kinds.ResNet(kinds.Bottleneck, [1, 1, 2, 2], output_stride=8).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(ours(x)[1], theirs.forward_features(x))
    even = ResNet(Bottleneck, (1, 1, 2, 2), dilations=(1, 1, 2, 4), first_dilates=True).eval()
    even.load_state_dict(ours.state_dict())
    assert not torch.allclose(even(x)[1], ours(x)[1], rtol=0.1)


def test_files_of_earlier_versions_keep_their_network():
    spec = ModelSpec("deeplabv2-r101", 0.125, SPACES["camvid-11"], PRE)
    record = json.loads(spec.to_json())
    assert ModelSpec.from_json(json.dumps(record), "new") == spec
    del record["encoder"]
    old = ModelSpec.from_json(json.dumps(record), "old")
    assert build(old).resnet.layer3[0].conv2.dilation == (2, 2)
    record["architecture"] = "bisenet-r18"
    assert ModelSpec.from_json(json.dumps(record), "old").architecture == "bisenet"


def test_deeplab_sums_its_branches():
    network = DeepLabV2(3, 0.125).eval()
    x = torch.randn(1, 3, 64, 64)
    _, features = network.resnet(x)
    expected = sum(
        functional.conv2d(features, c.weight, c.bias, padding=d, dilation=d)
        for c, d in zip(network.main, (6, 12, 18, 24), strict=True)
    )
    assert torch.allclose(network(x, upsample=False).main, expected, atol=1e-5)


def test_fcn_without_batch_norm_has_nothing_for_adabn():
    with pytest.raises(ModelError, match="no batch norm"):
        adapt_batch_norm(FCN8s(3, 0.125), [torch.rand(2, 3, 64, 64)], PRE)


def trunk_state():
    torch.manual_seed(1)
    state = resnet18().state_dict()
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in state.items()
    }


def bisenet(width=1.0):
    return build(ModelSpec("bisenet", width, SPACES["carla-3"], PRE))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pretrained_trunk_from_a_local_file(tmp_path, suffix):
    state = trunk_state()
    file = tmp_path / f"resnet{suffix}"
    with_classifier = {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    if suffix == ".pth":
        torch.save(with_classifier, file)
    else:
        save_file(with_classifier, file)
    model = bisenet()
    model.load_pretrained(str(file))
    trunk = model.context.trunk.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in trunk.items())


def test_pretrained_refusals(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(trunk_state(), checkpoints / "resnet18-f37072fd.pth")
    with pytest.raises(ModelError, match="SHA-256"):
        bisenet().load_pretrained("imagenet")
    with pytest.raises(ConfigError, match=r"width 1\.0"):
        bisenet(0.5).load_pretrained("imagenet")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="missing"):
        bisenet().load_pretrained(str(tmp_path / "other.pth"))


def test_vgg16_with_its_classifier_fills_fcn(tmp_path):
    network = FCN8s(3)
    state = {
        f"features.{key}": torch.rand_like(value)
        for key, value in network.features.state_dict().items()
    }
    state |= {
        "classifier.0.weight": torch.rand(4096, 512 * 49),
        "classifier.0.bias": torch.rand(4096),
        "classifier.3.weight": torch.zeros(4096, 4096),
        "classifier.3.bias": torch.rand(4096),
        "classifier.6.weight": torch.zeros(1000, 4096),
    }
    save_file(state, tmp_path / "vgg.safetensors")
    network.load_pretrained(str(tmp_path / "vgg.safetensors"))
    # A 7x7 map in the middle of fc6 is what the linear layer saw.
    x = torch.rand(1, 512, 7, 7)
    linear = x.flatten(1) @ state["classifier.0.weight"].T + state["classifier.0.bias"]
    assert torch.allclose(network.fc6(x)[0, :, 3, 3], linear[0], rtol=1e-4)
    assert torch.equal(network.fc7.bias, state["classifier.3.bias"])
