"""Two ways to lose less by quantization without training: equalisation and bias correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calibration.frames import Frames
from calibration.placement import Placement, Policy
from calibration.qdq import activation_scale, weight_scale
from edgeuda.errors import require
from edgeuda.records.calibration import Range
from edgeuda.records.names import ProviderName
from engines.onnx.index import index
from engines.onnx.session import open_session
from engines.onnx.weights import constants_of, with_biases, with_constants

if TYPE_CHECKING:
    import onnx

ROUNDS = 20
"""Passes over the pairs: a convolution in a chain is in two of them."""


def equalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose neighbouring convolutions have weights of the same range per channel.

    Where only a ReLU lies between two convolutions, a channel may be scaled down before it and up
    after it: ReLU is homogeneous. The network computes the same, up to rounding of floats.
    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
    ICCV 2019, equation 11.

    Args:
        model: An FP32 graph.
    """
    graph, constants = index(model.graph), constants_of(model)
    pairs = []
    for node in graph.nodes:
        if node.op_type != "Conv" or node.input[1] not in constants:
            continue
        activation = graph.producers[graph.activated(node)].op_type
        if activation == "Clip":  # ReLU6 is not homogeneous
            continue
        readers = graph.read_by(graph.activated(node))
        if len(readers) != 1 or readers[0].op_type != "Conv":
            continue
        if readers[0].input[0] != graph.activated(node) or readers[0].input[1] not in constants:
            continue
        second = readers[0]
        weights = [node.input[1], second.input[1], *node.input[2:]]
        shared = any(len(graph.readers[name]) > 1 for name in weights)
        if not shared and constants[second.input[1]].shape[1] == len(constants[node.input[1]]):
            pairs.append((node, second))
    changed: dict[str, npt.NDArray[np.float32]] = {}

    def value(name: str) -> npt.NDArray[np.float32]:
        return changed.get(name, constants[name])

    for _ in range(ROUNDS):
        for first, second in pairs:
            one, two = value(first.input[1]), value(second.input[1])
            before = np.abs(one).max((1, 2, 3))
            after = np.abs(two).max((0, 2, 3))
            alive = (before > 0) & (after > 0)
            factor = np.ones_like(before)
            factor[alive] = np.sqrt(before[alive] / after[alive])
            changed[first.input[1]] = one / factor[:, None, None, None]
            changed[second.input[1]] = two * factor[None, :, None, None]
            if len(first.input) > 2:
                changed[first.input[2]] = value(first.input[2]) / factor
    return with_constants(model, changed)


def correct_biases(
    model: onnx.ModelProto,
    placement: Placement,
    policy: Policy,
    ranges: Mapping[str, Range],
    means: Mapping[str, npt.NDArray[np.float64]],
) -> onnx.ModelProto:
    """Return a copy whose biases make up for the mean error that rounding the weights causes.

    The error of a channel is what the weights' rounding errors make of the mean of each input
    channel over the frames; padding counts as part of the image.
    Source: Nagel et al., ICCV 2019, section 4.2, with means of real frames.

    Args:
        model: An FP32 graph; placement and ranges are of it.
        placement: What will be quantized.
        policy: In which types.
        ranges: Range of every tensor in ``placement.measured()``.
        means: Mean of each channel of the convolutions' inputs, see `channel_means`.
    """
    constants = constants_of(model)
    convs = [node for node in model.graph.node if node.output[0] in placement.convs]
    biases = {}
    for node in convs:
        weight = constants[node.input[1]].astype(np.float64)
        bias = constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight))
        limits = ranges[placement.same_as.get(node.input[0], node.input[0])]
        input_scale, _ = activation_scale(limits, policy.unsigned)
        scale = weight_scale(weight, bias, float(input_scale), policy).reshape(-1, 1, 1, 1)
        error = (np.clip(np.rint(weight / scale), -127, 127) * scale - weight).sum((2, 3))
        mean = means[node.input[0]]
        if error.shape[1] != len(mean):  # grouped: each output channel sees its group's inputs
            groups = len(mean) // error.shape[1]
            mean = np.repeat(mean.reshape(groups, -1), len(error) // groups, axis=0)
        biases[node.output[0]] = bias - (error * mean).sum(1)
    return with_biases(model, biases)


def channel_means(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    frames: Frames,
    *,
    threads: int | None = None,
    device: ProviderName = "cpu",
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the mean of each channel of ``[N, C, H, W]`` tensors over all pixels of all frames."""
    onnx = require("onnx", "quantize")
    watched = with_constants(model, {"edgeuda_axes": np.array([0, 2, 3])})
    del watched.graph.output[:]
    names = [f"{name}_channel_mean" for name in tensors]
    for tensor, name in zip(tensors, names, strict=True):
        watched.graph.node.append(
            onnx.helper.make_node("ReduceMean", [tensor, "edgeuda_axes"], [name], keepdims=0)
        )
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    session = open_session(watched.SerializeToString(), threads=threads, device=device)
    sums = [np.zeros(1)] * len(tensors)
    for position in range(len(frames)):
        outputs = session.run(names, {"image": frames[position]})
        sums = [total + output for total, output in zip(sums, outputs, strict=True)]
    return {name: total / len(frames) for name, total in zip(tensors, sums, strict=True)}
