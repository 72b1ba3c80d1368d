"""Views of images: photometric perturbation, affine warps and style transfer, on tensors.

Images are ``[N, 3, H, W]`` float RGB in [0, 1]. Every draw comes from the generator that is passed
in, on the CPU, so that a step's views depend on nothing but its seed.

Sources: the colour chain and the affine view follow Yan et al., "Threshold-adaptive Unsupervised
Focal Loss for Domain Adaptation of Semantic Segmentation", T-ITS 2023; colour statistics follow
Reinhard et al., "Color Transfer between Images", 2001; Fourier amplitudes follow Yang and Soatto,
"FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import kornia
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Range = tuple[float, float]
Style = Literal["none", "colour", "fourier"]


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

    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    sharpness: Range = (1.0, 1.0)
    shadow: Range = (0.0, 0.0)
    noise: Range = (0.0, 0.0)
    blur: Range = (0.0, 0.0)
    equalise: float = 0.0


STRONG = ColourChain(
    (0.4, 1.2), (0.4, 2.0), (0.5, 2.0), (0.4, 2.0), (0.01, 0.3), (3.0, 4.0), (0.0, 1.2), 0.3
)
"""The perturbed target view."""

SOURCE = ColourChain(
    (0.5, 1.5), (0.5, 1.5), (0.5, 1.5), (1.0, 1.0), (0.01, 0.3), (0.0, 4.0), (0.0, 1.2), 0.0
)
"""The labelled source branch."""


def uniform(count: int, limits: Range, generator: Generator) -> Tensor:
    """Draw ``[count]`` floats uniformly from a range."""
    low, high = limits
    return low + (high - low) * torch.rand(count, generator=generator)


def colour(images: Tensor, chain: ColourChain, generator: Generator) -> Tensor:
    """Perturb brightness, contrast, saturation, sharpness, shadow, noise, blur, histogram.

    Steps whose range is the identity are skipped; the order is the published one. Returns
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
            x = adjust(x, uniform(n, limits, generator).to(x))
    if chain.shadow[1] > 0:
        strength = uniform(n, chain.shadow, generator).to(x).view(n, 1, 1, 1)
        x = x * (1 - strength * shadow_pattern(n, h, w, generator).to(x))
    if chain.noise[1] > 0:
        std = uniform(n, chain.noise, generator).view(n, 1, 1, 1) / 255
        noise = std * torch.randn(images.shape, generator=generator)
        x = (x + noise.to(x)).clamp(0, 1)
    if chain.blur[1] > 0:
        sigma = uniform(n, chain.blur, generator).clamp(min=1e-2).to(x)
        x = kornia.filters.gaussian_blur2d(x, 7, sigma[:, None].expand(n, 2))
    if chain.equalise > 0:
        chosen = (torch.rand(n, generator=generator) < chain.equalise).to(x.device)
        if bool(chosen.any()):
            x = torch.where(chosen.view(n, 1, 1, 1), kornia.enhance.equalize(x.clamp(0, 1)), x)
    return x.clamp(0, 1)


def shadow_pattern(count: int, height: int, width: int, generator: Generator) -> Tensor:
    """Return ``[count, 1, height, width]`` smooth random patterns in [0, 1].

    Coarse noise with a soft edge at its middle; it stands in for a picture of shadows.
    """
    coarse = torch.rand(count, 1, 6, 10, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return torch.sigmoid(12 * (smooth - 0.5))


def draw_affine(
    count: int, height: int, width: int, generator: Generator, *, rigid: bool = True
) -> Tensor:
    """Draw rotation (30 degrees), shear (5 degrees), scale (0.8 to 1.2) and mirror (p = 0.5).

    Args:
        count: Number of matrices N.
        height: Rows of the images they are for.
        width: Columns of the images they are for.
        generator: Source of the draws.
        rigid: Rotate in pixels, so that angles survive in images that are not square. False
            rotates in normalised coordinates, as the released code does.

    Returns:
        ``[N, 2, 3]`` float matrices for `warp`; they map output to input coordinates.
    """
    alpha = torch.deg2rad(uniform(count, (-30.0, 30.0), generator))
    shear = torch.deg2rad(uniform(count, (-5.0, 5.0), generator))
    scale = uniform(count, (0.8, 1.2), generator)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    aspect = width / height if rigid else 1.0
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = mirror * scale * torch.cos(alpha)
    theta[:, 0, 1] = -mirror * scale * torch.sin(alpha + shear) / aspect
    theta[:, 1, 0] = scale * torch.sin(alpha) * aspect
    theta[:, 1, 1] = scale * torch.cos(alpha + shear)
    return theta


def warp(x: Tensor, theta: Tensor) -> Tensor:
    """Sample ``[N, C, H, W]`` through ``[N, 2, 3]`` matrices: bilinear, zeros outside."""
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def inside(theta: Tensor, height: int, width: int) -> Tensor:
    """Return ``[N, H, W]`` bool: whether a warped pixel comes from inside the frame."""
    ones = theta.new_ones(theta.shape[0], 1, height, width)
    return warp(ones, theta)[:, 0] > 0.999


def restyle(images: Tensor, references: Tensor, style: Style, generator: Generator) -> Tensor:
    """Give each image the look of a reference drawn at random.

    Args:
        images: ``[N, 3, H, W]`` source images.
        references: ``[M, 3, H', W']`` target images.
        style: ``"none"``; ``"colour"``: mean and standard deviation of each channel; ``"fourier"``:
            the lowest 1 % of Fourier amplitudes (then H', W' must equal H, W).
        generator: Source of the draws.

    Returns:
        ``[N, 3, H, W]`` in [0, 1].
    """
    if style == "none":
        return images
    chosen = torch.randint(references.shape[0], (images.shape[0],), generator=generator)
    reference = references[chosen.to(references.device)]
    moved = (
        match_colour(images, reference) if style == "colour" else match_amplitude(images, reference)
    )
    return moved.clamp(0, 1)


def match_colour(images: Tensor, references: Tensor) -> Tensor:
    """Give ``[N, 3, H, W]`` images the channel means and deviations of N references."""
    mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
    to_mean = references.mean((2, 3), keepdim=True)
    to_std = references.std((2, 3), keepdim=True)
    return (images - mean) / std.clamp(min=1e-3) * to_std + to_mean


def match_amplitude(images: Tensor, references: Tensor, band: float = 0.01) -> Tensor:
    """Replace the low-frequency Fourier amplitudes of images by those of N references.

    Args:
        images: ``[N, 3, H, W]``.
        references: ``[N, 3, H, W]``.
        band: Half the side of the replaced square around zero frequency, as a share of the
            shorter side (the paper's beta).
    """
    h, w = images.shape[-2:]
    spectrum = torch.fft.fft2(images.float())
    amplitude, phase = spectrum.abs(), spectrum.angle()
    other = torch.fft.fft2(references.float()).abs()
    reach = int(band * min(h, w))
    rows = (torch.fft.fftfreq(h).abs() * h <= reach).to(images.device)
    columns = (torch.fft.fftfreq(w).abs() * w <= reach).to(images.device)
    low = rows[:, None] & columns[None, :]
    mixed = torch.polar(torch.where(low, other, amplitude), phase)
    restyled: Tensor = torch.fft.ifft2(mixed).real.to(images)
    return restyled
