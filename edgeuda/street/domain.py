"""The parameters that make one domain of the street renderer, with the two presets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

Drawn = tuple[float, float]
"""Lowest and highest value, drawn uniformly per image or per object."""
Shade = tuple[float, float, float]
"""RGB, 0 to 255."""


@dataclass(frozen=True)
class Light:
    """One kind of weather and time of day; an image draws one.

    Attributes:
        weight: Relative frequency among the domain's lights.
        sun: RGB multiplier of direct light; also tints the glow around the sun.
        ambient: RGB multiplier of light from everywhere.
        elevation: Of the sun, in degrees.
        zenith: Colour of the sky at the top.
        horizon: Colour of the sky at the horizon, and of haze.
        clouds: Share of the sky covered, 0 to 1.
        haze: Distance in metres at which 63 % of an object's colour is lost.
        wet: Strength of reflections in the road, 0 to 1.
        lamps: Strength of windows, head lights and street lamps, 0 to 1.
    """

    weight: float
    sun: Shade
    ambient: Shade
    elevation: Drawn
    zenith: Shade
    horizon: Shade
    clouds: Drawn
    haze: Drawn
    wet: float = 0.0
    lamps: float = 0.0


@dataclass(frozen=True)
class StreetDomain:
    """Everything that may differ between two domains. Lengths are metres, angles degrees.

    Counts named ``..._per_100m`` are means along one side of the street, or along the whole
    street for what moves on it.

    Attributes:
        texture: Contrast of procedural textures, 0 (flat colours) to 1.
        curvature: Of the road, in 1/m; the sign is drawn.
        slope: Change of the road's gradient per metre, in 1/m.
        lanes: Fewest and most lanes per direction.
        verge_width: Strip between kerb and sidewalk.
        planted_verge: Probability that it is grass; it is paved otherwise.
        white_balance: Largest relative error of a channel's gain.
        setback: Distance from the sidewalk's outer edge to the building line.
        gap: Probability that a plot holds no building but trees behind a wall or fence.
        floors: Fewest and most floors of a building.
        pitched_roof: Probability of a gabled house.
        facades: Names of facade styles, see `textures.facade`.
        crowns: Names of tree styles, see `textures.crown`.
        bush: One of the tree styles.
        fence: Probability of a fence before a plot.
        fences: Their styles: "guardrail" or one of `textures.boards`.
        wall_style: Of low walls, one of `textures.boards`.
        overhead: Share of traffic lights that hang over the road.
        cloud_edge: Contrast of the clouds.
        heavy: Share of trucks and buses among vehicles.
        sensor_blur: Standard deviation of the optics' blur, in pixels per 512 columns.
        noise: Standard deviation of sensor noise at mid grey, in grey levels.
        jpeg: JPEG quality; 100 leaves the image uncompressed.
        motorcycles: Share of riders on a motorcycle.
        trams: Probability of a tram in each direction.
    """

    name: str
    eye_height: Drawn
    pitch: Drawn
    field_of_view: Drawn
    yaw: Drawn
    roll: Drawn
    curvature: Drawn
    slope: Drawn
    lanes: tuple[int, int]
    lane_width: Drawn
    parking: float
    sidewalk_width: Drawn
    verge_width: Drawn
    planted_verge: float
    setback: Drawn
    junction: float
    gap: float
    floors: tuple[int, int]
    pitched_roof: float
    facades: tuple[str, ...]
    walls: tuple[Shade, ...]
    crowns: tuple[str, ...]
    trees_per_100m: float
    tree_height: Drawn
    bushes_per_100m: float
    fence: float
    fences: tuple[str, ...]
    fence_color: tuple[Shade, ...]
    wall_style: str
    bush: str
    overhead: float
    signal_frame: Shade
    warning_sign: Shade
    direction_sign: Shade
    cloud_edge: float
    lamps_per_100m: float
    signs_per_100m: float
    lights_per_100m: float
    bollards_per_100m: float
    parked_per_100m: float
    moving_per_100m: float
    heavy: float
    people_per_100m: float
    cyclists_per_100m: float
    asphalt: tuple[Shade, ...]
    paving: tuple[Shade, ...]
    grass: tuple[Shade, ...]
    foliage: tuple[Shade, ...]
    paints: tuple[Shade, ...]
    clothes: tuple[Shade, ...]
    texture: float
    lights: tuple[Light, ...]
    exposure: Drawn
    white_balance: float
    noise: Drawn
    sensor_blur: Drawn
    vignette: Drawn
    jpeg: tuple[int, int]
    motorcycles: float = 0.0
    trams: float = 0.0


_SIMULATOR = StreetDomain(
    name="simulator",
    eye_height=(1.5, 1.9),
    pitch=(-2.0, 1.0),
    field_of_view=(84.0, 96.0),
    yaw=(-3.0, 3.0),
    roll=(0.0, 0.0),
    curvature=(0.0, 0.006),
    slope=(-0.0002, 0.0004),
    lanes=(1, 2),
    lane_width=(3.4, 3.9),
    parking=0.25,
    sidewalk_width=(2.0, 3.6),
    verge_width=(0.0, 3.0),
    planted_verge=0.8,
    setback=(0.0, 5.0),
    junction=0.4,
    gap=0.3,
    floors=(2, 7),
    pitched_roof=0.45,
    facades=("plaster", "panel", "glass"),
    walls=(
        (226, 214, 190), (205, 190, 170), (190, 200, 210), (222, 196, 168), (180, 172, 160),
        (214, 170, 150), (170, 186, 190),
    ),
    crowns=("ball", "cone", "oval"),
    trees_per_100m=4.0,
    tree_height=(4.0, 8.5),
    bushes_per_100m=2.0,
    fence=0.45,
    fences=("picket", "picket", "guardrail"),
    wall_style="concrete",
    bush="ball",
    overhead=0.6,
    signal_frame=(214, 170, 40),
    warning_sign=(244, 200, 40),
    direction_sign=(22, 120, 70),
    cloud_edge=1.4,
    fence_color=((225, 225, 220), (150, 110, 75), (140, 145, 150)),
    lamps_per_100m=4.0,
    signs_per_100m=2.8,
    lights_per_100m=1.4,
    bollards_per_100m=0.0,
    parked_per_100m=5.0,
    moving_per_100m=7.0,
    heavy=0.15,
    people_per_100m=8.0,
    cyclists_per_100m=4.0,
    asphalt=((112, 112, 114), (98, 98, 102), (124, 122, 120)),
    paving=((176, 172, 166), (190, 184, 172), (164, 164, 168)),
    grass=((96, 150, 62), (112, 158, 74), (128, 146, 80)),
    foliage=((62, 128, 44), (84, 142, 52), (48, 112, 56), (110, 146, 60)),
    paints=(
        (200, 30, 34), (34, 70, 180), (236, 236, 236), (30, 30, 34), (240, 190, 30), (40, 140, 70),
        (160, 164, 170), (230, 110, 30),
    ),
    clothes=(
        (200, 40, 40), (40, 70, 190), (230, 230, 230), (40, 40, 44), (240, 200, 60), (60, 150, 90),
        (150, 80, 160), (90, 110, 140),
    ),
    texture=0.15,
    lights=(
        Light(
            3, (0.5, 0.48, 0.44), (0.68, 0.7, 0.74), (40, 70), (70, 130, 215), (186, 214, 240),
            (0.1, 0.5), (350, 700),
        ),
        Light(
            1, (0.14, 0.14, 0.14), (0.86, 0.88, 0.9), (40, 70), (160, 178, 200), (206, 214, 222),
            (0.5, 0.9), (220, 400),
        ),
    ),
    exposure=(0.95, 1.08),
    white_balance=0.01,
    noise=(0.0, 0.8),
    sensor_blur=(0.0, 0.0),
    vignette=(0.0, 0.0),
    jpeg=(100, 100),
)  # fmt: skip

_CAMERA = StreetDomain(
    name="camera",
    eye_height=(1.1, 1.35),
    pitch=(-0.5, 3.0),
    field_of_view=(52.0, 64.0),
    yaw=(-5.0, 5.0),
    roll=(-1.5, 1.5),
    curvature=(0.0, 0.005),
    slope=(-0.0003, 0.0006),
    lanes=(1, 1),
    lane_width=(2.8, 3.3),
    parking=0.6,
    sidewalk_width=(2.0, 3.4),
    verge_width=(0.0, 1.0),
    planted_verge=0.3,
    setback=(0.0, 3.5),
    junction=0.5,
    gap=0.35,
    floors=(2, 5),
    pitched_roof=0.25,
    facades=("brick", "stone", "render"),
    walls=(
        (168, 104, 82), (150, 92, 74), (186, 164, 130), (142, 132, 120), (196, 184, 160),
        (128, 112, 104), (176, 140, 110), (206, 200, 188),
    ),
    crowns=("broadleaf", "sparse", "poplar"),
    trees_per_100m=8.0,
    tree_height=(5.0, 12.0),
    bushes_per_100m=6.0,
    fence=0.7,
    fences=("railing", "railing", "picket"),
    wall_style="masonry",
    bush="broadleaf",
    overhead=0.0,
    signal_frame=(20, 20, 20),
    warning_sign=(240, 240, 238),
    direction_sign=(30, 92, 150),
    cloud_edge=0.5,
    fence_color=((48, 56, 52), (94, 74, 54), (70, 74, 80), (120, 104, 82)),
    lamps_per_100m=4.5,
    signs_per_100m=2.6,
    lights_per_100m=1.2,
    bollards_per_100m=6.0,
    parked_per_100m=10.0,
    moving_per_100m=7.0,
    heavy=0.18,
    people_per_100m=12.0,
    cyclists_per_100m=3.5,
    asphalt=((92, 88, 84), (78, 78, 80), (106, 100, 94)),
    paving=((132, 124, 114), (118, 114, 112), (146, 134, 120)),
    grass=((84, 96, 44), (98, 104, 56), (110, 98, 62)),
    foliage=((66, 84, 34), (84, 96, 40), (54, 72, 38), (116, 104, 44), (98, 84, 42)),
    paints=(
        (176, 178, 180), (48, 50, 54), (210, 208, 204), (92, 98, 106), (40, 52, 84), (110, 34, 32),
        (26, 26, 28), (126, 120, 106), (52, 70, 60),
    ),
    clothes=(
        (44, 46, 54), (70, 62, 58), (34, 40, 66), (108, 100, 90), (92, 40, 38), (60, 74, 62),
        (150, 146, 140), (120, 88, 60),
    ),
    texture=1.0,
    lights=(
        Light(  # low sun
            2.5, (1.05, 0.82, 0.52), (0.5, 0.54, 0.64), (12, 28), (108, 142, 190),
            (238, 218, 186), (0.1, 0.6), (90, 220),
        ),
        Light(  # overcast
            2, (0.1, 0.1, 0.1), (0.72, 0.74, 0.76), (30, 50), (172, 178, 186), (208, 210, 210),
            (0.6, 1.0), (90, 200),
        ),
        Light(  # dusk
            1.5, (0.06, 0.05, 0.06), (0.42, 0.42, 0.56), (10, 20), (58, 66, 108), (196, 142, 124),
            (0.2, 0.7), (120, 250), 0.0, 0.9,
        ),
        Light(  # rain
            2, (0.02, 0.02, 0.02), (0.54, 0.57, 0.6), (30, 50), (138, 146, 154), (172, 177, 181),
            (0.8, 1.0), (45, 90), 0.75, 0.45,
        ),
    ),
    exposure=(1.05, 1.5),
    white_balance=0.09,
    noise=(2.0, 5.0),
    sensor_blur=(0.4, 0.9),
    vignette=(0.15, 0.45),
    jpeg=(55, 90),
)  # fmt: skip

DOMAINS: dict[str, StreetDomain] = {domain.name: domain for domain in (_SIMULATOR, _CAMERA)}
"""The built-in domains: a clean simulator, and a vehicle's camera in other streets."""

BARE: tuple[Shade, ...] = ((96, 88, 78), (122, 112, 100), (70, 64, 58), (140, 128, 112))
"""Trees without leaves, which neither preset has."""
WORN: tuple[Shade, ...] = ((140, 138, 134), (160, 156, 150), (66, 66, 70))
"""Roads brighter and darker than those of the presets."""
RANDOMISED = "randomised"
"""A domain whose every image is of a domain of its own, see `randomised`."""
DOMAIN_NAMES = (*DOMAINS, RANDOMISED)


def domain_of(name: str, seed: int) -> StreetDomain:
    """Return the domain that an image of ``seed`` is rendered in."""
    return randomised(seed) if name == RANDOMISED else DOMAINS[name]


def randomised(seed: int) -> StreetDomain:
    """Draw a domain: every parameter from what lies between the presets, colours beyond it.

    Numbers are drawn between both presets; ranges and lists are those of both together; colours
    get a random gain per channel, lights a random strength.

    Source: Tobin et al., "Domain Randomization for Transferring Deep Neural Networks from
    Simulation to the Real World", IROS 2017.
    """
    rng = np.random.default_rng(seed)
    drawn = {
        field.name: _drawn(getattr(_SIMULATOR, field.name), getattr(_CAMERA, field.name), rng)
        for field in fields(StreetDomain)
        if field.name not in ("name", "lights")
    }
    lights = tuple(_lit(light, rng) for light in (*_SIMULATOR.lights, *_CAMERA.lights))
    drawn |= {
        "trees_per_100m": float(rng.uniform(2, 24)),
        "tree_height": (5.0, 18.0),
        "foliage": (*drawn["foliage"], *(_tinted(color, rng) for color in BARE)),
        "asphalt": (*drawn["asphalt"], *(_tinted(color, rng) for color in WORN)),
        "exposure": (0.6, 1.5),
        "motorcycles": 0.35,
        "trams": 0.12,
    }
    return StreetDomain(name=RANDOMISED, lights=lights, **drawn)


def _drawn(a: Any, b: Any, rng: np.random.Generator) -> Any:
    """Draw one parameter from those of both presets."""
    if isinstance(a, str):
        return (a, b)[rng.integers(2)]
    if isinstance(a, float):
        return float(rng.uniform(min(a, b), max(a, b)))
    if isinstance(a[0], str):
        return a + b
    if isinstance(a[0], tuple):
        return tuple(_tinted(color, rng) for color in a + b)
    if len(a) == 3:
        return _tinted((a, b)[rng.integers(2)], rng)
    return min(a[0], b[0]), max(a[1], b[1])


def _tinted(color: Shade, rng: np.random.Generator) -> Shade:
    gains = rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, 3)
    red, green, blue = np.clip(np.array(color) * gains, 0, 255).tolist()
    return red, green, blue


def _lit(light: Light, rng: np.random.Generator) -> Light:
    strength = rng.uniform(0.7, 1.3)
    sun, ambient = (
        (float(r * strength), float(g * strength), float(b * strength))
        for r, g, b in (light.sun, light.ambient)
    )
    return replace(
        light, weight=float(light.weight * rng.uniform(0.2, 2)), sun=sun, ambient=ambient
    )
