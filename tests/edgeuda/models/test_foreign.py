"""Checkpoints of other projects: the same logits after conversion, and what is refused."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeuda.errors import ModelError
from edgeuda.labels import SPACES
from edgeuda.models.checkpoint import load_model, save_model
from edgeuda.models.foreign import ORIGINS, import_checkpoint, read_state, recognise
from foreign_models import AdaptSegNet, CoinCheung, MMSeg, filled

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CITY = ((0.3257, 0.3690, 0.3223), (0.2112, 0.2148, 0.2115))
SIZE = (64, 96)


def frame():
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def normalised(image, spec):
    pre = spec.preprocessing
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (pre.mean, pre.std))
    return (image - mean) / std


def theirs(image, mean, std):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    return (image - mean) / std


def caffe(image):
    """BGR, 0 to 255, less the mean of the Caffe weights."""
    mean = torch.tensor((104.00698793, 116.66876762, 122.67891434)).view(1, 3, 1, 1)
    return 255 * image.flip(1) - mean


@torch.no_grad()
def assert_same(foreign, prepared, path, architecture, heads, space=None):
    found = import_checkpoint(path, space, SIZE)
    assert found.spec.architecture == architecture
    ours = found.model(normalised(frame(), found.spec), aux=True).heads()
    expected = foreign(prepared)
    assert len(expected) == heads
    for a, b in zip(ours[:heads], expected, strict=True):
        scale = b.abs().max()
        assert (a - b).abs().max() < 1e-4 * scale
        assert scale > 0.1
    return found


@pytest.mark.parametrize("old", [False, True])
def test_coincheung(old, tmp_path):
    foreign = filled(CoinCheung(19, old))
    state = foreign.state_dict() | {"cp.resnet.fc.weight": torch.zeros(1000, 512)}
    torch.save(state, tmp_path / "model_final_v1_city.pth")
    found = assert_same(
        foreign, theirs(frame(), *CITY), tmp_path / "model_final_v1_city.pth",
        "bisenet-paper-gate" if old else "bisenet", 3,
    )  # fmt: skip
    assert found.spec.preprocessing.mean == CITY[0]
    assert found.left_out == ("cp.resnet.fc.weight",)
    assert len(found.matched) == len(foreign.state_dict())
    biases = tuple(f"{head}.classifier.bias" for head in ("aux16", "aux8", "main"))
    assert found.new == (biases if old else ())


def test_mmsegmentation_with_its_wrapping(tmp_path):
    foreign = filled(MMSeg(11))
    state = {f"module.{key}": value for key, value in foreign.state_dict().items()}
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "mmseg.pth")
    found = assert_same(
        foreign, theirs(frame(), *IMAGENET), tmp_path / "mmseg.pth", "bisenet-relu-gate", 3,
        SPACES["camvid-11"],
    )  # fmt: skip
    assert found.spec.label_space == SPACES["camvid-11"]


@pytest.mark.parametrize("levels", [1, 2])
def test_adaptsegnet(levels, tmp_path):
    foreign = filled(AdaptSegNet(19, levels))
    save_file(foreign.state_dict(), tmp_path / "gta5.safetensors")
    found = assert_same(
        foreign, caffe(frame()), tmp_path / "gta5.safetensors", "deeplabv2-r101-multi-caffe", levels
    )
    assert len(found.left_out) == 4 * levels  # weight and bias of two dilations
    assert all("conv2d_list" in key for key in found.left_out)
    assert {key.split(".")[0] for key in found.new} == ({"aux"} if levels == 1 else set())


def test_a_converted_network_is_one_of_ours(tmp_path):
    torch.save(filled(CoinCheung(19)).state_dict(), tmp_path / "a.pth")
    found = import_checkpoint(tmp_path / "a.pth", None, SIZE)
    save_model(found.model, found.spec, tmp_path / "ours.safetensors")
    model, spec = load_model(tmp_path / "ours.safetensors")
    assert spec == found.spec
    with torch.no_grad():
        assert torch.equal(model(frame()).main, found.model(frame()).main)


def test_a_stripped_checkpoint_keeps_new_auxiliary_heads(tmp_path):
    state = filled(CoinCheung(19)).state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(("conv_out16", "conv_out32"))}
    torch.save(state, tmp_path / "a.pth")
    found = import_checkpoint(tmp_path / "a.pth", None, SIZE)
    assert {key.split(".")[0] for key in found.new} == {"aux8", "aux16"}


class Trap:
    """What a pickle could do: run something."""

    ran = False

    def __reduce__(self):
        return setattr, (Trap, "ran", True)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ModelError, match=r"trap\.pth: needs more than tensors.*state_dict\(\)"):
        read_state(tmp_path / "trap.pth")
    with (tmp_path / "raw.pth").open("wb") as file:
        pickle.dump(Trap(), file)
    with pytest.raises(ModelError, match=r"raw\.pth"):
        read_state(tmp_path / "raw.pth")
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "module.pth")
    with pytest.raises(ModelError, match=r"module\.pth: needs more than tensors"):
        read_state(tmp_path / "module.pth")
    assert not Trap.ran


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"<html>not found</html>", "needs more than tensors|cannot be read"),
    ],
)
def test_files_that_are_none(content, message, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_state(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.zeros(1)}, r"not recognised by its keys \(a"),
        (
            dict.fromkeys(("conv1.weight", "layer1.0.conv1.weight", "fc.weight"), torch.zeros(1)),
            "a trunk, no segmentation network",
        ),
        (
            dict.fromkeys(("features.0.weight", "classifier.0.weight"), torch.zeros(1)),
            "fcn8s-vgg16",
        ),
    ],
)
def test_other_networks_are_named(state, message, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=message):
        import_checkpoint(tmp_path / "a.pth", None, SIZE)


def test_what_does_not_fit_is_said(tmp_path):
    state = filled(CoinCheung(19)).state_dict()
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"has 19 classes, label space 'camvid-11' has 11"):
        import_checkpoint(tmp_path / "a.pth", SPACES["camvid-11"], SIZE)
    lost = {key: value for key, value in state.items() if "layer3.1" not in key}
    torch.save(lost, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"10 are missing .*layer3\.1"):
        import_checkpoint(tmp_path / "a.pth", None, SIZE)
    torch.save(state | {"neck.weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"1 tensors have no place.*neck\.weight"):
        import_checkpoint(tmp_path / "a.pth", None, SIZE)


def test_no_two_origins_claim_the_same_keys():
    for model, index in (
        (CoinCheung(2), 0), (CoinCheung(2, old=True), 1), (MMSeg(2), 2),
        (AdaptSegNet(2, 2, (1, 1, 1, 1)), 3), (AdaptSegNet(2, 1, (1, 1, 1, 1)), 4),
    ):  # fmt: skip
        assert recognise(model.state_dict()) is ORIGINS[index]
    assert recognise({}) is None
    assert np.isclose(ORIGINS[3].mean[0] * 255, 122.67891434)
