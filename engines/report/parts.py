"""What a page of a report is made of: tables, pictures, chapters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engines.report.text import DASH, MINUS

NUMBER = re.compile(rf"[+{MINUS}]?\d[\d.]{{0,11}}( %| MB)?( \[.*\])?|{DASH}")

WIDE = 8
"""Columns from which a table is wide."""
BESIDE = 10
"""Columns up to which a table has room beside a plot."""


@dataclass(frozen=True)
class Grid:
    """A table of the report; ``strong`` are the indices of emphasised rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()

    @property
    def numeric(self) -> list[bool]:
        """Per column, whether it holds numbers only and is set to the right."""
        return [
            all(NUMBER.fullmatch(row[i]) or not row[i] for row in self.rows)
            for i in range(len(self.columns))
        ]

    @property
    def constant(self) -> dict[int, str]:
        """Columns of a wide table that say the same in every row, and what they say.

        They are said once above it, which leaves room for those that differ.
        """
        if len(self.columns) < WIDE or len(self.rows) < 2:
            return {}
        return {
            i: self.rows[0][i]
            for i in range(1, len(self.columns))
            if len({row[i] for row in self.rows}) == 1
        }


@dataclass(frozen=True)
class Picture:
    """An image: what made it, its data URI, and a description for those who cannot see it."""

    name: str
    uri: str
    alt: str


@dataclass(frozen=True)
class Strip:
    """One camera frame, plain and under each prediction."""

    frame: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Chapter:
    """A chapter of the report; ``lead`` are small tables that belong to the text.

    With ``selector``, readers choose which of a strip's pictures they see; with ``slider``, indices
    of two pictures, they draw one over the other. ``hero`` are plots for the first screen, not for
    the chapter.
    """

    anchor: str
    title: str
    text: Sequence[str] = ()
    lead: Sequence[Grid] = ()
    svgs: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    strips: Sequence[Strip] = ()
    legend: Sequence[tuple[str, str]] = ()
    selector: bool = True
    slider: tuple[int, int] | None = None
    hero: Sequence[str] = ()

    @property
    def beside(self) -> list[Grid]:
        """The tables that stand beside a single plot; there is no room beside several."""
        if len(self.svgs) != 1:
            return []
        return [grid for grid in [*self.lead, *self.grids] if len(grid.columns) <= BESIDE]

    @property
    def below(self) -> list[Grid]:
        """The tables that stand below the plots."""
        beside = self.beside
        return [grid for grid in [*self.lead, *self.grids] if grid not in beside]

    @property
    def views(self) -> list[str]:
        """The names of the pictures in the strips, each once."""
        return list(dict.fromkeys(p.name for strip in self.strips for p in strip.pictures))
