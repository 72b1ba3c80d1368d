"""Names of every JSON record that this project writes or reads, and of what lies in its files.

A name ends in the version of its form. A reader that meets another version refuses it by name, or
reads it where it says so. `docs/records.md` is this table.
"""

from __future__ import annotations

EVALUATION = "edgeuda.evaluation/1"
BENCH = "edgeuda.bench/2"
LIVE = "edgeuda.live/1"
CALIBRATION = "edgeuda.calibration/2"
CALIBRATION_1 = "edgeuda.calibration/1"
CALIBRATION_PAGE = "edgeuda.calibration-page/1"
TRADEOFF = "edgeuda.tradeoff/2"
TRADEOFF_1 = "edgeuda.tradeoff/1"
TRADEOFF_PLAN = "edgeuda.tradeoff-plan/1"
ADAPTATION = "edgeuda.adaptation/1"
COMPARISON = "edgeuda.comparison/1"
PREDICTIONS = "edgeuda.predictions/1"
RUN = "edgeuda.run/1"
IDENTITY = "edgeuda.identity/1"
RELIABILITY = "edgeuda.reliability/1"
PSEUDO_LABELS = "edgeuda.pseudo-labels/1"
SELECTION = "edgeuda.selection/1"
FRAMES = "edgeuda.frames/1"
DATASET = "edgeuda.dataset/1"
LABELS = "edgeuda.labels/1"
DATA_CHECK = "edgeuda.data-check/1"
MODEL = "edgeuda.model/1"
EXPORT = "edgeuda.export/1"
BATCH_NORM = "edgeuda.batch_norm/1"
QUANTIZATION = "edgeuda.quantization/2"
QUANTIZATION_1 = "edgeuda.quantization/1"
RANGES = "edgeuda.ranges/1"
TENSORRT_CACHE = "edgeuda.tensorrt_cache/1"
BUILD = "edgeuda.build/1"
BUNDLE = "edgeuda.bundle/1"
DIFF = "edgeuda.diff/1"
DOCTOR = "edgeuda.doctor/1"
GPU_CHECK = "edgeuda.gpu-check/2"
REPORT = "edgeuda.report/1"

ABOUT: dict[str, str] = {
    EVALUATION: "Confusion matrix and scores of one model on labelled images; written by "
    "`evaluate`, `tradeoff`, `compare`.",
    BENCH: "Latency of models on a machine, its state and the method; written by `bench`, "
    "`tradeoff`.",
    LIVE: "What a drive came to: frames, drops, latencies, memory; written by `run`.",
    CALIBRATION: "How a model was quantized, and what INT8 changes; written by `calibrate` beside "
    "the model.",
    CALIBRATION_1: "The same with the runtime as `target`; read, no longer written.",
    CALIBRATION_PAGE: "Figures of the page of a calibration; written by `calibrate --page`.",
    TRADEOFF: "Variants of networks, scored and timed, and which to take; written by `tradeoff`.",
    TRADEOFF_1: "The same with its decision in sentences; read, no longer written.",
    TRADEOFF_PLAN: "What a sweep depends on, in its folder.",
    ADAPTATION: "Stages of an adaptation with their curves and remarks; written by `adapt`.",
    COMPARISON: "Methods and seeds on one track; written by `compare`.",
    PREDICTIONS: "Label maps and overlays of frames; written by `predict`, `tradeoff`.",
    RUN: "What a run folder was made from, in `run.json`.",
    IDENTITY: "Which network a model is: role, stages, ancestors; in run folders' models, ONNX "
    "files and evaluations.",
    RELIABILITY: "What a network's confidence is worth; in the folders of stages.",
    PSEUDO_LABELS: "Which pixels of frames were labelled, and how; written by `pseudo-label` and "
    "self-training.",
    SELECTION: "Frames chosen from footage.",
    FRAMES: "Frames taken from footage and what was done to them; written by `data frames`.",
    DATASET: "Label space of a folder of labelled images, in its `dataset.json`.",
    LABELS: "A label space.",
    DATA_CHECK: "What was found in data; written by `data check`.",
    MODEL: "A model's spec: architecture, label space, preprocessing; in its file.",
    EXPORT: "How a network was exported; in the ONNX file.",
    BATCH_NORM: "Statistics of folded batch norms; in the ONNX file.",
    QUANTIZATION: "How a graph was quantized; in the ONNX file.",
    QUANTIZATION_1: "The same with the runtime as `policy`; read, no longer written.",
    RANGES: "Histograms of activations; in `*.ranges.npz`.",
    TENSORRT_CACHE: "Where a TensorRT calibration cache came from; beside it.",
    BUILD: "How an engine was built; written by `build` beside it.",
    BUNDLE: "Manifest of a bundle.",
    DIFF: "What two models say of the same frames; written by `diff`.",
    DOCTOR: "What a machine can do; written by `doctor`.",
    GPU_CHECK: "Checks of a GPU; written by `gpu-check`.",
    REPORT: "Everything on a report's page; written by `report` beside it.",
}
"""What each is, in Markdown."""


def table() -> str:
    """Return the table of `docs/records.md`."""
    rows = [f"| `{schema}` | {about} |" for schema, about in ABOUT.items()]
    return "\n".join(["| schema | what it is |", "|---|---|", *rows])
