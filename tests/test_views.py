"""Views of images: colour chain, affine warps, style transfer."""

import pytest
import torch

from edgeuda.training.views import (
    SOURCE,
    STRONG,
    ColourChain,
    colour,
    draw_affine,
    inside,
    match_amplitude,
    match_colour,
    restyle,
    warp,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("chain", [SOURCE, STRONG])
def test_colour_stays_in_range_changes_the_image_and_repeats(chain):
    images = torch.rand(4, 3, 32, 64, generator=generator(1))
    first, again, other = (colour(images, chain, generator(s)) for s in (5, 5, 6))
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first - images).abs().mean() > 0.02


def test_identity_chain_changes_nothing():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(colour(images, ColourChain(), generator()), images)


def test_brightness_multiplies():
    images = torch.full((1, 3, 8, 8), 0.5)
    darker = colour(images, ColourChain(brightness=(0.4, 0.4)), generator())
    assert torch.allclose(darker, torch.full_like(darker, 0.2))


def test_rigid_rotation_keeps_lengths_in_pixels():
    """At scale 1, a step of one pixel in the output is a step of one pixel in the input."""
    height, width = 64, 256
    for seed in range(20):
        theta = draw_affine(1, height, width, generator(seed))[0]
        half = torch.tensor([width / 2, height / 2])
        pixels = theta[:, :2] * half[:, None] / half[None, :]  # output pixels to input pixels
        column = pixels[:, 0]  # not sheared: scale times a unit vector
        assert 0.8 <= column.norm() <= 1.2
        assert 0.6 < pixels.det().abs() / column.norm() ** 2 <= 1.001


def test_identity_warp_and_validity():
    x = torch.rand(1, 2, 16, 32)
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    assert torch.allclose(warp(x, identity), x, atol=1e-5)
    assert inside(identity, 16, 32).all()
    shifted = torch.tensor([[[1.0, 0, 1], [0, 1, 0]]])  # half a width to the right
    assert inside(shifted, 16, 32)[0, :, :15].all()
    assert not inside(shifted, 16, 32)[0, :, 17:].any()


def test_warping_logits_agrees_with_warping_the_image_for_a_pointwise_network():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 1, bias=False)
    x = torch.rand(2, 3, 32, 64)
    theta = draw_affine(2, 32, 64, generator(3))
    assert torch.allclose(warp(network(x), theta), network(warp(x, theta)), atol=1e-5)


def test_mirror_negates_the_first_row_about_half_of_the_time():
    theta = draw_affine(400, 32, 64, generator())
    mirrored = (theta[:, 0, 0] < 0).float().mean()
    assert 0.4 < mirrored < 0.6


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


def test_restyle_none_is_the_identity():
    images = torch.rand(1, 3, 8, 8)
    assert restyle(images, torch.rand(1, 3, 8, 8), "none", generator()) is images
