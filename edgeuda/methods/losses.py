"""Losses on logits, one value per pixel where a method weighs or masks them.

The unsupervised focal loss is that of Yan et al., "Threshold-adaptive Unsupervised Focal Loss for
Domain Adaptation of Semantic Segmentation", T-ITS 2023; OHEM cross-entropy is the usual one of
BiSeNet's public training recipes.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeuda.labels import IGNORE
from edgeuda.methods import ranks

Modulator = Literal["one-minus-q", "difference", "none"]


def class_weights(frequencies: Tensor, mode: Literal["raw", "normalised", "none"]) -> Tensor:
    """Return ``[K]`` weights ``1 / ln(1.1 + frequency)``.

    Args:
        frequencies: ``[K]``, summing to 1.
        mode: ``"raw"`` as published, 1.3 to 10.5; ``"normalised"`` divides by their mean, so that
            the learning rate means the same with and without weights; ``"none"`` returns ones.
    """
    if mode == "none":
        return torch.ones_like(frequencies)
    weights = 1 / torch.log(1.1 + frequencies)
    return weights / weights.mean() if mode == "normalised" else weights


def cross_entropy_map(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the weighted cross-entropy per pixel, 0 where ignored.

    Args:
        logits: ``[N, K, H, W]``.
        labels: ``[N, H, W]`` int64, 255 ignored.
        weights: ``[K]`` or None.
    """
    return F.cross_entropy(logits.float(), labels, weights, ignore_index=IGNORE, reduction="none")


def ohem(
    loss: Tensor, valid: Tensor, threshold: float = 0.7, weights: Tensor | None = None
) -> Tensor:
    """Average a loss map over its hard pixels.

    Args:
        loss: ``[N, H, W]`` cross-entropy without class weights: ``-ln`` of the true class's
            probability, by which pixels are hard.
        valid: ``[N, H, W]`` bool.
        threshold: Pixels whose true class has less than this probability are hard. If they are
            fewer than 1/16 of the valid ones, the 1/16 with the least probability are taken.
        weights: ``[N, H, W]`` factors on the loss of the chosen pixels. They have no say in the
            choice: a pixel of a rare class is not hard for being rare.

    Returns:
        A scalar, the mean over the chosen pixels; 0 if nothing is valid.
    """
    values = loss[valid]
    if values.numel() == 0:
        return loss.sum() * 0
    chosen = values > -math.log(threshold)
    least = max(1, values.numel() // 16)
    if int(chosen.sum()) < least:
        chosen = torch.zeros_like(chosen).index_fill(0, values.topk(least).indices, value=True)
    if weights is not None:
        values = values * weights[valid]
    return values[chosen].mean()


class FocalLoss(NamedTuple):
    """Loss per pixel and the weak view's prediction, ``[N, H, W]`` each."""

    loss: Tensor
    confidence: Tensor
    winner: Tensor


def unsupervised_focal(
    weak: Tensor,
    strong: Tensor,
    *,
    modulator: Modulator,
    gamma: float = 2.0,
    weights: Tensor | None = None,
) -> FocalLoss:
    """Return the unsupervised focal loss per pixel.

    With p = softmax(weak), q = softmax(strong), p' a constant copy of p, and k its arg-max::

        sum_c w_c (p'_c (log p'_c - f log q_c) - p_c log p_c),   f = |delta| ** gamma

    Its value equals ``f`` times the soft cross-entropy, but the entropy of the weak view carries
    a gradient of its own: the terms must not be cancelled.

    Args:
        weak: ``[N, K, H, W]`` logits of the clean view, in the strong view's frame.
        strong: ``[N, K, H, W]`` logits of the perturbed view.
        modulator: delta: ``"one-minus-q"`` is 1 - q_k (a focal loss on soft labels);
            ``"difference"`` is p'_k - q_k (changes sign where the views agree, which neutralises
            over-confident gradients); ``"none"`` sets f = 1 (neutral cross-entropy).
        gamma: Focusing exponent, 0 or at least 1.
        weights: ``[K]`` class weights or None.

    Returns:
        The loss, float32, p'_k and k; the latter two carry no gradient.
    """
    log_p, log_q = weak.float().log_softmax(1), strong.float().log_softmax(1)
    p, fixed = log_p.exp(), log_p.detach()
    soft = p.detach()
    sharpness, cross = soft * fixed - p * log_p, soft * log_q
    if weights is not None:
        w = weights.to(log_p).view(1, -1, 1, 1)
        sharpness, cross = sharpness * w, cross * w
    top, winner = soft.max(1, keepdim=True)  # many times faster than argmax on CPUs
    focus: Tensor | float = 1.0
    if modulator != "none":
        q_winner = log_q.gather(1, winner).exp()
        focus = ((top if modulator == "difference" else 1.0) - q_winner)[:, 0].abs().pow(gamma)
    return FocalLoss(sharpness.sum(1) - focus * cross.sum(1), top[:, 0], winner[:, 0])


def masked_mean(values: Tensor, mask: Tensor, share: float = 1.0) -> Tensor:
    """Average ``values`` where ``mask`` holds, over the pixels of all ranks; 0 if nowhere.

    Args:
        values: ``[N, H, W]``.
        mask: Same shape, bool.
        share: Share of the masked pixels that counts, those with the largest values; ranks choose
            theirs on their own.
    """
    if share < 1:
        chosen = values[mask]
        kept = chosen.topk(math.ceil(share * chosen.numel())).values
        total, count = kept.sum(), mask.new_full((), kept.numel(), dtype=torch.int64)
    else:
        total, count = torch.where(mask, values, 0).sum(), mask.sum()
    # Gradients are averaged over ranks, so each divides by the mean count.
    return total / (ranks.total(count) / ranks.count()).clamp(min=1 / ranks.count())
