"""What this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, wrote
from edgeuda.errors import ConfigError, DeviceError
from edgeuda.files import require_absent


def doctor(
    need: Annotated[
        list[str] | None,
        typer.Option(
            help="Task that has to be possible; if it is not, the exit code is 10 (repeatable)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON record to write too.", **options.WRITTEN)
    ] = None,
) -> None:
    """Say what this machine can do, what it lacks, and the command that gets it."""
    if out is not None:
        require_absent(out)
    from rich.table import Table

    from engines.doctor import abilities, examine, record_of

    checks = examine()
    lacks = abilities(checks)
    for task in need or ():
        if task not in lacks:
            msg = f"--need: expected one of {', '.join(map(repr, lacks))}, found {task!r}"
            raise ConfigError(msg)
    table = Table()
    for name in ("", "status", "found", "to get it"):
        table.add_column(name, overflow="fold")
    for check in checks:
        table.add_row(check.name, check.status, check.found, check.fix)
    console.print(table)
    tasks = Table("task", "here", "lacks")
    for task, missing in lacks.items():
        tasks.add_row(task, "no" if missing else "yes", ", ".join(missing))
    console.print(tasks)
    if out is not None:
        record_of(checks).write(out)
        wrote(out)
    failed = [f"{task} lacks {', '.join(lacks[task])}" for task in need or () if lacks[task]]
    if failed:
        raise DeviceError("; ".join(failed))
