"""Sky with clouds and sun, and the skyline where the street ends."""

from __future__ import annotations

import cv2
import numpy as np

from edgeuda.street import textures
from edgeuda.street.stage import IDS, Stage


def draw_sky(stage: Stage, rng: np.random.Generator) -> None:
    """Fill the whole canvas with sky."""
    view, light = stage.view, stage.light
    height, width = stage.pixels.shape[:2]
    small = np.ones((32, 64))
    rows = (np.arange(32) + 0.5) / 32 * height
    elevation = np.clip((view.horizon - rows) / (0.62 * view.focal), 0, 1)[:, None, None]
    mix = elevation**0.7
    sky = small[..., None] * (np.array(light.zenith) * mix + np.array(light.horizon) * (1 - mix))
    cover = rng.uniform(*light.clouds)
    field = textures.noise(textures.GROUND_SIZE, 2.0, 7 + int(rng.integers(4)))
    top, left = rng.integers(0, 120, 2)
    span = int(60 + 60 * rng.random())
    cloud = cv2.resize(field[top : top + span // 2, left : left + span], (64, 32))
    opacity = np.clip((cloud + 2.2 * cover - 1.3) * stage.domain.cloud_edge, 0, 1)
    white = 0.55 * np.array(light.horizon) + 0.45 * 255 * np.clip(
        np.array(light.ambient) + np.array(light.sun), 0, 1
    )
    shade = 1 - 0.12 * np.clip(cloud, 0, 2)[..., None]
    sky = sky + 0.85 * opacity[..., None] * (white * shade - sky)
    if stage.to_sun[2] > 0.1:
        x = view.width / 2 + view.focal * (stage.to_sun[0] / stage.to_sun[2])
        y = view.horizon - view.focal * stage.to_sun[1] / stage.to_sun[2]
        columns = (np.arange(64) + 0.5) / 64 * width
        away = np.hypot(columns - x, rows[:, None] - y) / (0.25 * view.focal)
        sky += 110 * np.array(light.sun) * np.exp(-(away**2))[..., None]
    smooth = cv2.resize(np.clip(sky, 0, 255).astype(np.float32), (width, height))
    stage.pixels[..., :3] = smooth
    stage.pixels[..., 3] = IDS["sky"]


def draw_skyline(stage: Stage, rng: np.random.Generator) -> None:
    """Close the street's far end with hazy buildings and trees."""
    domain, s = stage.domain, stage.view.far + stage.view.travelled
    u = -170.0
    while u < 170:
        wide = rng.uniform(8, 20)
        if rng.random() < 0.55:
            tall = 3.0 * int(rng.integers(domain.floors[0], domain.floors[1] + 1))
            wall = np.array(domain.walls[rng.integers(len(domain.walls))])
            quad = [(u, -1, s), (u, tall, s), (u + wide, tall, s), (u + wide, -1, s)]
            stage.surface(quad, wall * 0.85, (0, 0, -1), "building")
        else:
            tall = float(rng.uniform(*domain.tree_height))
            leaf = np.array(domain.foliage[rng.integers(len(domain.foliage))])
            points = [(u + wide * (0.5 - 0.6 * np.cos(a)), tall * np.sin(a) ** 0.7 - 1, s)
                      for a in np.linspace(0, np.pi, 9)]  # fmt: skip
            stage.surface(points, leaf * 1.1, (0, 0.3, -0.9), "vegetation")
        u += wide * rng.uniform(0.75, 1.1)
