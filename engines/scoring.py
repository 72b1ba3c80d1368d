"""Accuracy of exported models: graphs, engines and bundles on labelled images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgeuda.accuracy.scoring import Scored, Subject, score
from edgeuda.data.folders import LabelledFolder
from edgeuda.labels import LabelSpace
from edgeuda.records.names import DeviceName
from engines.opening import open_runner
from engines.runner import segment


def score_exported(
    model: Path,
    data: Path | LabelledFolder,
    name: str,
    *,
    threads: int | None = None,
    device: DeviceName = "cpu",
    graphs: bool = True,
    stored: LabelSpace | None = None,
    ignore_unmapped: bool = False,
    boundary: float | None = None,
) -> Scored:
    """Score an exported model on labelled images, as the vehicle runs it.

    Args:
        model: See `engines.opening.open_runner`, as ``threads``, ``device`` and ``graphs``.
        data: See `edgeuda.accuracy.scoring.score`, as what follows.
        name: What tables call it.
        threads: Threads of one operator.
        device: Where it runs.
        graphs: Whether an engine replays CUDA graphs.
        stored: Label space of the folder's files.
        ignore_unmapped: Whether classes that the model lacks may be ignored.
        boundary: Width of the band along outlines.

    Raises:
        EdgeudaError: See `open_runner` and `edgeuda.accuracy.scoring.score`.
    """
    with open_runner(model, threads, device, graphs=graphs) as runner:
        subject = Subject(
            partial(segment, runner), runner.spec, model, "onnx", runner.precision,
            identity=runner.identity, made_from=runner.made_from,
        )  # fmt: skip
        return score(
            subject, data, name, stored=stored, ignore_unmapped=ignore_unmapped, boundary=boundary
        )
