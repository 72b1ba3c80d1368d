"""Adapt to unlabelled target frames."""

from __future__ import annotations

import json
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
from edgeuda.errors import ConfigError


def adapt(
    model: options.Init,
    source: options.Source,
    target: options.Target,
    out: options.Out,
    recipe: options.RecipeName = "edge",
    overrides: options.Overrides = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    target_labels: Annotated[
        str | None,
        typer.Option(
            help="Labelled target images that stage ass may use: how many, or a file that lists "
            "them, whose label maps lie in labels/ beside images/; or a labelled folder of its "
            "own, as data import-labels writes it."
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Adapted run or model file, of any of our networks, that labels the target frames "
            "in stage distil and stays as it is, or folder of soft labels as pseudo-label --soft "
            "writes it; by default the recipe says who teaches."
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Footage that the network knows already, as for --target: it goes on learning "
            "from it beside the target frames, so that it does not forget.",
            **options.READ,
        ),
    ] = None,
    replay_share: options.ReplayShare = 0.5,
    seed: options.Seed = None,
    source_weight: options.SourceWeights = None,
    resume: options.Resume = False,
    workers: options.Workers = 0,
    device: options.TrainDevice = "auto",
    log: options.Log = None,
) -> None:
    """Adapt a source-trained network to unlabelled target frames."""
    require_inputs([model], (*source, target, replay))
    choose_device(device)
    if target_labels is not None:
        wanted = target_labels if target_labels.isdecimal() else json.dumps(target_labels)
        overrides = [*(overrides or []), f"ass.labels={wanted}"]
    if teacher is not None:
        overrides = [*(overrides or []), f"distil.teacher={json.dumps(str(teacher))}"]
    settings = resolved_recipe(recipe, overrides, seed)
    if teacher is not None and "distil" not in settings.stages:
        msg = (
            f"--teacher: recipe {recipe!r} has no stage 'distil', which is what learns from a "
            "teacher. Add it to stages, or take a recipe that has it"
        )
        raise ConfigError(msg)
    if target_labels is not None and "ass" not in settings.stages:
        msg = (
            f"--target-labels: recipe {recipe!r} has no stage 'ass', which is what uses labelled "
            "target images. Add it to stages"
        )
        raise ConfigError(msg)
    from edgeuda.data.replay import Replay
    from edgeuda.records.adaptation import AdaptationRecord
    from edgeuda.training.pipeline import ADAPTATION_FILE, RunOptions
    from edgeuda.training.pipeline import adapt as run

    adapted = run(
        settings,
        model,
        source,
        target,
        RunOptions(
            out,
            resume,
            workers,
            ignore_unmapped,
            tuple(source_weight or ()),
            tuple(log or ()),
            None if replay is None else Replay(replay, replay_share),
        ),
        space_or_none(label_space),
    )
    for remark in AdaptationRecord.read(out / ADAPTATION_FILE).said():
        typer.echo(remark)
    wrote(
        adapted,
        out / ADAPTATION_FILE,
        then=options.joined(
            "edgeuda export", options.given(model=out, target=target, out=f"{out}.onnx")
        ),
    )
