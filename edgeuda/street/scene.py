"""One labelled image of a street from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeuda.data.images import Image, LabelMap
from edgeuda.errors import ConfigError
from edgeuda.street.domain import Light, StreetDomain
from edgeuda.street.ground import draw_ground, draw_plan
from edgeuda.street.layout import advanced, draw_layout, in_the_way, in_view, shadows
from edgeuda.street.sensor import expose, reflect
from edgeuda.street.sky import draw_sky, draw_skyline
from edgeuda.street.stage import Stage
from edgeuda.street.view import Points, draw_view

SMALLEST = 32
"""Fewest rows and columns of an image."""


@dataclass(frozen=True)
class Drive:
    """A camera that moves along the street.

    Attributes:
        frames: Length of the sequence.
        fps: Frames per second.
        speed: Of the camera, in m/s; others move at shares of it.
    """

    frames: int
    fps: float = 10.0
    speed: float = 9.0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.fps <= 0 or self.speed < 0:
            msg = f"A drive needs frames >= 1, fps > 0 and speed >= 0, found {self}"
            raise ConfigError(msg)

    @property
    def length(self) -> float:
        """How far the camera comes, in metres."""
        return self.speed * (self.frames - 1) / self.fps


STILL = Drive(1)


def render(
    domain: StreetDomain, seed: int, height: int, width: int, drive: Drive = STILL, frame: int = 0
) -> tuple[Image, LabelMap]:
    """Render a street and its label map.

    The result depends on nothing but the arguments; the same seed gives the same street at every
    size.

    Args:
        domain: How streets, light and camera are, for example ``DOMAINS["camera"]``.
        seed: At least 0.
        height: Rows, at least `SMALLEST`.
        width: Columns, at least `SMALLEST`.
        drive: How the camera moves. A longer street is laid out for a longer drive, so frames
            belong together only if their drives are equal.
        frame: Which frame of the drive.

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
    things = draw_layout(domain, plan, replace(view, far=view.far + drive.length), objects)
    grain = None
    if drive.frames > 1:
        seconds = frame / drive.fps
        stage = replace(stage, view=replace(view, travelled=seconds * drive.speed))
        grain = np.random.default_rng((seed, 3, frame))
        # The camera does not stop for anyone, so nobody is in its way.
        things = [thing for thing in things if not in_the_way(thing, view)]
    draw_sky(stage, paint)
    draw_skyline(stage, paint)
    if drive.frames > 1:
        seen = [(advanced(stage.view, thing, seconds, drive.speed), thing) for thing in things]
        seen = [(moved, thing) for moved, thing in seen if in_view(thing, moved)]
        seen.sort(key=lambda pair: -pair[0].ahead(pair[1].depth))
        present = [thing for _, thing in seen]
        draw_ground(stage, plan, shadows(present, stage, seconds, drive.speed))
        for moved, thing in seen:
            thing.draw(replace(stage, view=moved))
    else:
        draw_ground(stage, plan, shadows(things, stage))
        for thing in things:
            thing.draw(stage)
    image, label = np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
    if light.wet > 0:
        image = reflect(image, label, light.wet, camera)
    return expose(image, domain, light, camera, grain), label


def _draw_light(domain: StreetDomain, rng: np.random.Generator) -> tuple[Light, Points]:
    """Draw a kind of light and the direction to the sun."""
    weights = np.array([light.weight for light in domain.lights])
    light = domain.lights[rng.choice(len(weights), p=weights / weights.sum())]
    elevation = np.radians(rng.uniform(*light.elevation))
    azimuth = rng.uniform(0, 2 * np.pi)
    flat = np.cos(elevation)
    return light, np.array([flat * np.sin(azimuth), np.sin(elevation), flat * np.cos(azimuth)])
