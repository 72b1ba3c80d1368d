"""How sure a graph is: a second output at the resolution of its scores, and its pooled features.

``confidence`` is the largest softmax probability times 255, rounded, of the scores before the last
resize. ``features`` are the global means of the deepest features. Both hang on the graph as ends of
their own: nothing else reads what they are made of.

ONNX Runtime computes every node of a graph, whether its output is asked for or not, and also where
it leads to no output at all (1.31; `only_execute_path_to_fetches` changes nothing). So that who
does not ask does not pay, the ends are cut off the file's bytes before they are opened, which takes
no ``onnx``: a vehicle may have ONNX Runtime alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeuda.errors import DataError, ModelError, require
from edgeuda.records.confidence import ConfidenceNote
from engines.onnx.graphs import shapes_of_one_image
from engines.onnx.heads import scores_of

if TYPE_CHECKING:
    import onnx

CONFIDENCE = "confidence"
FEATURES = "features"
BESIDE = (CONFIDENCE, FEATURES)
"""Outputs that a graph may have beside its head, in their order."""
LEVELS = 255
CONFIDENCE_KEY = "edgeuda.confidence"
"""Metadata that says what the outputs are, see `ConfidenceNote`."""
_PREFIX = f"{CONFIDENCE}_"
# Numbers of fields in onnx.proto.
_GRAPH, _NODE, _OUTPUT, _NAME, _NODE_OUTPUT = 7, 1, 12, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def with_confidence(model: onnx.ModelProto, pooled: str | None = None) -> onnx.ModelProto:
    """Return a copy of an exported graph that says how sure it is, too.

    The tail is in float32 whatever the graph is in, and made of operators that every runtime here
    has: shifted by the largest score, the largest probability is one over the sum of exponentials.

    Args:
        model: With any head.
        pooled: Name of the weight of the convolution that reads the pooled features; None adds no
            ``features``.

    Raises:
        ModelError: If no convolution with that weight reads a global mean.
    """
    onnx = require("onnx", "cpu")
    types = onnx.TensorProto
    longer = copy.deepcopy(model)
    graph, scores, shapes = longer.graph, scores_of(model), shapes_of_one_image(model)
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    first = [batch.dim_param or batch.dim_value]

    def add(kind: str, inputs: list[str], output: str, **how: int) -> None:
        graph.node.append(onnx.helper.make_node(kind, inputs, [output], output, **how))

    for name, value in (("axis", np.array([1])), ("levels", np.array(LEVELS, np.float32))):
        graph.initializer.append(onnx.numpy_helper.from_array(value, _PREFIX + name))
    s, largest, shifted, exponentials, total, exact, rounded, axis, levels = (
        _PREFIX + name
        for name in (
            "scores", "largest", "shifted", "exponentials", "sum", "exact", "rounded", "axis",
            "levels",
        )
    )  # fmt: skip
    add("Cast", [scores], s, to=types.FLOAT)
    add("ReduceMax", [s, axis], largest, keepdims=1)
    add("Sub", [s, largest], shifted)
    add("Exp", [shifted], exponentials)
    add("ReduceSum", [exponentials, axis], total, keepdims=0)
    add("Div", [levels, total], exact)
    add("Round", [exact], rounded)
    add("Cast", [rounded], CONFIDENCE, to=types.UINT8)
    describe = onnx.helper.make_tensor_value_info
    graph.output.append(describe(CONFIDENCE, types.UINT8, [*first, *shapes[scores][2:]]))
    if pooled is not None:
        tensor = _pooled(model, pooled)
        add("Flatten", [tensor], FEATURES, axis=1)
        graph.output.append(describe(FEATURES, types.FLOAT, [*first, shapes[tensor][1]]))
    return longer


def _pooled(model: onnx.ModelProto, weight: str) -> str:
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    found = [n.input[0] for n in model.graph.node if n.op_type == "Conv" and n.input[1] == weight]
    if len(found) != 1 or producers.get(found[0]) not in {"ReduceMean", "GlobalAveragePool"}:
        msg = f"Expected one convolution with weight {weight!r} that reads a global mean, found "
        msg += f"{[producers.get(name) for name in found] or 'none'}. Export without `confidence`"
        raise ModelError(msg)
    return str(found[0])


def of_confidence(tensor: str) -> bool:
    """Whether a tensor is computed for ``confidence`` only, which is in float32 everywhere."""
    return tensor == CONFIDENCE or tensor.startswith(_PREFIX)


def confidence_of(metadata: Mapping[str, str], origin: str) -> ConfidenceNote | None:
    """Return what metadata properties say of the outputs beside the head; None if there are none.

    Raises:
        ModelError: If it is damaged; ``origin`` names the file.
    """
    if CONFIDENCE_KEY not in metadata:
        return None
    try:
        return ConfidenceNote.from_record(json.loads(metadata[CONFIDENCE_KEY]), origin)
    except (AttributeError, DataError, ValueError, RecursionError) as err:
        msg = f"{origin}: its metadata {CONFIDENCE_KEY!r} is damaged ({err}). Export it again"
        raise ModelError(msg) from err


def as_asked(model: Path, confidence: bool) -> Path | bytes:
    """Return a file to be opened as it is, or the bytes of its graph without what nobody asks for.

    Args:
        model: An ONNX file; one that is missing or broken is left to whoever opens it.
        confidence: Whether the outputs beside the head are asked for.
    """
    if confidence or not model.is_file():
        return model
    content = model.read_bytes()
    if CONFIDENCE_KEY.encode() not in content:
        return model
    try:
        return _without(content)
    except (IndexError, ValueError):  # no protobuf
        return model


def beside(outputs: list[str], origin: str) -> tuple[str, ...]:
    """Return which of a graph's outputs are asked for beside its head.

    Raises:
        ModelError: If ``confidence`` is not among them.
    """
    if CONFIDENCE not in outputs:
        msg = (
            f"{origin}: expected an output {CONFIDENCE!r}, found only {', '.join(outputs)}. Export "
            "the network with `confidence`, and calibrate or build that"
        )
        raise ModelError(msg)
    return tuple(name for name in BESIDE if name in outputs)


def _without(content: bytes) -> bytes:
    """Cut the ends off a serialised model."""
    parts = []
    for number, whole, value in _fields(memoryview(content)):
        if number == _GRAPH:
            graph = b"".join(part for n, part, held in _fields(value) if not _is_end(n, held))
            parts.append(
                b"".join((_varint_of(_GRAPH << 3 | _BYTES), _varint_of(len(graph)), graph))
            )
        else:
            parts.append(bytes(whole))
    return b"".join(parts)


def _is_end(number: int, value: memoryview) -> bool:
    if number not in (_NODE, _OUTPUT):
        return False
    wanted = _NODE_OUTPUT if number == _NODE else _NAME
    names = [bytes(held).decode() for n, _, held in _fields(value) if n == wanted]
    return bool(names) and (names[0] == FEATURES or of_confidence(names[0]))


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield number, all bytes and value of each field of a message in protobuf's form.

    Raises:
        ValueError: If it is none; likewise IndexError.
    """
    place = 0
    while place < len(data):
        begin = place
        key, place = _varint(data, place)
        kind, start = key & 7, place
        if kind == _VARINT:
            _, place = _varint(data, place)
        elif kind == _BYTES:
            length, start = _varint(data, place)
            place = start + length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(kind)
        if place > len(data):
            raise ValueError(place)
        yield key >> 3, data[begin:place], data[start:place]


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError(value)


def _varint_of(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
