"""A stored network as something that can be scored."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgeuda.accuracy.evaluation import DEPLOYED, Evaluation
from edgeuda.accuracy.scoring import Subject, score
from edgeuda.data.folders import LabelledFolder
from edgeuda.models.checkpoint import load_model
from edgeuda.models.fused import fused
from edgeuda.models.predictor import Predictor, Probabilities, ScorePredictor, TestTime
from edgeuda.records.identity import model_file


def subject_of(
    model: Path,
    how: TestTime | None = None,
    threads: int | None = None,
    module: nn.Module | None = None,
) -> Subject:
    """Read a network to be scored.

    Args:
        model: Model file or run folder.
        how: Views that are averaged; None looks at frames as the exported model does.
        threads: Threads of one operator; None leaves torch's own number.
        module: See `edgeuda.models.checkpoint.load_model`.

    Raises:
        ModelError: See `load_model`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    network, spec = load_model(model, module)
    network = fused(network)
    how = how or TestTime()
    if how.protocol == DEPLOYED:
        return Subject(Predictor(network, spec), spec, model_file(model), "checkpoint")
    predictor = ScorePredictor(network, spec, how)
    return Subject(
        predictor, spec, model_file(model), "checkpoint", "fp32", how.protocol,
        predictor.passes_record,
    )  # fmt: skip


def usual_device() -> torch.device:
    """Return where networks compute if nobody says: on the first GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def probabilities_of(model: Path, threads: int | None = None) -> Probabilities:
    """Read a network to be asked for class probabilities; it computes on a GPU if there is one.

    Args:
        model: Model file or run folder.
        threads: See `subject_of`.

    Raises:
        ModelError: See `load_model`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    network, spec = load_model(model)
    return Probabilities(fused(network).to(usual_device()), spec)


def score_checkpoint(model: Path, data: LabelledFolder, name: str) -> Evaluation:
    """Score a stored network on a labelled folder in its label space.

    Raises:
        EdgeudaError: See `subject_of` and `edgeuda.accuracy.scoring.score`.
    """
    return score(subject_of(model), data, name).evaluation
