"""Buildings, walls, fences and hedges along the street."""

from __future__ import annotations

import numpy as np

from edgeuda.street import textures
from edgeuda.street.domain import Shade
from edgeuda.street.stage import Stage

_DEPTH = 9.0


def draw_building(
    stage: Stage,
    side: int,
    u: float,
    start: float,
    end: float,
    floors: int,
    rng: np.random.Generator,
) -> None:
    """Draw a building whose front stands ``u`` from the centre line, on a side (-1 or 1)."""
    domain = stage.domain
    wall = np.array(domain.walls[rng.integers(len(domain.walls))]) / 230 * rng.uniform(0.88, 1.08)
    style = domain.facades[rng.integers(len(domain.facades))]
    variant = int(rng.integers(textures.VARIANTS))
    pitched = floors <= 3 and rng.random() < domain.pitched_roof
    tile = textures.facade(style, floors, variant, domain.texture)
    top, near, far, back = 3.0 * floors, side * u, side * u, side * (u + _DEPTH)
    part = tile[:, : max(round(tile.shape[1] * min((end - start) / textures.FACADE_WIDTH, 1)), 8)]
    roof = np.array([120.0, 70, 56]) if rng.random() < 0.6 else np.array([82.0, 82, 90])
    if pitched:
        ridge = side * (u + _DEPTH / 2)
        slope = (-side * 0.7, 0.7, 0.0)
        peak = top + 0.45 * _DEPTH
        stage.surface(
            [(near, top, end), (near, top, start), (ridge, peak, start), (ridge, peak, end)],
            roof, slope, "building",
        )  # fmt: skip
        stage.surface(
            [(near, top, start), (ridge, peak, start), (back, top, start)],
            wall * 205, (0, 0, -1), "building",
        )  # fmt: skip
    gable = textures.facade(style, floors, (variant + 1) % textures.VARIANTS, domain.texture)
    outer, inner = (near, back) if side > 0 else (back, near)
    stage.tile(
        gable[:, : int(gable.shape[1] * _DEPTH / textures.FACADE_WIDTH)],
        [(outer, top, start), (inner, top, start), (inner, 0, start), (outer, 0, start)],
        wall * 0.94, (0, 0, -1), "building",
    )  # fmt: skip
    first, last = (start, end) if side < 0 else (end, start)
    stage.tile(
        part,
        [(near, top, first), (far, top, last), (far, 0, last), (near, 0, first)],
        wall, (-side, 0, 0), "building",
    )  # fmt: skip
    if not pitched:
        cornice = np.clip(wall * 190, 0, 255)
        lip, low, high = side * (u - 0.05), top - 0.15, top + 0.3
        stage.surface(
            [(lip, low, start), (lip, high, start), (lip, high, end), (lip, low, end)],
            cornice, (-side, 0, 0), "building",
        )  # fmt: skip
        stage.surface(
            [(lip, low, start), (lip, high, start), (back, high, start), (back, low, start)],
            cornice * 0.9, (0, 0, -1), "building",
        )  # fmt: skip


def draw_boards(
    stage: Stage, side: int, u: float, start: float, end: float, tall: float,
    style: str, color: Shade, name: str,
) -> None:  # fmt: skip
    """Draw a fence or wall of one `textures.boards` style along the street."""
    tile = textures.boards(style, stage.domain.texture)
    reps = max(int((end - start) / 3), 1)
    first, last = (start, end) if side < 0 else (end, start)
    x = side * u
    stage.tile(
        np.tile(tile, (1, reps, 1)),
        [(x, tall, first), (x, tall, last), (x, 0, last), (x, 0, first)],
        np.array(color) / 220, (-side, 0, 0), name,
    )  # fmt: skip


def draw_guardrail(stage: Stage, side: int, u: float, start: float, end: float) -> None:
    """Draw a steel rail on posts along the street."""
    x = side * u
    for s in np.arange(end, start, -2.0):
        if s > 2:
            stage.surface(
                [(x - 0.06, 0, s), (x - 0.06, 0.7, s), (x + 0.06, 0.7, s), (x + 0.06, 0, s)],
                (130, 132, 136), (0, 0, -1), "fence",
            )  # fmt: skip
    for low, high, grey in ((0.42, 0.58, 205), (0.58, 0.64, 150), (0.64, 0.8, 215)):
        stage.surface(
            [(x, low, start), (x, high, start), (x, high, end), (x, low, end)],
            (grey, grey, grey + 4), (-side, 0.3, 0), "fence",
        )  # fmt: skip


def draw_hedge(
    stage: Stage, side: int, u: float, start: float, end: float, tall: float, color: Shade
) -> None:
    """Draw a ragged hedge along the street."""
    tile, mask = textures.crown("hedge", 0)
    first, last = (start, end) if side < 0 else (end, start)
    x, reps = side * u, max(int((end - start) / 3), 1)
    stage.tile(
        np.tile(tile, (1, reps, 1)),
        [(x, tall, first), (x, tall, last), (x, -0.1, last), (x, -0.1, first)],
        np.array(color) / 150, (-side * 0.8, 0.5, 0), "vegetation", np.tile(mask, (1, reps)),
    )  # fmt: skip
