"""Train on labelled source images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import (
    choose_device,
    require_inputs,
    resolved_recipe,
    space_or_none,
    wrote,
)


def train(
    source: options.Source,
    out: options.Out,
    recipe: options.RecipeName = "edge",
    overrides: options.Overrides = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    classes: Annotated[
        str | None,
        typer.Option(help="Label space that the network learns; by default that of the labels."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            help="Folder of target frames whose colours source images take, see source.style.",
            **options.READ,
        ),
    ] = None,
    seed: options.Seed = None,
    source_weight: options.SourceWeights = None,
    resume: options.Resume = False,
    workers: options.Workers = 0,
    device: options.TrainDevice = "auto",
    log: options.Log = None,
) -> None:
    """Train a network on labelled source images (stage 0)."""
    require_inputs(data=(*source, target))
    choose_device(device)
    settings = resolved_recipe(recipe, overrides, seed)
    from edgeuda.training.pipeline import RunOptions, train_source

    model = train_source(
        settings,
        source,
        space_or_none(classes),
        RunOptions(
            out, resume, workers, ignore_unmapped, tuple(source_weight or ()), tuple(log or ())
        ),
        space_or_none(label_space),
        target,
    )
    wrote(
        model,
        then=options.joined(
            "edgeuda adapt",
            options.given(model=out),
            options.repeated("--source", source),
            options.repeated("--source-weight", source_weight),
            options.given(label_space=label_space, ignore_unmapped=ignore_unmapped),
            options.given(target=target or "FRAMES", recipe=recipe),
            options.repeated("--set", overrides),
            options.given(seed=seed, out="ADAPTED"),
        ),
    )
