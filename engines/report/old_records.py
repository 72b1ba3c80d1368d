"""What is read of records that were written before decisions were data and networks were known.

The only place that reads a decision from a sentence, or a network from its title.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgeuda.records.tradeoff import Int8Status, SaidChoice
from engines.report.text import MINUS

TITLES: Mapping[str, int] = {
    "source-only": 0,
    "AdaBN": 1,
    "entropy": 2,
    "adversarial": 2,
    "ASS": 2,
    "HIAST": 2,
    "LSE": 2,
    "distil": 2,
    "stage 1": 11,
    "stage 2": 12,
    "adapted": 97,
}
"""Titles that this project itself wrote, in the order of the work; 0 is before adaptation."""
_FORM = re.compile(
    r"( \d+x\d+)?( (FP32|FP16|INT8))?( (logits|scores|labels_low))?( (cuda|tensorrt|engine))?"
    r"( for TensorRT)?"
)
"""What it wrote behind them for a form of the network."""


@dataclass(frozen=True)
class OldChoice:
    """The choice of an ``edgeuda.tradeoff/1`` record, see `engines.report.words.Said`."""

    name: str | None
    why: str
    int8: str | None
    status: Int8Status | None
    reading: str


def old_choice(said: SaidChoice) -> OldChoice:
    """Return what an ``edgeuda.tradeoff/1`` record says, whose choice was sentences."""
    why = _unsigned_zero(said.why)
    if not said.int8:
        return OldChoice(said.name, why, None, None, "")
    text = _unsigned_zero(said.int8)
    status: Int8Status = "worth it" if text.startswith("INT8 is worth") else "not worth it"
    return OldChoice(said.name, why, text, status, text.partition(": ")[2] or text)


def title_of(name: str) -> str | None:
    """Return the title that a name begins with, if it is one of this project's.

    Args:
        name: For example ``"stage 2 160x224 INT8"``; nothing but a form may follow the title.
    """
    return next(
        (
            title
            for title in TITLES
            if name.startswith(title) and _FORM.fullmatch(name[len(title) :])
        ),
        None,
    )


def _unsigned_zero(text: str) -> str:
    """Return a sentence without the sign of what is zero."""
    return re.sub(rf"(?<![\d.])[-{MINUS}]0\.0(?!\d)", "0.0", text)
