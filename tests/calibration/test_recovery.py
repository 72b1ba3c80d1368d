"""Equalisation, bias correction and batch-norm statistics on the graph itself."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import nn

from calibration import batch_norm, ranges
from calibration.batch_norm import adapt_batch_norm
from calibration.equalize import channel_means, correct_biases, equalize
from calibration.placement import POLICIES
from calibration.qdq import insert_qdq
from calibration.ranges import collect
from calibration.rules import maximum
from edgeuda.errors import ConfigError, DataError, ModelError
from edgeuda.methods import adabn
from edgeuda.methods.adabn import adapt_batch_norm as torch_adapt
from engines.onnx.index import index
from engines.onnx.metadata import BATCH_NORM_KEY, norms_of
from engines.onnx.session import open_session
from engines.onnx.weights import constants_of, multiplications
from engines.onnx_export import export_onnx
from tiny_models import SPEC, exported, random_frames, random_network, torch_logits

SIZE = SPEC.preprocessing
FRAMES = [frame[None] for frame in random_frames(12, SIZE.height, SIZE.width, seed=5)]


def run(model, image, output="logits"):
    return open_session(model.SerializeToString(), threads=1).run([output], {"image": image})[0]


def watching(model, name):
    return onnx.load_from_string(ranges.watching(model, [name]))


@pytest.fixture(scope="module")
def model():
    return onnx.load_from_string(exported("logits"))


def uneven(model, factor=30.0):
    """The same function with one channel in three scaled up before a ReLU and down after it."""
    graph, constants = index(model.graph), constants_of(model)
    first = next(n for n in graph.nodes if n.op_type == "Conv" and "layer1.0.conv1" in n.input[1])
    (second,) = graph.read_by(graph.activated(first))
    scale = np.ones(len(constants[first.input[1]]), np.float32)
    scale[::3] = factor
    changed = {
        first.input[1]: constants[first.input[1]] * scale[:, None, None, None],
        first.input[2]: constants[first.input[2]] * scale,
        second.input[1]: constants[second.input[1]] / scale[None, :, None, None],
    }
    spoiled = copy.deepcopy(model)
    for tensor in spoiled.graph.initializer:
        if tensor.name in changed:
            value = onnx.numpy_helper.from_array(changed[tensor.name], tensor.name)
            tensor.CopyFrom(value)
    return spoiled, (first.input[1], second.input[1])


def quantized(model, policy):
    placement = policy.place(index(model.graph), frozenset())
    histograms = collect(model, placement.measured(), FRAMES, threads=1)
    limits = {name: maximum(histogram) for name, histogram in histograms.items()}
    return insert_qdq(model, placement, policy, limits)


def test_equalised_network_is_the_same_function(model):
    spoiled, (first, second) = uneven(model)
    even = equalize(spoiled)
    before, after = constants_of(spoiled), constants_of(even)
    np.testing.assert_allclose(run(even, FRAMES[0]), run(spoiled, FRAMES[0]), atol=2e-4)
    outgoing = np.abs(after[first]).max((1, 2, 3))
    incoming = np.abs(after[second]).max((0, 2, 3))
    np.testing.assert_allclose(outgoing, incoming, rtol=1e-3)
    assert not np.allclose(np.abs(before[first]).max((1, 2, 3)), outgoing)


def test_equalising_helps_what_was_uneven(model):
    """Per-tensor activations: a channel thirty times the others leaves those without steps."""
    spoiled, (_, weight) = uneven(model)
    conv = next(n for n in model.graph.node if n.op_type == "Conv" and n.input[1] == weight)
    reference = run(watching(model, conv.output[0]), FRAMES[0], conv.output[0])

    def error(graph):
        rounded = watching(quantized(graph, POLICIES["tensorrt"]), conv.output[0])
        return float(np.abs(run(rounded, FRAMES[0], conv.output[0]) - reference).mean())

    assert error(equalize(spoiled)) < 0.7 * error(spoiled)


@pytest.mark.parametrize("target", list(POLICIES))
def test_corrected_biases_take_the_mean_error_away(model, target):
    """With weights of few levels the shift is plain: here the first convolution's."""
    policy = POLICIES[target]
    coarse = copy.deepcopy(model)
    conv = next(
        n for n in coarse.graph.node if n.op_type == "Conv" and "layer1.0.conv1" in n.input[1]
    )
    for tensor in coarse.graph.initializer:
        if tensor.name == conv.input[1]:
            weight = to_array(tensor).copy()
            weight[:, 0, 0, 0] = 40 * np.abs(weight).max()  # leaves few steps to all others
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    placement = policy.place(index(coarse.graph), frozenset())
    histograms = collect(coarse, placement.measured(), FRAMES, threads=1)
    limits = {name: maximum(histogram) for name, histogram in histograms.items()}
    inputs = sorted({n.input[0] for n in coarse.graph.node if n.output[0] in placement.convs})
    means = channel_means(coarse, inputs, FRAMES, threads=1)
    corrected = correct_biases(coarse, placement, policy, limits, means)

    def shift(graph):
        """Mean over channels of the absolute mean error of that convolution's output."""
        rounded = insert_qdq(graph, placement, policy, limits)
        name = index(graph.graph).activated(conv)
        errors = []
        for image in FRAMES[:4]:
            exact, shifted = (run(watching(each, name), image, name) for each in (coarse, rounded))
            errors.append((shifted - exact).mean((0, 2, 3)))
        return float(np.abs(np.mean(errors, 0)).mean())

    assert shift(corrected) < 0.5 * shift(coarse)


def test_channel_means_by_brute_force(model):
    (name,) = (n.output[0] for n in model.graph.node if n.op_type == "Concat")
    values = np.concatenate([run(watching(model, name), image, name) for image in FRAMES])
    np.testing.assert_allclose(
        channel_means(model, [name], FRAMES, threads=1)[name], values.mean((0, 2, 3)), rtol=1e-4
    )


def test_multiplications_are_those_of_the_loops(model):
    """A 7x7 convolution of 3 channels on every second pixel."""
    found = multiplications(model)
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    outputs = constants_of(model)[first.input[1]].shape[0]
    assert found[first.output[0]] == outputs * 3 * 49 * (SIZE.height // 2) * (SIZE.width // 2)
    assert len(found) == sum(n.op_type == "Conv" for n in model.graph.node)


@pytest.fixture(scope="module")
def difficult(tmp_path_factory):
    """A network with dead, tiny and negative factors, and its export."""
    network = random_network()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[3].weight[0], norms[5].weight[1], norms[4].weight[2] = 0, -1.2, 1e-6
    path = tmp_path_factory.mktemp("norms") / "model.onnx"
    export_onnx(network, SPEC, path, head="logits", frames=[f[0] for f in FRAMES[:1]])
    return network, onnx.load(path)


def test_statistics_are_those_of_torch(difficult):
    network, exported_model = difficult
    adapted = copy.deepcopy(network)
    batches = [
        torch.from_numpy(np.concatenate(FRAMES[i : i + 4])).permute(0, 3, 1, 2).float() / 255
        for i in range(0, 12, 4)
    ]
    assert torch_adapt(adapted, batches, SIZE) == []
    graph, kept = adapt_batch_norm(exported_model, FRAMES, "model", seed=None, threads=1)
    assert kept == []
    images = np.concatenate(FRAMES[:3])
    expected = torch_logits(adapted, images)
    np.testing.assert_allclose(run(graph, images), expected, atol=2e-3, rtol=0)
    # the statistics matter: without them the scores are elsewhere
    assert np.abs(run(exported_model, images) - expected).max() > 1
    # twice is once: the new statistics are what the graph now says it has
    again, _ = adapt_batch_norm(graph, FRAMES, "model", seed=None, threads=1)
    np.testing.assert_allclose(run(again, images), expected, atol=4e-3, rtol=0)
    assert batch_norm.LEAST_VARIANCE == adabn.LEAST_VARIANCE


def test_neighbours_are_not_batched_together(difficult):
    """By default frames are shuffled, the same way each time."""
    _, model = difficult
    image = FRAMES[0]
    graphs = [
        adapt_batch_norm(model, FRAMES, "model", seed=seed, threads=1)[0] for seed in (None, 0, 0)
    ]
    plain, one, two = (run(graph, image) for graph in graphs)
    np.testing.assert_array_equal(one, two)
    assert np.abs(plain - one).max() > 1e-3


@pytest.mark.parametrize("prior", [4.0, 36.0])
def test_with_a_prior_the_old_statistics_count_as_so_many_frames(difficult, prior):
    """Each norm normalises by, and is left with, a mixture; written out in torch."""
    network, model = difficult
    share = 12 / (12 + prior)
    mixed = copy.deepcopy(network)
    sums: dict[str, list[torch.Tensor]] = {}

    def blended(name, module):
        mean, variance = module.running_mean.clone(), module.running_var.clone()

        def forward(x):
            new = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            wide = x.var((0, 2, 3), unbiased=True)
            sums.setdefault(name, []).append(torch.stack([new[0], wide]))
            m = share * new[0] + (1 - share) * mean
            v = share * new[1] + (1 - share) * variance
            x = (x - m[:, None, None]) / torch.sqrt(v + module.eps)[:, None, None]
            return x * module.weight[:, None, None] + module.bias[:, None, None]

        return forward

    norms = {n: m for n, m in mixed.named_modules() if isinstance(m, nn.BatchNorm2d)}
    plain = {name: module.forward for name, module in norms.items()}
    for name, module in norms.items():
        module.forward = blended(name, module)
    with torch.no_grad():
        for i in range(0, 12, 4):
            torch_logits(mixed, np.concatenate(FRAMES[i : i + 4]))
        for name, module in norms.items():
            module.forward = plain[name]
            if name in sums:
                mean, variance = torch.stack(sums[name]).mean(0)
                module.running_mean.mul_(1 - share).add_(share * mean)
                module.running_var.mul_(1 - share).add_(share * variance)
    graph, kept = adapt_batch_norm(model, FRAMES, "m", seed=None, prior=prior, threads=1)
    assert kept == []
    images = np.concatenate(FRAMES[:3])
    expected = torch_logits(mixed, images)
    np.testing.assert_allclose(run(graph, images), expected, atol=2e-3, rtol=0)
    for other in (model, adapt_batch_norm(model, FRAMES, "m", seed=None, threads=1)[0]):
        assert np.abs(run(other, images) - expected).max() > 0.1


def test_a_strong_prior_leaves_the_network_as_it_is(difficult):
    _, model = difficult
    graph, _ = adapt_batch_norm(model, FRAMES, "m", prior=1e9, threads=1)
    np.testing.assert_allclose(run(graph, FRAMES[0]), run(model, FRAMES[0]), atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match=r"`prior`: expected a number of frames, 0 or more"):
        adapt_batch_norm(model, FRAMES, "m", prior=-1.0)


def test_only_the_layers_that_are_named_are_estimated(difficult):
    _, model = difficult
    graph, _ = adapt_batch_norm(model, FRAMES, "m", layers=("network.spatial.*",), threads=1)
    before, after = constants_of(model), constants_of(graph)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    weights = {n for n in changed if n.endswith("weight")}
    assert weights == {f"network.spatial.{n}.0.weight" for n in range(4)}
    assert len(changed) == 8  # and their biases
    images = np.concatenate(FRAMES[:2])
    assert np.abs(run(graph, images) - run(model, images)).max() > 0.01
    # What others say of themselves goes along.
    norms = [norms_of({e.key: e.value for e in one.metadata_props}, "m") for one in (model, graph)]
    assert norms[0].keys() == norms[1].keys()
    with pytest.raises(ConfigError, match=r"expected a batch norm of \*\.nothing, found only oth"):
        adapt_batch_norm(model, FRAMES, "m", layers=("*.nothing",))


def test_variances_and_names_travel_with_the_graph(difficult):
    network, model = difficult
    norms = norms_of({e.key: e.value for e in model.metadata_props}, "model")
    convs = {n.input[1] for n in model.graph.node if n.op_type == "Conv"}
    assert len(norms.keys() & convs) == len(convs) - 1  # all but the classifier
    first = norms["network.context.trunk.conv1.weight"]
    module = network.context.trunk.bn1
    np.testing.assert_array_equal(first.variance, module.running_var.numpy())
    np.testing.assert_array_equal(first.gamma, module.weight.detach().numpy())
    assert first.epsilon == module.eps


def test_frames_without_variation_leave_pooled_layers_as_they_are(difficult):
    _, model = difficult
    _, kept = adapt_batch_norm(model, [FRAMES[0]] * 4, "model", threads=1)
    assert kept
    assert all("gate" in name or "context.context" in name for name in kept)


def test_what_cannot_be_estimated_is_refused(difficult):
    _, model = difficult
    with pytest.raises(DataError, match=r"model: .*at least two frames, found 1"):
        adapt_batch_norm(model, FRAMES[:1], "model")
    bare = copy.deepcopy(model)
    kept = [e for e in bare.metadata_props if e.key != BATCH_NORM_KEY]
    del bare.metadata_props[:]
    bare.metadata_props.extend(kept)
    with pytest.raises(ModelError, match=r"old\.onnx: carries no batch norms"):
        adapt_batch_norm(bare, FRAMES, "old.onnx")
    broken = copy.deepcopy(model)
    for entry in broken.metadata_props:
        if entry.key == BATCH_NORM_KEY:
            entry.value = '{"norms": {"a": ["AAAA", 1]}}'
    with pytest.raises(ModelError, match="damaged"):
        adapt_batch_norm(broken, FRAMES, "model")
