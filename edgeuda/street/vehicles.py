"""Cars, vans, trucks, buses and trams as small meshes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from edgeuda.street.domain import Shade
from edgeuda.street.stage import Stage
from edgeuda.street.view import Points

_CORNERS = 12
PAINT, GLASS, TYRE, RIM, REAR, HEAD, PLATE, TRIM, CARGO = range(9)
_COLORS = np.array(
    [(0, 0, 0), (40, 48, 56), (24, 24, 26), (140, 142, 146), (190, 20, 20), (235, 235, 220),
     (225, 222, 200), (36, 36, 38), (222, 222, 218)], np.float64,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Size and side view of a kind of vehicle.

    Attributes:
        wide: Width in metres.
        outline: ``(along, up)`` in metres, from the rear bumper over the roof to the front one.
        belt: Height where glass begins; above it the sides lean inwards.
        windows: Side windows, ``(along from, along to, up from, up to)``.
        wheels: Positions along and radius, ``(along, along, radius)``.
        cargo: Index of the outline's first and last edge of a cargo box, or None.
        name: Its class.
    """

    wide: float
    outline: tuple[tuple[float, float], ...]
    belt: float
    windows: tuple[tuple[float, float, float, float], ...]
    wheels: tuple[float, float, float]
    cargo: tuple[int, int] | None = None
    name: str = "car"

    @property
    def long(self) -> float:
        """Length in metres."""
        return max(a for a, _ in self.outline)

    @property
    def tall(self) -> float:
        """Height in metres."""
        return max(v for _, v in self.outline)


SHAPES: dict[str, Shape] = {
    "sedan": Shape(
        1.8,
        ((0, 0.3), (0, 0.82), (0.1, 0.98), (0.75, 1.02), (1.45, 1.42), (2.75, 1.44), (3.5, 1.0),
         (4.4, 0.82), (4.55, 0.6), (4.55, 0.3)),
        0.98,
        ((0.95, 1.5, 1.03, 1.3), (1.55, 2.25, 1.02, 1.36), (2.35, 3.1, 1.02, 1.3)),
        (0.85, 3.65, 0.32),
    ),
    "hatchback": Shape(
        1.75,
        ((0, 0.3), (0, 0.9), (0.12, 1.0), (0.5, 1.44), (2.4, 1.5), (3.15, 1.02), (3.85, 0.86),
         (4.0, 0.6), (4.0, 0.3)),
        0.98,
        ((0.6, 1.25, 1.04, 1.36), (1.35, 2.05, 1.03, 1.4), (2.1, 2.75, 1.03, 1.32)),
        (0.7, 3.2, 0.31),
    ),
    "suv": Shape(
        1.9,
        ((0, 0.38), (0, 1.05), (0.08, 1.12), (0.35, 1.7), (2.9, 1.74), (3.5, 1.18), (4.45, 1.02),
         (4.6, 0.7), (4.6, 0.38)),
        1.12,
        ((0.5, 1.3, 1.18, 1.58), (1.4, 2.3, 1.18, 1.62), (2.4, 3.1, 1.18, 1.52)),
        (0.85, 3.7, 0.38),
    ),
    "van": Shape(
        1.95,
        ((0, 0.35), (0, 1.15), (0.05, 1.2), (0.15, 2.05), (3.6, 2.08), (4.4, 1.2), (4.95, 1.02),
         (5.1, 0.7), (5.1, 0.35)),
        1.2,
        ((3.15, 3.95, 1.24, 1.78),),
        (0.9, 4.1, 0.36),
    ),
    "truck": Shape(
        2.4,
        ((0, 0.6), (0, 1.5), (0, 3.3), (5.6, 3.3), (5.65, 2.7), (7.1, 2.7), (7.4, 1.6), (7.5, 0.5)),
        1.6,
        ((6.1, 6.95, 1.7, 2.4),),
        (1.5, 6.4, 0.48),
        (0, 2),
        "truck",
    ),
    "bus": Shape(
        2.5,
        ((0, 0.4), (0, 1.35), (0.05, 3.05), (10.7, 3.1), (10.95, 1.3), (11, 0.4)),
        1.3,
        tuple((0.4 + 1.5 * i, 1.75 + 1.5 * i, 1.4, 2.5) for i in range(7)),
        (2.4, 8.4, 0.5),
        name="bus",
    ),
    "tram": Shape(
        2.6,
        ((0, 0.3), (0, 1.5), (0.5, 3.3), (20.5, 3.3), (21, 1.5), (21, 0.3)),
        1.4,
        tuple((0.9 + 1.95 * i, 2.55 + 1.95 * i, 1.4, 2.7) for i in range(10)),
        (3.0, 18.0, 0.42),
        name="train",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Mesh:
    """Faces of a vehicle; ``corners`` [F, 12, 3] as (along, across, up), padded by repetition."""

    corners: Points
    normals: Points
    materials: npt.NDArray[np.intp]
    details: npt.NDArray[np.bool_]


@cache
def _mesh(kind: str) -> _Mesh:
    shape = SHAPES[kind]
    half, long = shape.wide / 2, shape.long
    faces: list[tuple[list[tuple[float, float, float]], tuple[float, float, float], int, bool]] = []

    def side(v: float) -> float:
        lean = 0.2 if kind not in ("truck", "bus", "tram") else 0.04
        return half - lean * max(v - shape.belt, 0) / 0.5

    for i, ((a0, v0), (a1, v1)) in enumerate(zip(shape.outline, shape.outline[1:], strict=False)):
        normal = np.array([-(v1 - v0), 0.0, a1 - a0]) / np.hypot(a1 - a0, v1 - v0)
        box = shape.cargo is not None and shape.cargo[0] <= i <= shape.cargo[1]
        material = CARGO if box else PAINT
        quad = [(a0, -side(v0), v0), (a0, side(v0), v0), (a1, side(v1), v1), (a1, -side(v1), v1)]
        faces.append((quad, (normal[0], 0.0, normal[2]), material, False))
        steep = (v0 >= shape.belt - 0.02 and v1 > v0) or (v1 >= shape.belt - 0.22 and v1 < v0)
        if not box and steep and abs(v1 - v0) > 0.2 and max(v0, v1) > shape.belt + 0.1:
            inset = ((0.1, -0.86), (0.1, 0.86), (0.92, 0.86), (0.92, -0.86))
            ends = [(a0 + (a1 - a0) * t, v0 + (v1 - v0) * t, across) for t, across in inset]
            glass = [(a, across * side(v), v) for a, v, across in ends]
            faces.append((glass, (normal[0], 0.0, normal[2]), GLASS, True))
    for sign in (-1, 1):
        out = (0.0, float(sign), 0.12)
        points = [(a, sign * side(v), v) for a, v in shape.outline]
        faces.append((points, out, PAINT, False))
        if shape.cargo is not None:
            box_points = [(0.0, 0.95), *shape.outline[2:4], (5.6, 0.95)]
            faces.append(([(a, sign * (half + 0.01), v) for a, v in box_points], out, CARGO, True))
        for a0, a1, v0, v1 in shape.windows:
            corners = ((a0, v0), (a0 + 0.1, v1), (a1 - 0.15, v1), (a1, v0))
            faces.append(([(a, sign * (side(v) + 0.01), v) for a, v in corners], out, GLASS, True))
        sill = ((0.3, 0.3), (0.3, 0.42), (long - 0.3, 0.42), (long - 0.3, 0.3))
        faces.append(([(a, sign * (half + 0.01), v) for a, v in sill], out, TRIM, True))
        turn = np.arange(_CORNERS) * 2 * np.pi / _CORNERS
        for along in shape.wheels[:2]:
            for radius, offset, material in (
                (1.0, 0.02, TYRE),
                (0.62, 0.03, RIM),
                (0.2, 0.04, TYRE),
            ):
                r = radius * shape.wheels[2]
                wheel = [(along + r * c, sign * (half + offset), shape.wheels[2] + r * d)
                         for c, d in zip(np.cos(turn), np.sin(turn), strict=True)]  # fmt: skip
                faces.append((wheel, out, material, True))

    def patch(a: float, across: float, up: float, w: float, h: float, material: int) -> None:
        front = a > long / 2
        turns = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        quad = [(a, across + x * w, up + y * h) for x, y in turns]
        faces.append((quad, (1.0 if front else -1.0, 0.0, 0.0), material, True))

    low = shape.outline[1][1]
    for sign in (-1, 1):
        patch(-0.02, sign * (half - 0.2), min(low, 1.2) - 0.12, 0.15, 0.11, REAR)
        patch(
            long + 0.02,
            sign * (half - 0.24),
            0.68 if kind not in ("bus", "tram") else 0.8,
            0.17,
            0.08,
            HEAD,
        )
        for along in (0.35, long - 0.35):  # what is seen of the tyres from behind and in front
            patch(along if along > 1 else -0.01, sign * (half - 0.16), 0.17, 0.11, 0.17, TYRE)
    patch(-0.02, 0.0, 0.55, half * 0.96, 0.05, TRIM)
    patch(long + 0.02, 0.0, 0.56, half * 0.5, 0.1, TRIM)
    patch(-0.03, 0.0, 0.7, 0.26, 0.07, PLATE)
    patch(long + 0.03, 0.0, 0.42, 0.26, 0.06, PLATE)
    return _Mesh(
        np.array([points + [points[-1]] * (_CORNERS - len(points)) for points, *_ in faces]),
        np.array([normal for _, normal, _, _ in faces]),
        np.array([material for *_, material, _ in faces]),
        np.array([detail for *_, detail in faces]),
    )


def footprint(kind: str, u: float, s: float, heading: float) -> Points:
    """Return the corners of a vehicle on the ground, ``[4, 3]`` street coordinates."""
    shape = SHAPES[kind]
    a, b = shape.long / 2, shape.wide / 2
    local = np.array([(-a, -b, 0), (a, -b, 0), (a, b, 0), (-a, b, 0)], np.float64)
    return np.asarray(_turn(local, heading) + np.array((u, 0.0, s)))


def _turn(local: Points, heading: float) -> Points:
    """Turn (along, across, up) into (u, v, s); heading 0 drives away from the camera."""
    a, b, v = np.moveaxis(local, -1, 0)
    c, d = np.cos(heading), np.sin(heading)
    return np.stack([a * d + b * c, v, a * c - b * d], -1)


def draw_vehicle(stage: Stage, kind: str, u: float, s: float, heading: float, paint: Shade) -> None:
    """Draw a vehicle centred at ``(u, s)``; heading in radians, 0 away from the camera."""
    mesh, shape = _mesh(kind), SHAPES[kind]
    local = mesh.corners - (shape.long / 2, 0.0, 0.0)
    corners = _turn(local, heading) + np.array((u, 0.0, s))
    normals = _turn(mesh.normals, heading)
    view = stage.view
    eye, away = np.array([view.eye_offset, view.eye_height, view.travelled]), view.ahead(s)
    # The bend shifts what is far; put the eye where it would see this in a straight street.
    eye[0] -= view.curvature * away * away / 2 + view.yaw * away
    centre = corners.mean(1)
    seen = ((eye - centre) * normals).sum(1) > 0
    order = np.lexsort((-centre[:, 2], mesh.details))
    colors = _COLORS[mesh.materials].copy()
    colors[mesh.materials == PAINT] = paint
    if kind == "truck":
        colors[mesh.materials == CARGO] = 0.6 * colors[mesh.materials == CARGO] + 0.4 * np.array(
            paint
        )
    glass = mesh.materials == GLASS
    colors[glass] = 0.75 * colors[glass] + 0.25 * np.array(stage.light.horizon)
    lit = stage.lit(colors, normals, s)
    if stage.light.lamps > 0:
        lit[mesh.materials == REAR] = (235, 40, 30)
        lit[mesh.materials == HEAD] = (255, 248, 225)
    points = stage.view.project(corners)
    if points[..., 0].max() < 0 or points[..., 0].min() > stage.view.width:
        return
    # The dark gap below the body grounds the vehicle.
    stage.surface(
        footprint(kind, u, s, heading) * (1, 0, 1) + (0, 0.22, 0),
        (14, 14, 15),
        (0, 1, 0),
        shape.name,
    )
    for face in order[seen[order]]:
        stage.polygon(points[face], lit[face].tolist(), shape.name)
