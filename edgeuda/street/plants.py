"""Trees with trunks and crowns, and bushes."""

from __future__ import annotations

import numpy as np

from edgeuda.street import textures
from edgeuda.street.stage import Stage


def draw_tree(
    stage: Stage, u: float, s: float, tall: float, style: str, rng: np.random.Generator
) -> None:
    """Draw a tree; ``style`` is one of `textures.crown`."""
    broad = {"poplar": 0.42, "cone": 0.5, "oval": 0.5}.get(style, 0.72) * tall / 2
    bare = {"poplar": 0.1, "cone": 0.14}.get(style, 0.3) * tall
    thick = 0.022 * tall + 0.03
    thin = 0.5 * thick
    bark = np.array([96.0, 72, 50]) * rng.uniform(0.7, 1.1)
    trunk_top = bare + 0.45 * (tall - bare)
    stage.surface(
        [(u - thick, 0, s), (u - thin, trunk_top, s), (u + thin, trunk_top, s), (u + thick, 0, s)],
        bark, (0, 0.2, -1), "vegetation",
    )  # fmt: skip
    stage.surface(
        [(u, 0, s), (u, trunk_top, s), (u + thin, trunk_top, s), (u + thick, 0, s)],
        bark * 0.72, (0, 0.2, -1), "vegetation",
    )  # fmt: skip
    if style in ("broadleaf", "sparse"):  # branches that show through the gaps
        for reach in (-0.6, 0.5, 0.25):
            tip = (u + reach * broad, bare + (0.6 + 0.2 * abs(reach)) * (tall - bare), s)
            stage.surface(
                [(u - 0.3 * thick, bare * 0.9, s), (u + 0.3 * thick, bare * 0.9, s), tip],
                bark * 0.85, (0, 0.2, -1), "vegetation",
            )  # fmt: skip
    _foliage(stage, u, s, bare, tall, broad, style, rng)


def draw_bush(stage: Stage, u: float, s: float, tall: float, rng: np.random.Generator) -> None:
    """Draw a bush that stands on the ground."""
    broad = tall * rng.uniform(0.7, 1.2)
    _foliage(stage, u, s, -0.25 * tall, tall, broad, stage.domain.bush, rng)


def _foliage(
    stage: Stage, u: float, s: float, low: float, high: float, broad: float, style: str,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    tile, mask = textures.crown(style, int(rng.integers(textures.VARIANTS)))
    color = np.array(stage.domain.foliage[rng.integers(len(stage.domain.foliage))])
    left, right = (u - broad, u + broad) if rng.random() < 0.5 else (u + broad, u - broad)
    stage.tile(
        tile,
        [(left, high, s), (right, high, s), (right, low, s), (left, low, s)],
        color / 150 * rng.uniform(0.85, 1.15), (0, 0.5, -0.85), "vegetation", mask,
    )  # fmt: skip
