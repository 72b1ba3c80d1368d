"""Road, markings, kerbs, sidewalks and plots, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.street import textures
from edgeuda.street.domain import StreetDomain
from edgeuda.street.stage import IDS, Canvas, Stage
from edgeuda.street.view import Points

Singles = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """The street's cross-section and what interrupts it; lengths in metres.

    Attributes:
        lanes: Per direction.
        parking: Width of the parking strip on each side, 0 if there is none.
        junctions: Per side (left, right) the stretches ``(from, to)`` of side streets.
        crossings: Stretches of zebra crossings.
        planted: Whether the verge is grass.
        asphalt, paving, grass: Colours.
    """

    lanes: int
    lane_width: float
    parking: float
    sidewalk: float
    verge: float
    setback: float
    junctions: tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]
    crossings: tuple[tuple[float, float], ...]
    planted: bool
    asphalt: tuple[float, float, float]
    paving: tuple[float, float, float]
    grass: tuple[float, float, float]

    @property
    def kerb(self) -> float:
        """Distance of the kerbs from the centre line."""
        return self.lanes * self.lane_width + self.parking

    @property
    def front(self) -> float:
        """Distance of the building line from the centre line."""
        return self.kerb + self.verge + self.sidewalk + self.setback

    def in_junction(self, side: int, start: float, end: float) -> bool:
        """Return whether a stretch on a side (-1 left, 1 right) touches a side street."""
        return any(start < b and end > a for a, b in self.junctions[side > 0])


def draw_plan(domain: StreetDomain, rng: np.random.Generator) -> Plan:
    """Draw a street from the domain."""
    sides = []
    for _ in range(2):
        start, width = rng.uniform(12, 70), rng.uniform(7, 11)
        sides.append(((start, start + width),) if rng.random() < domain.junction else ())
    crossings = tuple((side[0][0] - 4.5, side[0][0] - 1.5) for side in sides[:1] if side)
    if rng.random() < 0.25:
        start = rng.uniform(8, 40)
        crossings = (*crossings, (start, start + 3.0))

    def pick(colors: tuple[tuple[float, float, float], ...]) -> tuple[float, float, float]:
        return colors[rng.integers(len(colors))]

    return Plan(
        lanes=int(rng.integers(domain.lanes[0], domain.lanes[1] + 1)),
        lane_width=rng.uniform(*domain.lane_width),
        parking=2.1 if rng.random() < domain.parking else 0.0,
        sidewalk=rng.uniform(*domain.sidewalk_width),
        verge=rng.uniform(*domain.verge_width),
        setback=rng.uniform(*domain.setback),
        junctions=(sides[0], sides[1]),
        crossings=crossings,
        planted=rng.random() < domain.planted_verge,
        asphalt=pick(domain.asphalt),
        paving=pick(domain.paving),
        grass=pick(domain.grass),
    )


def draw_ground(stage: Stage, plan: Plan, shadows: list[Points]) -> None:
    """Paint the ground, darkened inside the ``shadows``' ``[N, 2]`` pixel polygons."""
    top, lateral, distance = stage.view.ground()
    seen = np.isfinite(distance)
    u = lateral.astype(np.float32)
    away = np.where(seen, distance, stage.view.far).astype(np.float32)
    s = away + np.float32(stage.view.travelled)
    label, material, color = _zones(plan, u, s, away)
    # Fine texture fades where a pixel spans more than a texel.
    size, per_metre = textures.GROUND_SIZE, textures.GROUND_PER_METRE
    column = (u * per_metre).astype(np.int32) % size
    row = (s * per_metre).astype(np.int32) % size
    sharp = np.minimum(
        1.0, 2.5 * stage.view.focal * stage.view.eye_height / (per_metre * away * away)
    )
    grain = textures.ground()[material, row, column] * sharp
    broad = textures.noise(size, 1.8, 6)[
        (s * 2).astype(np.int32) % size, (u * 8).astype(np.int32) % size
    ]
    bright = 1 + stage.domain.texture * (1.15 * grain + 0.05 * broad)

    mask = np.zeros(away.shape, np.uint8)
    for polygon in shadows:
        cv2.fillPoly(mask, [np.round(polygon - (0, top)).astype(np.int32)], 255)
    sunlit = 1 - np.asarray(cv2.blur(mask, (3, 3)), np.float32) / 255
    lamp = np.array(stage.light.sun) * max(float(stage.to_sun[1]), 0.25)
    clear = np.exp(-away / stage.haze)
    for channel in range(3):
        light = stage.light.ambient[channel] + lamp[channel] * sunlit
        plain = color[..., channel] * bright * light
        veil = stage.light.horizon[channel]
        color[..., channel] = plain * clear + veil * (1 - clear)
    # Under things that block the sky it is darker also without a sun.
    color *= (0.82 + 0.18 * sunlit)[..., None]
    painted = np.dstack([np.clip(color, 0, 255).astype(np.uint8), label])
    cv2.copyTo(painted, seen.astype(np.uint8), stage.pixels[top:])


def _zones(plan: Plan, u: Singles, s: Singles, away: Singles) -> tuple[Canvas, Canvas, Singles]:
    """Return class ids, materials and unlit colours (float32, ``[H, W, 3]``) of the ground."""
    kerb, walk = plan.kerb, plan.kerb + plan.verge
    stone = tuple(1.14 * c for c in plan.paving)
    verge = (plan.grass, "terrain", textures.GRASS) if plan.planted else (
        plan.paving, "sidewalk", textures.PAVING)  # fmt: skip
    plot = (plan.grass, "terrain", textures.GRASS) if plan.setback > 1 else (
        plan.paving, "sidewalk", textures.PAVING)  # fmt: skip
    zones = [
        (kerb - 0.25, plan.asphalt, "road", textures.ASPHALT),
        (kerb, tuple(0.72 * c for c in plan.asphalt), "road", textures.ASPHALT),
        (kerb + 0.22, stone, "sidewalk", textures.ASPHALT),
        (walk + 0.22, *verge),
        (walk + plan.sidewalk, plan.paving, "sidewalk", textures.PAVING),
        (walk + plan.sidewalk + 0.12, tuple(0.75 * c for c in plan.paving), "sidewalk", 0),
        (1e9, *plot),
    ]
    across = np.abs(u)
    zone = np.searchsorted([end for end, *_ in zones], across)
    zone = np.minimum(zone, len(zones) - 1)
    for side in (0, 1):
        for start, end in plan.junctions[side]:
            mouth = (s > start) & (s < end) & ((u > 0) == bool(side))
            zone[mouth] = np.where(across[mouth] > kerb - 0.3, 0, zone[mouth])
    label = np.array([IDS[name] for _, _, name, _ in zones], np.uint8)[zone]
    material = np.array([kind for *_, kind in zones], np.uint8)[zone]
    color = np.array([tint for _, tint, _, _ in zones], np.float32)[zone]
    color[_markings(plan, u, across, s, away)] = 226.0
    return label, material, color


def _markings(
    plan: Plan, u: Singles, across: Singles, s: Singles, away: Singles
) -> npt.NDArray[np.bool_]:
    inner = plan.lanes * plan.lane_width
    # A line keeps at least half a pixel's width far away, where it would flicker otherwise.
    half = np.maximum(0.07, 0.0011 * away)
    dashed = (s % 9 < 4) & (across < inner - 1)
    lane = np.abs((across + plan.lane_width / 2) % plan.lane_width - plan.lane_width / 2) < half
    edge = np.abs(across - inner + 0.12) < half
    if plan.parking:
        edge |= (np.abs(s % 6) < 0.12) & (across > inner) & (across < plan.kerb - 0.3)
    centre = (across < half) if plan.lanes > 1 else (across < half) & dashed
    paint: npt.NDArray[np.bool_] = centre | edge | (lane & dashed & (across > 1))
    for stretches in plan.junctions:
        for start, end in stretches:
            paint &= (s < start) | (s > end)
    for start, end in plan.crossings:
        here = (s > start - 2) & (s < end + 1)
        zebra = (s > start) & (s < end) & (u % 1.0 < 0.5) & (across < plan.kerb - 0.4)
        stop = (np.abs(s - start + 1.2) < 0.2) & (u > 0.2) & (u < inner)
        paint = np.where(here, zebra | stop, paint)
    return paint
