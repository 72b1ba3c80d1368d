"""Rendered streets as evening falls: the camera's frames darker, bluer and noisier.

What falls is the light alone: shapes, textures and lamps stay as they were rendered.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeuda.data.images import Image, read_image, read_label, write_image, write_label
from edgeuda.errors import OutputError
from edgeuda.files import write_atomic
from edgeuda.records.dataset import DatasetRecord

LEAST_LIGHT = 0.22
"""Of the day's light, when it is dark."""
TINT = (0.85, 0.95, 1.2)
"""By which what is left of red, green and blue differs then."""
NOISE = 9.0
"""Standard deviation of the sensor's noise then, in grey levels."""
FOURCC = "FFV1"
"""Of a drive's video, which must be as lossless as the images that the network was made with."""


def evening(image: Image, late: float, seed: int) -> Image:
    """Return an image as it looks at an hour of the evening.

    Args:
        image: ``[H, W, 3]`` uint8 RGB, by day.
        late: 0 by day, 1 when it is dark.
        seed: Of the noise.

    Returns:
        ``[H, W, 3]`` uint8 RGB; the image itself by day.
    """
    if late <= 0:
        return image
    light = LEAST_LIGHT**late
    factors = light * np.array(TINT) ** late
    noise = np.random.default_rng(seed).normal(0, NOISE * late, image.shape)
    return np.asarray(np.clip(image * factors + noise, 0, 255).round(), np.uint8)


def falling(count: int) -> list[float]:
    """Return how late it is at each frame of a drive: a third by day, a third of dusk, then dark.

    Args:
        count: Number of frames.
    """
    return [min(max(3 * place / count - 1, 0.0), 1.0) for place in range(count)]


def write_evening(day: Path, out: Path, late: Sequence[float]) -> None:
    """Write a rendered folder as it looks in the evening; an interrupted call goes on.

    Args:
        day: Folder that `edgeuda.street.write_dataset` has written.
        out: Folder for the same images, darker, with the same labels.
        late: How late each is to be, in the order of their names, see `evening`.
    """
    record = out / DatasetRecord.FILE
    if record.exists():
        return
    images = sorted((day / "images").iterdir())
    for number, (image, hour) in enumerate(zip(images, late, strict=True)):
        label = out / "labels" / image.name
        if label.exists():  # it is written last
            continue
        write_image(out / "images" / image.name, evening(read_image(image), hour, number))
        write_label(label, read_label(day / "labels" / image.name))
    write_atomic(record, lambda path: shutil.copyfile(day / DatasetRecord.FILE, path))


def write_drive(images: Sequence[Path], out: Path, rate: float) -> None:
    """Write images as a lossless video, see `FOURCC`.

    Args:
        images: Of one size.
        out: The file, ``.mkv``; an earlier one is replaced.
        rate: Frames per second.

    Raises:
        OutputError: If this OpenCV cannot write it.
    """

    def write(path: Path) -> None:
        rows, columns = read_image(images[0]).shape[:2]
        code = cv2.VideoWriter.fourcc(*FOURCC)
        video = cv2.VideoWriter(str(path), code, rate, (columns, rows))
        if not video.isOpened():
            msg = f"{out}: this OpenCV writes no {FOURCC} video, which the drive needs"
            raise OutputError(msg)
        for image in images:
            video.write(read_image(image)[..., ::-1])
        video.release()

    write_atomic(out, write)
