"""Projection of a curved, sloped street into the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeuda.street.domain import StreetDomain

Points = npt.NDArray[np.float64]

NEAR = 0.8
"""Nearest distance that is projected, metres; surfaces that pass the eye are cut there."""


@dataclass(frozen=True)
class View:
    """A pinhole camera above the street.

    Street coordinates are ``(u, v, s)`` in metres: to the right of the road's centre line, above
    the road's surface, along the road. The street's bend and rise are parabolas in ``s``; pitch
    shifts the image, yaw and roll shear it, so that distance stays ``s`` and verticals stay
    vertical.

    Attributes:
        focal: Focal length in pixels.
        horizon: Row of the horizon of a flat street, in the middle column.
        eye_offset: Lateral position of the camera, ``u``.
        eye_height: In metres.
        yaw: Tangent of the angle to the road.
        roll: Tangent of the roll angle.
        curvature: In 1/m.
        slope: Change of gradient per metre, in 1/m.
        far: Distance at which the street ends.
        travelled: How far the camera has come along the street; it looks from there.
    """

    height: int
    width: int
    focal: float
    horizon: float
    eye_offset: float
    eye_height: float
    yaw: float
    roll: float
    curvature: float
    slope: float
    far: float
    travelled: float = 0.0

    def ahead(self, s: float) -> float:
        """Return the distance from the camera of a place along the street, negative behind it."""
        return s - self.travelled

    def project(self, points: npt.ArrayLike) -> Points:
        """Project ``[..., 3]`` street coordinates to ``[..., 2]`` pixel coordinates (x, y)."""
        street = np.asarray(points, np.float64)
        s = np.maximum(street[..., 2] - self.travelled, NEAR)
        x = self.focal * ((street[..., 0] - self.eye_offset) / s + self._bend(s) / s)
        y = self.focal * ((self.eye_height - street[..., 1]) / s - 0.5 * self.slope * s)
        image = np.empty((*street.shape[:-1], 2))
        image[..., 0] = x + self.width / 2
        image[..., 1] = y + (self.horizon + self.roll * x)
        return image

    def ground(self) -> tuple[int, Points, Points]:
        """Return what the ground's pixels show.

        Returns:
            The first row that may show ground; ``u`` and the distance of each pixel from there
            on, ``[rows, W]``, infinite where a pixel is above the ground's edge.
        """
        s = np.geomspace(0.3, self.far, 300)
        # Behind a crest the ground rises again in the image: it is hidden, not seen twice.
        rows = np.minimum.accumulate(
            self.horizon + self.focal * (self.eye_height / s - 0.5 * self.slope * s)
        )
        x = np.arange(self.width) + 0.5 - self.width / 2
        tilt = self.roll * x
        top = int(np.clip(rows[-1] + tilt.min(), 0, self.height - 1))
        y = np.arange(top, self.height)[:, None] + 0.5 - tilt
        inverse = np.interp(y, rows[::-1], 1 / s[::-1])
        depth = np.where(y < rows[-1], np.inf, 1 / inverse)
        inside = 1 / inverse
        return top, x * inside / self.focal + self.eye_offset - self._bend(inside), depth

    def _bend(self, s: Points) -> Points:
        return s * (self.yaw + 0.5 * self.curvature * s)


def draw_view(
    domain: StreetDomain, rng: np.random.Generator, height: int, width: int, eye_offset: float
) -> View:
    """Draw a camera and the street's course from the domain."""
    focal = width / 2 / math.tan(math.radians(rng.uniform(*domain.field_of_view)) / 2)
    pitch, eye_height = rng.uniform(*domain.pitch), rng.uniform(*domain.eye_height)
    slope = rng.uniform(*domain.slope)
    far = 120.0
    if slope < 0:  # nothing stands behind the crest, where the ground would have to hide it
        far = min(far, 0.9 * math.sqrt(2 * eye_height / -slope))
    curvature = rng.choice((-1, 1)) * rng.uniform(*domain.curvature)
    return View(
        height=height,
        width=width,
        focal=focal,
        horizon=height / 2 - focal * math.tan(math.radians(pitch)),
        eye_offset=eye_offset,
        eye_height=eye_height,
        yaw=math.tan(math.radians(rng.uniform(*domain.yaw))) - 12 * curvature,
        roll=math.tan(math.radians(rng.uniform(*domain.roll))),
        curvature=curvature,
        slope=slope,
        far=far,
    )
