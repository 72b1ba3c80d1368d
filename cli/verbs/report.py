"""Write the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import wrote
from edgeuda.files import require_absent


def report(
    records: Annotated[
        list[Path], typer.Argument(help="JSON records, or folders searched for them.")
    ],
    out: options.Out,
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
) -> None:
    """Write one self-contained HTML file, and JSON and Markdown, from what the verbs measured."""
    require_absent(out)
    from engines.report import build_report

    wrote(*build_report(records, out, title=title))
