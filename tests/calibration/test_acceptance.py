"""The verdict without labels, the sensitivity of layers, and what stays float."""

import copy
import importlib.util
import json

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array

from calibration.acceptance import judge
from calibration.observe import Observation, Observer, class_shares
from calibration.options import Options
from calibration.ort_kernels import compiled
from calibration.placement import POLICIES
from calibration.qdq import insert_qdq
from calibration.quantize import calibrate
from calibration.ranges import collect
from calibration.rules import maximum
from calibration.sensitivity import assign, effects_of, groups_of
from edgeuda.accuracy.evaluation import agreement
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import write_label
from edgeuda.errors import ConfigError, DataError, DependencyError, ModelError
from edgeuda.labels import SPACES
from edgeuda.records.calibration import (
    Acceptance,
    CalibrationRecord,
    ClassAgreement,
    Limits,
    record_path,
)
from edgeuda.records.form import parse
from engines.onnx.heads import scores_of
from engines.onnx.index import index
from engines.onnx.metadata import read_spec
from engines.onnx.session import open_session
from engines.onnx.weights import constants_of, with_constants
from tiny_models import SPEC, exported, random_frames, write_frames

SIZE = SPEC.preprocessing
FRAMES = [frame[None] for frame in random_frames(5, SIZE.height, SIZE.width, seed=7)]
SPACE = SPEC.label_space


@pytest.fixture(scope="module")
def model():
    return onnx.load_from_string(exported("labels"))


class Says:
    """An observer with prepared answers."""

    def __init__(self, labels, certain=0.9):
        self.labels, self.position = labels, -1
        self.certain = certain

    def __call__(self, _frame):
        self.position += 1
        labels = np.asarray(self.labels[self.position], np.uint8)
        scores = np.full((len(SPACE), *labels.shape), (1 - self.certain) / (len(SPACE) - 1))
        np.put_along_axis(scores, labels[None].astype(int), self.certain, 0)
        return Observation(labels, np.log(scores).astype(np.float32))


def test_verdict_by_hand():
    """Two frames of 4x4; the second loses its pole in the last row to road."""
    one = np.zeros((4, 4), int)
    two = np.zeros((4, 4), int)
    two[3, :2] = SPACE.classes.index("pole")
    lost = np.where(two > 0, SPACE.classes.index("road"), two)
    limits = Limits(agreement=0.9, class_agreement=0.6)
    found = judge(
        Says([one, two], 0.9), Says([one, lost], 0.8), FRAMES[:2], ["a", "b"], SPACE, limits
    )
    assert found.agreement == pytest.approx(30 / 32)
    assert found.frame_agreement == pytest.approx((1.0, 14 / 16))
    assert found.worst == (1, 0)
    assert found.regions[3] == pytest.approx((0.5, 0.5, 1, 1))
    assert found.regions[0] == pytest.approx((1, 1, 1, 1))
    assert found.classes["pole"] == ClassAgreement(2 / 32, 0.0, "road", 0.0)
    assert found.classes["sky"].iou == 1
    assert found.classes["car"].iou is None
    assert found.confidence == pytest.approx(0.9)
    assert found.confidence_shift == pytest.approx(-0.1)
    assert not found.accepted
    (reason,) = found.reasons
    assert "class 'pole': IoU with FP32 is 0.00%" in reason
    assert "mostly becomes 'road'" in reason
    assert parse(Acceptance, json.loads(json.dumps(found.to_record())), "a record") == found


def test_limits_decide():
    one, two = np.zeros((4, 4), int), np.zeros((4, 4), int)
    two[0, 0] = 1

    def verdict(limits):
        return judge(Says([one]), Says([two]), FRAMES[:1], ["a"], SPACE, limits)

    assert verdict(Limits(0.9, 0.5)).accepted
    assert "93.75% of the pixels" in verdict(Limits(0.95, 0.5)).reasons[0]
    assert "'sky'" in verdict(Limits(0.9, 0.95)).reasons[0]
    with pytest.raises(DataError, match="at least one frame"):
        judge(Says([]), Says([]), [], [], SPACE, Limits())


def test_divergence_is_that_of_the_definition():
    found = judge(
        Says([np.zeros((4, 4), int)], 0.7),
        Says([np.zeros((4, 4), int)], 0.4),
        FRAMES[:1],
        ["a"],
        SPACE,
        Limits(),
    )
    rest = len(SPACE) - 1
    by_hand = 0.7 * np.log(0.7 / 0.4) + 0.3 * np.log((0.3 / rest) / (0.6 / rest))
    assert found.divergence == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("head", ["labels", "logits"])
def test_observer_sees_labels_and_the_scores_behind_them(head):
    graph = onnx.load_from_string(exported(head))
    seen = Observer(graph, threads=1)(FRAMES[0])
    output = open_session(graph.SerializeToString(), threads=1).run(None, {"image": FRAMES[0]})[0][
        0
    ]
    np.testing.assert_array_equal(seen.labels, output.argmax(0) if head == "logits" else output)
    low = seen.log_probabilities
    assert low.shape == (len(SPACE), SIZE.height // 8, SIZE.width // 8)
    np.testing.assert_allclose(np.exp(low).sum(0), 1, rtol=1e-5)
    assert 1 / len(SPACE) < seen.confidence < 1
    assert scores_of(graph) in {n.output[0] for n in graph.graph.node if n.op_type == "Conv"}
    # the resized labels look like the scores
    coarse = low.argmax(0).repeat(8, 0).repeat(8, 1)
    assert agreement(coarse.astype(np.uint8), seen.labels) > 0.7


def quantizer(model, target):
    policy, graph = POLICIES[target], index(model.graph)
    everything = policy.place(graph, frozenset())
    histograms = collect(model, everything.measured(), FRAMES, threads=1)

    def quantize(floating):
        placement = policy.place(graph, floating)
        more = [name for name in placement.measured() if name not in histograms]
        if more:
            histograms.update(collect(model, more, FRAMES, threads=1))
        limits = {name: maximum(histogram) for name, histogram in histograms.items()}
        return insert_qdq(model, placement, policy, limits)

    return everything.convs, quantize


@pytest.fixture(scope="module")
def spoiled(model):
    """One block whose first channel has a huge weight nobody reads: it spoils the block's range."""
    graph, constants = index(model.graph), constants_of(model)
    first = next(n for n in graph.nodes if n.op_type == "Conv" and "layer3.1.conv1" in n.input[1])
    (second,) = graph.read_by(graph.activated(first))
    one, two = constants[first.input[1]].copy(), constants[second.input[1]].copy()
    one[0] = np.abs(one[0]) * 3000
    two[:, 0] = 0
    return with_constants(model, {first.input[1]: one, second.input[1]: two})


@pytest.mark.parametrize("target", list(POLICIES))
def test_the_spoiled_block_is_found_and_returned_first(spoiled, target):
    convs, quantize = quantizer(spoiled, target)
    effects, reference = effects_of(spoiled, convs, quantize, FRAMES[:3], threads=1)
    assert effects[0].group == "network.context.trunk.layer3.1"
    assert len(effects[0].convs) == 2
    assert sorted(conv for effect in effects for conv in effect.convs) == sorted(convs)
    others = max(effect.divergence for effect in effects[1:])
    assert effects[0].divergence > 5 * others
    found = assign(effects, quantize, FRAMES[:3], reference, 0.05, whole_curve=True, threads=1)
    assert found.kept_float == ("network.context.trunk.layer3.1",)
    assert found.convs == frozenset(effects[0].convs)
    assert found.met
    first, second, *_, last = found.curve
    assert first.drop > 0.05 >= second.drop
    assert last.drop == 0
    assert last.int8_share == pytest.approx(0, abs=1e-9)
    assert first.int8_share == pytest.approx(sum(e.share for e in effects))
    assert len(found.curve) == len(effects) + 1
    short = assign(effects, quantize, FRAMES[:3], reference, 0.05, threads=1)
    assert short.curve == found.curve[:2]


def test_with_labels_the_drop_is_one_of_their_score(spoiled):
    convs, quantize = quantizer(spoiled, "ort-x86")
    effects, reference = effects_of(spoiled, convs, quantize, FRAMES[:2], threads=1)
    scores = iter([0.4, 0.45, 0.5])
    found = assign(
        effects, quantize, FRAMES[:2], reference, 0.02, score=(lambda _: next(scores), 0.51)
    )
    assert found.measure == "mIoU"
    assert [step.drop for step in found.curve] == pytest.approx([0.11, 0.06, 0.01])
    assert found.kept_float == tuple(effect.group for effect in effects[:2])


def test_blocks_are_named_after_their_modules(model):
    convs, _ = quantizer(model, "ort-x86")
    groups = groups_of(model, convs)
    assert len(groups["network.context.trunk.layer1.0"]) == 2
    assert "network.spatial.0" in groups
    foreign = copy.deepcopy(model)
    for node in foreign.graph.node:
        if node.op_type == "Conv":
            node.input[1] = node.input[1].replace(".", "_")
    assert len(groups_of(foreign, convs)) == len(convs)


@pytest.fixture
def files(model, tmp_path):
    onnx.save(model, tmp_path / "model.onnx")
    frames = write_frames(tmp_path, [frame[0] for frame in FRAMES])
    return tmp_path / "model.onnx", frames, tmp_path / "int8.onnx"


@pytest.mark.parametrize(
    "pattern", ["*spatial.1*", "*head16*", "*layer3.0.downsample*", "*layer2*"]
)
def test_what_is_kept_float_runs_in_float(files, pattern):
    """ONNX Runtime rounds float convolutions between quantized tensors unless they are hidden."""
    model, frames, out = files
    record = calibrate(model, frames, out, Options("ort-x86", keep_float=(pattern,), threads=1))
    placed = sum(layer.int8 for layer in record.layers)
    assert placed < 30
    found = compiled(out)
    assert (found.integer, found.total) == (placed, 35) == (record.int8_convs, record.convs)
    assert all(layer.compiled == layer.int8 for layer in record.layers)


def test_everything_float_is_fp32(files):
    model, frames, out = files
    record = calibrate(model, frames, out, Options("ort-x86", max_drop=0.0, threads=1))
    assert record.agreement == 1
    assert record.int8_convs == 0
    assert record.assignment.met
    assert CalibrationRecord.read(record_path(out)) == record


def test_scores_with_labels(files, tmp_path, model):
    path, frames, out = files
    observe = Observer(model, threads=1)
    (tmp_path / "data" / "labels").mkdir(parents=True)
    (tmp_path / "data" / "images").mkdir()
    for frame, image in zip(frames, FRAMES, strict=True):
        (tmp_path / "data" / "images" / frame.name).write_bytes(frame.read_bytes())
        write_label(tmp_path / "data" / "labels" / frame.name, observe(image).labels)
    data = labelled_folder(tmp_path / "data", SPACE, SPACES["camvid-11"])
    record = calibrate(path, frames, out, Options("ort-x86", threads=1), labelled=data)
    assert record.scores["images"] == 5
    assert record.scores["fp32"] == 1
    assert 0 < record.scores["int8"] < 1


def test_one_frame_and_copies_are_warned_of(files, caplog):
    model, frames, out = files
    calibrate(model, frames[:1] * 3, out, Options("ort-x86", threads=1))
    text = caplog.text
    assert "2 of 3 calibration frames are copies" in text
    assert "single frame" in text


def test_dead_and_constant_activations_are_quantized(files, model):
    """All weights zero before one ReLU: its range is a point."""
    path, frames, out = files
    conv = next(
        n for n in model.graph.node if n.op_type == "Conv" and "layer2.1.conv1" in n.input[1]
    )
    zeros = {name: np.zeros_like(constants_of(model)[name]) for name in conv.input[1:]}
    onnx.save(with_constants(model, zeros), path)
    for number, rule in enumerate(("max", "percentile", "frame-percentile", "mse", "entropy")):
        record = calibrate(path, frames, out.with_name(f"{number}.onnx"), Options("ort-x86", rule))
        assert record.agreement > 0.9, rule


def test_weights_in_other_files_are_refused(files, model):
    path, frames, out = files
    onnx.save(
        copy.deepcopy(model),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=64,
    )
    with pytest.raises(ModelError, match="keeps weights in files of their own"):
        calibrate(path, frames, out, Options("ort-x86", threads=1))
    assert not out.exists()


def test_computed_weights_stay_float(files, model):
    """A weight behind an operator cannot be rounded beforehand."""
    path, frames, out = files
    changed = copy.deepcopy(model)
    conv = next(n for n in changed.graph.node if n.op_type == "Conv" and "spatial.1" in n.input[1])
    name = conv.input[1]
    changed.graph.node.insert(0, onnx.helper.make_node("Neg", [name], ["negated"]))
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(from_array(-to_array(tensor), name))
    conv.input[1] = "negated"
    onnx.save(changed, path)
    record = calibrate(path, frames, out, Options("tensorrt", threads=1))
    (layer,) = (layer for layer in record.layers if layer.weight == "negated")
    assert not layer.int8


def test_unknown_operators_and_patterns_are_refused(files, model):
    path, frames, out = files
    with pytest.raises(ConfigError, match=r"called 'nothing\*'.*network"):
        calibrate(path, frames, out, Options("ort-x86", keep_float=("nothing*",)))
    strange = copy.deepcopy(model)
    next(n for n in strange.graph.node if n.op_type == "Sigmoid").op_type = "Sigmoidish"
    onnx.save(strange, path)
    with pytest.raises(Exception, match="Sigmoidish") as caught:
        calibrate(path, frames, out.with_name("b.onnx"), Options("ort-x86"))
    assert type(caught.value).__name__ == "ModelError"
    for wrong in ({"max_drop": 2.0}, {"sensitivity_frames": 0}, {"rule": "median"}):
        with pytest.raises(ConfigError):
            Options("ort-x86", **wrong)


def test_shares_of_predicted_classes(files, model):
    _, frames, _ = files
    shares = class_shares(model, SPEC, frames[:2], threads=1)
    labels = Observer(model, threads=1)(FRAMES[1]).labels
    expected = np.bincount(labels.ravel(), minlength=len(SPACE)) / labels.size
    np.testing.assert_allclose(shares[1], expected)


def test_modelopt_is_asked_for_what_it_can_do(files):
    model, frames, out = files
    for options in (
        Options("ort-x86", rule="max", quantizer="modelopt"),
        Options("tensorrt", rule="mse", quantizer="modelopt"),
        Options("tensorrt", rule="max", quantizer="modelopt", equalize=True),
    ):
        with pytest.raises(ConfigError, match="nvidia-modelopt"):
            calibrate(model, frames, out, options)
    if importlib.util.find_spec("modelopt") is None:
        with pytest.raises(DependencyError, match="Install nvidia-modelopt without its onnx extra"):
            calibrate(model, frames, out, Options("tensorrt", rule="max", quantizer="modelopt"))


def test_modelopt_goes_through_the_same_verdict(files):
    pytest.importorskip("modelopt.onnx.quantization", reason="nvidia-modelopt is not installed")
    model, frames, out = files
    record = calibrate(
        model, frames, out, Options("tensorrt", rule="max", quantizer="modelopt", threads=1)
    )
    assert record.quantizer == "modelopt"
    assert record.agreement > 0.9
    assert sum(layer.int8 for layer in record.layers) > 20
    assert all(limits.low == -limits.high for limits in record.ranges.values())
    assert read_spec(out) == SPEC
