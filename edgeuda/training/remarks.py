"""What a stage's log says of a self-training that trains nothing, and which key to turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from edgeuda.methods.registry import METHODS

LEAST = 0.05
"""Below this share of the pixels a target term hardly trains."""
LEAST_TERM = 0.005
"""Below this share of the supervised term, too. At 1 % TUFL still gains 4 to 7 points over its
control (docs/adaptation.md); at 0.14 % it gained nothing."""
MOST = 0.99
"""Above this share a threshold selects nothing: it keeps everything."""

_SURE = "source.tail and source.held, which make confidence mean something"
_SHARES = {
    "keep": (
        "The threshold",
        f"{{stage}}.threshold.initial and {{stage}}.threshold.keep, or {_SURE}",
    ),
    "labelled": ("The selection", "hiast.selection.initial and hiast.selection.keep"),
    "trust": (
        "The trust in pseudo-labels",
        f'{{stage}}.mix.trust ("confidence" needs no absolute threshold), or {_SURE}',
    ),
}
"""Figures of the log: what they belong to, and the keys that change them."""
_TERMS = {"target": "{stage}.target_weight", "mix": "{stage}.mix_weight"}
"""Terms, and the keys of their weights; a term that is 0 was left out on purpose."""


def remarks(
    stage: str, log: Sequence[dict[str, Any]], signals: Sequence[dict[str, Any]] = ()
) -> list[str]:
    """Return a sentence for each part of a stage that trains next to nothing, and each refusal.

    Args:
        stage: Name of its section in the recipe.
        log: Lines of its log.
        signals: Its measurements, see `edgeuda.training.watch`.

    Returns:
        Sentences with the mean figure over the stage and the keys to turn; empty if all is well.

    Example:
        >>> remarks("stage2", [{"step": 10, "trust": 0.006}])[0][:26]
        'The trust in pseudo-labels'
    """
    found = []
    for figure, (what, keys) in _SHARES.items():
        values = [float(line[figure]) for line in log if figure in line]
        mean = statistics.mean(values) if values else 0.5
        if mean < LEAST or (mean > MOST and figure == "keep"):
            does = "lets next to nothing through" if mean < LEAST else "holds nothing back"
            turn = keys.format(stage=stage)
            found.append(f"{what} {does}: {figure} is {mean:.1%} on average. Turn {turn}")
    terms = {} if METHODS[stage].small_terms else _TERMS
    for term, key in terms.items():
        lines = [line for line in log if line.get(term) and line.get("supervised")]
        if not lines:
            continue
        share = sum(abs(line[term]) for line in lines) / sum(line["supervised"] for line in lines)
        if share < LEAST_TERM:
            found.append(
                f"The {term} term is {share:.2%} of the supervised term: the stage hardly learns "
                f"from target images. Raise {key.format(stage=stage)}"
            )
    return found + [line["refused"] for line in signals if "refused" in line]
