"""What ONNX Runtime makes of a Q/DQ graph."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from calibration.qdq import QUANTIZED_WEIGHT
from engines.onnx.graphs import load_graph
from engines.onnx.session import open_session

_INTEGER = frozenset({"QLinearConv", "ConvInteger"})
_FLOAT = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})


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
