"""Insertion of QuantizeLinear and DequantizeLinear into an ONNX graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.ort_kernels import hide_relu, space_to_depth, widen_constants
from calibration.placement import Placement, Policy
from edgeuda.errors import require
from edgeuda.records.calibration import Range
from engines.onnx.graphs import drop_unread
from engines.onnx.index import Edge
from engines.onnx.weights import Array, constants_of

if TYPE_CHECKING:
    import onnx

TINY = float(np.finfo(np.float32).tiny)
"""Smallest scale: a channel or tensor that is all zero still needs one."""


def insert_qdq(
    model: onnx.ModelProto, placement: Placement, policy: Policy, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """Return a copy of an FP32 model in which ``placement`` is quantized as ``policy`` says.

    Opset, inputs, outputs and metadata stay. Weights are quantized symmetrically per output
    channel, activations per tensor.

    Args:
        model: A float model whose convolutions have constant weights.
        placement: What to quantize in it.
        policy: In which types.
        ranges: Range of every tensor in ``placement.measured()``.
    """
    onnx = require("onnx", "quantize")
    quantized = hide_relu(model, placement) if policy.hide_float else copy.deepcopy(model)
    if policy.channels_last:
        space_to_depth(quantized, placement.convs)
        widen_constants(quantized)
    graph = quantized.graph
    constants = constants_of(quantized)
    scales: dict[str, tuple[Array, Array]] = {}
    for name in placement.tensors:
        scales[name] = activation_scale(ranges[placement.same_as.get(name, name)], policy.unsigned)

    added: dict[str, Array] = {}
    nodes: list[Any] = []
    for node in graph.node:
        identity = node.output[0]
        sources = list(node.input)
        for position, source in enumerate(sources):
            if Edge(identity, position) in placement.edges:
                node.input[position] = f"{source}_dequantized"
        if identity in placement.convs:
            bias = constants[sources[2]] if len(sources) > 2 else None
            nodes += _constants_of_conv(
                node, constants[sources[1]], bias, scales[sources[0]][0], policy, added
            )
        nodes.append(node)
        for output in node.output:
            if output in scales:
                nodes += _pair(output, output, *scales[output], added)

    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph)
    graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in added.items())
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def activation_scale(limits: Range, unsigned: bool) -> tuple[Array, Array]:
    """Return scale (float32) and zero point (uint8 or int8) of an activation, as scalars.

    Zero is always represented exactly: padding and ReLU depend on it.
    """
    low, high = min(limits.low, 0.0), max(limits.high, 0.0)
    if not unsigned:
        return np.array(max(-low, high, TINY) / 127, np.float32), np.zeros((), np.int8)
    scale = max((high - low) / 255, TINY)
    return np.array(scale, np.float32), np.array(round(-low / scale), np.uint8)


def weight_scale(weight: Array, bias: Array | None, input_scale: float, policy: Policy) -> Array:
    """Return the scales, ``[outputs]`` float32, by which a convolution's weights are divided."""
    per_channel = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    if policy.integer_weights and bias is not None:
        # The bias has the scale of the products; nearly dead channels would overflow int32.
        per_channel = np.maximum(per_channel, np.abs(bias) / (input_scale * 2**30))
    return np.asarray(np.maximum(per_channel, TINY), np.float32)


def _constants_of_conv(
    conv: onnx.NodeProto,
    weight: Array,
    bias: Array | None,
    input_scale: Array,
    policy: Policy,
    added: dict[str, Array],
) -> Iterator[onnx.NodeProto]:
    """Rewire weight and bias of a convolution; yield the nodes that now compute them."""
    identity = conv.output[0]
    scale = weight_scale(weight, bias, float(input_scale), policy)
    zero = np.zeros(len(weight), np.int8)
    name = f"{identity}_weight"
    conv.input[1] = f"{name}_dequantized"
    if not policy.integer_weights:
        added[name] = weight
        yield from _pair(name, name, scale, zero, added, axis=0)
        return
    steps = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    added[f"{name}_quantized"] = np.clip(steps, -127, 127).astype(np.int8)
    yield _dequantize(name, scale, zero, added)
    if bias is not None:
        products = (scale * input_scale).astype(np.float32)
        name = f"{identity}_bias"
        added[f"{name}_quantized"] = np.rint(bias / products.astype(np.float64)).astype(np.int32)
        conv.input[2] = f"{name}_dequantized"
        yield _dequantize(name, products, np.zeros(len(bias), np.int32), added)


def _pair(
    source: str,
    name: str,
    scale: Array,
    zero_point: Array,
    added: dict[str, Array],
    axis: int | None = None,
) -> Iterator[onnx.NodeProto]:
    helper = require("onnx.helper", "quantize")
    inputs = [source, f"{name}_scale", f"{name}_zero_point"]
    attributes = {} if axis is None else {"axis": axis}
    yield helper.make_node(
        "QuantizeLinear", inputs, [f"{name}_quantized"], f"{name}_QuantizeLinear", **attributes
    )
    yield _dequantize(name, scale, zero_point, added)


def _dequantize(
    name: str, scale: Array, zero_point: Array, added: dict[str, Array]
) -> onnx.NodeProto:
    """Return the node from ``name_quantized`` to ``name_dequantized``; axis 0 when per channel."""
    helper = require("onnx.helper", "quantize")
    added[f"{name}_scale"], added[f"{name}_zero_point"] = scale, zero_point
    node: onnx.NodeProto = helper.make_node(
        "DequantizeLinear",
        [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"],
        [f"{name}_dequantized"],
        f"{name}_DequantizeLinear",
        **({"axis": 0} if scale.ndim else {}),
    )
    return node
