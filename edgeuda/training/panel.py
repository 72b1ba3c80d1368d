"""What a terminal shows while a stage trains: one live panel; elsewhere a plain line."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from edgeuda.training.watch import Measurement

SIGNALS = ("entropy", "confidence", "flip_agreement", "view_agreement", "start_agreement")
"""Signals that are shares, in the order in which they are shown."""
ROWS = (
    "loss", "loss terms", "selected pixels", "learning rate", "images/s", "memory", "signals",
    "last alarm", "trackers",
)  # fmt: skip
"""What the panel shows below the bar, in this order."""


class Progressing:
    """What is known of a stage that trains, for people to look at.

    Args:
        title: Of the stage.
        steps: Its length.
        start: Steps already done.
        console: Where it is shown.
        shown: Whether it is shown at all: on one rank only.
        trackers: Names of the trackers that follow the run.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        start: int,
        console: Console,
        shown: bool = True,
        trackers: Sequence[str] = (),
    ) -> None:
        self.live = shown and console.is_terminal and not console.is_dumb_terminal
        self.title, self.trackers, self.console = title, trackers, console
        self._bar = Progress(
            TextColumn("step" if self.live else "{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            *([TextColumn("elapsed")] if self.live else []),
            TimeElapsedColumn(),
            *([TextColumn("left")] if self.live else []),
            TimeRemainingColumn(),
            *([] if self.live else [TextColumn("loss {task.fields[loss]:.3f}")]),
            console=console,
            disable=not shown,
        )
        self._task = self._bar.add_task(title, total=steps, completed=start, loss=math.nan)
        self._rows: dict[str, str] = {}

    def advance(self, loss: float) -> None:
        """Take the loss of one more step."""
        self._show({"loss": f"{loss:.4f}"})
        self._bar.update(self._task, advance=1, loss=loss)

    def log(
        self,
        line: Mapping[str, Any],
        terms: Mapping[str, object],
        rate: float,
        device: torch.device,
    ) -> None:
        """Take a line of the log.

        Args:
            line: As it stands in the stage's log.
            terms: Names of the loss terms.
            rate: Images per second.
            device: Whose memory counts.
        """
        shares = [f"{k} {line[k]:.1%}" for k in ("keep", "trust", "labelled") if k in line]
        self._show(
            {
                "loss terms": ", ".join(f"{name} {line[name]:.4f}" for name in terms),
                **({"selected pixels": ", ".join(shares)} if shares else {}),
                "learning rate": f"{line['lr']:.3g}",
                "images/s": f"{rate:.1f}, {line['waiting']:.0%} of the time waiting for data",
                "memory": memory(device),
            }
        )

    def measured(self, last: Measurement) -> None:
        """Take the watch's last measurement; an alarm stays."""
        values = [f"{name.replace('_', ' ')} {getattr(last.signals, name):.1%}" for name in SIGNALS]
        self._show({"signals": f"step {last.step}: {', '.join(values)}"})
        if last.alarm:
            self._show({"last alarm": f"step {last.step}: {last.alarm}"})

    def _show(self, rows: Mapping[str, str]) -> None:
        # Another thread draws: it must not meet a dictionary that grows.
        self._rows = {**self._rows, **rows}

    def __rich__(self) -> Panel:
        """Return the panel as it is now."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        rows = {**self._rows, "trackers": ", ".join(self.trackers)}
        for name in ROWS:
            if rows.get(name):
                table.add_row(name, Text(rows[name], "bold red" if name == "last alarm" else ""))
        return Panel(Group(self._bar, table), title=self.title, title_align="left")

    @contextmanager
    def running(self) -> Iterator[Progressing]:
        """Show it until the stage ends."""
        if not self.live:
            with self._bar:
                yield self
            return
        with Live(self, console=self.console, refresh_per_second=4), _warnings_above():
            yield self


@contextmanager
def progressing(
    title: str, steps: int, start: int, shown: bool, trackers: Sequence[str] = ()
) -> Iterator[Progressing]:
    """Show a stage's progress on standard error, for what a program prints is its caller's."""
    with Progressing(title, steps, start, Console(stderr=True), shown, trackers).running() as panel:
        yield panel


@contextmanager
def _warnings_above() -> Iterator[None]:
    """Let warnings appear above the panel: it stands in for standard error, handlers have the old.

    A line that is written past it would be drawn over.
    """
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__
    ]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(sys.__stderr__)


def memory(device: torch.device) -> str:
    """Return what this process holds of the machine's memory, and of the GPU's if it has one."""
    found = []
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123 - no file of ours
            pages = int(stream.read().split()[1])
        found.append(f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB")
    except OSError:  # not on Linux
        pass
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found.append(f"GPU {(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB")
    return ", ".join(found) or "not known on this system"
