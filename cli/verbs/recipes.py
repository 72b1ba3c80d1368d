"""List the recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.verbs.shared import console, heading, resolved_recipe, say


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe, resolved, as TOML.")
    ] = None,
) -> None:
    """List the built-in recipes: what they are for, what they need, published results."""
    if name is not None:
        typer.echo(resolved_recipe(name, None, None).to_toml(), nl=False)
        return
    from edgeuda.training.recipe_files import built_in, read_tables

    for found in built_in():
        recipe, _ = read_tables(found)
        console.print(heading(recipe["name"], recipe["description"]), soft_wrap=True)
        say(f"  stages: source, {', '.join(recipe['stages'])}")
        if recipe.get("needs"):
            say(f"  needs: {recipe['needs']}")
        for result in recipe.get("published", ()):
            say(f"  published: {result['miou']} mIoU, {result['setting']} ({result['source']})")
