"""AdaBN: batch-norm statistics re-estimated on target images, weights untouched.

Source: Li et al., "Revisiting Batch Normalization for Practical Domain Adaptation", 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgeuda.errors import ModelError
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing

LEAST_VARIANCE = 1e-3
"""Share of its old variance below which a layer's new statistics are not to be trusted."""


@torch.no_grad()
def adapt_batch_norm(
    model: nn.Module, batches: Iterable[Tensor], preprocessing: Preprocessing
) -> list[str]:
    """Replace running means and variances by averages over target batches, in place.

    Args:
        model: The network; left in eval mode.
        batches: ``[N, 3, H, W]`` float RGB in [0, 1], N at least 2: the pooled branches have one
            value per image and channel.
        preprocessing: Normalisation of the network's input.

    Returns:
        Names of layers that kept their old statistics, because over the frames their variance is
        next to nothing: a pooled branch that sees the same picture again and again.

    Raises:
        ModelError: If the network has no batch norm.
        ValueError: If there is no batch.
    """
    named = {n: module for n, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    norms = list(named.values())
    if not norms:
        msg = "AdaBN: the network has no batch norm. Leave 'adabn' out of the recipe's stages"
        raise ModelError(msg)
    momenta = [norm.momentum for norm in norms]
    before = {name: copy.deepcopy(norm.state_dict()) for name, norm in named.items()}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average, every batch weighing the same
    model.train()
    seen = False
    for images in batches:
        model(normalise(images, preprocessing), aux=True)
        seen = True
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if not seen:
        msg = "Batch-norm statistics need at least one batch of target images"
        raise ValueError(msg)
    flat = [
        name
        for name, norm in named.items()
        if norm.running_var is not None
        and float(norm.running_var.mean())
        < LEAST_VARIANCE * float(before[name]["running_var"].mean())
    ]
    for name in flat:
        named[name].load_state_dict(before[name])
    return flat
