"""Constants of a graph: reading them, replacing them, and what convolutions cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeuda.errors import require
from engines.onnx.graphs import shapes_of_one_image

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]


def constants_of(model: onnx.ModelProto) -> dict[str, Array]:
    """Return the initialisers of a graph by name."""
    numpy_helper = require("onnx.numpy_helper", "quantize")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_constants(model: onnx.ModelProto, changed: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a copy of a graph in which initialisers have other values, or are added."""
    numpy_helper = require("onnx.numpy_helper", "quantize")
    copied = copy.deepcopy(model)
    kept = [tensor for tensor in copied.graph.initializer if tensor.name not in changed]
    del copied.graph.initializer[:]
    copied.graph.initializer.extend(kept)
    copied.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in changed.items()
    )
    return copied


def with_biases(model: onnx.ModelProto, biases: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a copy in which convolutions, named by their output, have other biases."""
    copied = copy.deepcopy(model)
    changed = {}
    for node in copied.graph.node:
        if node.op_type == "Conv" and node.output[0] in biases:
            # A name of its own: two convolutions may share a bias.
            name = f"{node.output[0]}_own_bias"
            del node.input[2:]
            node.input.append(name)
            changed[name] = biases[node.output[0]].astype(np.float32)
    return with_constants(copied, changed)


def multiplications(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiplications of each convolution, by its output, for one image."""
    shapes = shapes_of_one_image(model)
    constants = constants_of(model)
    return {
        node.output[0]: int(
            np.prod(shapes[node.output[0]][2:], dtype=np.int64) * constants[node.input[1]].size
        )
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in constants
    }
