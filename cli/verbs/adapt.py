"""Adapt to unlabelled target frames."""

from __future__ import annotations

from cli import options
from cli.verbs.shared import resolved_recipe, space_or_none, wrote


def adapt(
    model: options.RunModel,
    source: options.Source,
    target: options.Target,
    out: options.Out,
    recipe: options.RecipeName = "edge",
    overrides: options.Overrides = None,
    label_space: options.LabelSpaceName = None,
    seed: options.Seed = None,
    resume: options.Resume = False,
    workers: options.Workers = 0,
) -> None:
    """Adapt a source-trained network to unlabelled target frames."""
    settings = resolved_recipe(recipe, overrides, seed)
    from edgeuda.training.pipeline import ADAPTATION_FILE, Options
    from edgeuda.training.pipeline import adapt as run

    adapted = run(
        settings,
        model,
        source,
        target,
        Options(out, resume, workers),
        space_or_none(label_space),
    )
    wrote(
        adapted,
        out / ADAPTATION_FILE,
        then=f"edgeuda export --model {out} --target {target} --out {out}.onnx",
    )
