"""Accuracy of a stored network on labelled images."""

from __future__ import annotations

from pathlib import Path

from edgeuda.accuracy.evaluation import Evaluation, evaluate
from edgeuda.data.folders import LabelledFolder
from edgeuda.files import sha256
from edgeuda.models.checkpoint import load_model, model_file
from edgeuda.models.predictor import Predictor


def score(model: Path, data: LabelledFolder, name: str) -> Evaluation:
    """Run a network over a labelled folder.

    Args:
        model: Model file or run folder.
        data: Labelled images in the network's label space.
        name: What tables call it.

    Raises:
        EdgeudaError: See `load_model` and `evaluate`.
    """
    network, spec = load_model(model)
    file = model_file(model)
    counts = evaluate(Predictor(network, spec), data, len(data.space))
    return Evaluation(
        name, str(file), sha256(file), "checkpoint", "fp32",
        str(data.root), len(data), data.labels_sha256(), data.space, counts,
    )  # fmt: skip
