"""Sums over the ranks of a distributed run; with one rank, nothing happens."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks; the argument stays as it is."""
    if count() == 1:
        return tensor
    result = tensor.clone()
    dist.all_reduce(result)
    return result
