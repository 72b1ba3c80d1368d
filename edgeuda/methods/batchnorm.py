"""Batch norm while two domains train one network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from edgeuda.models.network import Logits, Network

BatchNorm = Literal["frozen", "joint", "domain", "split"]
"""``"frozen"``: running statistics normalise and stay as they are; ``"joint"``: batch statistics of
all images of a step together; ``"domain"``: source and target images are normalised apart, each
with its own batch statistics, and only the target's enter the running ones (domain-specific batch
norm with shared affine parameters; Chang et al., CVPR 2019); ``"split"``: target images are
normalised by the running statistics, which stay, and source images by those of their batch, as
they were when the network was trained on them: they then do not pull its weights towards
explaining source images by the target's statistics."""

FROZEN: tuple[BatchNorm, ...] = ("frozen", "split")
"""Modes in which the network stays in eval mode and running statistics stay as they are."""


@contextmanager
def separate_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by batch statistics, and keep the running ones as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.training = True
    try:
        yield
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training


def forward(
    model: Network, source: Tensor, views: Sequence[Tensor], batch_norm: BatchNorm
) -> list[Logits]:
    """Return float logits at low resolution of all heads, for the source images and each view.

    All images pass as one batch, or with ``"domain"`` and ``"split"`` those of each domain.

    Args:
        model: The network.
        source: ``[N, 3, H, W]`` normalised.
        views: Views of target images, ``[M, 3, H, W]`` each, normalised.
        batch_norm: How domains share statistics.
    """
    groups = [[source, *views]]
    if batch_norm in ("domain", "split") and views:
        groups = [[source], [*views]]
    found = []
    for number, group in enumerate(groups):
        apart = number == 0 and len(groups) == 2
        with separate_statistics(model) if apart else nullcontext():
            joint = torch.cat(group).contiguous(memory_format=torch.channels_last)
            outputs = model(joint, aux=True, upsample=False)
        sizes = [len(view) for view in group]
        heads = [head.float().contiguous().split(sizes) for head in outputs.heads()]
        features: Sequence[Tensor | None] = [None] * len(sizes)
        if outputs.features is not None:
            features = outputs.features.split(sizes)
        found += [
            Logits(main, tuple(auxiliary), feature)
            for (main, *auxiliary), feature in zip(zip(*heads, strict=True), features, strict=True)
        ]
    return found
