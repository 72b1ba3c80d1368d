"""Confidence thresholds per class that follow the network's confidence while it adapts.

Source: the instance-adaptive selector of Mei et al., ECCV 2020, as used per batch by Yan et al.,
"Threshold-adaptive Unsupervised Focal Loss", T-ITS 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeuda.methods import ranks

CAP = 0.999
"""A threshold that reaches 1 is set to this, so that no class is shut out for good."""

_LEAST = 0x3B800000
"""Bits of 2 ** -8: the winner of fewer than 256 classes is never less confident."""
_LOW = 13
_BINS = ((0x3F800000 - _LEAST) >> _LOW) + 1
"""The bits of 2 ** -8 to 1 are a range of 2 ** 26, split in two digits of 13 bits."""


@dataclass(frozen=True)
class ThresholdRule:
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

    initial: float = 0.8
    keep: float = 0.8
    hardness: float = 8.0
    history: float = 0.9
    decay: float = 0.0
    floor: float = 0.0


@torch.no_grad()
def update_thresholds(
    thresholds: Tensor, confidence: Tensor, winner: Tensor, rule: ThresholdRule, step: int = 0
) -> Tensor:
    """Return the next thresholds, over the pixels of all ranks.

    For each class, the winner confidences of its pixels and its old threshold are put in
    descending order; the one at index ``floor(n * b * T ** d)`` is averaged into the old one. It
    is found exactly, by radix selection: two histograms per class instead of a sort.

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
    own = torch.arange(classes, device=thresholds.device)

    def histogram(classes_of: Tensor, digit: Tensor) -> Tensor:
        keys = classes_of.to(torch.int32) * _BINS + digit
        counts = torch.bincount(keys, minlength=classes * _BINS)
        return ranks.total(counts).view(classes, _BINS)

    high = histogram(winner, pixels >> _LOW)
    seen = high.sum(1) > 0
    high[own, (olds >> _LOW).long()] += 1  # the old threshold, once and not once per rank
    count = high.sum(1).double()
    rank = (count * rule.keep * thresholds.double() ** rule.hardness).long()
    rank = torch.minimum(rank, count.long() - 1)
    bin_high, rank = _descend(high, rank)

    near = (pixels >> _LOW) == bin_high.to(torch.int32)[winner]
    mask = (1 << _LOW) - 1
    low = histogram(winner[near], pixels[near] & mask)
    same = (olds >> _LOW) == bin_high
    low[own, (olds & mask).long()] += same.long()
    bin_low, _ = _descend(low, rank)
    nearest = ((bin_high << _LOW) + bin_low + _LEAST).to(torch.int32).view(torch.float32)

    history = 1 - rule.history * math.exp(-step * rule.decay) if rule.decay > 0 else rule.history
    mixed = history * thresholds + (1 - history) * torch.where(seen, nearest, thresholds)
    return torch.where(mixed >= 1, torch.full_like(mixed, CAP), mixed).clamp(min=rule.floor)


def _digits(values: Tensor) -> Tensor:
    """Return float32 values of 2 ** -8 to 1 as int32 that keep their order, from 0."""
    return (values.float().contiguous().view(torch.int32) - _LEAST).clamp(min=0)


def _descend(counts: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per row, the bin of the rank-th largest value, and its rank within that bin."""
    above = counts.flip(1).cumsum(1)
    place = torch.searchsorted(above, rank[:, None], right=True)[:, 0]
    before = above.gather(1, (place - 1).clamp(min=0)[:, None])[:, 0]
    return _BINS - 1 - place, rank - torch.where(place > 0, before, 0)
