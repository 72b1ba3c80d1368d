"""One labelled image of a street from a seed."""

from __future__ import annotations

import numpy as np

from edgeuda.data.images import Image, LabelMap
from edgeuda.data.street.domain import Domain, Light
from edgeuda.data.street.ground import draw_ground, draw_plan
from edgeuda.data.street.layout import draw_layout, shadows
from edgeuda.data.street.sensor import expose, reflect
from edgeuda.data.street.sky import draw_sky, draw_skyline
from edgeuda.data.street.stage import Stage
from edgeuda.data.street.view import Floats, draw_view
from edgeuda.errors import ConfigError

SMALLEST = 32
"""Fewest rows and columns of an image."""


def render(domain: Domain, seed: int, height: int, width: int) -> tuple[Image, LabelMap]:
    """Render a street and its label map.

    The result depends on nothing but the arguments; the same seed gives the same street at every
    size.

    Args:
        domain: How streets, light and camera are, for example ``DOMAINS["camera"]``.
        seed: At least 0.
        height: Rows, at least `SMALLEST`.
        width: Columns, at least `SMALLEST`.

    Returns:
        Image ``[H, W, 3]`` uint8 RGB and Cityscapes train ids ``[H, W]`` uint8.

    Raises:
        ConfigError: If the seed or the size is out of range.
    """
    if seed < 0 or min(height, width) < SMALLEST:
        msg = (
            f"The street renderer needs a seed of at least 0 and a size of at least "
            f"{SMALLEST}x{SMALLEST}, found seed {seed} and size {height}x{width}"
        )
        raise ConfigError(msg)
    street, objects, paint, camera = (np.random.default_rng((seed, part)) for part in range(4))
    plan = draw_plan(domain, street)
    lane = plan.lane_width * (street.integers(plan.lanes) + 0.5)
    view = draw_view(domain, street, height, width, lane + street.normal(0, 0.15))
    light, to_sun = _draw_light(domain, street)
    pixels = np.zeros((height, width, 4), np.uint8)
    stage = Stage(pixels, view, domain, light, to_sun, street.uniform(*light.haze))
    things = draw_layout(domain, plan, view, objects)
    draw_sky(stage, paint)
    draw_skyline(stage, paint)
    draw_ground(stage, plan, shadows(things, stage))
    for thing in things:
        thing.draw(stage)
    image, label = np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
    if light.wet > 0:
        image = reflect(image, label, light.wet, camera)
    return expose(image, domain, light, camera), label


def _draw_light(domain: Domain, rng: np.random.Generator) -> tuple[Light, Floats]:
    """Draw a kind of light and the direction to the sun."""
    weights = np.array([light.weight for light in domain.lights])
    light = domain.lights[rng.choice(len(weights), p=weights / weights.sum())]
    elevation = np.radians(rng.uniform(*light.elevation))
    azimuth = rng.uniform(0, 2 * np.pi)
    flat = np.cos(elevation)
    return light, np.array([flat * np.sin(azimuth), np.sin(elevation), flat * np.cos(azimuth)])
