"""nvidia-modelopt as the quantizer: its placement and ranges, our frames, record and verdict."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.frames import Frames
from calibration.options import Options
from calibration.pipeline import Quantized
from edgeuda.errors import ConfigError, DependencyError, ModelError
from edgeuda.records.calibration import Range
from engines.onnx.index import index
from engines.onnx.weights import constants_of

if TYPE_CHECKING:
    import onnx

RULES = ("max", "entropy")


def by_modelopt(model: onnx.ModelProto, frames: Frames, options: Options) -> Quantized:
    """Quantize for TensorRT by ``modelopt.onnx.quantization.quantize``, the rest staying FP32.

    Its calibrator holds the activations of all frames.

    Args:
        model: An FP32 graph of this project.
        frames: Frames of the target domain.
        options: Of which target and rule count.

    Raises:
        ConfigError: If the target is not TensorRT, or an option has no counterpart there.
        DependencyError: If nvidia-modelopt is not installed.
        ModelError: If it fails.
    """
    if options.runtime != "tensorrt" or options.rule not in RULES:
        msg = (
            f"nvidia-modelopt quantizes for TensorRT by rule {' or '.join(RULES)}, found "
            f"{options.runtime!r} and {options.rule!r}"
        )
        raise ConfigError(msg)
    if options.equalize or options.correct_biases or options.keep_float or options.max_drop:
        msg = "nvidia-modelopt places pairs itself: equalizing, biases, budgets and layers are ours"
        raise ConfigError(msg)
    try:
        from modelopt.onnx.quantization import quantize
        from onnxruntime.quantization.calibrate import CalibrationDataReader
    except ImportError as err:
        msg = (
            f"nvidia-modelopt cannot be imported ({err}). Install nvidia-modelopt without its onnx "
            "extra, which pins another onnxruntime, and then onnx-graphsurgeon, onnxslim, "
            "onnxconverter-common, onnxscript, polygraphy, lief and cppimport"
        )
        raise DependencyError(msg) from err
    import onnx

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        position = 0

        def get_next(self) -> dict[str, Any] | None:
            self.position += 1
            return None if self.position > len(frames) else {"image": frames[self.position - 1]}

        def get_first(self) -> dict[str, Any]:
            return {"image": frames[0]}

        def rewind(self) -> None:
            self.position = 0

    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model.SerializeToString())
        try:
            quantize(
                str(source),
                quantize_mode="int8",
                calibration_data_reader=Reader(),
                calibration_method=options.rule,
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                output_path=str(made),
                log_level="ERROR",
            )
        except Exception as err:  # whatever it or the packages beneath it raise
            msg = f"nvidia-modelopt could not quantize the model ({err})"
            raise ModelError(msg) from err
        quantized = onnx.load(made)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    graph, constants = index(quantized.graph), constants_of(quantized)
    weights = {node.input[1]: node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    chosen, ranges = set(), {}
    for node in graph.nodes:
        pairs = [graph.producers.get(name) for name in node.input[:2]]
        if node.op_type == "Conv" and all(p and p.op_type == "DequantizeLinear" for p in pairs):
            chosen.add(node.output[0])
        if node.op_type == "QuantizeLinear" and constants[node.input[1]].ndim == 0:
            reach = 127 * float(constants[node.input[1]])
            ranges[node.input[0]] = Range(-reach, reach)
    convs = tuple(output for output in weights.values() if output in chosen)
    return Quantized(
        quantized,
        convs,
        tuple(output for output in weights.values() if output not in chosen),
        ranges,
        options.rule,
        None,
        ("quantized by nvidia-modelopt",),
    )
