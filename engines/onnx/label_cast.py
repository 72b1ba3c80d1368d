"""Labels as uint8 by way of float.

ArgMax gives int64, and a graph's labels are uint8. TensorRT 8.6 to 11 document a conversion to
uint8 from float32 and float16 only; 8.6 says of indices that theirs "is not implemented yet".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeuda.errors import require

if TYPE_CHECKING:
    import onnx


def cast_by_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put a float32 between each ArgMax and its cast to uint8, in place; returns the graph.

    Class ids are exact in float32, so the labels are the same. A graph that has the float already
    is left as it is.
    """
    onnx = require("onnx", "cpu")
    graph, types = model.graph, onnx.TensorProto
    indices = {node.output[0] for node in graph.node if node.op_type == "ArgMax"}
    nodes = []
    for node in graph.node:
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        if node.op_type == "Cast" and to == types.UINT8 and node.input[0] in indices:
            between = f"{node.input[0]}_float"
            nodes.append(onnx.helper.make_node("Cast", [node.input[0]], [between], to=types.FLOAT))
            node.input[0] = between
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model
