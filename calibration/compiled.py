"""What ONNX Runtime makes of a Q/DQ graph."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgeuda.errors import ModelError, require

_INTEGER = frozenset({"QLinearConv", "ConvInteger"})
_FLOAT = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})


def int8_convs(path: Path) -> tuple[int, int]:
    """Count the convolutions that ONNX Runtime runs in integers on this machine's CPU.

    A Q/DQ graph only *allows* integer kernels; a misplaced pair silently leaves a convolution in
    float. This reads the graph as ONNX Runtime optimised it.

    Args:
        path: An ONNX file.

    Returns:
        Number of integer convolutions, number of all convolutions.

    Raises:
        ModelError: If ONNX Runtime cannot load the file.
    """
    ort = require("onnxruntime", "quantize")
    onnx = require("onnx", "quantize")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as err:  # a family of native exceptions without a public base class
            msg = f"{path}: expected an ONNX model that ONNX Runtime can load ({err})"
            raise ModelError(msg) from err
        operators = [node.op_type for node in onnx.load(optimized).graph.node]
    integer = sum(name in _INTEGER for name in operators)
    return integer, integer + sum(name in _FLOAT for name in operators)
