"""Keeping in float what was chosen to stay float, in spite of ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibration.placement import Placement
from edgeuda.errors import require
from engines.onnx.index import CLIPS
from engines.onnx.weights import with_constants

if TYPE_CHECKING:
    import onnx

_ZERO = "edgeuda.zero"


def hide_relu(model: onnx.ModelProto, placement: Placement) -> onnx.ModelProto:
    """Return a copy in which float convolutions between quantized tensors are not recognised.

    ONNX Runtime (1.31, `WeightBiasQuantization`) rounds the float weights of any convolution that
    reads a DQ and whose ReLU feeds a Q, per tensor, and runs it in integers: the layer that was
    kept float for its sensitivity then loses most. A maximum with zero (and for ReLU6 a minimum
    after it) is the same function under another name, which that pass does not look through.

    Args:
        model: An FP32 graph.
        placement: What will be quantized in it.
    """
    onnx = require("onnx", "quantize")
    hidden = with_constants(model, {_ZERO: np.zeros((), np.float32)})
    nodes = []
    for node in hidden.graph.node:
        nodes.append(node)
        if (
            node.op_type not in CLIPS
            or node.input[0] not in placement.float_convs
            or node.output[0] not in placement.tensors
        ):
            continue
        if node.op_type == "Relu":
            node.op_type = "Max"
            node.input.append(_ZERO)
            continue
        source, *bounds = node.input
        lower, upper = [*bounds, "", ""][:2]
        between = f"{node.output[0]}_from_below"
        pairs = [(kind, name) for kind, name in (("Max", lower), ("Min", upper)) if name]
        steps = [source, *[between] * (len(pairs) - 1), node.output[0]]
        nodes[-1:] = [
            onnx.helper.make_node(kind, [steps[number], name], [steps[number + 1]])
            for number, (kind, name) in enumerate(pairs)
        ]
    del hidden.graph.node[:]
    hidden.graph.node.extend(nodes)
    return hidden
