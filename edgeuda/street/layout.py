"""What stands where in a street, and in which order it is painted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from edgeuda.street import buildings, furniture, people, plants, vehicles
from edgeuda.street.domain import StreetDomain
from edgeuda.street.ground import Plan
from edgeuda.street.stage import Stage
from edgeuda.street.view import Points, View

_SIDES = (-1, 1)


@dataclass(frozen=True)
class Thing:
    """An object of the street.

    Attributes:
        depth: Painting order, far to near: its distance, or that of its far end if it is long, so
            that whatever stands in front of a house front is painted after it.
        draw: Paints it.
        base: Corners of its footprint, ``[N, 3]``, or None if it casts no shadow worth drawing.
        tall: Its height in metres.
        lifted: Height at which its shadow begins, such as a crown's above a trunk.
        speed: Metres per second along the street, as a share of the camera's.
    """

    depth: float
    draw: Callable[[Stage], None]
    base: Points | None = None
    tall: float = 0.0
    lifted: float = 0.0
    speed: float = 0.0


def draw_layout(
    domain: StreetDomain, plan: Plan, view: View, rng: np.random.Generator
) -> list[Thing]:
    """Draw the street's objects, sorted from far to near."""
    things: list[Thing] = []
    for side in _SIDES:
        things += _plots(domain, plan, view.far, side, rng)
        things += _roadside(domain, plan, view, side, rng)
    things += _traffic(domain, plan, view, things, rng)
    return sorted(things, key=lambda thing: -thing.depth)


def advanced(view: View, thing: Thing, seconds: float, speed: float) -> View:
    """Return the camera as a thing sees it that has moved itself: that much less has it come."""
    if not thing.speed * seconds:
        return view
    return replace(view, travelled=view.travelled - thing.speed * speed * seconds)


def in_view(thing: Thing, view: View) -> bool:
    """Return whether any of a thing is between the camera and the street's end.

    What stands beside the camera is left out: it would be cut at the eye.
    """
    if thing.base is not None and thing.tall < 4.5 and thing.base[:, 2].min() < view.travelled + 1:
        return False
    return 1.2 < view.ahead(thing.depth) < view.far


def in_the_way(thing: Thing, view: View) -> bool:
    """Return whether a moving camera would run into a thing."""
    if thing.base is None or thing.speed >= 1:
        return False
    return abs(float(thing.base[:, 0].mean()) - view.eye_offset) < 1.2


def shadows(
    things: list[Thing], stage: Stage, seconds: float = 0.0, speed: float = 0.0
) -> list[Points]:
    """Return the pixel polygons of the shadows that things cast on the ground."""
    away = -stage.to_sun / max(float(stage.to_sun[1]), 0.12) * (1, 0, 1)
    direct = max(stage.light.sun) > 0.3
    found = []
    for thing in things:
        if thing.base is None:
            continue
        # Without a sun there is still a dark spot under what stands close to the ground.
        reach = thing.tall if direct else 0.0
        if not direct and (thing.lifted or thing.tall > 4):
            continue
        points = np.concatenate(
            [thing.base + thing.lifted * direct * away, thing.base + reach * away]
        )
        view = advanced(stage.view, thing, seconds, speed)
        near = view.travelled + 1.5
        if points[:, 2].max() < near:
            continue
        hull = cv2.convexHull(points[:, [0, 2]].astype(np.float32))[:, 0]
        ground = np.stack([hull[:, 0], np.zeros(len(hull)), np.maximum(hull[:, 1], near)], -1)
        found.append(view.project(ground))
    return found


def _fraction(s: float) -> float:
    """Return a number from 0 to 1 that is as good as random, without a draw."""
    return float((s * 7.31) % 1)


def _square(u: float, s: float, half: float) -> Points:
    return np.array([(u + a * half, 0, s + b * half) for a in _SIDES for b in _SIDES], np.float64)


def _covers(base: Points, point: Points) -> bool:
    """Return whether a point is in or close to a footprint's bounding box."""
    return bool((point >= base.min(0) - 0.4).all() and (point <= base.max(0) + 0.4).all())


def _spread(rate_per_100m: float, near: float, far: float, rng: np.random.Generator) -> Points:
    """Return distances, more of them near than far, where they are large enough to matter."""
    count = rng.poisson(rate_per_100m * (far - near) / 100)
    return np.asarray(near + (far - near) * rng.random(count) ** 1.5)


def _plots(
    domain: StreetDomain, plan: Plan, far: float, side: int, rng: np.random.Generator
) -> list[Thing]:
    things: list[Thing] = []
    start = rng.uniform(-8, 0)
    floors = int(rng.integers(domain.floors[0], domain.floors[1] + 1))
    while start < far - 3:
        end = min(start + rng.uniform(7, 14), far)
        mouth = next((j for j in plan.junctions[side > 0] if start < j[1] and end > j[0]), None)
        if mouth is not None:
            end = mouth[0]
        if end > 2 and end - start > 2:
            near = max(start, 0.8)
            if rng.random() < domain.gap:
                things += _garden(domain, plan, side, near, end, rng)
            else:
                floors = int(np.clip(floors + rng.integers(-1, 2), *domain.floors))
                u = plan.front + (rng.uniform(0, 1.0) if plan.setback > 1 else 0)
                base = np.array([(side * (u + d), 0, s) for d in (0, 6) for s in (near, end)])
                seed = np.random.default_rng(rng.integers(1 << 32))
                draw = partial(
                    buildings.draw_building,
                    side=side,
                    u=u,
                    start=near,
                    end=end,
                    floors=floors,
                    rng=seed,
                )
                things.append(Thing(end + 0.02 * u, draw, base, 3.0 * floors))
                if plan.setback > 1.5 and rng.random() < domain.fence:
                    things.append(_fence(domain, plan, side, near, end, rng))
        start = (
            mouth[1]
            if mouth is not None
            else end + (rng.uniform(1, 5) if rng.random() < 0.2 else 0)
        )
    return things


def _fence(
    domain: StreetDomain, plan: Plan, side: int, start: float, end: float, rng: np.random.Generator
) -> Thing:
    u = plan.front - plan.setback + 0.2
    color = domain.fence_color[rng.integers(len(domain.fence_color))]
    depth = end + 0.02 * u
    style = domain.fences[rng.integers(len(domain.fences))]
    if style == "guardrail":
        return Thing(depth, partial(buildings.draw_guardrail, side=side, u=u, start=start, end=end))
    draw = partial(
        buildings.draw_boards, side=side, u=u, start=start, end=end,
        tall=rng.uniform(0.9, 1.9), style=style, color=color, name="fence",
    )  # fmt: skip
    return Thing(depth, draw)


def _garden(
    domain: StreetDomain, plan: Plan, side: int, start: float, end: float, rng: np.random.Generator
) -> list[Thing]:
    """Trees behind a fence, wall or hedge."""
    things = []
    kind = rng.random()
    u = plan.front
    if kind < domain.fence:
        things.append(_fence(domain, plan, side, start, end, rng))
    elif kind < domain.fence + 0.25:
        wall = domain.walls[rng.integers(len(domain.walls))]
        draw = partial(
            buildings.draw_boards, side=side, u=u, start=start, end=end, tall=rng.uniform(1.0, 2.4),
            style=domain.wall_style, color=wall, name="wall",
        )  # fmt: skip
        things.append(Thing(end + 0.02 * u, draw))
    else:
        leaf = domain.foliage[rng.integers(len(domain.foliage))]
        draw = partial(
            buildings.draw_hedge,
            side=side,
            u=u,
            start=start,
            end=end,
            tall=rng.uniform(1.0, 2.2),
            color=leaf,
        )
        things.append(Thing(end + 0.02 * u, draw))
    for _ in range(int(rng.integers(1, 4))):
        s, back = rng.uniform(max(start, 3), max(end, 3.5)), rng.uniform(3, 9)
        tree = _tree(domain, side * (u + back), s, rng)
        things.append(
            Thing(end + 0.1 + 0.02 * (u + back), tree.draw, tree.base, tree.tall, tree.lifted)
        )
    return things


def _tree(domain: StreetDomain, u: float, s: float, rng: np.random.Generator) -> Thing:
    tall = rng.uniform(*domain.tree_height)
    style = domain.crowns[rng.integers(len(domain.crowns))]
    seed = np.random.default_rng(rng.integers(1 << 32))
    draw = partial(plants.draw_tree, u=u, s=s, tall=tall, style=style, rng=seed)
    return Thing(s, draw, _square(u, s, 0.22 * tall), 0.9 * tall, 0.35 * tall)


def _roadside(
    domain: StreetDomain, plan: Plan, view: View, side: int, rng: np.random.Generator
) -> list[Thing]:
    """What stands and walks on one sidewalk."""
    things: list[Thing] = []
    far = view.far

    def child() -> np.random.Generator:
        return np.random.default_rng(rng.integers(1 << 32))

    def free(s: float) -> bool:
        return not plan.in_junction(side, s - 0.5, s + 0.5)

    inner = side * (plan.kerb + 0.45)
    walk = (plan.kerb + 0.7, plan.kerb + plan.verge + plan.sidewalk - 0.2)
    things += [
        _tree(domain, side * (plan.kerb + max(0.7, plan.verge / 2)), s, rng)
        for s in _spread(domain.trees_per_100m, 5, far, rng) if free(s)
    ]  # fmt: skip
    for s in _spread(domain.bushes_per_100m, 5, far, rng):
        if free(s):
            u = side * (plan.front - 0.2 - max(plan.setback, 0.6) * rng.random())
            tall = rng.uniform(0.6, 1.6)
            draw: Callable[[Stage], None] = partial(
                plants.draw_bush, u=u, s=s, tall=tall, rng=child()
            )
            things.append(Thing(s, draw, _square(u, s, 0.6), 0.7 * tall))
    tall, grey = rng.uniform(5, 8), rng.uniform(70, 170)
    spacing = 100 / domain.lamps_per_100m
    for s in np.arange(rng.uniform(4, 4 + spacing), far, spacing):
        if free(s):
            draw = partial(furniture.draw_lamp, u=inner, s=s, tall=tall, grey=grey)
            things.append(Thing(s, draw, _square(inner, s, 0.08), tall))
    for s in _spread(domain.signs_per_100m, 6, 0.6 * far, rng):
        draw = partial(furniture.draw_sign, u=inner + side * rng.uniform(0, 0.5), s=s, rng=child())
        things.append(Thing(s, draw))
    places = [j[0] - 1 for j in plan.junctions[side > 0]] if rng.random() < 0.8 else []
    for s in (*places, *_spread(domain.lights_per_100m, 8, 0.6 * far, rng)):
        reach = rng.uniform(2.5, 4) if rng.random() < domain.overhead else 0.0
        draw = partial(furniture.draw_traffic_light, u=inner, s=s, reach=reach, rng=child())
        things.append(Thing(s, draw))
    if rng.random() < 0.5:
        for s in np.arange(
            rng.uniform(4, 10),
            40,
            100 / domain.bollards_per_100m / 5 if domain.bollards_per_100m else 99,
        ):
            if free(s) and domain.bollards_per_100m:
                draw = partial(
                    furniture.draw_post,
                    u=side * (plan.kerb + 0.35),
                    s=s,
                    tall=1.0,
                    thick=0.16,
                    grey=90,
                )
                things.append(Thing(s, draw))
    s_people = _spread(domain.people_per_100m / 2, 5, 0.7 * far, rng)
    for s in s_people:
        for _ in range(1 + int(rng.random() < 0.35)):
            u, near = side * rng.uniform(*walk), s + rng.uniform(-0.4, 0.4)
            draw = partial(people.draw_person, u=u, s=near, rng=child())
            walks = 0.12 * _fraction(near) * side
            things.append(Thing(near, draw, _square(u, near, 0.18), 1.7, speed=walks))
    for s in _spread(domain.cyclists_per_100m / 2, 6, 0.6 * far, rng):
        u = side * (plan.lanes * plan.lane_width - rng.uniform(0.3, 0.8))
        draw = partial(people.draw_cyclist, u=u, s=s, crossing=rng.random() < 0.25, rng=child())
        if domain.motorcycles and rng.random() < domain.motorcycles:
            draw = partial(draw, motor=True)
        things.append(Thing(s, draw, _square(u, s, 0.35), 1.7, speed=0.5 * side))
    for s in _spread(domain.cyclists_per_100m / 3, 5, 0.5 * far, rng):
        draw = partial(people.draw_bicycle, u=side * (walk[1] - 0.3), s=s, rng=child())
        things.append(Thing(s, draw))
    return things


def _traffic(
    domain: StreetDomain, plan: Plan, view: View, roadside: list[Thing], rng: np.random.Generator
) -> list[Thing]:
    """What parks and drives on the road, and who crosses it."""
    things: list[Thing] = []
    cyclists = [t.base.mean(0) for t in roadside if t.base is not None and t.tall < 2]
    light = ("sedan", "hatchback", "suv", "van")

    def place(u: float, s: float, heading: float, parked: bool = False, speed: float = 0.0) -> None:
        heavy = rng.random() < domain.heavy and not parked
        kind = ("truck", "bus")[rng.integers(2)] if heavy else light[rng.integers(4)]
        shape = vehicles.SHAPES[kind]
        s += shape.long / 2
        paint = domain.paints[rng.integers(len(domain.paints))]
        draw = partial(vehicles.draw_vehicle, kind=kind, u=u, s=s, heading=heading, paint=paint)
        base = vehicles.footprint(kind, u, s, heading)
        if any(_covers(base, point) for point in cyclists):
            return
        things.append(Thing(s, draw, base, shape.tall * 0.9, speed=speed))

    for side in _SIDES:
        ahead = side > 0
        rest = 0.0 if ahead else np.pi
        if plan.parking:
            s = rng.uniform(2.5, 8)
            while s < 0.8 * view.far:
                blocked = plan.in_junction(side, s - 2, s + 7) or any(
                    s - 2 < b and s + 6 > a for a, b in plan.crossings)  # fmt: skip
                if not blocked and rng.random() < domain.parked_per_100m * 6.2 / 100:
                    place(side * (plan.kerb - 1.05), s, rest + rng.normal(0, 0.03), parked=True)
                s += rng.uniform(5.6, 6.8)
        for lane in range(plan.lanes):
            u = (lane + 0.5) * plan.lane_width
            own = ahead and abs(u - view.eye_offset) < 1.5
            s = rng.uniform(8, 22) if own else rng.uniform(3, 20)
            while s < 0.9 * view.far:
                if rng.random() < domain.moving_per_100m / 2 * 14 / 100:
                    # The own lane moves with the camera, so that it hits nobody.
                    speed = 1.0 if own else side * (0.8 + 0.4 * _fraction(s))
                    drift = rng.normal(0, 0.15)
                    place(side * u + drift, s, rest + rng.normal(0, 0.02), speed=speed)
                s += rng.uniform(13, 20)
        if domain.trams and rng.random() < domain.trams:
            s = rng.uniform(18, 60)
            u, shape = side * 0.5 * plan.lane_width, vehicles.SHAPES["tram"]
            base = vehicles.footprint("tram", u, s, rest)
            clear = not any(
                t.base is not None and (_covers(base, t.base.mean(0)) or _covers(t.base, base[0]))
                for t in things
            )
            if clear:
                paint = domain.paints[rng.integers(len(domain.paints))]
                draw = partial(
                    vehicles.draw_vehicle, kind="tram", u=u, s=s, heading=rest, paint=paint
                )
                things.append(Thing(s, draw, base, shape.tall * 0.9, speed=0.8 * side))
        for start, end in plan.junctions[ahead]:
            if rng.random() < 0.5:  # waits in the side street, or turns out of it
                u = side * (plan.kerb + rng.uniform(-1.5, 7))
                place(u, (start + end) / 2 - 1, rng.choice((-1, 1)) * np.pi / 2)
    for start, end in plan.crossings:
        for _ in range(rng.poisson(domain.people_per_100m / 8)):
            u, s = rng.uniform(-plan.kerb, plan.kerb), rng.uniform(start, end)
            if any(t.base is not None and _covers(t.base, np.array((u, 0, s))) for t in things):
                continue
            draw = partial(
                people.draw_person, u=u, s=s, rng=np.random.default_rng(rng.integers(1 << 32))
            )
            things.append(Thing(s, draw, _square(u, s, 0.18), 1.7))
    return things
