"""Cross-domain image mixing: classes cut from a labelled source image, pasted on a target image.

Source: Olsson et al., "ClassMix", WACV 2021; Tranheden et al., "DACS", WACV 2021; in the form of
Yan et al., "Threshold-adaptive Unsupervised Focal Loss", T-ITS 2023.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from edgeuda.labels import IGNORE

TRUSTED = 0.968
"""Confidence from which a pseudo-label counts towards an image's trust, as in DACS."""


def draw_class_mask(labels: Tensor, generator: Generator) -> Tensor:
    """Choose half of the classes present in each label map, rounded up.

    Args:
        labels: ``[N, H, W]`` int64, 255 never drawn.
        generator: Source of the draws.

    Returns:
        ``[N, H, W]`` bool, true on the pixels of the drawn classes.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    for index, label in enumerate(labels):
        present = label.unique()
        present = present[present != IGNORE]
        order = torch.randperm(present.numel(), generator=generator)
        drawn = present[order[: (present.numel() + 1) // 2].to(present.device)]
        mask[index] = torch.isin(label, drawn)
    return mask


def mix(
    mask: Tensor,
    source: Tensor,
    source_label: Tensor,
    target: Tensor,
    target_probability: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Paste source pixels on target images and their labels on pseudo-labels.

    Args:
        mask: ``[N, H, W]`` bool, true where source is taken.
        source: ``[N, 3, H, W]`` images.
        source_label: ``[N, H, W]`` int64.
        target: ``[N, 3, H, W]`` images.
        target_probability: ``[N, K, H, W]`` softmax of the frozen network on the target images.

    Returns:
        Mixed images ``[N, 3, H, W]``, labels ``[N, H, W]`` int64, and weights ``[N, H, W]``: 1 on
        source pixels, elsewhere the share of the target image whose pseudo-labels are trusted.
    """
    confidence, pseudo_label = target_probability.max(1)
    trust = (confidence >= TRUSTED).float().mean((1, 2)).view(-1, 1, 1)
    return (
        torch.where(mask[:, None], source, target),
        torch.where(mask, source_label, pseudo_label),
        torch.where(mask, torch.ones_like(trust), trust),
    )
