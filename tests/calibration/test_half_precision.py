"""The typed FP16 graph."""

import copy
import json

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array

from calibration.half_precision import to_half, write_half
from calibration.observe import Observer
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.accuracy.evaluation import agreement
from edgeuda.errors import DataError, ModelError, OutputExistsError, ParityError
from engines.onnx.index import index
from engines.onnx.metadata import HALF_KEY, precision_of, read_metadata, read_spec
from engines.onnx.weights import constants_of, with_constants
from engines.onnxruntime_runner import OnnxRunner
from tiny_models import SPEC, exported, random_frames, write_frames

SIZE = SPEC.preprocessing
FRAMES = [frame[None] for frame in random_frames(3, SIZE.height, SIZE.width, seed=8)]
HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


@pytest.fixture(scope="module", params=["labels", "logits"])
def model(request):
    return onnx.load_from_string(exported(request.param))


@pytest.fixture
def files(tmp_path):
    (tmp_path / "model.onnx").write_bytes(exported("labels"))
    frames = write_frames(tmp_path, [frame[0] for frame in FRAMES])
    return tmp_path / "model.onnx", frames, tmp_path / "half.onnx"


def kinds(model):
    """Element type of every tensor, by name."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.value_info, *graph.output, *graph.input)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_convolutions_are_half_and_gates_and_normalisation_single(model):
    half = to_half(model)
    found, graph = kinds(half), index(half.graph)
    pooled = index(model.graph).pooled()
    for node in graph.nodes:
        if node.op_type == "Conv":
            expected = SINGLE if node.output[0] in pooled else HALF
            assert found[node.output[0]] == expected, node.name
        if node.op_type in {"ReduceMean", "Sigmoid"}:
            assert found[node.output[0]] == SINGLE
    assert graph.nodes[0].op_type == "Cast"  # uint8 first meets a cast, as TensorRT demands
    assert {t.data_type for t in half.graph.initializer} >= {HALF, SINGLE}
    signature = [
        [(v.name, v.type.tensor_type.elem_type) for v in (*m.graph.input, *m.graph.output)]
        for m in (half, model)
    ]
    assert signature[0] == signature[1]
    assert len(half.SerializeToString()) < 0.7 * len(model.SerializeToString())


def test_it_is_the_same_network(model):
    one, two = Observer(model, threads=1), Observer(to_half(model), threads=1)
    for frame in FRAMES:
        assert agreement(one(frame).labels, two(frame).labels) > 0.99
        np.testing.assert_allclose(
            one(frame).log_probabilities, two(frame).log_probabilities, atol=0.05
        )


def test_one_cast_serves_all_readers(model):
    casts = [n for n in to_half(model).graph.node if n.op_type == "Cast"]
    assert len({(n.input[0], n.output[0]) for n in casts}) == len({n.input[0] for n in casts})


def test_the_file_says_what_it_is_and_runs(files):
    model, frames, out = files
    found = write_half(model, frames, out, threads=1)
    assert 0.99 < found <= 1
    assert precision_of(read_metadata(out)) == "fp16"
    assert read_spec(out) == read_spec(model)
    with OnnxRunner(model, 1) as fp32, OnnxRunner(out, 1) as fp16:
        assert fp16.precision == "fp16"
        assert agreement(fp32(FRAMES[0])[0], fp16(FRAMES[0])[0]) > 0.99
    with pytest.raises(OutputExistsError):
        write_half(model, frames, out)
    with pytest.raises(ModelError, match="half precision already"):
        write_half(out, frames, out.with_name("b.onnx"))
    with pytest.raises(ModelError, match="expected an FP32 model"):
        calibrate(out, frames, out.with_name("c.onnx"), Options("tensorrt"))


def test_the_rest_of_a_tensorrt_graph_becomes_half(files, tmp_path):
    model, frames, out = files
    int8 = tmp_path / "int8.onnx"
    calibrate(model, frames, int8, Options("tensorrt", threads=1))
    found = write_half(int8, frames, out, threads=1, least_agreement=0.9)
    assert 0.9 < found <= 1
    half = onnx.load(out)
    assert precision_of(read_metadata(out)) == "int8"
    assert {e.version for e in half.opset_import} == {19}
    pairs = [n for n in half.graph.node if n.op_type == "QuantizeLinear"]
    constants = constants_of(half)
    assert {constants[n.input[1]].dtype for n in pairs} == {np.dtype(np.float16)}
    assert min(constants[n.input[1]].min() for n in pairs) > 0
    assert HALF_KEY in read_metadata(out)


def test_what_has_no_half_is_refused(files, tmp_path):
    path, frames, out = files
    int8 = tmp_path / "int8.onnx"
    calibrate(path, frames, int8, Options("ort-x86", threads=1))
    with pytest.raises(ModelError, match="quantized for ort-x86"):
        write_half(int8, frames, out)
    with pytest.raises(DataError, match="at least one frame"):
        write_half(path, [], out)
    model = onnx.load(path)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    huge = constants_of(model)[conv.input[1]].copy()
    huge.flat[0] = 1e6
    onnx.save(with_constants(model, {conv.input[1]: huge}), path)
    with pytest.raises(ModelError, match=r"1e\+06 is beyond half precision's 65504"):
        write_half(path, frames, out)
    assert not out.exists()


def test_too_different_is_not_written(files):
    """Activations that overflow half precision: the first weights a thousandfold."""
    path, frames, out = files
    model = onnx.load(path)
    loud = copy.deepcopy(model)
    conv = next(n for n in loud.graph.node if n.op_type == "Conv")
    for tensor in loud.graph.initializer:
        if tensor.name in conv.input[1:]:
            tensor.CopyFrom(from_array(to_array(tensor) * np.float32(2e4), tensor.name))
    onnx.save(loud, path)
    with pytest.raises(ParityError, match=r"half\.onnx: half precision keeps the class"):
        write_half(path, frames, out)
    assert not out.exists()
    assert json.loads(read_metadata(path)["edgeuda.export"])["head"] == "labels"
