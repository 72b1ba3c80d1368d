"""What several passes over ONNX graphs have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeuda.errors import ModelError, require

if TYPE_CHECKING:
    import onnx


EXTERNAL = b"\x0a\x08location\x12"
"""How a tensor whose values lie in another file begins to say where, in protobuf's form."""


def load_graph(path: Path, extra: str = "cpu", *, content: bytes | None = None) -> onnx.ModelProto:
    """Read an ONNX file.

    Args:
        path: The file; where there is ``content``, it only names that in errors.
        extra: The extra of this distribution that brings ``onnx`` where it is missing.
        content: What was read already, for example out of a bundle.

    Raises:
        ModelError: If the file is missing or is not an ONNX model, keeps weights in other files, or
            holds weights that are not finite.
        DependencyError: If ``onnx`` is not installed.
    """
    reader = require("onnx", extra)
    try:
        content = path.read_bytes() if content is None else content
        require_whole(content, str(path))
        model: onnx.ModelProto = reader.load_from_string(content)
    except ModelError:
        raise
    except Exception as err:  # protobuf's DecodeError, OSError and more: all mean one thing
        msg = f"{path}: expected an ONNX model, found a file that cannot be loaded ({err})"
        raise ModelError(msg) from err
    require_finite(model, str(path))
    return model


def require_whole(content: bytes, origin: str) -> None:
    """Refuse an ONNX file whose weights lie beside it, without help of ``onnx``.

    Checksums and bundles cover one file: the weights could be exchanged, or left behind.

    Raises:
        ModelError: If some do.
    """
    if EXTERNAL in content:
        msg = (
            f"{origin}: keeps weights in files of their own, which its checksum does not cover and "
            'a bundle would leave behind. Save it as one file: python -c "import onnx; '
            "onnx.save(onnx.load('IN.onnx'), 'OUT.onnx')\""
        )
        raise ModelError(msg)


def require_finite(model: onnx.ModelProto, origin: str) -> None:
    """Refuse a graph that holds NaN, or infinite weights: it calls every pixel one class.

    Raises:
        ModelError: If a constant does; it is named.
    """
    onnx = require("onnx", "cpu")
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    for tensor in model.graph.initializer:
        if tensor.data_type not in floats:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        # A single infinity may be a bound.
        if np.isnan(values).any() or (values.size > 1 and not np.isfinite(values).all()):
            msg = f"{origin}: weights must be finite, found NaN or infinity in {tensor.name!r}"
            raise ModelError(msg)


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
