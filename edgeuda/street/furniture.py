"""Poles and what hangs on them: lamps, traffic signs, traffic lights; bollards."""

from __future__ import annotations

import numpy as np

from edgeuda.street.domain import Shade
from edgeuda.street.stage import Stage
from edgeuda.street.view import Points

_FRONT = (0.0, 0.2, -1.0)


def rectangle(u: float, v: float, s: float, wide: float, tall: float) -> Points:
    """Return a rectangle that faces the camera, centred at ``(u, v, s)``, ``[4, 3]``."""
    return ellipse(u, v, s, wide * 0.5**0.5, tall * 0.5**0.5, 4, 45)


def ellipse(
    u: float, v: float, s: float, wide: float, tall: float, sides: int = 14, turn: float = 0
) -> Points:
    """Return an ellipse's polygon (or a regular one) that faces the camera, ``[sides, 3]``."""
    angle = np.radians(turn) + np.arange(sides) * 2 * np.pi / sides
    return np.stack([u + wide * np.cos(angle), v + tall * np.sin(angle), np.full(sides, s)], -1)


def draw_post(stage: Stage, u: float, s: float, tall: float, thick: float, grey: float) -> None:
    """Draw a vertical pole, lighter on one side."""
    thick = max(thick, 1.2 * stage.view.ahead(s) / stage.view.focal)
    stage.surface(rectangle(u, tall / 2, s, thick, tall), (grey, grey, grey), _FRONT, "pole")
    stage.surface(
        rectangle(u + thick / 4, tall / 2, s, thick / 2, tall), (grey * 0.7,) * 3, _FRONT, "pole"
    )


def draw_lamp(stage: Stage, u: float, s: float, tall: float, grey: float) -> None:
    """Draw a street lamp whose arm reaches over the road."""
    draw_post(stage, u, s, tall, 0.2, grey)
    end = u - np.sign(u) * 1.6
    thick = max(0.12, 1.2 * stage.view.ahead(s) / stage.view.focal)
    stage.surface(
        [(u, tall, s), (u, tall - thick, s), (end, tall + 0.3, s), (end, tall + 0.3 + thick, s)],
        (grey,) * 3, _FRONT, "pole",
    )  # fmt: skip
    head = rectangle(end - np.sign(u) * 0.24, tall + 0.32, s, 0.8, 0.2)
    if stage.light.lamps > 0:
        stage.polygon(stage.view.project(head), (255, 226, 170), "pole")
    else:
        stage.surface(head, (grey * 0.8,) * 3, _FRONT, "pole")


_SIGNS = ("prohibition", "warning", "stop", "blue", "square", "board", "yield")


def draw_sign(stage: Stage, u: float, s: float, rng: np.random.Generator) -> None:
    """Draw a traffic sign on a pole."""
    kind = _SIGNS[rng.integers(len(_SIGNS))]
    fade = rng.uniform(0.75, 1.0)
    v, r = rng.uniform(2.3, 2.9), rng.uniform(0.38, 0.52)
    draw_post(stage, u, s, v + 0.3, 0.1, 150)

    def paint(points: Points, color: Shade) -> None:
        points[:, 2] -= 0.05
        stage.surface(points, np.array(color) * fade, _FRONT, "traffic sign")

    red, white, blue, black = (200, 24, 32), (240, 240, 238), (24, 70, 170), (24, 24, 26)
    if kind == "prohibition":
        paint(ellipse(u, v, s, r, r), red)
        paint(ellipse(u, v, s, 0.74 * r, 0.74 * r), white)
        paint(rectangle(u, v, s, 0.7 * r, 0.55 * r), black)
    elif kind in ("warning", "yield"):
        turn = 90 if kind == "warning" else 270
        ground = stage.domain.warning_sign
        paint(ellipse(u, v, s, 1.25 * r, 1.25 * r, 3, turn), red)
        paint(ellipse(u, v, s, 0.85 * r, 0.85 * r, 3, turn), ground)
        if kind == "warning":
            paint(rectangle(u, v, s, 0.16 * r, 0.6 * r), black)
    elif kind == "stop":
        paint(ellipse(u, v, s, 1.05 * r, 1.05 * r, 8, 22.5), white)
        paint(ellipse(u, v, s, 0.96 * r, 0.96 * r, 8, 22.5), red)
        paint(rectangle(u, v, s, 1.3 * r, 0.34 * r), white)
    elif kind == "blue":
        paint(ellipse(u, v, s, r, r), blue)
        paint(rectangle(u, v, s, 0.28 * r, 1.1 * r), white)
    elif kind == "square":
        paint(rectangle(u, v, s, 1.6 * r, 1.6 * r), blue)
        paint(rectangle(u, v, s, 0.6 * r, 1.0 * r), white)
    else:
        color = stage.domain.direction_sign
        paint(rectangle(u, v + 0.4, s, 4.4 * r, 2.4 * r), white)
        paint(rectangle(u, v + 0.4, s, 4.2 * r, 2.2 * r), color)
        for row in (0.75, 0.4, 0.1):
            paint(rectangle(u, v + row, s, 2.8 * r, 0.28 * r), white)


def draw_traffic_light(
    stage: Stage, u: float, s: float, reach: float, rng: np.random.Generator
) -> None:
    """Draw a traffic light; with ``reach`` above 0 it hangs from an arm over the road."""
    lit = int(rng.integers(3))
    tall = 5.6 if reach else 2.6
    draw_post(stage, u, s, tall + 0.2, 0.16, 110)
    places = [(u, 2.9)]
    if reach:
        end = u - np.sign(u) * reach
        thick = max(0.14, 1.2 * stage.view.ahead(s) / stage.view.focal)
        stage.surface(rectangle((u + end) / 2, tall, s, reach, thick), (110,) * 3, _FRONT, "pole")
        places.append((end, tall - 0.3))
    for x, v in places:
        for points, color in (
            (rectangle(x, v, s - 0.05, 0.56, 1.25), stage.domain.signal_frame),
            (rectangle(x, v, s - 0.06, 0.44, 1.12), (36, 38, 39)),
        ):
            stage.surface(points, color, _FRONT, "traffic light")
        for i, color in enumerate(((255, 50, 40), (255, 190, 40), (60, 255, 130))):
            disc = ellipse(x, v + 0.36 - 0.36 * i, s - 0.07, 0.14, 0.14, 10)
            if i == lit:
                stage.polygon(stage.view.project(disc), color, "traffic light")
            else:
                stage.surface(disc, np.array(color) * 0.25, _FRONT, "traffic light")
