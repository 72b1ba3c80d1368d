"""AdaBN: batch-norm statistics re-estimated on target images, weights untouched.

Source: Li et al., "Revisiting Batch Normalization for Practical Domain Adaptation", 2016.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing


@torch.no_grad()
def adapt_batch_norm(
    model: nn.Module, batches: Iterable[Tensor], preprocessing: Preprocessing
) -> int:
    """Replace running means and variances by averages over target batches, in place.

    Args:
        model: The network; left in eval mode.
        batches: ``[N, 3, H, W]`` float RGB in [0, 1], N at least 2: the pooled branches have one
            value per image and channel.
        preprocessing: Normalisation of the network's input.

    Returns:
        The number of images seen.

    Raises:
        ValueError: If there is no batch.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average, every batch weighing the same
    model.train()
    seen = 0
    for images in batches:
        model(normalise(images, preprocessing), aux=True)
        seen += images.shape[0]
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if seen == 0:
        msg = "Batch-norm statistics need at least one batch of target images"
        raise ValueError(msg)
    return seen
