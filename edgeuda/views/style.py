"""Style transfer: source images take the look of target images.

Sources: colour statistics follow Reinhard et al., "Color Transfer between Images", 2001; Fourier
amplitudes follow Yang and Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR
2020; histogram matching is the textbook's (Gonzalez and Woods).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Style = Literal["none", "colour", "histogram", "fourier"]


def restyle(images: Tensor, references: Tensor, style: Style) -> Tensor:
    """Give each image the look of the reference at its place.

    Args:
        images: ``[N, 3, H, W]`` source images in [0, 1].
        references: ``[N, 3, H, W]`` target images in [0, 1].
        style: ``"none"``; ``"colour"``: mean and standard deviation of each channel;
            ``"histogram"``: the whole histogram of each channel; ``"fourier"``: the lowest 1 % of
            Fourier amplitudes.

    Returns:
        ``[N, 3, H, W]`` in [0, 1].
    """
    if style == "none":
        return images
    match = {"colour": match_colour, "histogram": match_histogram, "fourier": match_amplitude}
    return match[style](images, references).clamp(0, 1)


def match_histogram(images: Tensor, references: Tensor) -> Tensor:
    """Give images the channel histograms of N references, in 256 levels.

    Args:
        images: ``[N, 3, H, W]`` in [0, 1].
        references: ``[N, 3, H', W']`` in [0, 1].
    """
    levels, other = (
        (x * 255).round().long().clamp(0, 255).flatten(2) for x in (images, references)
    )
    ours, theirs = _cumulative(levels), _cumulative(other)
    # The first level at which the reference holds as large a share of its pixels; counts are
    # compared crosswise, for shares would differ in their last bit.
    shares = ours * references[0, 0].numel(), theirs * images[0, 0].numel()
    table = torch.searchsorted(shares[1], shares[0]).clamp(max=255).to(images) / 255
    return table.gather(2, levels).view_as(images)


def _cumulative(levels: Tensor) -> Tensor:
    """Return ``[N, C, 256]`` int64 cumulative counts of ``[N, C, P]`` levels."""
    n, channels, _ = levels.shape
    rows = torch.arange(n * channels, device=levels.device).view(n, channels, 1)
    counts = torch.bincount((levels + 256 * rows).flatten(), minlength=rows.numel() * 256)
    return counts.view(n, channels, 256).cumsum(2)


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
    reach = int(band * min(h, w))
    # Spectra of real images hold every column twice; rfft2 computes one half.
    spectrum, other = torch.fft.rfft2(images.float()), torch.fft.rfft2(references.float())
    for rows in (slice(0, reach + 1), slice(h - reach, h)):
        low = (..., rows, slice(0, reach + 1))
        spectrum[low] = torch.polar(other[low].abs(), spectrum[low].angle())
    restyled: Tensor = torch.fft.irfft2(spectrum, (h, w)).to(images)
    return restyled
