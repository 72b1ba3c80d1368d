"""Style transfer of source images."""

import math

import numpy as np
import pytest
import torch

from edgeuda.views.style import match_amplitude, match_colour, match_histogram, restyle


def test_colour_statistics_become_those_of_the_reference():
    images, references = torch.rand(2, 3, 16, 16), 0.2 * torch.rand(2, 3, 8, 8) + 0.3
    moved = match_colour(images, references)
    assert torch.allclose(moved.mean((2, 3)), references.mean((2, 3)), atol=1e-4)
    assert torch.allclose(moved.std((2, 3)), references.std((2, 3)), atol=1e-3)


def test_fourier_style_takes_the_mean_of_the_reference_and_keeps_the_phase():
    images, references = torch.rand(1, 3, 64, 128), 0.5 * torch.rand(1, 3, 64, 128)
    moved = match_amplitude(images, references, band=0.01)
    assert torch.allclose(moved.mean((2, 3)), references.mean((2, 3)), atol=1e-4)
    high = moved - moved.mean((2, 3), keepdim=True)
    assert torch.allclose(high, images - images.mean((2, 3), keepdim=True), atol=1e-4)
    assert torch.allclose(match_amplitude(images, images, band=0.1), images, atol=1e-4)


@pytest.mark.parametrize(("size", "band"), [((32, 64), 0.1), ((33, 47), 0.2), ((40, 24), 0.0)])
def test_fourier_style_against_the_whole_spectrum(size, band):
    """The paper's procedure: shift, replace the central square, shift back."""
    images, references = torch.rand(2, 3, *size).double(), torch.rand(2, 3, *size).double()
    images[0] = 0  # no phase
    spectrum, other = (
        np.fft.fftshift(np.fft.fft2(x.numpy()), axes=(2, 3)) for x in (images, references)
    )
    amplitude, reach = np.abs(spectrum), int(band * min(size))
    row, column = size[0] // 2, size[1] // 2
    square = np.s_[:, :, row - reach : row + reach + 1, column - reach : column + reach + 1]
    amplitude[square] = np.abs(other)[square]
    mixed = np.fft.ifftshift(amplitude * np.exp(1j * np.angle(spectrum)), axes=(2, 3))
    expected = torch.from_numpy(np.fft.ifft2(mixed).real)
    assert torch.allclose(match_amplitude(images, references, band), expected, atol=1e-5)


def test_restyle_none_is_the_identity():
    images = torch.rand(1, 3, 8, 8)
    assert restyle(images, torch.rand(1, 3, 8, 8), "none") is images


def test_histogram_becomes_that_of_the_reference():
    rng = np.random.default_rng(0)
    image = rng.permutation(np.arange(256 * 4) // 4).reshape(32, 32)  # four pixels of each level
    reference = np.minimum(255, rng.exponential(40, (16, 24))).astype(np.int64)

    def tensor(x):
        return torch.from_numpy(x / 255).float().expand(1, 3, *x.shape)

    moved = (match_histogram(tensor(image), tensor(reference))[0, 0] * 255).round().numpy()
    ordered = np.sort(reference.ravel())
    for level in range(256):  # the quantile of the reference at the level's rank
        rank = (level + 1) / 256
        expected = ordered[math.ceil(rank * ordered.size) - 1]
        assert (moved[image == level] == expected).all()


@pytest.mark.parametrize("style", ["colour", "histogram", "fourier"])
def test_styles_stay_in_range_and_stand_flat_images(style):
    images = torch.stack([torch.full((3, 32, 64), 0.5), torch.rand(3, 32, 64)])
    references = torch.stack([torch.rand(3, 32, 64), torch.zeros(3, 32, 64)])
    moved = restyle(images, references, style)
    assert moved.shape == images.shape
    assert moved.isfinite().all()
    assert 0 <= moved.min() <= moved.max() <= 1
    alone = torch.cat([restyle(images[i : i + 1], references[i : i + 1], style) for i in (0, 1)])
    assert torch.allclose(moved, alone, atol=1e-6)  # image i takes the look of reference i
