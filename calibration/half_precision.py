"""FP16 as a typed graph: TensorRT 11 takes precision from the graph, not from a flag."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.frames import FrameFiles
from calibration.observe import Observer
from edgeuda.accuracy.evaluation import agreement
from edgeuda.errors import DataError, ModelError, ParityError, require
from edgeuda.files import require_absent, sha256, write_bytes
from engines.onnx.confidence import of_confidence
from engines.onnx.graphs import drop_unread, load_graph, rename, require_valid
from engines.onnx.index import POOLS, index
from engines.onnx.metadata import HALF_KEY, read_metadata, runtime_of, spec_of

if TYPE_CHECKING:
    import onnx

LARGEST = float(np.finfo(np.float16).max)
LEAST_AGREEMENT = 0.99
"""Smallest share of equal pixels at which half precision counts as the same network: Q/DQ steps
that fall to the other side change more than rounding alone."""
QDQ_OPSET = 19
"""First in which Q/DQ pairs may be half precision."""
_FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that the standard keeps in float32: regions and scales."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the FP16 form of a graph, FP32 or Q/DQ.

    In float32 stay the normalisation of the image, the global means and the gates computed from
    them, whose sums over large maps leave half precision's range, logits that are put out, and how
    sure of them the graph is.
    Weights and scales below half precision's smallest number become zero only where they were next
    to nothing; the parity of the result has to be checked on frames.

    Args:
        model: A graph of this project.

    Raises:
        ModelError: If a weight or scale is beyond half precision.
    """
    onnx = require("onnx", "quantize")
    half = copy.deepcopy(model)
    graph = half.graph
    lookup = index(graph)
    single = _single(model)
    types, helper = onnx.TensorProto, onnx.helper
    constants = {tensor.name: tensor for tensor in graph.initializer}
    converted: dict[str, str] = {}
    nodes: list[Any] = []
    cast: dict[tuple[str, int], str] = {}

    def as_type(name: str, kind: int) -> str:
        """Return the tensor in another type, by one cast however many read it."""
        if (name, kind) not in cast:
            cast[name, kind] = f"{name}_{'half' if kind == types.FLOAT16 else 'single'}"
            nodes.append(helper.make_node("Cast", [name], [cast[name, kind]], to=kind))
        return cast[name, kind]

    floats = _float_tensors(model)
    for node in lookup.nodes:
        stays = node.output[0] in single
        for position, name in enumerate(node.input):
            if position in _FLOAT_INPUTS.get(node.op_type, ()) or not name:
                continue
            if name in constants:
                if constants[name].data_type == types.FLOAT and not stays:
                    node.input[position] = _half_constant(graph, constants[name], converted)
            elif name in floats and node.op_type != "Cast":
                produced_single = name in single or name not in lookup.producers
                if stays and not produced_single:
                    node.input[position] = as_type(name, types.FLOAT)
                elif not stays and produced_single:
                    node.input[position] = as_type(name, types.FLOAT16)
        nodes.append(node)
    for value in graph.output:
        if value.type.tensor_type.elem_type == types.FLOAT and value.name not in single:
            inner = f"{value.name}_inner"
            rename(nodes, value.name, inner)
            nodes.append(helper.make_node("Cast", [inner], [value.name], to=types.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.ClearField("value_info")
    drop_unread(graph)
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        for entry in half.opset_import:
            if entry.domain == "":
                entry.version = max(entry.version, QDQ_OPSET)
    require_valid(half, "The graph has no valid half-precision form")
    return half


def _single(model: onnx.ModelProto) -> frozenset[str]:
    """Return the tensors that stay float32: image, pools and gates, and `of_confidence`."""
    lookup = index(model.graph)
    found = set(lookup.pooled())
    before: set[str] = set()
    for node in lookup.nodes:
        inputs = [name for name in node.input if name and name not in lookup.constants]
        started = all(name in before or name not in lookup.producers for name in inputs)
        if started and node.op_type not in {"Conv", "QuantizeLinear", *POOLS}:
            before.update(node.output)
    sure = {name for name in lookup.producers if of_confidence(name)}
    return frozenset(found | before | sure)


def _float_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of computed float32 tensors."""
    onnx = require("onnx", "quantize")
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return frozenset(
        value.name
        for value in (*inferred.value_info, *inferred.output, *inferred.input)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    )


def _half_constant(graph: onnx.GraphProto, tensor: onnx.TensorProto, made: dict[str, str]) -> str:
    numpy_helper = require("onnx.numpy_helper", "quantize")
    if tensor.name not in made:
        values = numpy_helper.to_array(tensor)
        if values.size and float(np.abs(values).max()) > LARGEST:
            msg = (
                f"{tensor.name}: {float(np.abs(values).max()):.4g} is beyond half precision's "
                f"{LARGEST:.0f}"
            )
            raise ModelError(msg)
        rounded = values.astype(np.float16)
        if tensor.name.endswith("_scale"):  # a scale of zero would divide by it
            rounded = np.maximum(rounded, np.finfo(np.float16).smallest_subnormal)
        made[tensor.name] = f"{tensor.name}_half"
        graph.initializer.append(numpy_helper.from_array(rounded, made[tensor.name]))
    return made[tensor.name]


def write_half(
    model: Path,
    frames: Sequence[Path],
    out: Path,
    *,
    least_agreement: float = LEAST_AGREEMENT,
    threads: int | None = None,
) -> float:
    """Write the FP16 form of a model after comparing both on frames.

    Args:
        model: An exported FP32 model, or its Q/DQ form for TensorRT.
        frames: Frames of the target domain.
        out: The file to write; it must not exist.
        least_agreement: Share of equal pixels below which nothing is written, 0 to 1.
        threads: As in `open_session`.

    Returns:
        Share of equal pixels.

    Raises:
        OutputExistsError: If ``out`` exists.
        ModelError: If the model is not of this project, is quantized for another runtime, or has no
            FP16 form.
        DataError: If there are no frames.
        ParityError: If fewer pixels keep their class.
    """
    onnx = require("onnx", "quantize")
    require_absent(out)
    if not frames:
        msg = f"{out}: expected at least one frame to compare by, found none"
        raise DataError(msg)
    metadata = read_metadata(model)
    spec = spec_of(metadata, str(model))
    if HALF_KEY in metadata:
        msg = f"{model}: is in half precision already"
        raise ModelError(msg)
    policy = runtime_of(metadata)
    if policy not in (None, "tensorrt"):
        msg = (
            f"{model}: is quantized for {policy}, whose integer kernels know no half precision. "
            "Use the FP32 model, or calibrate for `runtime` tensorrt"
        )
        raise ModelError(msg)
    proto = load_graph(model, "quantize")
    half = to_half(proto)
    half.metadata_props.append(onnx.StringStringEntryProto(key=HALF_KEY, value=sha256(model)))
    size = spec.preprocessing
    # Optimised, ONNX Runtime 1.31 rounds Q/DQ pairs in half precision per tensor.
    observers = [Observer(each, threads, optimize=False) for each in (proto, half)]
    files = FrameFiles.of(frames, size)
    equal = []
    for position in range(len(files)):
        one, two = (observe(files[position]).labels for observe in observers)
        equal.append(agreement(one, two))
    found = float(np.mean(equal))
    if found < least_agreement:
        msg = (
            f"{out}: half precision keeps the class of {found:.3%} of the pixels, expected at "
            f"least {least_agreement:.1%}. Nothing was written"
        )
        raise ParityError(msg)
    write_bytes(out, half.SerializeToString())
    return found
