"""Which kernels ONNX Runtime picks for a Q/DQ graph, and what is done so that it picks integers.

A Q/DQ graph only *allows* integer kernels. `space_to_depth`, `widen_constants` and
`hide_relu` change the float graph before pairs are put in; `compiled` reads what became of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
_LEAST_KERNEL = 5
"""Below it a convolution gains less from fewer, deeper places than rearranging the image costs."""


def space_to_depth(model: onnx.ModelProto, integer: Collection[str]) -> bool:
    """Let the first convolutions read blocks of 2x2 pixels as places of twelve channels.

    A convolution over three channels spends its time on gathering single pixels. One with stride 2
    over pixels is one with stride 1 over such blocks, whose kernel has zeros where it would look
    beyond the old one: the same products are added, so results differ by the order of sums alone.
    The image is rearranged once for all of them, as bytes.

    Args:
        model: Takes uint8 ``[batch, H, W, 3]``; changed in place.
        integer: Convolutions that are computed in integers, by their output. In floats nothing is
            gained.

    Returns:
        Whether it was changed: the image has to lead through a cast, a transpose, and constants per
        channel to integer convolutions of stride 2 only, with constant weights and odd kernels of
        at least `_LEAST_KERNEL`.
    """
    onnx = require("onnx", "quantize")
    graph = model.graph
    image = graph.input[0]
    rows, columns = (image.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 2))
    constants = constants_of(model)
    chain, convs = _until_conv(graph, image.name, constants)
    if not convs or rows % 2 or columns % 2 or not {c.output[0] for c in convs} <= set(integer):
        return False
    rearranged = [one for conv in convs if (one := _over_blocks(conv, constants)) is not None]
    if len(rearranged) < len(convs):
        return False

    def add(name: str, value: npt.NDArray[Any]) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name

    make, name = onnx.helper.make_node, image.name
    axis, step = add("row_axis", np.array([1])), add("row_step", np.array([2]))
    shape = add("pairs_of_pixels", np.array([0, rows // 2, columns // 2, 6]))
    front = []
    for row in ("even", "odd"):  # whole rows are copied, and then pairs of pixels
        first = add(f"first_{row}", np.array([int(row == "odd")]))
        last = add(f"end_{row}", np.array([rows]))
        front += [
            make("Slice", [name, first, last, axis, step], [f"{name}_{row}"], f"{name}_{row}"),
            make("Reshape", [f"{name}_{row}", shape], [f"{name}_{row}_pairs"]),
        ]
    pairs = [f"{name}_even_pairs", f"{name}_odd_pairs"]
    front.append(make("Concat", pairs, [f"{name}_blocks"], axis=3))
    for node in chain:
        for position, source in enumerate(node.input):
            if source == name:
                node.input[position] = f"{name}_blocks"
            elif source in constants and constants[source].shape == (1, 3, 1, 1):
                tiled = np.tile(constants[source], (1, 4, 1, 1))
                node.input[position] = add(f"{node.output[0]}_{position}_of_blocks", tiled)
    for conv, (weight, attributes) in zip(convs, rearranged, strict=True):
        conv.input[1] = add(f"{conv.output[0]}_over_blocks", weight)
        del conv.attribute[:]
        conv.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items())
    nodes = [*front, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return True


def _until_conv(
    graph: onnx.GraphProto, name: str, constants: dict[str, npt.NDArray[Any]]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Follow a tensor to the convolutions that read it: the nodes on the way, and they."""
    chain: list[onnx.NodeProto] = []
    while True:
        readers = [node for node in graph.node if name in node.input]
        if readers and all(node.op_type == "Conv" for node in readers):
            return chain, readers
        if len(readers) != 1 or readers[0].op_type not in {"Cast", "Transpose", "Mul", "Add"}:
            return chain, []
        (node,) = readers
        others = [one for one in node.input if one != name]
        if any(constants.get(one, np.empty(0)).shape not in {(), (1, 3, 1, 1)} for one in others):
            return chain, []
        chain.append(node)
        name = node.output[0]


def _over_blocks(
    conv: onnx.NodeProto, constants: dict[str, npt.NDArray[Any]]
) -> tuple[npt.NDArray[Any], dict[str, Any]] | None:
    """Return weights and attributes of a convolution over blocks; None if it cannot be one."""
    onnx = require("onnx", "quantize")
    found = {one.name: onnx.helper.get_attribute_value(one) for one in conv.attribute}
    weight = constants.get(conv.input[1])
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        return None
    kernel, pad = weight.shape[2], (found.get("pads") or [0])[0]
    if (
        weight.shape[3] != kernel
        or kernel < _LEAST_KERNEL
        or kernel != 2 * pad + 1
        or list(found.get("pads", ())) != [pad] * 4
        or list(found.get("strides", ())) != [2, 2]
        or set(found.get("dilations", (1,))) != {1}
        or found.get("group", 1) != 1
    ):
        return None
    before = (pad + 1) // 2  # blocks before the place itself
    after = pad // 2
    skipped = 2 * before - pad  # of the first block, pixels that the old kernel does not reach
    size = before + after + 1
    wide = np.zeros((len(weight), 3, 2 * size, 2 * size), weight.dtype)
    wide[:, :, skipped : skipped + kernel, skipped : skipped + kernel] = weight
    by_block = wide.reshape(len(weight), 3, size, 2, size, 2).transpose(0, 3, 5, 1, 2, 4)
    return np.ascontiguousarray(by_block.reshape(len(weight), 12, size, size)), {
        "kernel_shape": [size, size], "strides": [1, 1], "pads": [before, before, after, after],
    }  # fmt: skip


def widen_constants(model: onnx.ModelProto) -> None:
    """Repeat the per-channel constants before the first convolution along the image's width.

    ONNX Runtime moves the transpose behind the normalisation when the convolutions are integer, and
    then broadcasts a few values at a time, several times slower than a whole row. Results are the
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
            if name in constants and constants[name].shape in {(1, 3, 1, 1), (1, 12, 1, 1)}:
                times = width if constants[name].shape[1] == 3 else width // 2
                row = np.repeat(constants[name], times, axis=3)
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
