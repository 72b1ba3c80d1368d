"""Confidence thresholds per class that follow the network's confidence while it adapts.

Source: the instance-adaptive selector of Mei et al., ECCV 2020, as used per batch by Yan et al.,
"Threshold-adaptive Unsupervised Focal Loss", T-ITS 2023.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeuda.methods import ranks
from edgeuda.methods.settings import Section, Share, Weight

CAP = 0.999
"""A threshold that reaches 1 is set to this, so that no class is shut out for good."""

_LEAST = 0x3B800000
"""Bits of 2 ** -8: the winner of fewer than 256 classes is never less confident."""
_SHIFTS = (18, 9, 0)
_BINS = 512
"""From 2 ** -8 to 1 the bits run from 0 to 2 ** 26: three digits of nine bits."""


class ThresholdRule(Section):
    """Parameters of the update; b, d, history and decay are the paper's b, d, a and a_decay.

    With ``hardness`` 0 every class keeps the same share, the usual class-balanced rule.

    Attributes:
        initial: First threshold of every class.
        keep: Share b of an entirely confident class that is kept.
        hardness: Exponent d: hard classes keep a share ``b * T ** d``.
        history: Weight of the old threshold.
        decay: If positive, that weight is ``1 - history * exp(-step * decay)`` instead: thresholds
            move fast at first and slowly later.
        floor: No threshold falls below this.
    """

    initial: Share = 0.8
    keep: Share = 0.8
    hardness: Weight = 8.0
    history: Share = 0.9
    decay: Weight = 0.0
    floor: Share = 0.0


@torch.no_grad()
def update_thresholds(
    thresholds: Tensor, confidence: Tensor, winner: Tensor, rule: ThresholdRule, step: int = 0
) -> Tensor:
    """Return the next thresholds, over the pixels of all ranks.

    For each class, the winner confidences of its pixels and its old threshold are put in
    descending order; the one at index ``floor(n * b * T ** d)`` is averaged into the old one. It
    is found exactly, by radix selection: histograms of digits, and no sort.

    Args:
        thresholds: ``[K]`` float32.
        confidence: ``[P]`` winner probabilities of the valid pixels, 1/K to 1.
        winner: ``[P]`` int64 predicted classes.
        rule: Parameters.
        step: Number of the step, from 0.

    Returns:
        ``[K]`` float32; a class that was not predicted keeps its threshold.
    """
    classes = thresholds.numel()
    pixels, olds = _digits(confidence), _digits(thresholds)
    rows = winner.to(torch.int32) * _BINS
    own = torch.arange(classes, device=thresholds.device)
    found, alive = torch.zeros_like(own), torch.ones_like(own)
    rank = seen = found
    for shift in _SHIFTS:
        keys = rows + ((pixels >> shift) & (_BINS - 1))
        counts = ranks.total(torch.bincount(keys, minlength=classes * _BINS))
        counts = counts.view(classes, _BINS)
        old = (olds.long() >> shift) & (_BINS - 1)
        if shift == _SHIFTS[0]:
            seen = counts.sum(1)
            rank = ((seen + 1) * rule.keep * thresholds.double() ** rule.hardness).long()
            rank = torch.minimum(rank, seen)
        counts[own, old] += alive  # the old threshold, once and not once per rank
        chosen, rank = _descend(counts, rank)
        found = found + (chosen << shift)
        alive = alive * (old == chosen)
        wanted = torch.zeros_like(counts, dtype=torch.bool)
        wanted[own, chosen] = True
        near = wanted.view(-1).index_select(0, keys).nonzero()[:, 0]
        pixels, rows = pixels[near], rows[near]
    nearest = (found + _LEAST).to(torch.int32).view(torch.float32)

    history = 1 - rule.history * math.exp(-step * rule.decay) if rule.decay > 0 else rule.history
    mixed = history * thresholds + (1 - history) * torch.where(seen > 0, nearest, thresholds)
    return torch.where(mixed >= 1, torch.full_like(mixed, CAP), mixed).clamp(min=rule.floor)


def _digits(values: Tensor) -> Tensor:
    """Return float32 values of 2 ** -8 to 1 as int32 that keep their order, from 0."""
    return (values.float().contiguous().view(torch.int32) - _LEAST).clamp(min=0)


def _descend(histogram: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per row, the bin of the rank-th largest value, and its rank within that bin."""
    above = histogram.flip(1).cumsum(1)
    place = torch.searchsorted(above, rank[:, None], right=True)
    before = above.gather(1, (place - 1).clamp(min=0))
    rank = rank - torch.where(place > 0, before, 0)[:, 0]
    return _BINS - 1 - place[:, 0], rank
