"""What a graph returns, and how it becomes labels of the input's size.

``labels`` and ``logits`` are of the input's size. ``scores`` are the class scores before the last
resize, an eighth of it for BiSeNet: what is resized here, class by class in the cache, would be
classes x height x width floats in the graph. The labels are the same. ``labels_low`` are the
likeliest classes there, repeated: coarser along borders, and next to free.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache
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


def labels_of_batch(
    head: Head, outputs: npt.NDArray[Any], height: int, width: int
) -> npt.NDArray[np.uint8]:
    """Turn the outputs of a batch into labels, ``[N, H, W]`` uint8 class ids, see `labels_of`."""
    return np.stack([labels_of(head, one, height, width) for one in outputs])


def upsample_argmax(scores: npt.NDArray[np.float32], height: int, width: int) -> LabelMap:
    """Return the likeliest class of each pixel of bilinearly enlarged scores.

    Equal to resizing (half-pixel centres) and then taking the argmax, but for pixels where two
    classes differ by rounding. Between four scores of which the same class is the likeliest it is
    the likeliest everywhere: what is enlarged are only the cells whose corners differ, a tenth of
    them in a street.

    Args:
        scores: ``[K, h, w]`` float32.
        height: Rows of the result.
        width: Its columns.
    """
    rows, columns = scores.shape[1:]
    factor = height // rows
    if (rows * factor, columns * factor) != (height, width) or factor % 2:
        return _argmax_by_plane(
            cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in scores
        )
    low = cv2.copyMakeBorder(_argmax_by_plane(scores), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    corner = low[:-1, :-1]
    differ = (corner != low[:-1, 1:]) | (corner != low[1:, :-1]) | (corner != low[1:, 1:])
    enlarged = ((columns + 1) * factor, (rows + 1) * factor)
    labels = cv2.resize(corner, enlarged, interpolation=cv2.INTER_NEAREST)
    y, x = np.nonzero(differ)
    if len(y):
        above, below = np.maximum(y - 1, 0) * columns, np.minimum(y, rows - 1) * columns
        left, right = np.maximum(x - 1, 0), np.minimum(x, columns - 1)
        flat = scores.reshape(len(scores), -1)
        places = (above + left, above + right, below + left, below + right)
        corners = np.stack([np.take(flat, place, 1) for place in places], 1)
        weights = _bilinear(factor)
        cells = _argmax_by_plane(weights @ four for four in corners)
        by_cell = labels.reshape(rows + 1, factor, columns + 1, factor)
        by_cell[y, :, x] = cells.reshape(factor, factor, -1).transpose(2, 0, 1)
    half = factor // 2
    return np.ascontiguousarray(labels[half : half + height, half : half + width])


@cache
def _bilinear(factor: int) -> npt.NDArray[np.float32]:
    """Weights of a cell's corners in each of its pixels, ``[factor * factor, 4]``."""
    near = 1 - (np.arange(factor) + 0.5) / factor
    one = np.stack([near, 1 - near])
    weights: npt.NDArray[np.float32] = np.einsum("ay,bx->yxab", one, one).astype(np.float32)
    return weights.reshape(-1, 4)


def _argmax_by_plane(planes: Iterable[npt.NDArray[np.float32]]) -> LabelMap:
    """Return the first of the largest of some planes, of which no more than two exist at once."""
    rest = iter(planes)
    best = np.array(next(rest), np.float32)
    labels = np.zeros(best.shape, np.uint8)
    value, larger = np.empty_like(labels), np.empty_like(labels)
    for number, plane in enumerate(rest, 1):
        value.fill(number)
        cv2.copyTo(value, cv2.compare(plane, best, cv2.CMP_GT, dst=larger), dst=labels)
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
