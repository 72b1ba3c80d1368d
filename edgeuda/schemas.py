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
TRACKERS = "edgeuda.trackers/1"
IDENTITY = "edgeuda.identity/1"
RELIABILITY = "edgeuda.reliability/1"
PSEUDO_LABELS = "edgeuda.pseudo-labels/1"
SELECTION = "edgeuda.selection/1"
FRAME_SELECTION = "edgeuda.frame-selection/1"
IMPORTED_LABELS = "edgeuda.imported-labels/1"
FRAMES = "edgeuda.frames/1"
SHARD = "edgeuda.shard/1"
DATASET = "edgeuda.dataset/1"
LABELS = "edgeuda.labels/1"
DATA_CHECK = "edgeuda.data-check/1"
MODEL = "edgeuda.model/1"
EXPORT = "edgeuda.export/1"
CONFIDENCE = "edgeuda.confidence/1"
REFERENCE = "edgeuda.reference/1"
KEPT = "edgeuda.kept/1"
BATCH_NORM = "edgeuda.batch_norm/1"
QUANTIZATION = "edgeuda.quantization/2"
QUANTIZATION_1 = "edgeuda.quantization/1"
RANGES = "edgeuda.ranges/1"
TENSORRT_CACHE = "edgeuda.tensorrt_cache/1"
BUILD = "edgeuda.build/1"
BUNDLE = "edgeuda.bundle/1"
INSTALLATION = "edgeuda.installation/1"
LINEAGE = "edgeuda.lineage/1"
DIFF = "edgeuda.diff/1"
DOCTOR = "edgeuda.doctor/1"
GPU_CHECK = "edgeuda.gpu-check/2"
REPORT = "edgeuda.report/1"
SHARDS = "edgeuda.shards/1"

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
    TRACKERS: "What a stage gave to which tracker, and which of them failed, in `trackers.json`; "
    "written with `--log`.",
    IDENTITY: "Which network a model is: role, stages, ancestors; in run folders' models, ONNX "
    "files and evaluations.",
    RELIABILITY: "What a network's confidence is worth; in the folders of stages.",
    PSEUDO_LABELS: "Which pixels of frames were labelled, and how; written by `pseudo-label` and "
    "self-training.",
    SELECTION: "Frames chosen from footage.",
    FRAME_SELECTION: "Frames worth labelling, in their order, and why; written by `data select`.",
    IMPORTED_LABELS: "What became of labels that were drawn in another tool; written by "
    "`data import-labels`.",
    FRAMES: "Frames taken from footage and what was done to them; written by `data frames`.",
    SHARD: "What a shard holds, as a member of it; written by `data shard`.",
    DATASET: "Label space of a folder of labelled images, in its `dataset.json`.",
    LABELS: "A label space.",
    DATA_CHECK: "What was found in data; written by `data check`.",
    MODEL: "A model's spec: architecture, label space, preprocessing; in its file.",
    EXPORT: "How a network was exported; in the ONNX file.",
    CONFIDENCE: "What a graph's second output is, and how well it is torch's; in the ONNX file.",
    REFERENCE: "What a model says of the frames it was made for, and how they look; written by "
    "`calibrate` beside the model.",
    KEPT: "Frames that a vehicle brought home, with times, signals and why; written by "
    "`run --keep`.",
    BATCH_NORM: "Statistics of folded batch norms; in the ONNX file.",
    QUANTIZATION: "How a graph was quantized; in the ONNX file.",
    QUANTIZATION_1: "The same with the runtime as `policy`; read, no longer written.",
    RANGES: "Histograms of activations; in `*.ranges.npz`.",
    TENSORRT_CACHE: "Where a TensorRT calibration cache came from; beside it.",
    BUILD: "How an engine was built; written by `build` beside it.",
    BUNDLE: "Manifest of a bundle.",
    INSTALLATION: "What was installed on a vehicle, refused, and what fell back, `installed.json`.",
    LINEAGE: "From which network and which drive a bundle was made on a vehicle; in the bundle, by "
    "`run --adapt-bn`.",
    DIFF: "What two models say of the same frames; written by `diff`.",
    DOCTOR: "What a machine can do; written by `doctor`.",
    GPU_CHECK: "Checks of a GPU; written by `gpu-check`.",
    REPORT: "Everything on a report's page; written by `report` beside it.",
    SHARDS: "What a folder of shards is of, in its `shards.json`; it lies beside the output of "
    "`--ray` until that is complete.",
}
"""What each is, in Markdown."""


def table() -> str:
    """Return the table of `docs/records.md`."""
    rows = [f"| `{schema}` | {about} |" for schema, about in ABOUT.items()]
    return "\n".join(["| schema | what it is |", "|---|---|", *rows])
