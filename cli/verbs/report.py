"""Write the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import say, wrote


def report(
    records: Annotated[
        list[Path], typer.Argument(help="JSON records, or folders that are searched for them.")
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML page to write.", **options.WRITTEN)],
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write one self-contained HTML file, with JSON, Markdown and CSV beside it."""
    from engines.report.page import build_report

    def left_out(note: str) -> None:
        say(f"left out: {note}")

    wrote(*build_report(records, out, title=title, say=left_out))
