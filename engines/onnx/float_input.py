"""The same graph with camera images as float32, for TensorRT's own calibrators."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from edgeuda.errors import require

if TYPE_CHECKING:
    import onnx


def float_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that takes the same camera image as float32 instead of uint8.

    TensorRT's calibrators feed float32 only. Values stay 0 to 255 and the shape ``[N, H, W, 3]``:
    the normalisation inside the graph is the same one.
    """
    onnx = require("onnx", "build")
    changed = copy.deepcopy(model)
    changed.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return changed
