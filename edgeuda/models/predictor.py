"""Segmentation of camera frames by a torch network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.data.images import Image, LabelMap, resize_image, resize_label
from edgeuda.errors import ConfigError
from edgeuda.evaluation import DEPLOYED
from edgeuda.spec import ModelSpec, Preprocessing


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn ``[N, 3, H, W]`` RGB in [0, 1] into the network's input, same shape."""
    mean = images.new_tensor(preprocessing.mean).view(1, 3, 1, 1)
    std = images.new_tensor(preprocessing.std).view(1, 3, 1, 1)
    return (images - mean) / std


def to_tensor(image: Image) -> Tensor:
    """Turn an ``[H, W, 3]`` uint8 image into a ``[3, H, W]`` float tensor in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255)


@dataclass(frozen=True)
class Predictor:
    """Callable that maps a frame of any size to its label map of the same size."""

    model: nn.Module
    spec: ModelSpec

    @torch.inference_mode()
    def __call__(self, frame: Image) -> LabelMap:
        """Segment one ``[H, W, 3]`` uint8 frame; returns ``[H, W]`` uint8 ids."""
        pre = self.spec.preprocessing
        device = next(self.model.parameters()).device
        x = to_tensor(resize_image(frame, pre.height, pre.width))[None].to(device)
        labels = self.model(normalise(x, pre)).main.argmax(1)[0]
        return resize_label(labels.to(torch.uint8).cpu().numpy().astype(np.uint8), *frame.shape[:2])


@dataclass(frozen=True)
class TestTime:
    """How papers predict, where more than one pass per frame is allowed.

    Attributes:
        scales: The frame, or with ``window`` the native frame, is seen at these sizes.
        flip: Whether the mirror image is seen too.
        window: Whether a window of the network's input size slides over the frame at its native
            resolution instead of the frame being resized; neighbours overlap by a third.
        native: Whether scores, not labels, are resized to the frame. Implied by the others.
    """

    __test__ = False  # no test, whatever its name says to pytest

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: bool = False
    native: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 4 for scale in self.scales):
            msg = f"Scales: expected numbers from 0.1 to 4, found {list(self.scales)}"
            raise ConfigError(msg)

    @property
    def protocol(self) -> str:
        """The settings in words, for records and tables."""
        parts = []
        if self.scales != (1.0,):
            parts.append("scales " + " ".join(f"{scale:g}" for scale in self.scales))
        parts += ["flip"] * self.flip + ["sliding window"] * self.window
        if self.native and not parts:
            parts.append("scores at native resolution")
        return ", ".join(parts) or DEPLOYED


@dataclass(frozen=True)
class ScorePredictor:
    """Callable like `Predictor` that averages probabilities over views, at the frame's own size."""

    model: nn.Module
    spec: ModelSpec
    how: TestTime

    @torch.inference_mode()
    def __call__(self, frame: Image) -> LabelMap:
        """Segment one ``[H, W, 3]`` uint8 frame; returns ``[H, W]`` uint8 ids."""
        pre, size = self.spec.preprocessing, frame.shape[:2]
        total = torch.zeros(())
        for scale in self.how.scales:
            base = size if self.how.window else (pre.height, pre.width)
            height, width = (max(32, round(side * scale / 32) * 32) for side in base)
            if self.how.window:
                height, width = max(height, pre.height), max(width, pre.width)
            scores = self._scores(resize_image(frame, height, width))
            total = total + F.interpolate(scores, size, mode="bilinear", align_corners=False)
        return total.argmax(1)[0].to(torch.uint8).cpu().numpy().astype(np.uint8)

    def _scores(self, image: Image) -> Tensor:
        """Return the probabilities of one resized image, ``[1, K, h, w]``."""
        x = to_tensor(image)[None].to(next(self.model.parameters()).device)
        if not self.how.window:
            return self._views(x)
        pre = self.spec.preprocessing
        total, count = torch.zeros(()), torch.zeros(())
        for top, left in windows(image.shape[0], image.shape[1], pre.height, pre.width):
            at = (..., slice(top, top + pre.height), slice(left, left + pre.width))
            found = self._views(x[at])
            if not total.ndim:
                total = found.new_zeros((1, found.shape[1], *image.shape[:2]))
                count = found.new_zeros((1, 1, *image.shape[:2]))
            total[at] += found
            count[at] += 1
        return total / count

    def _views(self, x: Tensor) -> Tensor:
        x = normalise(x, self.spec.preprocessing)
        scores: Tensor = self.model(x).main.softmax(1)
        if self.how.flip:
            scores = (scores + self.model(x.flip(3)).main.softmax(1).flip(3)) / 2
        return scores


def windows(height: int, width: int, rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield top and left of windows that cover an image, neighbours overlapping by a third.

    Args:
        height: Of the image, at least ``rows``.
        width: Of the image, at least ``columns``.
        rows: Of a window.
        columns: Of a window.
    """

    def starts(whole: int, part: int) -> list[int]:
        count = 1 + -(-(whole - part) // max(1, part * 2 // 3))
        return [round(i * (whole - part) / max(1, count - 1)) for i in range(count)]

    for top in starts(height, rows):
        for left in starts(width, columns):
            yield top, left
