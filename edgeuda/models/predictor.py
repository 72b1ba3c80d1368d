"""Segmentation of camera frames by a torch network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.accuracy.evaluation import DEPLOYED
from edgeuda.data.images import Image, LabelMap, resize_image, resize_label
from edgeuda.errors import ConfigError
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
class Probabilities:
    """Callable that maps a frame to its class probabilities, where the network computes them."""

    model: nn.Module
    spec: ModelSpec

    @torch.inference_mode()
    def __call__(self, image: Image) -> npt.NDArray[np.float32]:
        """Return ``[K, h, w]`` float32 for ``[H, W, 3]`` uint8 of the network's input size."""
        device = next(self.model.parameters()).device
        x = normalise(to_tensor(image)[None].to(device), self.spec.preprocessing)
        scores: Tensor = self.model(x, upsample=False).main
        return np.asarray(scores.float().softmax(1)[0].cpu().numpy(), np.float32)


@dataclass(frozen=True)
class TestTime:
    """How papers predict, where more than one pass per frame is allowed.

    Sizes are exact and keep the aspect; what a network cannot take is filled up with the mean
    colour, whose scores are dropped.

    Attributes:
        scales: The frame resized to the network's input, or with ``window`` the native frame, is
            seen at these sizes.
        flip: Whether the mirror image is seen too.
        window: Whether a window slides over the frame at its native resolution instead of the frame
            being resized to the network's input.
        native: Whether scores, not labels, are resized to the frame. Implied by the others.
        window_size: Rows and columns of the window, multiples of 32; None takes the network's
            input.
        stride: From a window to the next, as a share of its side; as released with TUFL.
    """

    __test__ = False  # no test, whatever its name says to pytest

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: bool = False
    native: bool = False
    window_size: tuple[int, int] | None = None
    stride: float = 5 / 6

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 4 for scale in self.scales):
            msg = f"Scales: expected numbers from 0.1 to 4, found {list(self.scales)}"
            raise ConfigError(msg)
        if self.window_size is not None and not self.window:
            msg = f"Window of {self.window_size}: expected a sliding window (`window`) to size"
            raise ConfigError(msg)
        if self.window_size is not None and any(s < 32 or s % 32 for s in self.window_size):
            found = "x".join(map(str, self.window_size))
            msg = f"Window: expected rows and columns that are multiples of 32, found {found}"
            raise ConfigError(msg)
        if not 0.1 <= self.stride <= 1:
            msg = f"Stride of the window: expected a share from 0.1 to 1, found {self.stride:g}"
            raise ConfigError(msg)

    @property
    def protocol(self) -> str:
        """The settings in words, for records and tables."""
        parts = []
        if self.scales != (1.0,):
            parts.append("scales " + " ".join(f"{scale:g}" for scale in self.scales))
        parts += ["flip"] * self.flip
        if self.window:
            size = "" if self.window_size is None else " {}x{}".format(*self.window_size)
            parts.append(f"sliding window{size}")
        if self.native and not parts:
            parts.append("scores at native resolution")
        return ", ".join(parts) or DEPLOYED


class Pass(NamedTuple):
    """How a frame was looked at.

    Attributes:
        frame: Its rows and columns.
        scale: One of `TestTime.scales`.
        seen: Rows and columns that it was resized to.
        window: Rows and columns of what the network was given at once.
        windows: How many of these there were; the mirror image is not counted.
    """

    frame: tuple[int, int]
    scale: float
    seen: tuple[int, int]
    window: tuple[int, int]
    windows: int


@dataclass(frozen=True)
class ScorePredictor:
    """Callable like `Predictor` that averages probabilities over views, at the frame's own size.

    Attributes:
        model: The network.
        spec: Its spec.
        how: Views.
        passes: What was really done so far, with the number of frames.
    """

    model: nn.Module
    spec: ModelSpec
    how: TestTime
    passes: Counter[Pass] = field(default_factory=Counter)

    @torch.inference_mode()
    def __call__(self, frame: Image) -> LabelMap:
        """Segment one ``[H, W, 3]`` uint8 frame; returns ``[H, W]`` uint8 ids."""
        pre, size = self.spec.preprocessing, (frame.shape[0], frame.shape[1])
        total = torch.zeros(())
        for scale in self.how.scales:
            base = size if self.how.window else (pre.height, pre.width)
            seen = (max(1, round(base[0] * scale)), max(1, round(base[1] * scale)))
            window = seen
            if self.how.window:
                window = self.how.window_size or (pre.height, pre.width)
            window = (_up_to_32(window[0]), _up_to_32(window[1]))
            scores, count = self._scores(resize_image(frame, *seen), window)
            total = total + F.interpolate(scores, size, mode="bilinear", align_corners=False)
            self.passes[Pass(size, scale, seen, window, count)] += 1
        return total.argmax(1)[0].to(torch.uint8).cpu().numpy().astype(np.uint8)

    def passes_record(self) -> list[dict[str, Any]]:
        """Return the passes as JSON: frame, scale, seen, window and windows, and ``frames``."""
        return [{**found._asdict(), "frames": count} for found, count in self.passes.items()]

    def _scores(self, image: Image, window: tuple[int, int]) -> tuple[Tensor, int]:
        """Return the probabilities of one resized image, ``[1, K, h, w]``, and the windows."""
        x = normalise(to_tensor(image)[None], self.spec.preprocessing)
        x = x.to(next(self.model.parameters()).device)
        rows, columns = image.shape[:2]
        # The image lies in the middle of a canvas that is no smaller than the window.
        height, width = max(rows, window[0]), max(columns, window[1])
        top, left = (height - rows) // 2, (width - columns) // 2
        x = F.pad(x, (left, width - columns - left, top, height - rows - top))
        total, count, places = torch.zeros(()), torch.zeros(()), 0
        for y0, x0 in windows(height, width, *window, self.how.stride):
            at = (..., slice(y0, y0 + window[0]), slice(x0, x0 + window[1]))
            found = self._views(x[at])
            if not places:
                total = found.new_zeros((1, found.shape[1], height, width))
                count = found.new_zeros((1, 1, height, width))
            total[at] += found
            count[at] += 1
            places += 1
        inside = (..., slice(top, top + rows), slice(left, left + columns))
        return (total / count)[inside], places

    def _views(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x).main.softmax(1)
        if self.how.flip:
            scores = (scores + self.model(x.flip(3)).main.softmax(1).flip(3)) / 2
        return scores


def windows(
    height: int, width: int, rows: int, columns: int, stride: float
) -> Iterator[tuple[int, int]]:
    """Yield top and left of windows that cover an image; the last ends at its edge.

    Args:
        height: Of the image, at least ``rows``.
        width: Of the image, at least ``columns``.
        rows: Of a window.
        columns: Of a window.
        stride: From a window to the next, as a share of its side.
    """

    def starts(whole: int, part: int) -> list[int]:
        step = math.ceil(part * stride)
        count = 1 + math.ceil((whole - part) / step)
        return [min(index * step, whole - part) for index in range(count)]

    for top in starts(height, rows):
        for left in starts(width, columns):
            yield top, left


def _up_to_32(side: int) -> int:
    return -(-side // 32) * 32
