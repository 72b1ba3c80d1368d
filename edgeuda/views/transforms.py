"""Views of images: photometric perturbation and affine warps, on tensors.

Images are ``[N, 3, H, W]`` float RGB in [0, 1]. Every image has a generator of its own, on the CPU,
so that its views depend neither on the batch it is in nor on the rank that computes them.

Source: the colour chain and the affine view follow Yan et al., "Threshold-adaptive Unsupervised
Focal Loss for Domain Adaptation of Semantic Segmentation", T-ITS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import kornia
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Bounds = tuple[float, float]


@dataclass(frozen=True)
class ColourChain:
    """Ranges of the photometric chain, each drawn uniformly per image.

    Attributes:
        brightness: Factor, as in PIL's enhancers (1 leaves the image as it is).
        contrast: Factor.
        saturation: Factor.
        sharpness: Factor.
        shadow: Strength s of a random smooth pattern; the image is multiplied by 1 - s * pattern.
        noise: Standard deviation of additive Gaussian noise on the 0 to 255 scale.
        blur: Standard deviation of a Gaussian blur in pixels.
        equalise: Probability of histogram equalisation.
    """

    brightness: Bounds = (1.0, 1.0)
    contrast: Bounds = (1.0, 1.0)
    saturation: Bounds = (1.0, 1.0)
    sharpness: Bounds = (1.0, 1.0)
    shadow: Bounds = (0.0, 0.0)
    noise: Bounds = (0.0, 0.0)
    blur: Bounds = (0.0, 0.0)
    equalise: float = 0.0


STRONG = ColourChain(
    (0.4, 1.2), (0.4, 2.0), (0.5, 2.0), (0.4, 2.0), (0.01, 0.3), (3.0, 4.0), (0.0, 1.2), 0.3
)
"""The perturbed target view."""

SOURCE = ColourChain(
    (0.5, 1.5), (0.5, 1.5), (0.5, 1.5), (1.0, 1.0), (0.01, 0.3), (0.0, 4.0), (0.0, 1.2), 0.0
)
"""The labelled source branch."""


def uniform(limits: Bounds, generators: Sequence[Generator]) -> Tensor:
    """Draw ``[N]`` floats uniformly from a range, one from each generator."""
    low, high = limits
    return low + (high - low) * torch.cat([torch.rand(1, generator=g) for g in generators])


def colour(images: Tensor, chain: ColourChain, generators: Sequence[Generator]) -> Tensor:
    """Perturb brightness, contrast, saturation, sharpness, shadow, noise, blur, histogram.

    Steps whose range is the identity are skipped; the order is the published one.

    Args:
        images: ``[N, 3, H, W]``.
        chain: Ranges.
        generators: One per image.

    Returns:
        ``[N, 3, H, W]`` in [0, 1].
    """
    n, _, h, w = images.shape
    x = images
    for limits, adjust in (
        (chain.brightness, kornia.enhance.adjust_brightness_accumulative),
        (chain.contrast, kornia.enhance.adjust_contrast_with_mean_subtraction),
        (chain.saturation, kornia.enhance.adjust_saturation_with_gray_subtraction),
        (chain.sharpness, kornia.enhance.sharpness),
    ):
        if limits != (1.0, 1.0):
            x = adjust(x, uniform(limits, generators).to(x))
    if chain.shadow[1] > 0:
        strength = uniform(chain.shadow, generators).to(x).view(n, 1, 1, 1)
        x = x * (1 - strength * shadow_pattern(h, w, generators).to(x))
    if chain.noise[1] > 0:
        std = uniform(chain.noise, generators).view(n, 1, 1, 1) / 255
        noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators])
        x = (x + (std * noise).to(x)).clamp(0, 1)
    if chain.blur[1] > 0:
        sigma = uniform(chain.blur, generators).clamp(min=1e-2).to(x)
        x = kornia.filters.gaussian_blur2d(x, 7, sigma[:, None].expand(n, 2))
    if chain.equalise > 0:
        chosen = (uniform((0.0, 1.0), generators) < chain.equalise).nonzero()[:, 0].to(x.device)
        if chosen.numel():
            equalised = kornia.enhance.equalize(x[chosen].clamp(0, 1))
            x = x.index_copy(0, chosen, equalised.to(x))
    return x.clamp(0, 1)


def strong_pool(images: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Apply three of eight colour operations, drawn per image, each with probability one half.

    Colour jitter, blur, contrast, brightness, posterise, equalise, solarise, grey, with ranges that
    follow HIAST (arXiv 2302.06992).

    Args:
        images: ``[N, 3, H, W]`` in [0, 1].
        generators: One per image.

    Returns:
        ``[N, 3, H, W]`` in [0, 1].
    """
    results = []
    for image, generator in zip(images, generators, strict=True):
        x = image[None]
        for index in torch.randperm(len(STRONG_POOL), generator=generator)[:3].tolist():
            if torch.rand(1, generator=generator) < 0.5:
                x = STRONG_POOL[index](x, generator).clamp(0, 1)
        results.append(x)
    return torch.cat(results)


def _jitter(x: Tensor, generator: Generator) -> Tensor:
    chain = ColourChain((0.8, 1.2), (0.8, 1.2), (0.8, 1.2))
    x = colour(x, chain, [generator])
    turn = uniform((-0.2, 0.2), [generator]).to(x) * 2 * torch.pi
    adjusted: Tensor = kornia.enhance.adjust_hue(x, turn)
    return adjusted


def _blur(x: Tensor, generator: Generator) -> Tensor:
    kernel = 2 * int(torch.randint(1, 21, (1,), generator=generator)) + 1  # 3 to 41
    kernel = min(kernel, 2 * (min(x.shape[2:]) // 2) - 1)  # reflection stays inside the image
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8  # OpenCV's choice for a kernel
    return kornia.filters.gaussian_blur2d(x, kernel, (sigma, sigma))


def _contrast(x: Tensor, generator: Generator) -> Tensor:
    return x * (1 + 3 * torch.rand(1, generator=generator).to(x))


def _brightness(x: Tensor, generator: Generator) -> Tensor:
    return x + uniform((-0.5, 0.5), [generator]).to(x)


def _posterise(x: Tensor, _: Generator) -> Tensor:
    return (x * 255).to(torch.uint8).bitwise_and(0xF0).to(x) / 255


def _equalise(x: Tensor, _: Generator) -> Tensor:
    equalised: Tensor = kornia.enhance.equalize(x)
    return equalised.to(x)


def _solarise(x: Tensor, _: Generator) -> Tensor:
    return torch.where(x >= 128 / 255, 1 - x, x)


def _grey(x: Tensor, _: Generator) -> Tensor:
    grey: Tensor = kornia.color.rgb_to_grayscale(x)
    return grey.expand_as(x)


STRONG_POOL = (_jitter, _blur, _contrast, _brightness, _posterise, _equalise, _solarise, _grey)


def shadow_pattern(height: int, width: int, generators: Sequence[Generator]) -> Tensor:
    """Return ``[N, 1, height, width]`` smooth random patterns in [0, 1].

    Coarse noise with a soft edge at its middle; it stands in for a picture of shadows.
    """
    coarse = torch.stack([torch.rand(1, 6, 10, generator=g) for g in generators])
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return torch.sigmoid(12 * (smooth - 0.5))


def draw_affine(
    height: int, width: int, generators: Sequence[Generator], *, rigid: bool = True
) -> Tensor:
    """Draw rotation (30 degrees), shear (5 degrees), scale (0.8 to 1.2) and mirror (p = 0.5).

    Args:
        height: Rows of the images they are for.
        width: Columns of the images they are for.
        generators: One per image.
        rigid: Rotate in pixels, so that angles survive in images that are not square. False
            rotates in normalised coordinates, as the released code does.

    Returns:
        ``[N, 2, 3]`` float matrices for `warp`; they map output to input coordinates.
    """
    alpha = torch.deg2rad(uniform((-30.0, 30.0), generators))
    shear = torch.deg2rad(uniform((-5.0, 5.0), generators))
    scale = uniform((0.8, 1.2), generators)
    mirror = torch.where(uniform((0.0, 1.0), generators) < 0.5, -1.0, 1.0)
    aspect = width / height if rigid else 1.0
    theta = torch.zeros(len(generators), 2, 3)
    theta[:, 0, 0] = mirror * scale * torch.cos(alpha)
    theta[:, 0, 1] = -mirror * scale * torch.sin(alpha + shear) / aspect
    theta[:, 1, 0] = scale * torch.sin(alpha) * aspect
    theta[:, 1, 1] = scale * torch.cos(alpha + shear)
    return theta


def warp(x: Tensor, theta: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Sample ``[N, C, h, w]`` through ``[N, 2, 3]`` matrices, bilinearly.

    Args:
        x: Images, or logits of any resolution.
        theta: From `draw_affine`.
        size: Rows and columns of the result; by default those of ``x``, and then what comes from
            outside the frame is 0. With a size, up-sampling and warp are one interpolation and the
            border is repeated.

    Returns:
        ``[N, C, *size]``.
    """
    grid = F.affine_grid(theta.to(x), [*x.shape[:2], *(size or x.shape[2:])], align_corners=False)
    padding = "zeros" if size is None else "border"
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def inside(theta: Tensor, height: int, width: int) -> Tensor:
    """Return ``[N, H, W]`` bool: whether a warped pixel comes from inside the frame."""
    ones = theta.new_ones(theta.shape[0], 1, height, width)
    return warp(ones, theta)[:, 0] > 0.999
