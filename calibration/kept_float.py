"""Keeping in float what was chosen to stay float, in spite of ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibration.placement import Placement
from calibration.weights import with_constants

if TYPE_CHECKING:
    import onnx

_ZERO = "edgeuda.zero"


def hide_relu(model: onnx.ModelProto, placement: Placement) -> onnx.ModelProto:
    """Return a copy in which float convolutions between quantized tensors are not recognised.

    ONNX Runtime (1.31, `WeightBiasQuantization`) rounds the float weights of any convolution that
    reads a DQ and whose ReLU feeds a Q, per tensor, and runs it in integers: the layer that was
    kept float for its sensitivity then loses most. A maximum with zero is the same function under
    another name, which that pass does not look through.

    Args:
        model: An FP32 graph.
        placement: What will be quantized in it.
    """
    hidden = with_constants(model, {_ZERO: np.zeros((), np.float32)})
    for node in hidden.graph.node:
        if (
            node.op_type == "Relu"
            and node.input[0] in placement.float_convs
            and node.output[0] in placement.tensors
        ):
            node.op_type = "Max"
            node.input.append(_ZERO)
    return hidden
