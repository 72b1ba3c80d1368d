"""What every segmentation network offers: logits of its heads, and what training asks of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.errors import ConfigError


class Logits(NamedTuple):
    """Class scores, ``[N, K, h, w]`` each.

    Attributes:
        main: The head whose labels count.
        auxiliary: Heads that serve training only.
        features: ``[N, F, h, w]`` input of the main head, for adaptation in feature space.
    """

    main: Tensor
    auxiliary: tuple[Tensor, ...] = ()
    features: Tensor | None = None

    def heads(self) -> tuple[Tensor, ...]:
        """Return the heads that are present, main first."""
        return (self.main, *self.auxiliary)


class Network(nn.Module):
    """Base of all networks. Methods ask it for its heads instead of knowing it.

    ``forward(x, aux=False, upsample=True)`` returns `Logits` for ``[N, 3, H, W]`` normalised
    images, H and W multiples of 32; with ``aux`` those of all heads; without ``upsample`` at the
    resolution they are computed at, which saves time and memory where a loss needs only some views
    at full resolution.

    Attributes:
        heads: Names of the heads, main first.
        head_weights: Weight of each head in a supervised loss.
        base_rate: Prefixes of the parameters that learn at the base rate; all others learn at
            ``head_factor`` times that. Which ones, the network's released code says.
        channels: Channels F of the main head's input.
        pooled: The part whose input is the global mean of the deepest features,
            ``[N, C, 1, 1]``; it begins with a convolution. None if there is none.
    """

    heads: tuple[str, ...]
    head_weights: tuple[float, ...]
    base_rate: tuple[str, ...]
    channels: int
    pooled: ClassVar[str | None] = None

    def forward(self, x: Tensor, aux: bool = False, upsample: bool = True) -> Logits:
        """Segment normalised images."""
        raise NotImplementedError

    def load_pretrained(self, weights: str) -> None:
        """Fill the trunk with pretrained weights, see `edgeuda.models.pretrained.read_weights`."""
        raise NotImplementedError

    def freeze(self, stride: int) -> None:
        """Let the trunk's weights down to a stride of ``stride`` be: they train no more.

        Raises:
            ConfigError: If ``stride`` is not 0 and the network has no such part.
        """
        if stride:
            msg = f"{type(self).__name__} has no trunk that can be frozen; set model.freeze = 0"
            raise ConfigError(msg)

    def learn_affine(self) -> None:
        """Let all batch norms learn scale and shift, those too that the network keeps as they are.

        It lasts as long as this object: a network that is loaded keeps them again.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(True)

    def weigh(self, losses: Iterable[Tensor]) -> Tensor:
        """Return the average of one loss per head, by `head_weights`."""
        total, *rest = (
            weight * loss for weight, loss in zip(self.head_weights, losses, strict=True)
        )
        for loss in rest:
            total = total + loss
        return total / sum(self.head_weights)


def scaled(channels: int, width: float) -> int:
    """Return ``channels * width`` rounded to a multiple of 8, at least 8."""
    return max(8, round(channels * width / 8) * 8)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring ``[N, K, h, w]`` logits to input resolution, as the networks themselves do."""
    factor = float(size[0] // logits.shape[2])
    return F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
