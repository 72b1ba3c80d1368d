import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import engines.onnx_export
from edgeuda.errors import DataError, ModelError, ParityError
from edgeuda.models.network import Logits
from edgeuda.spec import ModelSpec, Preprocessing
from engines.onnx_export import export_onnx
from tiny_models import SPEC, exported, random_frames, random_network, torch_logits


def run(model: bytes, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model).run(None, {"image": images})[0]


def signature(value: onnx.ValueInfoProto) -> tuple:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


class PerPixel(nn.Module):
    """The cheapest network there is: one 1x1 convolution, quick to export."""

    def __init__(self, classes: int = len(SPEC.label_space)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, classes, 1)

    def forward(self, x: torch.Tensor) -> Logits:
        return Logits(self.conv(x))


def test_graph_is_the_promised_one():
    labels, logits = (onnx.load_from_string(exported(head)) for head in ("labels", "logits"))
    for model in (labels, logits):
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        assert list(map(signature, model.graph.input)) == [
            ("image", onnx.TensorProto.UINT8, ["batch", 64, 128, 3])
        ]
        operators = Counter(node.op_type for node in model.graph.node)
        assert operators["Conv"] == 35
        # Folded norms, one multiply-add of normalisation, pools without shape arithmetic.
        assert not {"BatchNormalization", "Sub", "Div", "Shape", "Gather"} & set(operators)
    assert list(map(signature, labels.graph.output)) == [
        ("labels", onnx.TensorProto.UINT8, ["batch", 64, 128])
    ]
    assert list(map(signature, logits.graph.output)) == [
        ("logits", onnx.TensorProto.FLOAT, ["batch", 11, 64, 128])
    ]
    # TensorRT takes uint8 only when a Cast is the first and only consumer of the input.
    consumers = [node for node in labels.graph.node if "image" in node.input]
    assert [node.op_type for node in consumers] == ["Cast"]


@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_equal_torch(batch):
    images = np.stack(random_frames(batch, 64, 128, seed=5))
    reference = torch_logits(random_network(), images)
    assert len(np.unique(reference.argmax(1))) > 2  # else agreement would mean little
    np.testing.assert_allclose(run(exported("logits"), images), reference, atol=1e-4)
    assert np.mean(run(exported("labels"), images) == reference.argmax(1)) > 0.999


def test_preprocessing_of_the_spec_is_in_the_graph(tmp_path):
    pre = Preprocessing(32, 64, mean=(0.1, 0.5, 0.9), std=(0.05, 0.5, 1.5))
    spec = ModelSpec("per-pixel", 1.0, SPEC.label_space, pre)
    network, images = PerPixel(), np.stack(random_frames(2, 32, 64))
    export_onnx(network, spec, tmp_path / "m.onnx", head="logits", frames=list(images))
    result = run((tmp_path / "m.onnx").read_bytes(), images)
    np.testing.assert_allclose(result, torch_logits(network, images, spec), atol=1e-4)


def test_metadata_and_single_file(tmp_path):
    out = tmp_path / "new" / "model.onnx"
    frames = random_frames(3, 50, 70)
    record = export_onnx(PerPixel(), SPEC, out, head="logits", frames=frames)
    assert list(out.parent.iterdir()) == [out]
    entries = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert ModelSpec.from_json(entries["edgeuda.spec"], "test") == SPEC
    stored = json.loads(entries["edgeuda.export"])
    assert stored["schema"] == "edgeuda.export/1"
    assert (stored["head"], stored["opset"], stored["frames"]) == ("logits", 18, 3)
    assert stored["torch_version"] == torch.__version__
    assert stored["onnx_version"] == onnx.__version__
    assert stored["pixels_equal"] == record.pixels_equal > 0.999
    assert stored["logit_difference"] == record.logit_difference < 1e-4


def test_file_names_no_source_path():
    sources = str(Path(engines.onnx_export.__file__).parents[1]).encode()
    assert sources not in exported("labels")


def test_exporter_is_silent(tmp_path, capfd, recwarn):
    export_onnx(PerPixel(), SPEC, tmp_path / "m.onnx", frames=random_frames(1, 64, 128))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_callers_network_is_left_alone(tmp_path):
    network = random_network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_onnx(network, SPEC, tmp_path / "m.onnx", frames=random_frames(1, 64, 128))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_disagreement_leaves_no_file(tmp_path, monkeypatch):
    # What is exported differs from what is compared: the failure a wrong graph rewrite would cause.
    monkeypatch.setattr(
        engines.onnx_export._Deployed,
        "forward",
        lambda self, image: self.network(-image.float().permute(0, 3, 1, 2)).main.argmax(1).byte(),
    )
    with pytest.raises(ParityError, match="agree on"):
        export_onnx(PerPixel(), SPEC, tmp_path / "m.onnx", frames=random_frames(1, 64, 128))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", ["labels", "logits"])
def test_class_count_must_fit_the_label_space(tmp_path, head):
    frames = random_frames(1, 64, 128)
    with pytest.raises(ModelError, match=r"11.*found"):
        export_onnx(PerPixel(classes=7), SPEC, tmp_path / "m.onnx", head=head, frames=frames)
    assert not list(tmp_path.iterdir())


def test_output_size_must_be_the_input_size(tmp_path):
    network = nn.Sequential(nn.AvgPool2d(2), PerPixel())
    with pytest.raises(ModelError, match=r"expected outputs .*64, 128.*found .*32, 64"):
        export_onnx(network, SPEC, tmp_path / "m.onnx", frames=random_frames(1, 64, 128))


def test_unfolded_batch_norm_is_refused(tmp_path):
    network = nn.Sequential(nn.BatchNorm2d(3), PerPixel())
    with pytest.raises(ModelError, match="batch norms 0, found 1"):
        export_onnx(network, SPEC, tmp_path / "m.onnx", frames=random_frames(1, 64, 128))


def test_needs_a_frame(tmp_path):
    with pytest.raises(DataError, match="at least one frame"):
        export_onnx(PerPixel(), SPEC, tmp_path / "m.onnx", frames=[])


def test_untraceable_network_is_a_model_error(tmp_path):
    class Branching(PerPixel):
        def forward(self, x):
            return super().forward(x if x.sum().item() > 0 else -x)

    with pytest.raises(ModelError, match="cannot be exported"):
        export_onnx(Branching(), SPEC, tmp_path / "m.onnx", frames=random_frames(1, 64, 128))


def test_same_network_gives_the_same_file(tmp_path):
    for name in ("a.onnx", "b.onnx"):
        export_onnx(PerPixel(), SPEC, tmp_path / name, frames=random_frames(1, 64, 128))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
