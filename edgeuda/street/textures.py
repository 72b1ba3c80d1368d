"""Procedural tiles, made once per process from fixed seeds."""

from __future__ import annotations

import zlib
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.street.stage import Canvas

Noise = npt.NDArray[np.float32]

VARIANTS = 5
"""Tiles per style of facade or tree."""
FACADE_WIDTH = 12.0
"""Metres of street front that a facade tile shows."""
_PER_METRE = 12


def _rng(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


@cache
def noise(size: int, roughness: float, seed: int = 0) -> Noise:
    """Return periodic noise ``[size, size]`` with mean 0 and standard deviation 1.

    Args:
        size: Rows and columns.
        roughness: Exponent of the spectrum: 0 is white, 2 is cloudy.
        seed: Another one gives another pattern.
    """
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(frequency[:, None], frequency)
    radius[0, 0] = np.inf
    white = np.fft.fft2(_rng("noise", size, roughness, seed).normal(size=(size, size)))
    field = np.fft.ifft2(white * radius**-roughness).real
    return np.asarray((field - field.mean()) / field.std(), np.float32)


GROUND_SIZE = 256
GROUND_PER_METRE = 24
ASPHALT, PAVING, GRASS = 0, 1, 2


@cache
def ground() -> Noise:
    """Return relative brightness of asphalt, paving and grass, ``[3, size, size]``, mean 0."""
    size = GROUND_SIZE
    asphalt = 0.05 * noise(size, 0.2) + 0.05 * noise(size, 1.6, 1)
    cracks = np.abs(noise(size, 1.5, 2)) < 0.025
    asphalt = np.where(cracks, asphalt - 0.14, asphalt)
    rows, columns = np.mgrid[:size, :size]
    slab = 16
    shifted = columns + (rows // slab % 2) * slab
    joints = (rows % slab == 0) | (shifted % (2 * slab) == 0)
    shades = _rng("slabs").normal(0, 0.07, (size // slab, size // slab)).astype(np.float32)
    paving = shades[rows // slab, shifted // (2 * slab) % (size // slab)] - 0.22 * joints
    grass = 0.13 * noise(size, 0.5, 3) + 0.11 * noise(size, 1.4, 4)
    return np.stack([asphalt, paving + 0.03 * noise(size, 0.3, 5), grass]).astype(np.float32)


@cache
def facade(style: str, floors: int, variant: int, texture: float) -> Canvas:
    """Return a house front, ``[h, w, 4]`` uint8: grey-ish RGB to be tinted, and lit windows.

    Args:
        style: "plaster", "panel", "glass" (simulator) or "brick", "stone", "render" (camera).
        floors: Number of floors of three metres.
        variant: 0 to `VARIANTS` - 1.
        texture: Contrast of the wall's material, 0 to 1.
    """
    rng = _rng("facade", style, floors, variant)
    modern = style in ("plaster", "panel", "glass")
    floor = 3 * _PER_METRE
    height, width = floors * floor, int(FACADE_WIDTH * _PER_METRE)
    tile = np.zeros((height, width, 4), np.uint8)
    wall = np.full((height, width), 230.0)
    rows, columns = np.mgrid[:height, :width]
    if style == "brick":
        shifted = columns + (rows // 3 % 2) * 3
        wall += texture * (
            16 * _rng(style).normal(size=(height // 3 + 1, width))[rows // 3, shifted // 6]
        )
        wall[(rows % 3 == 0) | (shifted % 6 == 0)] += 14 * texture
    elif style == "stone":
        wall[(rows % 9 == 0) | ((columns + (rows // 9 % 2) * 9) % 18 == 0)] -= 46 * texture
    elif style == "panel":
        wall[(rows % floor == 0) | (columns % (width // 4) == 0)] -= 34
    stains = cv2.resize(noise(64, 1.6, variant), (width, height))
    wall += texture * (13 * stains + 7 * rng.normal(size=wall.shape))
    tile[..., :3] = np.clip(wall, 0, 255)[..., None]

    count = int(rng.integers(3, 6)) if style != "glass" else int(rng.integers(6, 9))
    pitch = width / count
    wide = pitch * (rng.uniform(0.38, 0.62) if style != "glass" else 0.86)
    tall = floor * (rng.uniform(0.42, 0.64) if style != "glass" else 0.78)
    frame = rng.choice([250, 235, 90, 60])
    glass = np.array([70, 84, 100]) if modern else np.array([44, 48, 52])
    arched = style == "stone" and variant % 2 == 0
    for level in range(floors):
        shop = level == floors - 1 and rng.random() < (0.25 if modern else 0.5)
        for column in range(count):
            x, y = (column + 0.5) * pitch - wide / 2, level * floor + (floor - tall) * 0.4
            w, h = wide, tall
            if shop:
                x, y, w, h = (
                    column * pitch + 1,
                    level * floor + 0.28 * floor,
                    pitch - 3,
                    0.66 * floor,
                )
            elif level == floors - 1 and column == variant % count:
                h = floor * 0.97 - (floor - tall) * 0.4  # a door
            x0, y0, x1, y1 = round(x), round(y), round(x + w), round(y + h)
            shine = glass * rng.uniform(0.7, 1.4)
            lit = int(rng.random() < (0.8 if shop else 0.35)) * int(rng.integers(110, 255))
            cv2.rectangle(tile, (x0 - 1, y0 - 1), (x1, y1), (int(frame),) * 3 + (0,), -1)
            cv2.rectangle(tile, (x0, y0), (x1 - 1, y1 - 1), (*shine.tolist(), lit), -1)
            sky = (*(shine * 1.5 + 22).tolist(), lit)
            cv2.rectangle(tile, (x0, y0), (x1 - 1, y0 + max((y1 - y0) // 3, 1)), sky, -1)
            if not modern and not shop:
                if rng.random() < 0.35:  # a curtain
                    cv2.rectangle(
                        tile, (x0, y0), (x0 + (x1 - x0) // 3, y1 - 1), (150, 144, 132, lit), -1
                    )
                cv2.line(
                    tile, ((x0 + x1) // 2, y0), ((x0 + x1) // 2, y1 - 1), (int(frame),) * 3 + (0,)
                )
                cv2.line(tile, (x0 - 2, y1 + 1), (x1 + 1, y1 + 1), (214, 208, 198, 0), 2)
            if arched and not shop:
                cv2.ellipse(
                    tile,
                    ((x0 + x1) // 2, y0),
                    ((x1 - x0) // 2, 4),
                    0,
                    180,
                    360,
                    (*shine.tolist(), lit),
                    -1,
                )
        if shop:
            sign = (*rng.integers(40, 230, 3).tolist(), 90)
            cv2.rectangle(
                tile, (0, level * floor + 2), (width, level * floor + floor // 4), sign, -1
            )
    tile[: _PER_METRE // 3, :, :3] = (tile[: _PER_METRE // 3, :, :3] * 0.72).astype(np.uint8)
    return tile


@cache
def crown(style: str, variant: int) -> tuple[Canvas, Canvas]:
    """Return a tree's crown as a tile ``[96, 96, 4]`` and its mask ``[96, 96]``, both uint8.

    Args:
        style: "ball", "cone", "oval" (simulator) or "broadleaf", "sparse", "poplar", "hedge".
        variant: 0 to `VARIANTS` - 1.
    """
    size = 96
    rng = _rng("crown", style, variant)
    y, x = (np.mgrid[:size, :size] + 0.5) / (size / 2) - 1
    smooth = style in ("ball", "cone", "oval")
    if style == "cone":
        tiers = (y + 1) / 2 * 3 % 1
        inside = 0.35 * (y + 1) / 2 + 0.5 * (y + 1) / 2 * tiers + 0.08 - np.abs(x)
        relief = 0.95 - 0.35 * tiers - 0.25 * (x > 0)
    else:
        width = {"oval": 0.7, "poplar": 0.62}.get(style, 0.95)
        inside = 1 - np.hypot(x / width, y / 0.97)
        if not smooth:
            blobs = np.full_like(inside, -1.0)
            for _ in range(16):
                angle, reach = rng.uniform(0, 2 * np.pi), 0.62 * np.sqrt(rng.random())
                bx, by = width * reach * np.cos(angle), reach * np.sin(angle)
                radius = rng.uniform(0.22, 0.42)
                blobs = np.maximum(blobs, radius - np.hypot((x - bx), y - by))
            inside = blobs
        relief = 1.05 - 0.3 * y - 0.25 * x
        if smooth:
            relief = np.floor(relief * 6) / 6
    if style == "hedge":
        inside = np.minimum(y + 0.9, 1.0)
    if not smooth:
        leaves = noise(size, 0.9, variant)
        ragged = {"sparse": 0.17, "hedge": 0.12}.get(style, 0.09)
        inside = inside + ragged * leaves - (0.16 if style == "sparse" else 0.02)
        relief = 0.92 * relief + 0.2 * noise(size, 0.6, variant + 10) + 0.16 * leaves
    grey = np.clip(relief * 160, 20, 255).astype(np.uint8)
    tile = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    return tile, np.where(inside > 0, 255, 0).astype(np.uint8)


@cache
def boards(style: str, texture: float) -> Canvas:
    """Return a piece of fence or wall, ``[24, 48, 4]`` uint8, three by one and a half metres.

    Args:
        style: "picket", "railing", "masonry" or "concrete".
        texture: Contrast of the material, 0 to 1.
    """
    height, width = 24, 48
    rows, columns = np.mgrid[:height, :width]
    grey = np.full((height, width), 215.0)
    if style == "picket":
        grey[columns % 6 >= 4] = 110
        grey[(rows == 5) | (rows == 17)] = 185
    elif style == "railing":
        grey[:] = 105
        grey[(columns % 4 == 0) | (rows < 3) | (rows >= 21)] = 245
    elif style == "masonry":
        grey[(rows % 4 == 0) | ((columns + (rows // 4 % 2) * 4) % 8 == 0)] -= 45
        grey[:2] = 245
    else:
        grey[columns % 24 == 0] -= 40
        grey[:2] = 235
    grey += texture * 14 * _rng("boards", style).normal(size=grey.shape)
    grey8 = np.clip(grey, 0, 255).astype(np.uint8)
    return np.dstack([grey8, grey8, grey8, np.zeros_like(grey8)])
