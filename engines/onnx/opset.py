"""Lowering of a graph's operator set, for runtimes that stopped at an earlier one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from edgeuda.errors import ModelError, require
from engines.onnx.graphs import drop_unread, require_valid

if TYPE_CHECKING:
    import onnx

TENSORRT_8 = 17
"""Last operator set that TensorRT 8.6's parser knows."""
IR = 8
_LATER_ATTRIBUTES = {
    "Resize": ("antialias", "axes", "keep_aspect_ratio_policy"),
    "Cast": ("saturate",),
    "QuantizeLinear": ("saturate", "block_size", "output_dtype"),
    "DequantizeLinear": ("block_size",),
}
_REDUCTIONS = {"ReduceMax", "ReduceMin", "ReduceMean"}


def lower_opset(model: onnx.ModelProto, opset: int = TENSORRT_8) -> onnx.ModelProto:
    """Return a copy of a graph at an earlier operator set, which computes the same.

    Global means become `GlobalAveragePool`, axes of other reductions attributes, and attributes
    that are at their defaults and came later are dropped.

    Args:
        model: A graph of this project at operator set 18 or 19.
        opset: At least 13, below the graph's.

    Raises:
        ModelError: If the graph uses what the earlier set cannot express.
    """
    onnx = require("onnx", "cpu")
    lowered = copy.deepcopy(model)
    graph = lowered.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for name in _LATER_ATTRIBUTES.get(node.op_type, ()):
            _drop(node, name)
        if node.op_type not in _REDUCTIONS or len(node.input) < 2:
            continue
        if node.input[1] not in constants:
            msg = f"{node.name}: its axes are computed, which operator set {opset} does not know"
            raise ModelError(msg)
        axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        del node.input[1:]
        if node.op_type == "ReduceMean" and keep and sorted(axes) in ([2, 3], [-2, -1]):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
        else:
            _drop(node, "noop_with_empty_axes")
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
    drop_unread(graph)
    graph.ClearField("value_info")
    for entry in lowered.opset_import:
        if entry.domain == "":
            entry.version = opset
    lowered.ir_version = min(lowered.ir_version, IR)
    require_valid(lowered, f"The graph cannot be lowered to operator set {opset}")
    return lowered


def _drop(node: Any, name: str) -> None:
    """Remove an attribute that says what the earlier operator does anyway."""
    defaults = {"antialias": 0, "keep_aspect_ratio_policy": b"stretch", "saturate": 1}
    for attribute in list(node.attribute):
        if attribute.name != name:
            continue
        value = attribute.s or attribute.i
        if name in defaults and value not in (defaults[name], 0):
            msg = f"{node.name}: {name}={value!r} has no counterpart in the earlier operator set"
            raise ModelError(msg)
        node.attribute.remove(attribute)
