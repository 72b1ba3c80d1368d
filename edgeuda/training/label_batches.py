"""Batches of frames that a network labels: read, predicted, selected, written, and followed.

What is worked out on a batch needs no other batch. What follows from the batches before, thresholds
and mean confidences, needs small counts of a batch only. So batches may be worked on anywhere and
in any order, as long as their counts are gone through in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeuda.data.images import Image, resize_image, resize_label, write_image, write_label
from edgeuda.data.treatment import as_shown
from edgeuda.labels import IGNORE
from edgeuda.methods.selection import (
    PATTERNS,
    InstanceAdaptive,
    SelectorSettings,
    balanced_thresholds,
    confidence_histogram,
    select,
)
from edgeuda.methods.teacher import Teacher
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.training.loader import sample, soft_label, to_unit

Size = tuple[int, int]
MOMENTUM = 0.99
"""Of the mean confidence of a class over batches, as released with HIAST."""


@dataclass(frozen=True, eq=False)
class Read:
    """A frame that could be read.

    Attributes:
        index: Its number.
        image: ``[h, w, 3]`` uint8 RGB at network size.
        size: Rows and columns of its label map, None for the network's.
    """

    index: int
    image: Image
    size: Size | None


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a network says about a batch of N frames.

    Attributes:
        frames: The frames, without those that could not be read.
        confidence: ``[N, H, W]`` float32 of the likeliest class.
        label: ``[N, H, W]`` int32, that class.
        probability: ``[N, K, H, W]`` float32; no frames unless it is asked for.
    """

    frames: list[Read]
    confidence: Tensor
    label: Tensor
    probability: Tensor


@dataclass(frozen=True, eq=False)
class Selected:
    """What was selected of a batch, and what is counted of it.

    Attributes:
        frames: As in `Predicted`.
        label: ``[N, H, W]`` uint8, 255 where the network is not sure.
        soft: Soft labels of each frame, see `edgeuda.training.loader.soft_label`; or none.
        count: ``[K]`` int64 selected pixels.
        total: ``[K]`` float64, their confidences added up.
    """

    frames: list[Read]
    label: npt.NDArray[np.uint8]
    soft: list[npt.NDArray[np.uint8]]
    count: Tensor
    total: Tensor


@dataclass(frozen=True)
class Labeller:
    """A network that labels batches, and where their label maps go.

    Attributes:
        teacher: The network.
        spec: Its spec.
        folder: Where ``labels/`` and ``soft/`` go.
        device: Where to compute.
        soft: Whether the probabilities of all classes are written too.
    """

    teacher: Teacher
    spec: ModelSpec
    folder: Path
    device: torch.device
    soft: bool = False

    def predict(self, frames: list[Read]) -> Predicted:
        """Ask the network about a batch, from which frames may be missing."""
        pre = self.spec.preprocessing
        blank = np.zeros((pre.height, pre.width, 3), np.uint8)  # if all of a batch are broken
        images = np.stack([one.image for one in frames] or [blank])
        probability = self.teacher.probabilities(
            to_unit(torch.from_numpy(images), self.device), pre
        )
        confidence, label = probability.max(1)
        count = len(frames)
        return Predicted(
            frames, confidence[:count], label[:count].int(),  # half the memory to read twice
            probability[: count if self.soft else 0],
        )  # fmt: skip

    def histogram(self, found: Predicted) -> Tensor:
        """Return ``[K, PATTERNS]`` int64, see `confidence_histogram`."""
        return confidence_histogram(found.confidence, found.label, len(self.spec.label_space))

    def select(self, found: Predicted, thresholds: Tensor) -> Selected:
        """Keep the pixels at or above the thresholds ``[K]`` float64 of their classes."""
        pre, classes = self.spec.preprocessing, len(self.spec.label_space)
        chosen = select(found.confidence, found.label, thresholds)
        known = chosen != IGNORE
        label = chosen[known].long()
        return Selected(
            found.frames,
            chosen.cpu().numpy(),
            [soft_label(one, (pre.height, pre.width)) for one in found.probability],
            torch.bincount(label, minlength=classes),
            torch.bincount(label, found.confidence[known].double(), classes),
        )

    def write(self, batch: Selected, names: Sequence[str]) -> list[list[int]]:
        """Write a batch's label maps; returns the pixels of each class at network size.

        Args:
            batch: What was selected.
            names: Label file of each of its frames.
        """
        for name, stacked in zip(names, batch.soft, strict=False):  # none unless asked for
            write_label(self.folder / "soft" / name, stacked)
        rows = []
        for frame, name, label in zip(batch.frames, names, batch.label, strict=True):
            pixels = np.bincount(label.ravel(), minlength=256)[: len(self.spec.label_space)]
            rows.append(pixels.tolist())
            sized = label if frame.size is None else resize_label(label, *frame.size)
            write_label(self.folder / "labels" / name, sized)
        return rows


@dataclass
class Followed:
    """What is carried from batch to batch.

    Attributes:
        settings: Which pixels get a label.
        thresholds: ``[K]`` float64 for the last batch.
        mean: ``[K]`` float64 mean confidence of the selected pixels; 0 before the first.
    """

    settings: SelectorSettings
    thresholds: Tensor
    mean: Tensor
    _rule: InstanceAdaptive = field(init=False)

    def __post_init__(self) -> None:
        """Take the rule's parameters from the settings."""
        one = self.settings
        self._rule = InstanceAdaptive(one.keep, one.history, one.hardness, one.initial)

    @classmethod
    def start(cls, settings: SelectorSettings, classes: int, device: torch.device) -> Followed:
        """Return the state before the first batch."""
        first = 0.0 if settings.selector == "all" else settings.initial
        return cls(
            settings,
            torch.full((classes,), first, dtype=torch.float64, device=device),
            torch.zeros(classes, dtype=torch.float64, device=device),
        )

    @property
    def by_batch(self) -> bool:
        """Whether each batch moves the thresholds."""
        return self.settings.selector == "instance-adaptive"

    @property
    def by_all(self) -> bool:
        """Whether thresholds follow from all batches before any is selected."""
        return self.settings.selector == "class-balanced"

    def balance(self, total: Tensor) -> None:
        """Set the thresholds from the histogram ``[K, PATTERNS]`` int64 of all frames."""
        self.thresholds = balanced_thresholds(total, self.settings.keep)

    def move(self, histogram: Tensor) -> Tensor:
        """Return the thresholds for a batch, from its histogram ``[K, PATTERNS]`` int64."""
        self.thresholds = self._rule.update(self.thresholds, histogram)
        return self.thresholds

    def go_on(self, line: dict[str, list[float]]) -> None:
        """Take up a pass where the last line of its log left it."""
        self.thresholds = self.thresholds.new_tensor(line["thresholds"])
        self.mean = self.mean.new_tensor(line["mean_confidence"])

    def follow(self, count: Tensor, total: Tensor) -> None:
        """Move the mean confidences by what a batch counted; a class's first batch sets its own."""
        batch = total / count.clamp(min=1)
        moved = torch.where(self.mean > 0, MOMENTUM * self.mean + (1 - MOMENTUM) * batch, batch)
        self.mean = torch.where(count > 0, moved, self.mean)

    def line(self) -> dict[str, list[float]]:
        """Return what the log of a pass notes of a batch."""
        return {"thresholds": self.thresholds.tolist(), "mean_confidence": self.mean.tolist()}


def empty_histogram(classes: int, device: torch.device) -> Tensor:
    """Return ``[K, PATTERNS]`` int64 zeros."""
    return torch.zeros(classes, PATTERNS, dtype=torch.int64, device=device)


def grouped(count: int, seed: int, batch: int) -> list[list[int]]:
    """Return the frames of each batch, in an order drawn from the seed."""
    order = sample(count, range(count), seed, 0)
    return [order[first : first + batch] for first in range(0, count, batch)]


def as_read(
    index: int, image: Image, origin: Path, fed: Preprocessing, written: Path | None
) -> Read:
    """Return a frame as a model is shown it, its label map to be of its own size.

    Args:
        index: Its number.
        image: ``[H, W, 3]`` uint8 RGB.
        origin: Its file.
        fed: What is done to it.
        written: File to which the frame is written as the model is shown it, unless it is there;
            None for none.

    Raises:
        DataError: See `as_shown`.
    """
    image = as_shown(image, origin, fed.geometry)
    if written is not None and not written.exists():
        write_image(written, image)
    rows, columns = image.shape[:2]
    return Read(index, resize_image(image, fed.height, fed.width), (rows, columns))
