"""The first convolutions over blocks of pixels: the same products, and what stays as it is."""

import copy

import numpy as np
import onnx
import pytest

from calibration import ort_kernels, qdq
from calibration.options import Options
from calibration.quantize import calibrate
from engines.onnx.session import open_session
from engines.onnxruntime_runner import OnnxRunner
from tiny_models import WIDE_SUMS, exported, random_frames, write_frames

FRAMES = np.stack(random_frames(2, 64, 128, seed=7))


def run(model, images=FRAMES):
    session = open_session(model.SerializeToString(), threads=1)
    return session.run(None, {"image": images})[0]


@pytest.fixture
def model():
    return onnx.load_from_string(exported("logits"))


def test_floats_are_the_same_but_for_the_order_of_sums(model):
    changed = copy.deepcopy(model)
    assert ort_kernels.space_to_depth(changed, every_conv(changed))
    onnx.checker.check_model(changed, full_check=True)
    first = first_conv(changed.graph)
    (weight,) = [w for w in changed.graph.initializer if w.name == first.input[1]]
    assert list(weight.dims)[1:] == [12, 4, 4]
    expected, found = run(model), run(changed)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.9999
    assert run(changed, FRAMES[:1]).shape[0] == 1  # any batch


@pytest.mark.parametrize("pad", [2, 3])
def test_every_place_and_border_is_that_of_the_old_kernel(pad):
    """One hot pixel at a time in a kernel of distinct weights."""
    kernel = 2 * pad + 1
    weight = np.arange(2 * 3 * kernel * kernel, dtype=np.float32).reshape(2, 3, kernel, kernel)
    make, numpy_helper = onnx.helper.make_node, onnx.numpy_helper
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            make("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
            make("Transpose", ["float"], ["first"], perm=[0, 3, 1, 2]),
            make("Conv", ["first", "w"], ["y"], strides=[2, 2], pads=[pad] * 4),
        ],
        "g", [value("image", onnx.TensorProto.UINT8, ["n", 12, 10, 3])],
        [value("y", onnx.TensorProto.FLOAT, None)], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    changed = copy.deepcopy(model)
    assert ort_kernels.space_to_depth(changed, every_conv(changed))
    images = np.zeros((12 * 10 * 3, 12, 10, 3), np.uint8)
    images.reshape(len(images), -1)[np.diag_indices(len(images))] = 1
    np.testing.assert_array_equal(run(changed, images), run(model, images))


def test_integers_are_the_same(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(exported("labels"))
    frames = write_frames(tmp_path / "frames", random_frames(3, 64, 128))
    labels = []
    for number, change in enumerate((ort_kernels.space_to_depth, lambda *_: False)):
        monkeypatch.setattr(qdq, "space_to_depth", change)
        out = tmp_path / f"{number}.onnx"
        calibrate(tmp_path / "model.onnx", frames, out, Options("ort-x86"))
        has = any(node.op_type == "Slice" for node in onnx.load(out).graph.node)
        assert has is (number == 0)
        with OnnxRunner(out, 1) as runner:
            labels.append(runner(FRAMES))
    # Without VNNI sums of 16 bits saturate, and which do depends on the order of the products.
    assert np.mean(labels[0] == labels[1]) > (0.9999 if WIDE_SUMS else 0.95)


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 65),
        lambda g: first_conv(g).attribute.append(onnx.helper.make_attribute("group", 3)),
        lambda g: attribute(first_conv(g), "strides").ints.__setitem__(0, 1),
        lambda g: attribute(first_conv(g), "pads").ints.__setitem__(0, 2),
        lambda g: g.node.append(onnx.helper.make_node("Neg", [first_conv(g).input[0]], ["n"])),
    ],
    ids=["odd rows", "groups", "stride 1", "other padding", "another reader"],
)
def test_what_does_not_fit_stays_as_it_is(model, change):
    change(model.graph)
    before = model.SerializeToString()
    assert not ort_kernels.space_to_depth(model, every_conv(model))
    assert model.SerializeToString() == before


def test_a_first_convolution_that_stays_float_reads_pixels(model):
    rest = every_conv(model) - {first_conv(model.graph).output[0]}
    assert not ort_kernels.space_to_depth(model, rest)


def every_conv(model):
    return {node.output[0] for node in model.graph.node if node.op_type == "Conv"}


def first_conv(graph):
    return next(node for node in graph.node if node.op_type == "Conv")


def attribute(node, name):
    (found,) = [one for one in node.attribute if one.name == name]
    return found
