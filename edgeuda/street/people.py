"""Pedestrians and cyclists as jointed figures that face the camera or cross its view."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeuda.street.furniture import ellipse
from edgeuda.street.stage import Stage
from edgeuda.street.view import Points

_FRONT = (0.0, 0.3, -0.95)
_SKIN = np.array([(224, 180, 150), (196, 146, 112), (140, 96, 70), (92, 62, 46)], np.float64)
_HAIR = np.array([(40, 30, 24), (90, 62, 36), (170, 134, 80), (120, 118, 116)], np.float64)


class _Figure:
    """Paints limbs given in metres beside and above a point on the ground."""

    def __init__(self, stage: Stage, u: float, s: float, mirror: bool, scale: float) -> None:
        self.stage, self.s = stage, s
        base = np.array([(u, 0, s), (u - scale if mirror else u + scale, 0, s), (u, scale, s)])
        origin, right, up = stage.view.project(base)
        self.origin, self.axes = origin, np.stack([right - origin, up - origin])
        self.gain, self.veil = stage.lighting(_FRONT, s)

    def polygon(self, points: npt.ArrayLike, color: npt.ArrayLike, name: str) -> None:
        corners = np.asarray(points, np.float64) @ self.axes + self.origin
        self.stage.polygon(corners, (np.asarray(color) * self.gain + self.veil).tolist(), name)

    def limb(
        self, start: tuple[float, float], end: tuple[float, float], wide: tuple[float, float],
        color: npt.ArrayLike, name: str,
    ) -> None:  # fmt: skip
        (ax, ay), (bx, by) = start, end
        long = max(math.hypot(bx - ax, by - ay), 1e-6) * 2
        x, y = (ay - by) / long, (bx - ax) / long
        p, q = wide
        self.polygon(
            [(ax + p * x, ay + p * y), (bx + q * x, by + q * y), (bx - q * x, by - q * y),
             (ax - p * x, ay - p * y)],
            color, name,
        )  # fmt: skip

    def disc(
        self, x: float, y: float, rx: float, ry: float, color: npt.ArrayLike, name: str
    ) -> None:
        self.polygon(ellipse(x, y, 0, rx, ry, 12)[:, :2], color, name)

    def ring(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        thick: float,
        color: npt.ArrayLike,
        name: str = "bicycle",
    ) -> None:
        """Paint a wheel: an annulus cut open at one spoke, so that one polygon holds it."""
        turn = np.linspace(0, 2 * np.pi, 17)
        circle = np.stack([np.cos(turn), np.sin(turn)], -1)
        outer = circle * (rx + thick / 2, ry + thick / 2)
        inner = circle[::-1] * (max(rx - thick / 2, 0), max(ry - thick / 2, 0))
        self.polygon(np.concatenate([outer, inner]) + np.array((x, y)), color, name)


def draw_person(stage: Stage, u: float, s: float, rng: np.random.Generator) -> None:
    """Draw a walking or standing pedestrian."""
    child = rng.random() < 0.12
    figure = _Figure(
        stage,
        u,
        s,
        rng.random() < 0.5,
        rng.uniform(0.62, 0.75) if child else rng.uniform(0.92, 1.08),
    )
    coat, trousers = _clothes(stage, rng), 0.75 * _clothes(stage, rng)
    skin, hair = _SKIN[rng.integers(4)], _HAIR[rng.integers(4)]
    aside = rng.random() < 0.55  # seen from the side
    stride = rng.uniform(0.05, 0.34) if aside else rng.uniform(0.05, 0.1)
    build = rng.uniform(0.17, 0.21) if aside else rng.uniform(0.22, 0.27)
    shoe = (38, 34, 32)
    for way, shade in ((-1, 0.78), (1, 1.0)):
        knee, foot = (0.55 * way * stride + 0.04 * aside, 0.48), (way * stride, 0.05)
        figure.limb((way * 0.05, 0.92), knee, (0.19, 0.14), trousers * shade, "person")
        figure.limb(knee, foot, (0.14, 0.1), trousers * shade, "person")
        figure.limb(
            (foot[0] - 0.04, 0.04),
            (foot[0] + 0.13 * aside + 0.04, 0.03),
            (0.09, 0.07),
            shoe,
            "person",
        )
    swing = 0.8 * stride if aside else 0.05
    hands = [(-swing - (0 if aside else 0.3), 0.82), (swing + (0 if aside else 0.3), 0.82)]
    shoulder = 0.0 if aside else build - 0.02
    figure.limb((-shoulder, 1.4), hands[0], (0.12, 0.08), coat * 0.75, "person")
    long_coat = 0.72 if rng.random() < 0.3 else 0.88
    figure.polygon(
        [(-0.78 * build, long_coat), (-0.8 * build, 1.1), (-build, 1.4), (-0.4 * build, 1.5),
         (0.4 * build, 1.5), (build, 1.4), (0.8 * build, 1.1), (0.78 * build, long_coat)],
        coat, "person",
    )  # fmt: skip
    figure.polygon(
        [(0.1 * build, long_coat), (0.1 * build, 1.46), (0.4 * build, 1.5), (build, 1.4),
         (0.8 * build, 1.1), (0.78 * build, long_coat)],
        coat * 0.86, "person",
    )  # fmt: skip
    figure.limb((shoulder, 1.4), hands[1], (0.12, 0.08), coat * 0.93, "person")
    figure.disc(hands[1][0], 0.8, 0.045, 0.055, skin, "person")
    figure.limb((0, 1.47), (0, 1.58), (0.11, 0.1), skin * 0.9, "person")
    figure.disc(0.02 * aside, 1.65, 0.095, 0.125, skin, "person")
    turned = rng.random() < 0.4
    figure.disc(
        -0.02 * aside, 1.66 if turned else 1.72, 0.105, 0.125 if turned else 0.07, hair, "person"
    )
    if rng.random() < 0.35:
        figure.limb(
            (hands[0][0], 0.8), (hands[0][0], 0.5), (0.16, 0.26), _clothes(stage, rng), "person"
        )


def draw_cyclist(
    stage: Stage,
    u: float,
    s: float,
    crossing: bool,
    rng: np.random.Generator,
    motor: bool = False,
) -> None:
    """Draw a rider, from the side if ``crossing``, else along the street.

    Args:
        stage: Where.
        u: Lateral position.
        s: Distance.
        crossing: Seen from the side.
        rng: For clothes and paint.
        motor: On a motorcycle instead of a bicycle.
    """
    figure = _Figure(stage, u, s, rng.random() < 0.5, rng.uniform(0.95, 1.08))
    frame = np.array(stage.domain.paints[rng.integers(len(stage.domain.paints))])
    jersey, trousers = _clothes(stage, rng), 0.7 * _clothes(stage, rng)
    skin = _SKIN[rng.integers(4)]
    helmet = _clothes(stage, rng) if rng.random() < 0.6 else _HAIR[rng.integers(4)]
    if crossing:
        (_motorcycle if motor else _bicycle)(figure, frame)
        for way, shade in ((-1, 0.75), (1, 1.0)):
            knee, foot = (0.2 + 0.1 * way, 0.72 - 0.08 * way), (0.02 + 0.1 * way, 0.28 + 0.1 * way)
            figure.limb((-0.12, 0.98), knee, (0.19, 0.14), trousers * shade, "rider")
            figure.limb(knee, foot, (0.13, 0.09), trousers * shade, "rider")
            figure.limb(foot, (foot[0] + 0.16, foot[1] - 0.02), (0.08, 0.06), (40, 36, 34), "rider")
        figure.limb((-0.16, 0.92), (0.2, 1.42), (0.27, 0.3), jersey, "rider")
        figure.limb((0.2, 1.38), (0.46, 1.05), (0.12, 0.08), jersey * 0.85, "rider")
        figure.limb((0.22, 1.42), (0.27, 1.52), (0.11, 0.1), skin, "rider")
        figure.disc(0.31, 1.6, 0.1, 0.12, skin, "rider")
        figure.disc(0.29, 1.66, 0.125, 0.09, helmet, "rider")
        return
    wide, name = (2.4, "motorcycle") if motor else (1.0, "bicycle")
    figure.disc(0, 0.34, 0.055 * wide, 0.34, (28, 28, 30), name)
    figure.limb((0, 0.5), (0, 1.0), (0.07 * wide**1.6, 0.06 * wide**1.6), frame, name)
    figure.limb((-0.29, 1.04), (0.29, 1.04), (0.06, 0.06), (50, 50, 52), name)
    if motor:
        figure.disc(0, 0.86, 0.1, 0.08, (190, 30, 26) if u > 0 else (240, 238, 220), name)
    for way in (-1, 1):
        knee, foot = (way * 0.16, 0.66 + 0.1 * way), (way * 0.13, 0.3 + 0.12 * way)
        figure.limb((way * 0.1, 0.98), knee, (0.18, 0.14), trousers * (0.9 + 0.1 * way), "rider")
        figure.limb(knee, foot, (0.13, 0.1), trousers * (0.9 + 0.1 * way), "rider")
        figure.limb(
            (foot[0], foot[1]), (foot[0], foot[1] - 0.09), (0.11, 0.1), (40, 36, 34), "rider"
        )
        figure.limb((way * 0.2, 1.42), (way * 0.3, 1.08), (0.12, 0.09), jersey * 0.85, "rider")
    figure.polygon(
        [(-0.15, 0.9), (-0.24, 1.36), (-0.1, 1.48), (0.1, 1.48), (0.24, 1.36), (0.15, 0.9)],
        jersey,
        "rider",
    )
    figure.disc(0, 1.6, 0.1, 0.13, skin, "rider")
    figure.disc(0, 1.67, 0.125, 0.095, helmet, "rider")


def _motorcycle(figure: _Figure, paint: Points) -> None:
    """Paint a motorcycle from the side."""
    name, dark = "motorcycle", (40, 40, 42)
    for x in (-0.66, 0.66):
        figure.ring(x, 0.31, 0.25, 0.25, 0.13, (26, 26, 28), name)
    figure.limb((0.66, 0.31), (0.44, 1.0), (0.07, 0.07), (120, 122, 126), name)
    figure.polygon(
        [(-0.45, 0.3), (0.35, 0.28), (0.42, 0.62), (-0.2, 0.66), (-0.62, 0.55)], dark, name
    )
    figure.polygon([(-0.1, 0.66), (0.46, 0.62), (0.42, 0.9), (0.08, 0.94)], paint, name)
    figure.polygon([(-0.82, 0.74), (0.08, 0.7), (0.06, 0.84), (-0.78, 0.9)], dark, name)
    figure.limb((0.4, 1.02), (0.5, 1.08), (0.07, 0.07), dark, name)


def draw_bicycle(stage: Stage, u: float, s: float, rng: np.random.Generator) -> None:
    """Draw a parked bicycle from the side."""
    figure = _Figure(stage, u, s, rng.random() < 0.5, 1.0)
    _bicycle(figure, np.array(stage.domain.paints[rng.integers(len(stage.domain.paints))]))


def _bicycle(figure: _Figure, frame: Points) -> None:
    tyre = (26, 26, 28)
    view = figure.stage.view
    thick = max(0.055, 1.1 * view.ahead(figure.s) / view.focal)
    for x in (-0.52, 0.52):
        figure.ring(x, 0.35, 0.33, 0.33, thick, tyre)
    for start, end in (
        ((-0.52, 0.35), (-0.05, 0.33)),
        ((-0.52, 0.35), (-0.15, 0.78)),
        ((-0.05, 0.33), (-0.18, 0.92)),
        ((-0.15, 0.78), (0.4, 0.8)),
        ((-0.05, 0.33), (0.4, 0.75)),
        ((0.52, 0.35), (0.38, 1.0)),
    ):
        figure.limb(start, end, (thick, thick), frame, "bicycle")
    figure.limb((-0.3, 0.95), (-0.08, 0.95), (0.08, 0.06), (40, 36, 34), "bicycle")
    figure.limb((0.34, 1.02), (0.52, 1.04), (0.06, 0.06), (40, 36, 34), "bicycle")


def _clothes(stage: Stage, rng: np.random.Generator) -> Points:
    palette = stage.domain.clothes
    return np.array(palette[rng.integers(len(palette))]) * rng.uniform(0.8, 1.1)
