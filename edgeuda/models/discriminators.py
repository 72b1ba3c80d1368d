"""Networks that tell source from target, for adversarial adaptation.

Sources: Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation", CVPR
2018 (`output_discriminator`); the light form is that of real-time domain adaptation (arXiv
2110.11662).
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

CHANNELS = (64, 128, 256, 512)


def output_discriminator(
    inputs: int, outputs: int = 1, *, light: bool = False, first_kernel: int = 4
) -> nn.Sequential:
    """Return five convolutions of stride 2: ``[N, inputs, H, W]`` to ``[N, outputs, ~H/32, ...]``.

    Args:
        inputs: Channels, the classes.
        outputs: Logits per position.
        light: Depthwise and pointwise convolutions instead: 191,364 parameters instead of
            2,781,121 at 19 classes.
        first_kernel: 4, or 3 as in IAST's warm-up.
    """
    sizes = (inputs, *CHANNELS, outputs)
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(sizes)):
        kernel = first_kernel if number == 0 else 4
        if light:
            layers.append(nn.Conv2d(before, before, kernel, 2, 1, groups=before))
            layers.append(nn.Conv2d(before, after, 1))
        else:
            layers.append(nn.Conv2d(before, after, kernel, 2, 1))
        if number < len(CHANNELS):
            layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers)


def vector_discriminator(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    """Return three linear layers: ``[M, inputs]`` to ``[M, outputs]``, one logit per class."""
    return nn.Sequential(
        nn.Linear(inputs, middle),
        nn.LeakyReLU(0.2),
        nn.Linear(middle, middle),
        nn.LeakyReLU(0.2),
        nn.Linear(middle, outputs),
    )
