"""Which kernels ONNX Runtime picks for a Q/DQ graph, and what is done so that it picks integers.

A Q/DQ graph only *allows* integer kernels. `widen_constants` and `hide_relu` change the float graph
before pairs are put in; `compiled` reads what became of it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.placement import Placement
from edgeuda.errors import require
from engines.onnx.graphs import load_graph
from engines.onnx.index import CLIPS
from engines.onnx.session import open_session
from engines.onnx.weights import constants_of, with_constants

if TYPE_CHECKING:
    import onnx

QUANTIZED_WEIGHT = "_weight_quantized"
"""What follows the convolution's output in the name of its integer weight."""
_INTEGER = frozenset({"QLinearConv", "ConvInteger"})
_FLOAT = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})
_ZERO = "edgeuda.zero"


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


@dataclass(frozen=True)
class Compiled:
    """The convolutions of a compiled graph.

    Attributes:
        placed: Those of our Q/DQ pairs that run in integers, by their output in the FP32 graph.
        integer: Number of all that run in integers.
        total: Number of all.
    """

    placed: frozenset[str]
    integer: int
    total: int


def compiled(path: Path) -> Compiled:
    """Find the convolutions that ONNX Runtime runs in integers on this machine's CPU.

    A Q/DQ graph only *allows* integer kernels: a misplaced pair silently leaves a convolution in
    float. This reads the graph as ONNX Runtime optimised it.

    Args:
        path: An ONNX file.

    Raises:
        ModelError: If ONNX Runtime cannot load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, threads=1, optimized=optimized)
        nodes = load_graph(optimized, "quantize").graph.node
    integer = [node for node in nodes if node.op_type in _INTEGER]
    weights = {name for node in integer for name in node.input if name.endswith(QUANTIZED_WEIGHT)}
    return Compiled(
        frozenset(name.removesuffix(QUANTIZED_WEIGHT) for name in weights),
        len(integer),
        len(integer) + sum(node.op_type in _FLOAT for node in nodes),
    )
