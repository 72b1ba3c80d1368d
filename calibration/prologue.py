"""Making the normalisation cheap where the runtime turns the graph channels-last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeuda.errors import require
from engines.onnx.weights import constants_of

if TYPE_CHECKING:
    import onnx


def widen_constants(model: onnx.ModelProto) -> None:
    """Repeat the per-channel constants before the first convolution along the image's width.

    ONNX Runtime moves the transpose behind the normalisation when the convolutions are integer, and
    then broadcasts three values at a time, several times slower than a whole row. Results are the
    same bit for bit.

    Args:
        model: Takes uint8 ``[batch, H, W, 3]``; changed in place.
    """
    numpy_helper = require("onnx.numpy_helper", "quantize")
    width = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    constants = constants_of(model)
    for node in model.graph.node:
        if node.op_type == "Conv":
            return
        for position, name in enumerate(node.input):
            if name in constants and constants[name].shape == (1, 3, 1, 1):
                row = np.repeat(constants[name], width, axis=3)
                node.input[position] = f"{name}_row"
                model.graph.initializer.append(numpy_helper.from_array(row, f"{name}_row"))
