"""The graph in torch, rounding as ONNX does, and fine-tuning without labels."""

import copy
import os
import signal
from contextlib import suppress

import numpy as np
import onnx
import pytest
import torch

from calibration.finetune import (
    RoundedGraph,
    Rounding,
    Tuning,
    batch_of,
    round_weight,
    tune,
)
from calibration.observe import Observer
from calibration.options import Options
from calibration.placement import POLICIES
from calibration.qdq import insert_qdq
from calibration.quantize import calibrate
from calibration.ranges import collect, watching
from calibration.rules import maximum
from calibration.torch_graph import OnnxGraph
from edgeuda.errors import Interrupted, ModelError, TrainingError
from edgeuda.records.calibration import Range
from engines.onnx.heads import scores_of
from engines.onnx.index import index
from engines.onnx.session import open_session
from engines.onnx.weights import constants_of, with_constants
from interruptions import changes_made
from tiny_models import SPEC, exported, random_frames, write_frames

SIZE = SPEC.preprocessing
FRAMES = [frame[None] for frame in random_frames(6, SIZE.height, SIZE.width, seed=4)]
IMAGES = torch.from_numpy(np.concatenate(FRAMES[:2]))


@pytest.fixture(scope="module")
def model():
    return onnx.load_from_string(exported("labels"))


def rounding_of(model, target, narrow=1.0):
    policy, graph = POLICIES[target], index(model.graph)
    placement = policy.place(graph, frozenset())
    histograms = collect(model, placement.measured(), FRAMES, threads=1)
    limits = {
        name: Range(narrow * h.low, narrow * h.high)
        for name, h in ((n, maximum(h)) for n, h in histograms.items())
    }
    inputs = {}
    for edge in placement.edges:
        tensor = graph.producers[edge.reader].input[edge.position]
        inputs[edge.reader, edge.position] = placement.same_as.get(tensor, tensor)
    rounding = Rounding(inputs, limits, frozenset(placement.convs), policy.unsigned)
    return rounding, lambda proto, ends: insert_qdq(proto, placement, policy, ends)


def scores(model, frame):
    return Observer(model, threads=1)(frame).log_probabilities


def test_the_graph_computes_what_onnxruntime_does(model):
    graph = OnnxGraph(model, scores_of(model))
    with torch.no_grad():
        found = graph(IMAGES).log_softmax(1).numpy()
    for position in range(2):
        np.testing.assert_allclose(found[position], scores(model, FRAMES[position]), atol=1e-4)
    assert len(graph.trained()) == sum(
        len(n.input) - 1 for n in model.graph.node if n.op_type == "Conv"
    )


def test_the_whole_graph_with_its_resize(model):
    logits = onnx.load_from_string(exported("logits"))
    graph = OnnxGraph(logits, logits.graph.output[0].name)
    with torch.no_grad():
        labels = graph(IMAGES).argmax(1).numpy()
    expected = np.stack([Observer(model, threads=1)(f).labels for f in FRAMES[:2]])
    assert (labels == expected).mean() > 0.9995


@pytest.mark.parametrize("target", list(POLICIES))
def test_rounding_is_that_of_the_quantized_graph(model, target):
    """Compared behind the first block: deeper down, values on a border multiply."""
    rounding, quantized = rounding_of(model, target)
    name = next(n.output[0] for n in model.graph.node if n.op_type == "Add" and len(n.input) == 2
                and "getitem" in n.input[0])  # fmt: skip

    def by_onnxruntime(graph):
        watched = open_session(watching(graph, [name]), threads=1, optimize=False)
        return watched.run(None, {"image": FRAMES[0]})[0]

    student = RoundedGraph(OnnxGraph(model, name), rounding)
    with torch.no_grad():
        found = student(IMAGES[:1]).numpy()
    int8 = by_onnxruntime(quantized(model, rounding.ranges))
    error = np.abs(by_onnxruntime(model) - int8).mean()
    assert np.abs(found - int8).mean() < 0.05 * error
    assert error > 1e-3


def test_gradients_pass_straight_through_and_reach_the_ranges(model):
    rounding, _ = rounding_of(model, "ort-x86")
    student = RoundedGraph(OnnxGraph(model, scores_of(model)), rounding)
    student(IMAGES[:1]).square().mean().backward()
    read = {rounding.inputs[key] for key in rounding.inputs}
    for name in read:
        assert student.stretch[student.names[name]].grad is not None, name
    weight = torch.tensor([[[[0.3]], [[-1.27]]]], requires_grad=True)
    round_weight(weight).sum().backward()
    np.testing.assert_array_equal(weight.grad.numpy(), np.ones((1, 2, 1, 1)))
    np.testing.assert_allclose(round_weight(weight).detach().ravel(), [0.3, -1.27], atol=0.0051)


def test_step_gradient_is_that_of_learned_step_size():
    """d(s round(x / s)) / ds is round(x / s) - x / s inside the range and its end outside."""
    rounding = Rounding({("n", 0): "r"}, {"r": (0.0, 2.55)}, frozenset(), unsigned=True)

    class Identity(torch.nn.Module):
        def forward(self, image, hook):
            return hook("n", 0, "x", image)

    for value, expected in ((1.004, (100 - 100.4) * 0.01), (9.0, 2.55)):
        student = RoundedGraph(Identity(), rounding)
        student(torch.tensor([value])).sum().backward()
        assert student.stretch["range0"].grad[1].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("target", list(POLICIES))
def test_fine_tuning_recovers_what_bad_ranges_lost(model, target, tmp_path):
    """Ranges that cut off half of every activation: training widens them."""
    rounding, quantized = rounding_of(model, target, narrow=0.5)
    tuned = tune(
        model, scores_of(model), rounding, FRAMES,
        Tuning(steps=30, batch=2, lr=1e-3, range_lr=3e-2), tmp_path / "state.pt",
    )  # fmt: skip
    ends = {name: Range(*limits) for name, limits in tuned.ranges.items()}
    trained = quantized(with_constants(model, tuned.constants), ends)
    before = quantized(model, rounding.ranges)

    def error(graph):
        return np.mean([np.abs(scores(graph, f) - scores(model, f)).mean() for f in FRAMES])

    assert error(trained) < 0.7 * error(before)
    assert np.mean(tuned.losses[-5:]) < 0.7 * np.mean(tuned.losses[:5])
    assert not (tmp_path / "state.pt").exists()
    wider = [tuned.ranges[name][1] > limits[1] for name, limits in rounding.ranges.items()]
    assert np.mean(wider) > 0.5


def test_an_interrupted_training_ends_the_same(model, tmp_path):
    rounding, _ = rounding_of(model, "tensorrt")
    tuning, state = Tuning(steps=4, batch=2), tmp_path / "state.pt"
    whole = tune(model, scores_of(model), rounding, FRAMES, tuning, state)

    def stop(done, _total):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle: the step is finished first

    with pytest.raises(Interrupted, match="after step 2"):
        tune(model, scores_of(model), rounding, FRAMES, tuning, state, stop)
    steps = []
    rest = tune(
        model, scores_of(model), rounding, FRAMES, tuning, state, lambda d, _: steps.append(d)
    )
    assert steps == [3, 4]
    assert rest.losses == whole.losses
    assert rest.ranges == whole.ranges
    for name, value in whole.constants.items():
        np.testing.assert_array_equal(rest.constants[name], value)
    # a state of another training plays no part
    with pytest.raises(Interrupted, match="after step 2"):
        tune(model, scores_of(model), rounding, FRAMES, tuning, state, stop)
    other = tune(model, scores_of(model), rounding, FRAMES, Tuning(steps=1, batch=2, seed=3), state)
    assert len(other.losses) == 1


def test_a_killed_training_ends_the_same(model, tmp_path, monkeypatch):
    """At every change of the disk: while a state is written, and while the last is removed."""
    monkeypatch.setattr("calibration.finetune.SAVE_STEPS", 1)
    rounding, _ = rounding_of(model, "tensorrt")

    def work(state):
        return tune(model, scores_of(model), rounding, FRAMES, Tuning(steps=2, batch=1), state)

    whole = work(tmp_path / "whole" / "state.pt")
    total = changes_made(lambda: work(tmp_path / "counted" / "state.pt"), tmp_path)
    for at in range(1, total + 1):
        state = tmp_path / f"{at}" / "state.pt"
        with suppress(KeyboardInterrupt):
            changes_made(lambda state=state: work(state), tmp_path, at)
        rest = work(state)
        assert (rest.losses, rest.ranges) == (whole.losses, whole.ranges), at
        for name, value in whole.constants.items():
            np.testing.assert_array_equal(rest.constants[name], value)
        assert not state.exists()


def test_trained_scales_are_those_of_the_file(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(copy.deepcopy(model), path)
    frames = write_frames(tmp_path, [image[0] for image in FRAMES[:3]])
    given = {}

    def tuner(task):
        given["inputs"] = task.inputs
        given["ranges"] = {name: Range(2 * r.low, 3 * r.high) for name, r in task.limits.items()}
        weight = next(n.input[1] for n in task.model.graph.node if n.op_type == "Conv")
        given["weight"] = 1.5 * constants_of(task.model)[weight]
        return {weight: given["weight"]}, given["ranges"]

    out = tmp_path / "int8.onnx"
    record = calibrate(path, frames, out, Options("tensorrt", threads=1), tune=tuner)
    assert record.transforms == ("fine-tuned with its FP32 form as teacher",)
    assert record.ranges == given["ranges"]
    constants = constants_of(onnx.load(out))
    for name, limits in given["ranges"].items():
        expected = max(-limits.low, limits.high) / 127
        assert constants[f"{name}_scale"] == pytest.approx(expected, rel=1e-6)
    assert any(
        value.shape == given["weight"].shape and np.allclose(value, given["weight"])
        for value in constants.values()
    )


def test_what_cannot_be_trained_is_refused(model, tmp_path):
    strange = copy.deepcopy(model)
    next(n for n in strange.graph.node if n.op_type == "Sigmoid").op_type = "Erf"
    with pytest.raises(ModelError, match="cannot be trained: Erf"):
        OnnxGraph(strange, scores_of(strange))
    lopsided = copy.deepcopy(model)
    conv = next(n for n in lopsided.graph.node if n.op_type == "Conv")
    next(a for a in conv.attribute if a.name == "pads").ints[0] = 5
    with pytest.raises(ModelError, match="same padding on both sides"):
        OnnxGraph(lopsided, scores_of(lopsided))(IMAGES)
    rounding, _ = rounding_of(model, "tensorrt")
    with pytest.raises(TrainingError, match="not finite"):
        tune(
            model, scores_of(model), rounding, FRAMES,
            Tuning(steps=30, batch=1, lr=1e30), tmp_path / "state.pt",
        )  # fmt: skip


def test_batches_are_drawn_by_seed_and_step():
    tuning = Tuning(batch=3, seed=1)
    torch.testing.assert_close(batch_of(FRAMES, tuning, 5), batch_of(FRAMES, tuning, 5))
    assert not torch.equal(batch_of(FRAMES, tuning, 5), batch_of(FRAMES, tuning, 6))
