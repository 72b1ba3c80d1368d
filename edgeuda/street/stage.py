"""What a drawn object needs: the canvas, the camera and the light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.labels import SPACES
from edgeuda.street.domain import Light, StreetDomain
from edgeuda.street.view import Points, View

IDS: dict[str, int] = {name: i for i, name in enumerate(SPACES["cityscapes-19"].classes)}
"""Cityscapes train ids by class name."""

Canvas = npt.NDArray[np.uint8]
UP = (0.0, 1.0, 0.0)
_SUBPIXEL = 4


@dataclass(frozen=True)
class Stage:
    """A canvas that objects are painted on from far to near.

    Attributes:
        pixels: ``[H, W, 4]`` uint8: RGB and the class id. One drawing call sets all four, so the
            label cannot disagree with the colour.
        to_sun: Unit vector ``(u, v, s)`` towards the sun.
        haze: Distance in metres, see `Light.haze`.
        faces: Towards the sun and up, the columns of ``[3, 2]``.
        colors: Of the sun, of ambient light and of haze, ``[3, 3]``.
    """

    pixels: Canvas
    view: View
    domain: StreetDomain
    light: Light
    to_sun: Points
    haze: float
    faces: Points = field(init=False)
    colors: Points = field(init=False)

    def __post_init__(self) -> None:
        light = self.light
        object.__setattr__(self, "faces", np.stack([self.to_sun, np.array(UP)], -1))
        object.__setattr__(self, "colors", np.array([light.sun, light.ambient, light.horizon]))

    def lit(self, color: npt.ArrayLike, normal: npt.ArrayLike, depth: float) -> Points:
        """Return a colour ``[..., 3]`` as seen: lit on a surface with this normal, behind haze."""
        gain, veil = self.lighting(normal, depth)
        return np.asarray(color, np.float64) * gain + veil

    def lighting(self, normal: npt.ArrayLike, depth: float) -> tuple[Points, Points]:
        """Return `lit` as a factor ``[..., 3]`` and an addend ``[3]`` for a place ``depth``."""
        clear = math.exp(-max(self.view.ahead(depth), 0.0) / self.haze)
        facing = np.asarray(normal, np.float64) @ self.faces
        gain = np.maximum(facing[..., :1], 0.0) * self.colors[0]
        gain += (0.86 + 0.14 * facing[..., 1:]) * self.colors[1]
        gain *= clear
        return gain, self.colors[2] * (1 - clear)

    def polygon(self, corners: Points, color: Sequence[float] | Points, name: str) -> None:
        """Fill a polygon given by ``[N, 2]`` pixel coordinates."""
        fixed = np.rint((corners - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
        red, green, blue = color
        paint = (min(red, 255.0), min(green, 255.0), min(blue, 255.0), IDS[name])
        cv2.fillPoly(self.pixels, [fixed], paint, cv2.LINE_8, _SUBPIXEL)

    def surface(
        self,
        points: npt.ArrayLike,
        color: Sequence[float] | Points,
        normal: tuple[float, float, float],
        name: str,
    ) -> None:
        """Fill a flat polygon given by ``[N, 3]`` street coordinates."""
        corners = np.asarray(points, np.float64)
        # Hundreds of these make an image: on three numbers, plain floats beat arrays by far.
        depth = self.view.ahead((corners.item(0, 2) + corners.item(2, 2)) / 2)  # opposite corners
        clear = math.exp(-max(depth, 0.0) / self.haze)
        x, y, z = normal
        sun_x, sun_y, sun_z = self.to_sun.tolist()
        facing, sky = max(x * sun_x + y * sun_y + z * sun_z, 0.0), 0.86 + 0.14 * y
        light = self.light
        shown = [
            float(c) * (facing * sun + sky * ambient) * clear + haze * (1 - clear)
            for c, sun, ambient, haze in zip(
                color, light.sun, light.ambient, light.horizon, strict=True
            )
        ]
        self.polygon(self.view.project(corners), shown, name)

    def tile(
        self,
        tile: Canvas,
        points: npt.ArrayLike,
        tint: npt.ArrayLike,
        normal: npt.ArrayLike,
        name: str,
        mask: Canvas | None = None,
    ) -> None:
        """Map a texture on a rectangle.

        Args:
            tile: ``[h, w, 4]`` uint8: RGB and how strongly a pixel shines when lamps are lit.
            points: ``[4, 3]`` street coordinates of the tile's top left, top right, bottom right
                and bottom left corner.
            tint: RGB factor.
            normal: Of the rectangle.
            name: Class of the pixels.
            mask: ``[h, w]`` uint8, what of the tile is drawn (above 127); all of it by default.
        """
        corners = np.asarray(points, np.float64)
        image = self.view.project(corners)
        height, width = self.pixels.shape[:2]
        x0, y0 = (int(max(math.floor(c), 0)) for c in image.min(0))
        x1, y1 = (
            int(min(math.ceil(c) + 1, end))
            for c, end in zip(image.max(0), (width, height), strict=True)
        )
        if x1 - x0 < 1 or y1 - y0 < 1:
            return
        # Shrink the tile first while that leaves a texel per pixel: the cheap cure for aliasing.
        shrink = int(tile.shape[0] / max(1.0, 1.2 * float(np.ptp(image[:, 1]))))
        if shrink > 1:
            size = (max(tile.shape[1] // shrink, 2), max(tile.shape[0] // shrink, 2))
            tile = np.asarray(cv2.resize(tile, size, interpolation=cv2.INTER_AREA), np.uint8)
            if mask is not None:
                mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.uint8)
        h, w = tile.shape[:2]
        source = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32) - 0.5
        target = (image - (x0 + 0.5, y0 + 0.5)).astype(np.float32)
        warp, size = cv2.getPerspectiveTransform(source, target), (x1 - x0, y1 - y0)
        patch = cv2.warpPerspective(tile, warp, size, borderMode=cv2.BORDER_REPLICATE)
        gain, veil = self.lighting(normal, float(corners[:, 2].mean()))
        matrix = np.zeros((4, 5))
        matrix[:3, :3] = np.diag(gain * np.asarray(tint))
        matrix[:3, 3] = np.array([1.0, 0.72, 0.38]) * self.light.lamps * 0.9
        matrix[:3, 4], matrix[3, 4] = veil, IDS[name]
        drawn = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = np.round(target * (1 << _SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(drawn, [fixed], 255, cv2.LINE_8, _SUBPIXEL)
        if mask is not None:
            drawn &= np.where(cv2.warpPerspective(mask, warp, size) > 127, 255, 0).astype(np.uint8)
        cv2.copyTo(cv2.transform(patch, matrix), drawn, self.pixels[y0:y1, x0:x1])
