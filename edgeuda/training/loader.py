"""Batches as a function of the step: sampling, decoding, geometric views.

Everything a batch holds follows from the seed and the step's number, so a resumed run sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgeuda.data.folders import LabelledFolder, parallel
from edgeuda.data.images import Image, LabelMap, read_image, resize_image, resize_label
from edgeuda.labels import IGNORE
from edgeuda.methods.base import Batch

CACHE_BYTES = 2 << 30
"""Images are kept decoded, at network size, if a domain fits in this."""


@dataclass(frozen=True)
class Views:
    """Geometric views: ``crop`` (rows, columns), ``scales`` and ``flip`` as in the recipe."""

    crop: tuple[int, int]
    scales: tuple[float, ...]
    flip: float


class Images:
    """A domain's images at network size, decoded once if they fit in memory.

    Args:
        data: A labelled folder, or the files of unlabelled frames.
        size: Rows and columns of what `__getitem__` returns.
    """

    def __init__(self, data: LabelledFolder | Sequence[Path], size: tuple[int, int]) -> None:
        self._data = data
        self._size = size
        self.names = tuple(
            str(item.image if not isinstance(item, Path) else item)
            for item in (data.pairs if isinstance(data, LabelledFolder) else data)
        )
        labelled = isinstance(data, LabelledFolder)
        fits = len(self.names) * size[0] * size[1] * (4 if labelled else 3) <= CACHE_BYTES
        self._cache = parallel(self._read, range(len(self.names))) if fits else None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, LabelMap | None]:
        return self._read(index) if self._cache is None else self._cache[index]

    def _read(self, index: int) -> tuple[Image, LabelMap | None]:
        if isinstance(self._data, LabelledFolder):
            image, label = self._data.read(index)
            return resize_image(image, *self._size), resize_label(label, *self._size)
        return resize_image(read_image(self._data[index]), *self._size), None

    def labels(self) -> Iterator[LabelMap]:
        """Yield the label maps of a labelled domain."""
        for index in range(len(self)):
            label = self[index][1]
            if label is not None:
                yield label


def geometric(
    image: Image, label: LabelMap | None, views: Views, rng: np.random.Generator
) -> tuple[Image, LabelMap]:
    """Scale, crop and flip an image and its label map (all 255 if there is none) alike."""
    rows, columns = views.crop
    height, width = image.shape[:2]
    least = max(rows / height, columns / width)
    scale = max(float(rng.choice(views.scales)), least)
    size = max(rows, round(height * scale)), max(columns, round(width * scale))
    top = int(rng.integers(size[0] - rows + 1))
    left = int(rng.integers(size[1] - columns + 1))
    window = np.s_[top : top + rows, left : left + columns]
    flip = rng.random() < views.flip
    if size != (height, width):
        image = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    image = image[window]
    if label is None:
        label = np.full((rows, columns), IGNORE, np.uint8)
    else:
        label = resize_label(label, *size)[window]
    if flip:
        image, label = image[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def sample(count: int, batch: int, step: int, seed: int, domain: int) -> list[int]:
    """Return the indices of a step: consecutive slices of one permutation per epoch."""
    indices = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        indices.append(int(_permutation(count, seed, domain, epoch)[place]))
    return indices


@lru_cache(maxsize=4)  # two domains, and the epoch a batch may straddle
def _permutation(count: int, seed: int, domain: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, domain, epoch]).permutation(count)


Arrays = tuple[Tensor, Tensor, Tensor | None, tuple[str, ...]]


class StepData(Dataset[Arrays]):
    """Item ``step`` is that step's images as uint8 tensors.

    Args:
        source: Labelled source images.
        target: Target images, or None in supervised training.
        batch: Images per domain.
        views: Geometric views of both domains.
        seed: Seed of sampling and views.
        steps: Length.
    """

    def __init__(
        self, source: Images, target: Images | None, batch: int, views: Views, seed: int, steps: int
    ) -> None:
        self.domains = (source,) if target is None else (source, target)
        self.batch, self.views, self.seed, self.steps = batch, views, seed, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Arrays:
        images: list[Tensor] = []
        labels: list[Tensor] = []
        names: list[str] = []
        for domain, data in enumerate(self.domains):
            chosen = sample(len(data), self.batch, step, self.seed, domain)
            rng = np.random.default_rng([self.seed, 2 + domain, step])
            pairs = [geometric(*data[index], self.views, rng) for index in chosen]
            images.append(torch.from_numpy(np.stack([image for image, _ in pairs])))
            labels.append(torch.from_numpy(np.stack([label for _, label in pairs])))
            names.extend(data.names[index] for index in chosen)
        return images[0], labels[0], images[1] if len(images) > 1 else None, tuple(names)


def batches(
    data: StepData, start: int, device: torch.device, workers: int = 0
) -> Iterator[tuple[int, Batch]]:
    """Yield step numbers and batches from ``start`` to the end."""
    loader = DataLoader(
        data,
        sampler=range(start, len(data)),
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for step, (source, label, target, names) in zip(range(start, len(data)), loader, strict=True):
        yield (
            step,
            Batch(
                source=to_unit(source, device),
                source_label=label.to(device, torch.int64, non_blocking=True),
                target=None if target is None else to_unit(target, device),
                generator=step_generator(data.seed, step),
                names=names,
            ),
        )


def to_unit(images: Tensor, device: torch.device) -> Tensor:
    """Turn ``[N, H, W, 3]`` uint8 into ``[N, 3, H, W]`` float in [0, 1]."""
    moved = images.to(device, non_blocking=True)
    return moved.permute(0, 3, 1, 2).contiguous().float().div_(255)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step's random draws."""
    state = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)  # torch takes 63 bits
