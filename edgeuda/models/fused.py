"""Networks as they are run: training's parallel branches become the one convolution they add up to.

Sources: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021; Vasu et al.,
"MobileOne: An Improved One millisecond Mobile Backbone", CVPR 2023.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def fused(network: Module) -> Module:
    """Return a copy in eval mode whose reparameterisable blocks are one convolution each.

    It computes the same up to rounding; a network without such blocks is only copied. What was
    fused can no longer be trained, and its batch norms are not to be told apart.
    """
    copied = copy.deepcopy(network).eval()
    for module in list(copied.modules()):
        if callable(fuse := getattr(module, "reparameterize", None)):
            fuse()
    return copied
