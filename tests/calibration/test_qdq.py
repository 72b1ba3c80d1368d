import copy

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

from calibration.ort_kernels import space_to_depth, widen_constants
from calibration.placement import ORT_X86, POLICIES, TENSORRT
from calibration.qdq import activation_scale, insert_qdq
from calibration.ranges import collect
from calibration.rules import maximum
from edgeuda.records.calibration import Range
from engines.onnx.index import index
from engines.onnx.session import open_session
from tiny_models import SPEC, exported, random_frames

PAIR = ("QuantizeLinear", "DequantizeLinear")
SIZE = SPEC.preprocessing
FRAMES = [frame[None] for frame in random_frames(3, SIZE.height, SIZE.width, seed=5)]


@pytest.fixture(scope="module")
def model():
    return onnx.load_from_string(exported("logits"))


@pytest.fixture(scope="module", params=list(POLICIES))
def policy(request):
    return POLICIES[request.param]


def quantize(model, policy):
    placement = policy.place(index(model.graph), frozenset())
    histograms = collect(model, placement.measured(), FRAMES, threads=1)
    ranges = {name: maximum(histogram) for name, histogram in histograms.items()}
    return placement, insert_qdq(model, placement, policy, ranges)


@pytest.fixture(scope="module")
def built(model, policy):
    return quantize(model, policy)


@pytest.fixture(scope="module")
def ort(model):
    return quantize(model, ORT_X86)[1]


@pytest.fixture(scope="module")
def trt(model):
    return quantize(model, TENSORRT)[1]


def source(graph, name):
    """The operator that produces a tensor, or 'constant'."""
    return graph.producers[name].op_type if name in graph.producers else "constant"


def weights_of(model, policy, conv):
    """The weight of a convolution as its integer graph sees it."""
    constants = {t.name: to_array(t) for t in model.graph.initializer}
    name = f"{conv}_weight"
    scale = constants[f"{name}_scale"].reshape(-1, 1, 1, 1)
    if policy.integer_weights:
        return constants[f"{name}_quantized"] * scale
    return np.clip(np.rint(constants[name] / scale), -127, 127) * scale


@pytest.mark.parametrize("limits", [(-2.1, 2.6), (0.0, 6.0), (-5.0, -1.0), (0.5, 9.0), (0.0, 0.0)])
def test_activation_scales_represent_zero_and_the_range(limits):
    for unsigned, lowest, highest in ((True, 0, 255), (False, -127, 127)):
        scale, zero = activation_scale(Range(*limits), unsigned)
        assert zero.dtype == (np.uint8 if unsigned else np.int8)
        assert unsigned or zero == 0
        assert scale > 0
        values = np.array([*limits, 0.0])
        steps = np.clip(np.rint(values / scale) + zero, lowest, highest)
        # the zero point is a whole number, which shifts the range by half a step at most
        assert np.abs((steps - zero) * scale - values).max() <= scale * 1.001
        assert (steps[2] - zero) * scale == 0


def test_weights_are_within_half_a_step_per_output_channel(model, policy, built):
    placement, quantized = built
    model = copy.deepcopy(model)
    if policy.channels_last:
        assert space_to_depth(model, placement.convs)
    constants = {t.name: to_array(t) for t in model.graph.initializer}
    convs = [n for n in model.graph.node if n.output[0] in placement.convs]
    assert len(convs) == 30
    for conv in convs:
        weight = constants[conv.input[1]]
        found = weights_of(quantized, policy, conv.output[0])
        step = np.abs(weight).reshape(len(weight), -1).max(1) / 127
        assert (np.abs(found - weight) <= step.reshape(-1, 1, 1, 1) * 0.501).all()


def test_interface_opset_and_float_tail_stay(model, built):
    _, quantized = built
    assert quantized.graph.input == model.graph.input
    assert quantized.graph.output == model.graph.output
    assert quantized.opset_import == model.opset_import
    assert quantized.metadata_props == model.metadata_props
    graph = index(quantized.graph)
    classifier = graph.producers[graph.producers["logits"].input[0]]
    assert classifier.op_type == "Conv"
    assert classifier.input[1] == "network.main.classifier.weight"
    for node in graph.nodes:
        if node.op_type == "Sigmoid":
            conv = graph.producers[node.input[0]]
            assert source(graph, conv.input[1]) == "constant"
            assert source(graph, conv.input[0]) == "ReduceMean"
            assert all(n.op_type == "Mul" for n in graph.read_by(node.output[0]))


def test_onnxruntime_graph_lets_every_operator_fuse(ort):
    graph = index(ort.graph)
    constants = {t.name: to_array(t) for t in ort.graph.initializer}
    integer_convs = 0
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] in graph.producers:
            assert constants[node.input[2]].dtype == np.uint8
        if (
            node.op_type not in {"Conv", "MaxPool", "Concat"}
            or source(graph, node.input[-1]) != "DequantizeLinear"
        ):
            continue
        assert all(source(graph, name) == "DequantizeLinear" for name in node.input)
        readers = graph.read_by(graph.activated(node))
        assert [reader.op_type for reader in readers] == ["QuantizeLinear"]
        if node.op_type == "Conv":
            integer_convs += 1
            data, weight, bias = (graph.producers[name] for name in node.input)
            assert constants[weight.input[0]].dtype == np.int8
            assert constants[bias.input[0]].dtype == np.int32
            np.testing.assert_allclose(
                constants[bias.input[1]],
                constants[data.input[1]] * constants[weight.input[1]],
                rtol=1e-6,
            )
    assert integer_convs == 30


def test_onnxruntime_residual_sums_are_integer_and_gated_sums_float(ort):
    graph = index(ort.graph)
    sums = [n for n in graph.nodes if n.op_type == "Add" and len(graph.activations(n)) == 2]
    integer = 0
    for node in sums:
        inputs = [source(graph, name) for name in node.input]
        if "Mul" in inputs:
            assert graph.read_by(node.output[0])[0].op_type == "QuantizeLinear"
        else:
            assert inputs == ["DequantizeLinear"] * 2
            integer += 1
    assert integer == 8  # two per stage of the trunk


def test_moving_operators_keep_their_scale(ort):
    graph = index(ort.graph)
    constants = {t.name: to_array(t) for t in ort.graph.initializer}
    moved = [
        n
        for n in graph.nodes
        if n.op_type in {"MaxPool", "Resize"} and source(graph, n.input[0]) == "DequantizeLinear"
    ]
    assert len(moved) == 3
    for node in moved:
        before, after = graph.producers[node.input[0]], graph.read_by(node.output[0])[0]
        assert constants[before.input[1]] == constants[after.input[1]]
        assert constants[before.input[2]] == constants[after.input[2]]


def test_tensorrt_graph_is_symmetric_with_float_bias_and_both_inputs_quantized(model, trt):
    graph = index(trt.graph)
    constants = {t.name: to_array(t) for t in trt.graph.initializer}
    for node in graph.nodes:
        if node.op_type in PAIR:
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    convs = [n for n in graph.nodes if n.op_type == "Conv"]
    quantized = [n for n in convs if source(graph, n.input[0]) == "DequantizeLinear"]
    assert (len(quantized), len(convs)) == (30, 35)
    for conv in quantized:
        weight = graph.producers[conv.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert constants[weight.input[1]].ndim == 1
        assert next(a.i for a in weight.attribute if a.name == "axis") == 0
        assert constants[conv.input[2]].dtype == np.float32
        # the output goes on in float: to its ReLU, or to a sum that TensorRT fuses
        assert {n.op_type for n in graph.read_by(conv.output[0])} <= {
            "Relu",
            "Add",
            "QuantizeLinear",
        }
    for conv in convs:
        if conv not in quantized:
            assert source(graph, conv.input[1]) == "constant"


def test_tensorrt_residual_rule(trt):
    graph = index(trt.graph)
    one_sided = 0
    for node in graph.nodes:
        inputs = [source(graph, name) for _, name in graph.activations(node)]
        if node.op_type in {"Mul", "Sigmoid", "MaxPool", "ReduceMean", "Concat", "Resize"}:
            assert "DequantizeLinear" not in inputs
        if node.op_type == "Add" and "DequantizeLinear" in inputs:
            assert sorted(inputs) == ["Conv", "DequantizeLinear"]
            one_sided += 1
    assert one_sided == 8


def test_graph_computes_what_the_onnx_standard_says(model, built):
    """ONNX Runtime's integer kernels against the float definition of Q/DQ."""
    _, quantized = built
    feeds = {"image": FRAMES[0]}
    (fused,) = open_session(quantized.SerializeToString(), threads=1).run(None, feeds)
    (plain,) = open_session(quantized.SerializeToString(), threads=1, optimize=False).run(
        None, feeds
    )
    (float_logits,) = open_session(model.SerializeToString(), threads=1).run(None, feeds)
    spread = float_logits.std()
    assert np.sqrt(np.mean((fused - plain) ** 2)) < 0.05 * spread
    assert np.sqrt(np.mean((plain - float_logits) ** 2)) < 0.2 * spread


def conv_model(weight, bias):
    """image -> Cast -> Transpose -> Mul -> Conv -> Relu -> Conv (the classifier) -> logits."""
    ones = np.ones((2, len(weight), 1, 1), np.float32)
    tensors = {
        "scale": np.full((1, 3, 1, 1), 1 / 255, np.float32),
        "weight": weight,
        "bias": bias,
        "ones": ones,
    }
    nodes = [
        oh.make_node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
        oh.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        oh.make_node("Mul", ["planes", "scale"], ["x"]),
        oh.make_node("Conv", ["x", "weight", "bias"], ["y"], pads=[1, 1, 1, 1]),
        oh.make_node("Relu", ["y"], ["r"]),
        oh.make_node("Conv", ["r", "ones"], ["logits"]),
    ]
    image = oh.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", 8, 8, 3])
    logits = oh.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2, 8, 8])
    initializers = [from_array(value, name) for name, value in tensors.items()]
    graph = oh.make_graph(nodes, "g", [image], [logits], initializers)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=10)


def test_dead_channels_with_a_bias_survive():
    """Their scale comes from the bias: the weight's alone would overflow int32."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.2, (4, 3, 3, 3)).astype(np.float32)
    weight[1], weight[2] = 0.0, 1e-12
    bias = np.array([0.1, 2.0, 3.0, 0.0], np.float32)
    model = conv_model(weight, bias)
    image = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
    placement = ORT_X86.place(index(model.graph), frozenset())
    assert placement.convs == ("y",)
    histograms = collect(model, placement.measured(), [image], threads=1)
    quantized = insert_qdq(
        model, placement, ORT_X86, {k: maximum(v) for k, v in histograms.items()}
    )
    (expected,) = ReferenceEvaluator(model).run(None, {"image": image})
    for optimize in (False, True):
        session = open_session(quantized.SerializeToString(), threads=1, optimize=optimize)
        (found,) = session.run(None, {"image": image})
        assert np.abs(found - expected).max() < 0.02 * expected.max()


def test_widened_constants_change_no_bit(model):
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    widen_constants(widened)
    rows = [t for t in widened.graph.initializer if t.name.endswith("_row")]
    assert [tuple(t.dims) for t in rows] == [(1, 3, 1, SIZE.width)] * 2
    feeds = {"image": FRAMES[0]}
    (before,) = open_session(model.SerializeToString(), threads=1).run(None, feeds)
    (after,) = open_session(widened.SerializeToString(), threads=1).run(None, feeds)
    np.testing.assert_array_equal(before, after)
