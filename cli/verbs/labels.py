"""Show label spaces and how one maps to another."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, heading, say


def labels(
    space: Annotated[
        str | None, typer.Argument(help="Built-in label space or .json file to show.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="Label space in which it is shown what becomes of the classes."),
    ] = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
) -> None:
    """List the label spaces, show one with its colours, or how one maps to another."""
    from rich.table import Table
    from rich.text import Text

    from edgeuda.labels import SPACES, counterparts, label_space

    if space is None:
        for found in SPACES.values():
            console.print(heading(found.name, found.about), soft_wrap=True)
            if found.groups:
                say(f"  maps to: {', '.join(found.groups)}")
        return
    shown = label_space(space)
    wanted = None if to is None else label_space(to)
    mapped = None if wanted is None else counterparts(shown, wanted, ignore_unmapped)
    table = Table(title=shown.name if wanted is None else f"{shown.name} as {wanted.name}")
    for title in ("id", "class", "colour"):
        table.add_column(title, justify="right" if title == "id" else "left")
    for name in shown.ids:
        table.add_column(f"ids in files, {name}")
    if mapped is not None:
        table.add_column("becomes")
    for index, name in enumerate(shown.classes):
        red, green, blue = shown.palette[index]
        colour = Text.assemble(("  ", f"on rgb({red},{green},{blue})"), f" {red} {green} {blue}")
        row: list[str | Text] = [str(index), name, colour]
        row += [
            ", ".join(str(number) for number, found in numbers.items() if found == name)
            for numbers in shown.ids.values()
        ]
        if mapped is not None:
            row.append(mapped[name] or "ignored")
        table.add_row(*row)
    console.print(table)
