"""What a graph returns, and how it becomes labels of the input's size.

``labels`` and ``logits`` are of the input's size. ``scores`` are the class scores before the last
resize, an eighth of it for BiSeNet: what is resized here, class by class in the cache, would be
classes x height x width floats in the graph. The labels are the same. ``labels_low`` are the
likeliest classes there, repeated: coarser along borders, and next to free.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.data.images import LabelMap, resize_label
from edgeuda.errors import ModelError, require
from edgeuda.records.names import Head
from engines.onnx.graphs import drop_unread, rename, shapes_of_one_image
from engines.onnx.label_cast import cast_by_float

if TYPE_CHECKING:
    import onnx

_HALF_PIXEL = (b"half_pixel", b"pytorch_half_pixel")
SMALL: tuple[Head, ...] = ("scores", "labels_low")
"""Heads below the input's size."""


def labels_of(head: Head, output: npt.NDArray[Any], height: int, width: int) -> LabelMap:
    """Turn one image's output into labels.

    Args:
        head: What ``output`` is.
        output: ``[H, W]`` or ``[h, w]`` uint8 labels, or ``[K, H, W]`` or ``[K, h, w]`` scores.
        height: Rows of the network's input, H.
        width: Its columns, W.

    Returns:
        ``[H, W]`` uint8 class ids.
    """
    if head == "labels":
        return np.asarray(output, np.uint8)
    if head == "logits":
        return np.asarray(output.argmax(0), np.uint8)
    if head == "labels_low":
        return resize_label(np.asarray(output, np.uint8), height, width)
    return upsample_argmax(output, height, width)


def upsample_argmax(scores: npt.NDArray[np.float32], height: int, width: int) -> LabelMap:
    """Return the likeliest class of each pixel of bilinearly enlarged scores.

    One class at a time is enlarged and compared with the best so far, so that no more than two
    planes exist. Equal to resizing (half-pixel centres) and then taking the argmax, but for pixels
    where two classes differ by rounding.

    Args:
        scores: ``[K, h, w]`` float32.
        height: Rows of the result.
        width: Its columns.
    """
    size = (width, height)
    best = cv2.resize(scores[0], size, interpolation=cv2.INTER_LINEAR)
    labels = np.zeros((height, width), np.uint8)
    plane = np.empty_like(best)
    for label in range(1, len(scores)):
        cv2.resize(scores[label], size, dst=plane, interpolation=cv2.INTER_LINEAR)
        cv2.copyTo(np.full_like(labels, label), cv2.compare(plane, best, cv2.CMP_GT), dst=labels)
        cv2.max(plane, best, dst=best)
    return labels


def scores_of(model: onnx.ModelProto) -> str:
    """Return the name of the class scores before the resize to the input's size."""
    producers = {name: node for node in model.graph.node for name in node.output}
    name: str = model.graph.output[0].name
    while name in producers and producers[name].op_type in {"Cast", "ArgMax", "Resize"}:
        name = producers[name].input[0]
    return name


def with_head(model: onnx.ModelProto, head: Head) -> onnx.ModelProto:
    """Return a copy of an exported graph that returns ``scores`` or ``labels_low``.

    Args:
        model: With head ``labels`` or ``logits``.
        head: One of `SMALL`.

    Raises:
        ModelError: If the graph does not resize scores at its end, or otherwise than `labels_of`.
    """
    onnx = require("onnx", "cpu")
    cut = copy.deepcopy(model)
    graph, scores = cut.graph, scores_of(model)
    if scores == graph.output[0].name:
        msg = f"The graph ends in {scores!r} at full size: there is no smaller head to take"
        raise ModelError(msg)
    resize = next(node for node in graph.node if scores in node.input)
    how = {a.name: a.s for a in resize.attribute}
    if (
        resize.op_type != "Resize"
        or how.get("mode") != b"linear"
        or how.get("coordinate_transformation_mode", b"half_pixel") not in _HALF_PIXEL
    ):
        msg = f"The graph resizes its scores by {resize.op_type} {how}; only bilinear is known"
        raise ModelError(msg)
    shape = shapes_of_one_image(model)[scores]
    needed, kept = {scores}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    types, helper = onnx.TensorProto, onnx.helper
    batch = [graph.input[0].type.tensor_type.shape.dim[0].dim_param or 1]
    if head == "scores":
        rename(graph.node, scores, head)
        output = helper.make_tensor_value_info(head, types.FLOAT, batch + shape[1:])
    else:
        graph.node.append(
            helper.make_node("ArgMax", [scores], ["labels_low_long"], axis=1, keepdims=0)
        )
        graph.node.append(helper.make_node("Cast", ["labels_low_long"], [head], to=types.UINT8))
        output = helper.make_tensor_value_info(head, types.UINT8, batch + shape[2:])
    del graph.output[:]
    graph.output.append(output)
    graph.ClearField("value_info")
    drop_unread(graph)
    return cast_by_float(cut)
