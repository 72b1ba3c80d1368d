"""Confidence thresholds per class that follow the network's confidence while it adapts.

Source: the instance-adaptive selector of Mei et al., ECCV 2020, as used per batch by Yan et al.,
"Threshold-adaptive Unsupervised Focal Loss", T-ITS 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CAP = 0.999
"""A threshold that reaches 1 is set to this, so that no class is shut out for good."""


@dataclass(frozen=True)
class ThresholdRule:
    """Parameters of the update; b, d and history are the paper's b, d and a.

    Attributes:
        initial: First threshold of every class.
        keep: Share b of an entirely confident class that is kept.
        hardness: Exponent d: hard classes keep a share ``b * T ** d``.
        history: Weight of the old threshold.
    """

    initial: float = 0.8
    keep: float = 0.8
    hardness: float = 8.0
    history: float = 0.9


@torch.no_grad()
def update_thresholds(
    thresholds: Tensor, confidence: Tensor, winner: Tensor, rule: ThresholdRule
) -> Tensor:
    """Return the next thresholds.

    For each class, the winner confidences of its pixels and its old threshold are sorted in
    descending order; the one at index ``floor(n * b * T ** d)`` is averaged into the old one.

    Args:
        thresholds: ``[K]`` float32.
        confidence: ``[P]`` winner probabilities of the valid pixels.
        winner: ``[P]`` int64 predicted classes.
        rule: Parameters.

    Returns:
        ``[K]`` float32; a class that was not predicted keeps its threshold.
    """
    nearest = thresholds.clone()
    for index in range(thresholds.numel()):
        values = confidence[winner == index]
        if values.numel() == 0:
            continue
        old = float(thresholds[index])
        pool = torch.cat((values.to(thresholds), thresholds[index : index + 1]))
        position = int(pool.numel() * rule.keep * old**rule.hardness)
        nearest[index] = pool.sort(descending=True).values[min(position, pool.numel() - 1)]
    mixed = rule.history * thresholds + (1 - rule.history) * nearest
    return torch.where(mixed >= 1, torch.full_like(mixed, CAP), mixed)
