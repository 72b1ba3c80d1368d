"""Who produces and who reads each tensor of an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

POOLS = frozenset({"ReduceMean", "GlobalAveragePool"})
"""Operators that attention uses to turn a map into one value per channel."""

CLIPS = frozenset({"Relu", "Clip"})
"""Activations that only cut off: they fuse with the rounding of a range that is cut off too."""


@dataclass(frozen=True)
class Edge:
    """One input of one node: the node's first output and the position of the input."""

    reader: str
    position: int


@dataclass(frozen=True, eq=False)
class GraphIndex:
    """Lookup tables over a graph; tensors are named as in the graph.

    Attributes:
        nodes: In topological order.
        producers: The node that computes a tensor; graph inputs and constants have none.
        readers: The inputs that read a tensor.
        constants: Names of initialisers.
    """

    nodes: tuple[onnx.NodeProto, ...]
    producers: dict[str, onnx.NodeProto]
    readers: dict[str, list[Edge]]
    constants: frozenset[str]

    def read_by(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that read ``tensor``."""
        return [self.producers[edge.reader] for edge in self.readers.get(tensor, [])]

    def activations(self, node: onnx.NodeProto) -> list[tuple[int, str]]:
        """Return position and name of the inputs of ``node`` that are computed."""
        return [(i, name) for i, name in enumerate(node.input) if name in self.producers]

    def activated(self, node: onnx.NodeProto) -> str:
        """Return the output of ``node``, or of the ReLU or ReLU6 that alone reads it.

        Runtimes have an integer kernel for a convolution with either; other activations, such as
        MobileNetV3's hard-swish, read a tensor that is rounded before.
        """
        output: str = node.output[0]
        readers = self.read_by(output)
        if len(readers) == 1 and readers[0].op_type in CLIPS and readers[0].input[0] == output:
            return str(readers[0].output[0])
        return output

    def pooled(self) -> frozenset[str]:
        """Return the tensors computed from global means only: the branches of gates."""
        found: set[str] = set()
        for node in self.nodes:
            inputs = self.activations(node)
            if node.op_type in POOLS or (inputs and all(name in found for _, name in inputs)):
                found.update(node.output)
        return frozenset(found)

    def before_conv(self) -> frozenset[str]:
        """Return the tensors from which some convolution is computed."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.op_type == "Conv" or any(name in found for name in node.output):
                found.update(node.input)
        return frozenset(found)


def index(graph: onnx.GraphProto) -> GraphIndex:
    """Build the lookup tables of a graph."""
    readers: dict[str, list[Edge]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append(Edge(node.output[0], position))
    return GraphIndex(
        nodes=tuple(graph.node),
        producers={name: node for node in graph.node for name in node.output},
        readers=readers,
        constants=frozenset(tensor.name for tensor in graph.initializer),
    )
