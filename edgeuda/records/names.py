"""What can be chosen by name: each list of values stands here, and nowhere else.

Records, functions and the command line take their types from here. Nothing is imported, so that
``--help`` costs nothing.
"""

from __future__ import annotations

from typing import Literal

RuntimeName = Literal["ort-x86", "tensorrt"]
"""The runtime that a graph is quantized for: ONNX Runtime on x86, TensorRT."""
QuantizerName = Literal["edgeuda", "modelopt"]
"""Whose placement and ranges."""
RuleName = Literal["max", "percentile", "frame-percentile", "mse", "entropy"]
"""How a range is taken from a histogram, see `calibration.rules`."""
FrameRule = Literal["uniform", "diverse", "classes"]
"""Which frames ranges are collected on, see `calibration.frame_choice`."""
Head = Literal["labels", "logits", "scores", "labels_low"]
"""What a graph returns, see `engines.onnx.heads`."""
Precision = Literal["fp32", "fp16", "int8"]
"""Arithmetic of a graph."""
ProviderName = Literal["cpu", "cuda", "tensorrt"]
"""Where ONNX Runtime executes."""
DeviceName = Literal["cpu", "openvino", "cuda", "tensorrt"]
"""Where an ONNX file executes: with ONNX Runtime, or on the CPU with OpenVINO."""
SweepRuntime = Literal["cpu", "openvino", "cuda", "tensorrt", "engine"]
"""What runs a sweep's variants: a device as above, or engines of TensorRT that are built here."""
LibraryName = Literal["tensorrt", "tensorrt_rtx"]
"""TensorRT, or TensorRT for RTX."""
Selector = Literal["instance-adaptive", "class-balanced", "constant", "all"]
"""Which pixels get a pseudo-label, see `edgeuda.methods.selection`."""
MemberRole = Literal[
    "model",
    "calibration",
    "ranges",
    "reference",
    "acceptance",
    "metrics",
    "recipe",
    "licence",
    "other",
]
"""What a file of a bundle is."""
Arrival = Literal["closed loop", "frame rate", "offline"]
"""How frames come while latency is measured, see `engines.bench.load`."""
PresetName = Literal["mlperf-singlestream", "mlperf-constantstream"]
"""Rules of a benchmark that others published, see `engines.bench.load.PRESETS`."""
TrackerName = Literal["tensorboard", "csv", "mlflow", "wandb"]
"""What a training is followed with, beside its own log; see `edgeuda.training.trackers`."""
AnnotationTool = Literal["cvat", "label-studio", "coco"]
"""Whose form labels are handed over in: CVAT's Segmentation mask 1.1 (Pascal VOC), Label Studio's
tasks with brush labels, COCO with run lengths."""
