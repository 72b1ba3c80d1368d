"""What several passes over ONNX graphs have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeuda.errors import ModelError, require

if TYPE_CHECKING:
    import onnx


def load_graph(
    path: Path, extra: str = "cpu", *, weights: bool = True, content: bytes | None = None
) -> onnx.ModelProto:
    """Read an ONNX file.

    Args:
        path: The file; where there is ``content``, it only names that in errors.
        extra: The extra of this distribution that brings ``onnx`` where it is missing.
        weights: Whether weights that lie in files of their own are read too.
        content: What was read already, for example out of a bundle.

    Raises:
        ModelError: If the file is missing or is not an ONNX model.
        DependencyError: If ``onnx`` is not installed.
    """
    reader = require("onnx", extra)
    try:
        model: onnx.ModelProto = (
            reader.load(path, load_external_data=weights)
            if content is None
            else reader.load_from_string(content)
        )
    except Exception as err:  # protobuf's DecodeError, OSError and more: all mean one thing
        msg = f"{path}: expected an ONNX model, found a file that cannot be loaded ({err})"
        raise ModelError(msg) from err
    return model


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return the metadata properties of a graph."""
    return {entry.key: entry.value for entry in model.metadata_props}


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the constants that no node reads, in place."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Rename a tensor wherever nodes read or write it, in place."""
    for node in nodes:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new


def require_valid(model: onnx.ModelProto, what: str) -> None:
    """Check a graph that was changed.

    Raises:
        ModelError: If the ONNX checker refuses it; the message begins with ``what``.
    """
    onnx = require("onnx", "cpu")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        msg = f"{what} ({err})"
        raise ModelError(msg) from err


def shapes_of_one_image(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes of the computed tensors for a batch of one; 0 where a size is unknown."""
    onnx = require("onnx", "cpu")
    single = copy.deepcopy(model)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    single.graph.ClearField("value_info")
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
