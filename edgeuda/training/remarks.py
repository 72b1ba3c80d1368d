"""What a stage's log says of a self-training that trains nothing, and which key to turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

LEAST = 0.05
"""Below this share of the pixels, or of the supervised term, a target term hardly trains."""
MOST = 0.99
"""Above this share a threshold selects nothing: it keeps everything."""

_SHARES = {
    "keep": (
        "its threshold",
        "{stage}.threshold.initial and {stage}.threshold.keep, or source.tail and source.held, which "
        "make confidence mean something",
    ),
    "labelled": ("its selection", "hiast.selection.initial and hiast.selection.keep"),
    "trust": (
        "the trust in its pseudo-labels",
        '{stage}.mix.trust ("confidence" needs no absolute threshold), or source.tail and '
        "source.held, which make confidence mean something",
    ),
}
_TERMS = {
    "target": "{stage}.target_weight",
    "mix": "{stage}.mix_weight",
    "distil": "{stage}.source_weight",
    "pseudo": "hiast.selection.keep",
}


def remarks(stage: str, log: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each part of a stage that trains next to nothing.

    Args:
        stage: Name of its section in the recipe.
        log: Lines of its log.

    Returns:
        Sentences with the mean figure over the stage and the keys to turn; empty if all is well.
    """
    found = []
    for figure, (what, keys) in _SHARES.items():
        values = [float(line[figure]) for line in log if figure in line]
        if not values:
            continue
        mean = statistics.mean(values)
        if mean < LEAST or (mean > MOST and figure == "keep"):
            does = "lets nearly nothing through" if mean < LEAST else "holds nothing back"
            found.append(
                f"{what.removeprefix('its ').capitalize()} {does}: {figure} is {mean:.1%} on "
                f"average. Turn {keys.format(stage=stage)}"
            )
    for term, keys in _TERMS.items():
        pairs = [
            (line[term], line["supervised"]) for line in log if {term, "supervised"} <= set(line)
        ]
        if not pairs:
            continue
        share = sum(abs(a) for a, _ in pairs) / max(1e-12, sum(abs(b) for _, b in pairs))
        if share < LEAST:
            found.append(
                f"Term {term!r} is {share:.2%} of the supervised term: the stage hardly learns from "
                f"target images. Raise {keys.format(stage=stage)}"
            )
    return found
