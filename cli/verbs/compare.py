"""Compare methods over seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, require_inputs, resolved_recipe, space_or_none, wrote
from edgeuda.files import write_text


def compare(
    source: options.Source,
    target: options.Target,
    data: options.Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Folder of the comparison; finished runs in it are kept.",
            **options.WRITTEN,
        ),
    ],
    plan: Annotated[
        str,
        typer.Option(
            help="Methods to compare: a built-in plan such as baselines, or a .toml file."
        ),
    ] = "baselines",
    oracle: Annotated[
        Path | None, typer.Option(help="Labelled target images that the oracle trains on.")
    ] = None,
    recipe: options.RecipeName = "small",
    overrides: options.Overrides = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seed", help="Seed of a training of every method; by default 0, 1 and 2 (repeatable)."
        ),
    ] = None,
    source_weight: options.SourceWeights = None,
    workers: options.Workers = 0,
    log: options.Log = None,
) -> None:
    """Run methods x seeds on one track; table with mean, spread and a plot. Resumes by itself."""
    require_inputs(data=(*source, target, data, oracle))
    resolved_recipe(recipe, overrides, None)
    from edgeuda.training.compare import Track, load_plan, markdown, table
    from edgeuda.training.compare import compare as run
    from engines.machine.hardware import identity
    from engines.report.plots import comparison

    variants = load_plan(plan, recipe, tuple(overrides or ()))
    track = Track(
        source, target, data, oracle, space_or_none(label_space), ignore_unmapped=ignore_unmapped,
        source_weights=tuple(source_weight or ()),
    )  # fmt: skip
    record = run(
        variants, track, seeds or [0, 1, 2], out, workers, console.print, trackers=log or ()
    )
    record = replace(record, machine=identity())
    record_file, text_file, plot_file = (
        out / f"comparison.{suffix}" for suffix in ("json", "md", "svg")
    )
    record.write(record_file)
    write_text(text_file, markdown(record))
    write_text(plot_file, comparison(record))
    console.print(table(record))
    wrote(record_file, text_file, plot_file)
