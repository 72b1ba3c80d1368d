"""Results of a network that does not run, as sinks are given them."""

import time
from pathlib import Path

import cv2
import numpy as np

from edgeuda.data.footage import Frame
from edgeuda.records.watch import Alarm
from engines.live.capture import Tally
from engines.live.sinks import Result
from engines.live.watch import WatchState
from tiny_models import SPEC

BEGAN = 1_700_000_000_123_456_789
STAGES = {"waiting": 0.2, "resize": 0.5, "inference": 11.0, "upsample": 0.1, "total": 11.8}

ALARM = Alarm(6.0, None, "light", {"brightness": -9.1})
WATCHED = [
    None,
    WatchState(5.0, 0.4, "sharpness", None),
    WatchState(5.0, 0.4, "sharpness", None),
    WatchState(6.0, 1.5, "brightness", ALARM),
    WatchState(7.0, 1.2, "brightness", ALARM),
    WatchState(8.0, 0.3, "brightness", None),
]
"""What a watch says at each of six frames."""


class FakeRunner:
    """Takes a while and sees class 0 everywhere."""

    spec, head, precision, backend = SPEC, "labels", "fp32", "imaginary 1.0"

    def __init__(self, pause=0.0):
        self.pause, self.parts = pause, {}
        self.execution, self.fallbacks = {}, []

    def buffer(self, _batch=1):
        return None

    def __call__(self, images):
        time.sleep(self.pause)
        return np.zeros((len(images), 64, 128), np.uint8)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


def smooth(index, height=48, width=96):
    """A picture that moves, smooth enough for what compresses it."""
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 200 // height, columns * 200 // width, np.full_like(rows, 20 * (index % 10))]
    return np.stack(planes, -1).astype(np.uint8)


def noisy(index, height, width):
    """A picture that is as large as it looks."""
    rng = np.random.default_rng(index)
    return cv2.resize(rng.integers(0, 255, (height // 4, width // 4, 3), np.uint8), (width, height))


def result(index=0, height=48, width=96, image=None, **how):
    image = smooth(index, height, width) if image is None else image
    labels = np.full(image.shape[:2], index % len(SPEC.label_space), np.uint8)
    labels[: image.shape[0] // 2] = (index + 1) % len(SPEC.label_space)
    seconds = index / 10
    given = {
        "time_ns": BEGAN + round(1e9 * seconds),
        "stages": {**STAGES, "total": 11.8 + index},
        "tally": Tally(index + 3, index + 1, 2, 0, 1),
    } | how
    frame = Frame(Path("f"), f"f_{index:03d}", index, seconds, image)
    return Result(frame, seconds, labels, "30 frames/s", **given)
