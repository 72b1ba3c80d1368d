"""Views of images: colour chain and affine warps."""

import pytest
import torch

from edgeuda.views.transforms import (
    SOURCE,
    STRONG,
    ColourChain,
    colour,
    draw_affine,
    inside,
    warp,
)


def generators(count=1, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + place) for place in range(count)]


@pytest.mark.parametrize("chain", [SOURCE, STRONG])
def test_colour_stays_in_range_changes_the_image_and_repeats(chain):
    images = torch.rand(4, 3, 32, 64, generator=generators()[0])
    first, again, other = (colour(images, chain, generators(4, s)) for s in (5, 5, 6))
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first - images).abs().mean() > 0.02


def test_identity_chain_changes_nothing():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(colour(images, ColourChain(), generators(2)), images)


def test_brightness_multiplies():
    images = torch.full((1, 3, 8, 8), 0.5)
    darker = colour(images, ColourChain(brightness=(0.4, 0.4)), generators())
    assert torch.allclose(darker, torch.full_like(darker, 0.2))


def test_rigid_rotation_keeps_lengths_in_pixels():
    """At scale 1, a step of one pixel in the output is a step of one pixel in the input."""
    height, width = 64, 256
    for seed in range(20):
        theta = draw_affine(height, width, generators(1, seed))[0]
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
    theta = draw_affine(32, 64, generators(2, 3))
    assert torch.allclose(warp(network(x), theta), network(warp(x, theta)), atol=1e-5)


def test_mirror_negates_the_first_row_about_half_of_the_time():
    theta = draw_affine(32, 64, generators(400))
    mirrored = (theta[:, 0, 0] < 0).float().mean()
    assert 0.4 < mirrored < 0.6


@pytest.mark.parametrize("chain", [SOURCE, STRONG])
def test_views_of_an_image_do_not_depend_on_its_batch(chain):
    images = torch.rand(5, 3, 32, 64)
    whole = colour(images, chain, generators(5))
    parts = [
        colour(images[:2], chain, generators(5)[:2]),
        colour(images[2:], chain, generators(5)[2:]),
    ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


def test_warping_low_resolution_logits_agrees_with_warping_them_up_sampled():
    coarse = torch.randn(2, 3, 8, 16)
    full = torch.nn.functional.interpolate(coarse, scale_factor=8.0, mode="bilinear")
    theta = draw_affine(64, 128, generators(2, 3))
    valid = inside(theta, 64, 128)[:, None].expand(-1, 3, -1, -1)
    at_once, in_two = warp(coarse, theta, (64, 128)), warp(full, theta)
    # Interpolating twice smooths the corners of the first interpolation, and only those.
    assert (at_once - in_two)[valid].abs().mean() < 0.02 * full.abs().mean()
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(2, 2, 3)
    assert torch.allclose(warp(coarse, identity, (64, 128)), full, atol=1e-4)
