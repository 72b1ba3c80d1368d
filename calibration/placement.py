"""Where Q/DQ pairs go, and of which kind, for each runtime that executes the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeuda.records.names import RuntimeName
from engines.onnx.index import Edge, GraphIndex

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Placement:
    """What is quantized in one graph.

    Attributes:
        convs: Quantized convolutions, by their output, in graph order.
        float_convs: The others.
        edges: Inputs that read their activation through a Q/DQ pair.
        tensors: The activations that get a pair, in graph order.
        same_as: Tensors that take the range of another because their operator only moves values.
    """

    convs: tuple[str, ...]
    float_convs: tuple[str, ...]
    edges: frozenset[Edge]
    tensors: tuple[str, ...]
    same_as: dict[str, str] = field(default_factory=dict)

    def measured(self) -> tuple[str, ...]:
        """Return the tensors whose ranges have to be collected."""
        return tuple(name for name in self.tensors if name not in self.same_as)


@dataclass(frozen=True)
class Policy:
    """How a runtime wants its Q/DQ graph.

    Attributes:
        target: The runtime.
        unsigned: Activations as uint8 with a zero point; else int8, symmetric, zero point 0.
        integer_weights: Weights stored as int8 and biases as int32; else both stay float, the
            weights with a Q/DQ pair of their own.
        channels_last: Whether integer convolutions run channels-last, see `widen_constants`.
        hide_float: Whether float convolutions have to be hidden from it, see `hide_relu`.
        place: Chooses what is quantized; the convolutions named stay float, besides those that
            always do.
    """

    runtime: RuntimeName
    unsigned: bool
    integer_weights: bool
    channels_last: bool
    hide_float: bool
    place: Callable[[GraphIndex, frozenset[str]], Placement]


def _convs(
    graph: GraphIndex, kept_float: frozenset[str]
) -> tuple[tuple[onnx.NodeProto, ...], tuple[onnx.NodeProto, ...]]:
    """Split the convolutions into those worth quantizing and those that stay float.

    Float stay the convolutions of gates, which see one pixel and steer whole channels, and the
    classifier (after which no convolution follows), whose rounding would move class borders.
    """
    pooled, before_conv = graph.pooled(), graph.before_conv()
    convs = [node for node in graph.nodes if node.op_type == "Conv"]
    chosen = [
        node
        for node in convs
        if node.input[0] not in pooled
        and node.output[0] in before_conv
        and node.output[0] not in kept_float
        # What is computed cannot be quantized once and for all.
        and all(name in graph.constants for name in node.input[1:])
    ]
    kept = {node.output[0] for node in chosen}
    return tuple(chosen), tuple(node for node in convs if node.output[0] not in kept)


def _in_order(graph: GraphIndex, tensors: set[str]) -> tuple[str, ...]:
    return tuple(name for node in graph.nodes for name in node.output if name in tensors)


def _outputs(nodes: tuple[onnx.NodeProto, ...]) -> tuple[str, ...]:
    return tuple(node.output[0] for node in nodes)


def _around_operators(graph: GraphIndex, kept_float: frozenset[str]) -> Placement:
    """Quantize inputs and outputs of every operator with an integer kernel on the way to a conv.

    ONNX Runtime replaces an operator by its integer kernel only when *all* its activations come
    from a DQ and its output goes to a Q. Gates, and the sums they feed, stay float.
    """
    convs, float_convs = _convs(graph, kept_float)
    pooled, before_conv = graph.pooled(), graph.before_conv()
    chosen = list(convs)
    beside = _beside(graph, convs)
    same_as: dict[str, str] = {}
    for node in graph.nodes:
        inputs = [name for _, name in graph.activations(node)]
        if (
            node.output[0] not in before_conv
            or node.output[0] in pooled
            or node.output[0] not in beside
        ):
            continue
        if node.op_type in {"MaxPool", "Resize"} and _moves_values(node):
            chosen.append(node)
            same_as[node.output[0]] = same_as.get(inputs[0], inputs[0])
        elif node.op_type == "Concat" or (
            node.op_type == "Add"
            and len(inputs) == 2
            and all(n not in pooled and graph.producers[n].op_type != "Mul" for n in inputs)
            # Between a DQ and a Q, ONNX Runtime would quantize a convolution that is to stay float.
            and not any(n in kept_float for n in inputs)
        ):
            chosen.append(node)
    tensors = {name for node in chosen for _, name in graph.activations(node)}
    tensors |= {graph.activated(node) for node in chosen}
    return Placement(
        convs=_outputs(convs),
        float_convs=_outputs(float_convs),
        # A float reader takes the dequantized value too: a second, float output of a convolution
        # would keep ONNX Runtime from fusing it.
        edges=frozenset(edge for name in tensors for edge in graph.readers[name]),
        tensors=_in_order(graph, tensors),
        same_as=same_as,
    )


def _beside(graph: GraphIndex, convs: tuple[onnx.NodeProto, ...]) -> frozenset[str]:
    """Return the outputs of operators that a quantized convolution feeds or reads.

    Elsewhere rounding a sum or a pool would only cost accuracy.
    """
    made = {name for node in convs for name in (node.output[0], graph.activated(node))}
    read = {node.input[0] for node in convs}
    return frozenset(
        node.output[0]
        for node in graph.nodes
        if node.output[0] in read
        or graph.activated(node) in read
        or any(name in made for name in node.input)
    )


def _moves_values(node: onnx.NodeProto) -> bool:
    if node.op_type != "Resize":
        return True
    return any(a.name == "mode" and a.s == b"nearest" for a in node.attribute)


def _conv_inputs(graph: GraphIndex, kept_float: frozenset[str]) -> Placement:
    """Quantize the inputs of convolutions, and the residual input of the sums that follow them.

    The sum's other input, a convolution's output, stays float: TensorRT then fuses convolution, sum
    and ReLU into one integer kernel. Source: NVIDIA, "Explicit Quantization", placement
    recommendations, TensorRT documentation.
    """
    convs, float_convs = _convs(graph, kept_float)
    outputs = _outputs(convs)
    edges = {Edge(name, 0) for name in outputs}
    for node in graph.nodes:
        inputs = graph.activations(node)
        if node.op_type != "Add" or len(inputs) != 2:
            continue
        branch = [i for i, name in inputs if name in outputs and len(graph.readers[name]) == 1]
        if branch:
            edges.add(Edge(node.output[0], 1 - branch[0]))
    tensors = {graph.producers[edge.reader].input[edge.position] for edge in edges}
    return Placement(
        convs=outputs,
        float_convs=_outputs(float_convs),
        edges=frozenset(edges),
        tensors=_in_order(graph, tensors),
    )


ORT_X86 = Policy(
    "ort-x86",
    unsigned=True,
    integer_weights=True,
    channels_last=True,
    hide_float=True,
    place=_around_operators,
)
"""ONNX Runtime on x86: unsigned activations times signed weights is what VNNI multiplies.

On CPUs without VNNI (AVX2 only) the same kernels add pairs of products in 16 bits, which saturates.
"""
TENSORRT = Policy(
    "tensorrt",
    unsigned=False,
    integer_weights=False,
    channels_last=False,
    hide_float=False,
    place=_conv_inputs,
)
"""TensorRT: float weights behind a pair of their own, which its documentation allows throughout."""

POLICIES: dict[RuntimeName, Policy] = {policy.runtime: policy for policy in (ORT_X86, TENSORRT)}
