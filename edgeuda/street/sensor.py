"""What rain, optics, sensor and compression do to a rendered image; labels stay as they are."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.data.images import Image, LabelMap
from edgeuda.street.domain import Light, StreetDomain
from edgeuda.street.stage import IDS, Canvas


def reflect(image: Canvas, label: LabelMap, wet: float, rng: np.random.Generator) -> Canvas:
    """Mirror what stands on the ground in the wet road below it.

    Args:
        image: ``[H, W, 3]`` uint8.
        label: ``[H, W]`` uint8 ids.
        wet: 0 (dry) to 1.
        rng: For the puddles.
    """
    height, width = label.shape
    ground = (label == IDS["road"]) | (label == IDS["sidewalk"])
    # The lowest row of each column that shows something else is where the mirror image begins.
    foot = height - 1 - np.argmax(~ground[::-1], 0).astype(np.float32)
    foot = cv2.blur(foot[None], (5, 1))
    rows = np.arange(height, dtype=np.float32)[:, None]
    source = np.clip(2 * foot - rows, 0, height - 1).astype(np.float32)
    columns = np.broadcast_to(np.arange(width, dtype=np.float32), (height, width))
    mirrored = cv2.remap(image, np.ascontiguousarray(columns), source, cv2.INTER_LINEAR)
    mirrored = cv2.blur(mirrored, (3, max(height // 20, 1) | 1))
    puddles = cv2.resize(rng.random((9, 7), dtype=np.float32), (width, height))
    strength = wet * np.where(ground, 0.3 + 0.5 * puddles, 0).astype(np.float32)[..., None]
    wetted = image * (1 - 0.25 * (strength > 0))
    return np.asarray(wetted + strength * (mirrored - wetted), np.uint8)


def expose(
    image: Canvas,
    domain: StreetDomain,
    light: Light,
    rng: np.random.Generator,
    grain: np.random.Generator | None = None,
) -> Image:
    """Return the image as the domain's camera records it, ``[H, W, 3]`` uint8.

    Args:
        image: ``[H, W, 3]`` uint8.
        domain: Whose camera.
        light: Of the scene.
        rng: Draws what the camera is like.
        grain: Draws the noise, if not ``rng``: frames of one camera differ in that alone.
    """
    height, width = image.shape[:2]
    if light.lamps > 0:
        image = _bloom(image)
    if light.wet > 0:
        image = _drops(image, rng)
    sigma = rng.uniform(*domain.sensor_blur) * width / 512
    if sigma > 0.15:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    gain = rng.uniform(*domain.exposure) * (1 + domain.white_balance * rng.uniform(-1, 1, 3))
    edge = rng.uniform(*domain.vignette)
    signal = image.astype(np.float32) * gain.astype(np.float32)
    if edge > 0:
        x = np.linspace(-1, 1, width, dtype=np.float32)
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        signal *= (1 - edge * (x * x + y * y) / 2)[..., None]
    noise = rng.uniform(*domain.noise)
    if noise > 0.1:
        # The sum of two uniform bytes is close enough to normal, and ten times as fast.
        pair = (grain or rng).integers(0, 256, (2, *signal.shape), np.uint8).astype(np.float32)
        signal += (pair[0] + pair[1] - 255) * np.float32(noise / 104.5)
    recorded: npt.NDArray[np.uint8] = np.clip(signal, 0, 255).astype(np.uint8)
    quality = int(rng.integers(domain.jpeg[0], domain.jpeg[1] + 1))
    if quality < 100:
        _, stream = cv2.imencode(".jpg", recorded[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        recorded = np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    return np.ascontiguousarray(recorded)


def _bloom(image: Canvas) -> Canvas:
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_AREA
    )
    glow = cv2.GaussianBlur(np.clip(small.astype(np.float32) - 190, 0, 65), (0, 0), width / 150)
    wide = cv2.resize(glow, (width, height))
    return np.asarray(cv2.add(image, np.clip(1.3 * wide, 0, 90).astype(np.uint8)), np.uint8)


def _drops(image: Canvas, rng: np.random.Generator) -> Canvas:
    """Rain streaks in the air and drops on the lens, where the image is blurred."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for x, y, r in rng.random((int(rng.integers(4, 16)), 3)):
        radius = max(int((0.006 + 0.016 * r) * width), 1)
        cv2.circle(mask, (int(x * width), int(y * height)), radius, 255, -1)
    blurred = cv2.blur(image, (width // 24 | 1, width // 24 | 1))
    out = np.where(mask[..., None] > 0, blurred, image)
    streaks = np.zeros((height, width), np.uint8)
    for x, y, r in rng.random((90, 3)):
        start = (int(x * width), int(y * height))
        end = (int((x + 0.004) * width), int((y + 0.02 + 0.05 * r) * height))
        cv2.line(streaks, start, end, 26)
    return np.asarray(cv2.add(out, cv2.merge([streaks] * 3)), np.uint8)
