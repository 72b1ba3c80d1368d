"""Models that look whole and are not: NaN, weights in other files, several networks in one file."""

import numpy as np
import onnx
import pytest
import torch

from edgeuda.errors import ModelError
from edgeuda.labels import SPACES
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.checkpoint import load_model, save_model
from edgeuda.models.foreign import import_checkpoint, networks_in, read_state
from edgeuda.spec import ModelSpec, Preprocessing
from engines.onnx.graphs import load_graph
from engines.onnx.metadata import read_spec
from engines.onnx_export import export_onnx
from foreign_models import CoinCheung, filled

SPEC = ModelSpec("bisenet", 0.125, SPACES["camvid-11"], Preprocessing(64, 96))
FRAME = np.full((64, 96, 3), 90, np.uint8)


def network():
    torch.manual_seed(0)
    return BiSeNet(11, 0.125).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m.onnx"
    export_onnx(network(), SPEC, path, frames=[FRAME])
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_diverged_is_refused_everywhere(value, tmp_path, exported):
    model = network()
    with torch.no_grad():
        model.main.classifier.weight[0, 0] = value
    with pytest.raises(ModelError, match=r"x\.onnx: weights must be finite.*main\.classifier"):
        export_onnx(model, SPEC, tmp_path / "x.onnx", frames=[FRAME])
    save_model(model, SPEC, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"x\.safetensors: weights must be finite.*main\.class"):
        load_model(tmp_path / "x.safetensors")
    proto = onnx.load(exported)
    tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, tmp_path / "nan.onnx")
    with pytest.raises(ModelError, match=r"nan\.onnx: weights must be finite"):
        load_graph(tmp_path / "nan.onnx")


def test_scores_that_are_not_finite_are_no_export(tmp_path):
    model = network()
    with torch.no_grad():
        model.main.classifier.weight.fill_(3e38)
    with pytest.raises(ModelError, match="scores of a frame are not finite"):
        export_onnx(model, SPEC, tmp_path / "x.onnx", frames=[FRAME])
    assert not (tmp_path / "x.onnx").exists()


def test_weights_in_other_files_are_refused(tmp_path, exported):
    onnx.save(
        onnx.load(exported), tmp_path / "x.onnx", save_as_external_data=True, location="x.data",
        size_threshold=0,
    )  # fmt: skip
    for opened in (load_graph, read_spec):
        with pytest.raises(ModelError, match=r"x\.onnx: keeps weights in files of their own"):
            opened(tmp_path / "x.onnx")


def wrapped(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: wrapped(s, "_orig_mod.module."),
        lambda s: {"state_dict": wrapped(s, "model.") | {"criterion.weight": torch.ones(19)}},
        lambda s: wrapped(s, "net."),
        lambda s: wrapped(s, "module.") | {"n_averaged": torch.tensor(3)},
        lambda s: {"model": {"state_dict": s}, "optimizer": {"state": {0: {"a": torch.ones(2)}}}},
    ],
)
def test_wrappers_of_training_codes_are_taken_off(wrap, tmp_path):
    state = filled(CoinCheung(19)).state_dict()
    torch.save(wrap(state), tmp_path / "a.pth")
    found = import_checkpoint(tmp_path / "a.pth", None, (64, 128))
    assert torch.equal(
        found.model.state_dict()["context.trunk.conv1.weight"], state["cp.resnet.conv1.weight"]
    )


def test_a_moving_average_beside_raw_weights_is_chosen(tmp_path):
    raw = filled(CoinCheung(19)).state_dict()
    average = {key: value * 0.5 for key, value in raw.items()}
    path = tmp_path / "a.pth"
    torch.save({"state_dict": wrapped(raw, "module."), "ema": average}, path)
    assert list(networks_in(read_state(path))) == ["state_dict.module.", "ema."]
    with pytest.raises(ModelError, match=r"2 networks, at state_dict\.module, ema.*`weights_key`"):
        import_checkpoint(path, None, (64, 128))
    with pytest.raises(ModelError, match=r"`weights_key` best: holds no network there, but at"):
        import_checkpoint(path, None, (64, 128), "best")
    for key, state in (("ema", average), ("state_dict.module", raw)):
        found = import_checkpoint(path, None, (64, 128), key)
        ours = found.model.state_dict()["context.trunk.conv1.weight"]
        assert torch.equal(ours, state["cp.resnet.conv1.weight"])
        assert found.left_out
