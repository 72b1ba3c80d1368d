"""Score a model on labelled images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli import options
from cli.verbs.shared import console, space_or_none, wrote
from edgeuda.files import require_absent, sha256, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeuda.data.folders import LabelledFolder
    from edgeuda.evaluation import Evaluation
    from edgeuda.labels import LabelSpace

    Index = Callable[[LabelSpace], LabelledFolder]


def evaluate(
    model: options.AnyModel,
    data: options.Data,
    out: options.Out,
    name: options.Name = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    threads: options.Threads = None,
) -> None:
    """Score a checkpoint or an ONNX file: per-class IoU, mIoU, pixel accuracy."""
    require_absent(out)
    from edgeuda.data.folders import labelled_folder
    from edgeuda.evaluation import table

    stored = space_or_none(label_space)
    score = _score_onnx if model.suffix == ".onnx" else _score_checkpoint
    index = partial(labelled_folder, data, stored=stored, ignore_unmapped=ignore_unmapped)
    evaluation = score(model, index, data, name or model.stem, threads)
    write_json(out, evaluation.to_record())
    console.print(table([evaluation]))
    wrote(out, then=f"edgeuda report {out} --out report.html")


def _score_onnx(
    model: Path, index: Index, data: Path, name: str, threads: int | None
) -> Evaluation:
    from edgeuda.evaluation import Evaluation
    from edgeuda.evaluation import evaluate as count
    from engines.onnxruntime_runner import OnnxRunner
    from engines.runner import segment

    with OnnxRunner(model, threads) as runner:
        folder = index(runner.spec.label_space)
        counts = count(partial(segment, runner), folder, len(folder.space))
        return Evaluation(
            name, str(model), sha256(model), "onnx", runner.precision,
            str(data), len(folder), folder.labels_sha256(), folder.space, counts,
        )  # fmt: skip


def _score_checkpoint(
    model: Path, index: Index, data: Path, name: str, threads: int | None
) -> Evaluation:
    from edgeuda.errors import require

    torch = require("torch", "train")
    from edgeuda.models.checkpoint import load_model
    from edgeuda.models.scoring import score

    if threads is not None:
        torch.set_num_threads(threads)
    space = load_model(model)[1].label_space
    return score(model, index(space), name)
