"""Write pseudo-labels of target frames."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import cluster_of, require_inputs, shown, wrote
from edgeuda.errors import require
from edgeuda.records.names import Selector


def pseudo_label(
    model: options.RunModel,
    target: options.Target,
    out: options.Out,
    selector: Annotated[
        Selector,
        typer.Option(help="Which pixels get a label; all others are 255."),
    ] = "instance-adaptive",
    keep: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pixels of a class that is kept.")
    ] = 0.5,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The constant threshold, or the first adaptive one.")
    ] = 0.9,
    soft: Annotated[
        bool,
        typer.Option(
            "--soft",
            help="Write the probabilities of all classes too, for `adapt --teacher OUT`.",
        ),
    ] = False,
    seed: options.Seed = None,
    resume: options.Resume = False,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="Threads of an operator; with --ray one, else every core."
        ),
    ] = None,
    ray: options.Ray = None,
) -> None:
    """Label frames by a network's own confident predictions, for this or other training code."""
    require_inputs([model], [target])
    for package in ("torch", "safetensors"):
        require(package, "train")
    from edgeuda.methods.selection import SelectorSettings
    from edgeuda.models.subject import usual_device
    from edgeuda.training.pseudo_labels import label_footage

    settings = SelectorSettings(selector=selector, keep=keep, initial=threshold)
    with shown("pseudo-label", ray is not None) as progress:
        index = label_footage(
            model, target, out, settings, seed=seed or 0, soft=soft, resume=resume,
            threads=threads, cluster=cluster_of(ray, threads, device=usual_device().type),
            progress=progress,
        )  # fmt: skip
    wrote(index, then=f"edgeuda train --source {options.typed(out)} --recipe small --out RUN")
