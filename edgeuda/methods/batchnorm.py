"""Batch norm while two domains train one network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

BatchNorm = Literal["frozen", "joint", "domain"]
"""``"frozen"``: running statistics normalise and stay as they are; ``"joint"``: batch statistics of
all images of a step together; ``"domain"``: source and target images are normalised apart, each
with its own batch statistics, and only the target's enter the running ones (domain-specific batch
norm with shared affine parameters; Chang et al., CVPR 2019)."""


@contextmanager
def separate_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are while images pass in training mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
