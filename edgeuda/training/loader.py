"""Batches as a function of the step: sampling, decoding, geometric views.

What an image is and how it is cut follows from the seed and its position in the domain's endless
stream, so a resumed run sees what an uninterrupted one would have seen, and several ranks see
together what one rank with their joint batch would have seen. Of shards that ranks share, each has
a stream of its own, see `edgeuda.data.shares`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from edgeuda.data.folders import LabelledFolder, ahead, parallel, spread
from edgeuda.data.frames import FrameFolder
from edgeuda.data.images import (
    Image,
    LabelMap,
    read_image,
    read_label,
    resize_image,
    resize_label,
)
from edgeuda.data.replay import ReplayedFrames
from edgeuda.errors import DataError
from edgeuda.files import stamp
from edgeuda.methods.base import Batch

CACHE_BYTES = 2 << 30
"""Images are kept decoded, at network size, if a domain fits in this."""
PARTS = 8
"""Between the numbers of the streams of a domain's parts; domains are below."""
OWN_STREAMS = 1000
"""Between the numbers of the streams of ranks that have their own; domains and parts are below."""
LOOKED_AT = 64
"""Frames of a larger target that are looked at before anything learns from it."""


@dataclass(frozen=True)
class Views:
    """Geometric views: ``crop`` (rows, columns), ``scales`` and ``flip`` as in the recipe."""

    crop: tuple[int, int]
    scales: tuple[float, ...]
    flip: float


class Images:
    """A domain's images at network size, decoded once if they fit in memory.

    In the place of a frame that cannot be read stands the next one that can.

    Attributes:
        names: Names of the files.
        footage: The frames, of which some may turn out to be broken; None where none may.

    Args:
        data: A labelled folder, or the files of unlabelled frames.
        size: Rows and columns of what `__getitem__` returns.
    """

    names: Sequence[str]
    footage: FrameFolder | None = None

    def __init__(self, data: LabelledFolder | Sequence[Path], size: tuple[int, int]) -> None:
        self._data = data
        self._size = size
        if isinstance(data, LabelledFolder):
            self.names, channels = tuple(str(pair.image) for pair in data.pairs), 4
        else:
            self.names, channels = _Names(data), 3
        fits = len(self.names) * size[0] * size[1] * channels <= CACHE_BYTES
        self._cache = None
        if isinstance(data, FrameFolder):
            fits = fits and data.ranks == 1  # else all shards would be opened
            self.footage = data
            if not (fits or data.whole):
                data.sample(LOOKED_AT)
            data.whole = True
        if fits:
            self._cache = parallel(self._read, range(len(self.names)))
            if self.footage is not None:
                self.footage.judge()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, LabelMap | None]:
        return self._read(index) if self._cache is None else self._cache[index]

    def _read(self, index: int) -> tuple[Image, LabelMap | None]:
        if isinstance(self._data, LabelledFolder):
            image, label = self._data.read(index)
            return resize_image(image, *self._size), resize_label(label, *self._size)
        if isinstance(self._data, FrameFolder):
            frame = self._data.read(index)
            assert frame is not None
            return resize_image(frame, *self._size), None
        return resize_image(read_image(self._data[index]), *self._size), None

    def resized(self, size: tuple[int, int]) -> Images:
        """Return the same images at another size."""
        return self if size == self._size else Images(self._data, size)

    def identity(self) -> Iterator[str]:
        """Yield what tells these images and their labels from others."""
        frames = self.footage
        if frames is not None and (frames.ranks > 1 or isinstance(frames, ReplayedFrames)):
            yield from frames.identity()
            return
        yield from self.names
        yield self.stamp

    @property
    def common(self) -> Sequence[int]:
        """The images that every rank can look at."""
        return range(len(self)) if self.footage is None else self.footage.common

    def portion(self, rank: int, ranks: int) -> Sequence[int]:
        """Return the images that a rank works on where each is to be worked on once."""
        if self.footage is not None and self.footage.ranks > 1:
            return self.footage.own
        return range(rank, len(self), ranks)

    @cached_property
    def stamp(self) -> str:
        """Checksum of the files, see `edgeuda.files.stamp`."""
        if isinstance(self._data, LabelledFolder | FrameFolder):
            return self._data.stamp
        return stamp(self._data)

    def draw(self, positions: range, seed: int, domain: int) -> list[int]:
        """Return the images at places of the domain's endless stream, each once per epoch.

        Where each rank has its share, every rank has a stream of its own: the places of one batch
        are taken as those of the rank's batches, one after the other.
        """
        frames = self.footage
        if isinstance(frames, ReplayedFrames):
            return _draw_in_shares(frames, positions, seed, domain)
        if frames is None or frames.ranks == 1:
            return sample(len(self), positions, seed, domain)
        first = positions.start // (len(positions) * frames.ranks) * len(positions)
        places = range(first, first + len(positions))
        stream = domain + OWN_STREAMS * (1 + frames.rank)
        return [frames.own[place] for place in sample(len(frames.own), places, seed, stream)]

    def draw_common(self, positions: range, seed: int) -> list[int]:
        """Return images at places of the one stream that all ranks look at together."""
        if self.footage is None or self.footage.ranks == 1:
            return self.draw(positions, seed, 0)
        return [self.common[place] for place in sample(len(self.common), positions, seed, 0)]

    def evenly(self, count: int) -> list[int]:
        """Return at most ``count`` of the images that every rank can look at, evenly spread."""
        if not isinstance(self.footage, ReplayedFrames):
            return spread(self.common, count)
        frames = self.footage
        both = zip(frames.parts, frames.divided(count), strict=True)
        return [index for part, own in both for index in spread(part, own)]

    def labels(self) -> Iterator[LabelMap]:
        """Yield the label maps of a labelled domain."""
        for _, label in ahead(self.__getitem__, range(len(self))):
            if label is not None:
                yield label


class _Names(Sequence[str]):
    """The names of many files, made when they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = self._files[index]
        return str(found) if isinstance(found, Path) else [str(path) for path in found]


class Joined(Images):
    """Several domains' images as one, drawn by weight.

    Which part a place of the stream belongs to is drawn; within a part each image comes once in so
    many of its places.

    Args:
        parts: The domains.
        weights: How often each is drawn, relative to the others.
    """

    def __init__(self, parts: Sequence[Images], weights: Sequence[float]) -> None:
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.names = tuple(name for part in parts for name in part.names)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._cache = None

    def _read(self, index: int) -> tuple[Image, LabelMap | None]:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return self.parts[part][index - int(self._starts[part])]

    def resized(self, size: tuple[int, int]) -> Images:
        """Return the same images at another size."""
        return Joined([part.resized(size) for part in self.parts], self.weights)

    def identity(self) -> Iterator[str]:
        """Yield the names and how often each part is drawn."""
        yield from self.names
        yield from (part.stamp for part in self.parts)
        yield from map(str, self.weights)

    def draw(self, positions: range, seed: int, domain: int) -> list[int]:
        """Return the images at places of the stream."""
        share = np.asarray(self.weights) / sum(self.weights)
        found = []
        for position in positions:
            rng = np.random.default_rng([seed, domain, position, 1])
            part = int(rng.choice(len(share), p=share))
            place = int(position * share[part])  # about the part's share of the places so far
            stream = domain + PARTS * (1 + part)
            (index,) = sample(len(self.parts[part]), range(place, place + 1), seed, stream)
            found.append(int(self._starts[part]) + index)
        return found


class Chosen(Images):
    """Some of a domain's images.

    Args:
        images: The domain.
        indices: Which.
    """

    def __init__(self, images: Images, indices: Sequence[int]) -> None:
        self.names = tuple(images.names[index] for index in indices)
        self._images, self._indices = images, indices
        self.footage = images.footage
        self._cache = None

    @cached_property
    def stamp(self) -> str:
        """That of the domain."""
        return self._images.stamp

    def resized(self, size: tuple[int, int]) -> Images:
        """Return the same images at another size."""
        return Chosen(self._images.resized(size), self._indices)

    def _read(self, index: int) -> tuple[Image, LabelMap | None]:
        return self._images[self._indices[index]]


class PseudoLabelled(Images):
    """Target frames with offline pseudo-labels; the label is ``[H, W, 2]``: class, confidence.

    Args:
        frames: The frames, decoded.
        folder: Holds ``labels`` and ``confidence``, PNG files named by the frame's number.
    """

    def __init__(self, frames: Images, folder: Path) -> None:
        self.names, self._frames, self._folder = frames.names, frames, folder
        self.footage = frames.footage
        self._cache = None

    def _read(self, index: int) -> tuple[Image, LabelMap | None]:
        planes = [read_label(self._folder / plane / f"{index:06d}.png") for plane in PSEUDO_PLANES]
        return self._frames[index][0], np.dstack(planes)


PSEUDO_PLANES = ("labels", "confidence")


class SoftLabelled(Images):
    """Target frames with soft labels made ahead; the label is ``[H, W, K]``: 255 is certain.

    Args:
        frames: The frames, decoded.
        labels: A PNG file for each, see `soft_label`.
        classes: K.
    """

    def __init__(self, frames: Images, labels: Sequence[Path], classes: int) -> None:
        self.names, self._frames, self._labels = frames.names, frames, labels
        self.footage = frames.footage
        self._classes = classes
        self._cache = None

    def _read(self, index: int) -> tuple[Image, LabelMap | None]:
        image = self._frames[index][0]
        stacked = read_label(self._labels[index])
        if len(stacked) % self._classes:
            msg = (
                f"{self._labels[index]}: expected the probabilities of {self._classes} classes one "
                f"below the other, found {len(stacked)} rows. Label the frames again"
            )
            raise DataError(msg)
        planes = stacked.reshape(self._classes, -1, stacked.shape[1])
        rows, columns = image.shape[:2]
        planes = np.ascontiguousarray(planes.transpose(1, 2, 0))
        return image, np.asarray(cv2.resize(planes, (columns, rows)), np.uint8)


def soft_label(probability: Tensor, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return soft labels as a file holds them: the classes one below the other, 255 is certain.

    They are kept at half of a network's input size, for networks decide at an eighth.

    Args:
        probability: ``[K, H, W]``.
        size: Rows and columns of the input of the network that will learn.

    Returns:
        ``[K * h, w]`` uint8.
    """
    half = [side // 2 for side in size]
    small = F.interpolate(probability[None].float(), half, mode="bilinear", antialias=True)[0]
    return (255 * small.flatten(0, 1)).round().byte().cpu().numpy()


class LabelledBy(Images):
    """Images of another domain with labels of their own.

    Args:
        images: Decoded.
        labels: ``[H, W]`` uint8 label file of each image, at network size.
    """

    def __init__(self, images: Images, labels: Sequence[Path]) -> None:
        self.names, self._frames, self._labels = images.names, images, labels
        self.footage = images.footage
        self._cache = None

    def _read(self, index: int) -> tuple[Image, LabelMap | None]:
        return self._frames[index][0], read_label(self._labels[index])


def geometric(
    image: Image, label: LabelMap | None, views: Views, rng: np.random.Generator
) -> tuple[Image, LabelMap | None]:
    """Scale, crop and flip an image and its label map, if it has one, alike."""
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
    image = image[window][:, :: -1 if flip else 1]
    if label is not None:
        label = np.ascontiguousarray(resize_label(label, *size)[window][:, :: -1 if flip else 1])
    return np.ascontiguousarray(image), label


@dataclass(frozen=True)
class RareClasses:
    """Rare-class sampling: a class is drawn first, then one of the images that hold it.

    Attributes:
        probability: ``[K]``, summing to 1.
        holders: Per class, the indices of the images that hold it.
    """

    probability: npt.NDArray[np.float64]
    holders: tuple[npt.NDArray[np.int64], ...]

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64], temperature: float) -> RareClasses:
        """Make probabilities ``softmax((1 - frequency) / temperature)`` over what occurs.

        Source: Hoyer et al., "DAFormer", CVPR 2022.

        Args:
            counts: ``[M, K]`` pixels of each class in each image.
            temperature: The lower, the rarer the classes that are drawn.
        """
        total = counts.sum(0)
        logits = np.where(total > 0, (1 - total / max(1, total.sum())) / temperature, -np.inf)
        weights = np.exp(logits - logits.max())
        return cls(weights / weights.sum(), holders(counts))

    def draw(self, rng: np.random.Generator) -> int:
        """Return the index of an image."""
        drawn = int(rng.choice(self.probability.size, p=self.probability))
        return int(rng.choice(self.holders[drawn]))


def holders(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return, per class, the indices of the images that hold it, from ``[M, K]`` pixel counts."""
    return tuple(np.flatnonzero(column) for column in counts.T)


class ClassCrops:
    """Crops of source images that hold a given class, for long-tail class pasting.

    Args:
        images: The labelled source images.
        holders: Per class, the indices of the images that hold it.
        crop: Rows and columns.
    """

    def __init__(
        self,
        images: Images,
        holders: tuple[npt.NDArray[np.int64], ...],
        crop: tuple[int, int],
    ) -> None:
        self._images, self._holders, self._crop = images, holders, crop

    def __call__(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Cut a window around a random pixel of class ``index``; None if no image has it.

        Returns:
            ``[3, H, W]`` float in [0, 1] and ``[H, W]`` int64.
        """
        seed = int(torch.randint(2**62, (1,), generator=generator))
        holders = self._holders[index]
        if holders.size == 0:
            return None
        rng = np.random.default_rng(seed)
        image, label = self._images[int(rng.choice(holders))]
        assert label is not None
        views = Views(self._crop, (1.0,), 0.0)
        if image.shape[0] < self._crop[0] or image.shape[1] < self._crop[1]:
            image, label = geometric(image, label, views, rng)
            assert label is not None
        found = np.flatnonzero(label == index)
        row, column = divmod(int(rng.choice(found)), label.shape[1]) if found.size else (0, 0)
        top, left = (
            int(rng.integers(max(0, at - side + 1), min(at, whole - side) + 1))
            for at, side, whole in zip((row, column), self._crop, label.shape, strict=True)
        )
        window = np.s_[top : top + self._crop[0], left : left + self._crop[1]]
        pixels = torch.from_numpy(np.ascontiguousarray(image[window]))
        return (
            pixels.permute(2, 0, 1).float().div_(255),
            torch.from_numpy(np.ascontiguousarray(label[window])).long(),
        )


def sample(count: int, positions: range, seed: int, domain: int) -> list[int]:
    """Return the indices at positions of a domain's stream: one permutation per epoch."""
    indices = []
    for position in positions:
        epoch, place = divmod(position, count)
        indices.append(int(_permutation(count, seed, domain, epoch)[place]))
    return indices


def _draw_in_shares(frames: ReplayedFrames, positions: range, seed: int, domain: int) -> list[int]:
    """Return new and old frames at positions of a domain's stream; each part has one of its own."""
    found = []
    for position in positions:
        part, place = frames.drawn(position)
        own, numbered = frames.parts[part], domain + PARTS * (1 + part)
        found.append(own[sample(len(own), range(place, place + 1), seed, numbered)[0]])
    return found


@lru_cache(maxsize=16)  # three domains, their parts, and the epoch a batch may straddle
def _permutation(count: int, seed: int, domain: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, domain, epoch]).permutation(count)


Domain = tuple[Tensor, Tensor | None]
Arrays = tuple[tuple[Domain, ...], tuple[str, ...], tuple[tuple[int, str], ...]]
"""Tensors by domain, names of the images, and frames that turned out to be broken, with reasons."""
Augment = Callable[[Image, LabelMap | None, np.random.Generator], tuple[Image, LabelMap | None]]


class StepData(Dataset[Arrays]):
    """Item ``i`` is the i-th batch as uint8 tensors; a step takes ``accumulate`` of them.

    Args:
        source: Labelled images.
        target: Target images, or None in supervised training. Their labels, where they have any,
            are pseudo-labels.
        batch: Images per domain and rank.
        views: Geometric views of both domains.
        seed: Seed of sampling and views.
        steps: Steps.
        accumulate: Batches per step.
        rare: How source images are drawn; None takes each once per epoch.
        crop: Crops for long-tail pasting; None if there is none.
        labelled: More labelled images, or None.
        augment: Changes a labelled image and its label before the geometric views, or None.
    """

    def __init__(
        self,
        source: Images,
        target: Images | None,
        batch: int,
        views: Views,
        seed: int,
        steps: int,
        accumulate: int = 1,
        rare: RareClasses | None = None,
        crop: ClassCrops | None = None,
        labelled: Images | None = None,
        augment: Augment | None = None,
    ) -> None:
        roles = {"source": source, "target": target, "labelled": labelled}
        self.roles = tuple(role for role, images in roles.items() if images is not None)
        self.domains = tuple(images for images in roles.values() if images is not None)
        self.augment = augment
        self.batch, self.views, self.seed = batch, views, seed
        self.steps, self.accumulate = steps, accumulate
        self.rare, self.crop = rare, crop
        self.rank, self.ranks = 0, 1

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def positions(self, item: int) -> range:
        """Return the places of a batch's images in the stream."""
        first = (item * self.ranks + self.rank) * self.batch
        return range(first, first + self.batch)

    @property
    def footage(self) -> FrameFolder | None:
        """Frames of which some may turn out to be broken."""
        return next((one.footage for one in self.domains if one.footage is not None), None)

    def __getitem__(self, item: int) -> Arrays:
        footage = self.footage
        if footage is None:
            return *self._batch(item), ()
        known = len(footage.broken)
        try:
            domains, names = self._batch(item)
        except DataError:
            if not footage.quiet or not footage.too_many:
                raise
            domains, names = (), ()  # whoever asked says what is wrong
        return domains, names, tuple(islice(footage.broken.items(), known, None))

    def _batch(self, item: int) -> tuple[tuple[Domain, ...], tuple[str, ...]]:
        domains: list[Domain] = []
        names: list[str] = []
        positions = self.positions(item)
        for domain, data in enumerate(self.domains):
            chosen = data.draw(positions, self.seed, domain)
            pairs = []
            for place, position in enumerate(positions):
                rng = np.random.default_rng([self.seed, 2 + domain, position])
                if domain == 0 and self.rare is not None:
                    chosen[place] = self.rare.draw(rng)
                image, label = data[chosen[place]]
                if domain == 0 and self.augment is not None:
                    image, label = self.augment(image, label, rng)
                pairs.append(geometric(image, label, self.views, rng))
            images = torch.from_numpy(np.stack([image for image, _ in pairs]))
            labels = [label for _, label in pairs if label is not None]
            domains.append((images, torch.from_numpy(np.stack(labels)) if labels else None))
            names.extend(data.names[index] for index in chosen)
        return tuple(domains), tuple(names)


def batches(data: StepData, start: int, device: torch.device, workers: int = 0) -> Iterator[Batch]:
    """Yield the batches from item ``start`` to the end."""
    items = range(start, len(data))
    loader = DataLoader(
        data,
        sampler=items,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_quiet,
    )
    footage = data.footage
    soft = "target" in data.roles and isinstance(data.domains[1], SoftLabelled)

    def label(planes: Tensor | None) -> Tensor | None:
        return None if planes is None else planes.to(device, torch.int64, non_blocking=True)

    for item, (domains, names, broken) in zip(items, loader, strict=True):
        if broken and footage is not None:
            for index, why in broken:
                footage.note(index, why)
            footage.judge(say=False)
        (source, source_label), *rest = domains
        others = dict(zip(data.roles[1:], rest, strict=True))
        known = label(source_label)
        assert known is not None
        target, pseudo, confidence, probability, labelled = None, None, None, None, None
        if "target" in others:
            images, planes = others["target"]
            target = to_unit(images, device)
            if soft:
                assert planes is not None
                probability = to_unit(planes, device)
                probability = probability / probability.sum(1, keepdim=True)
            else:
                pseudo = label(planes)
            if pseudo is not None and pseudo.ndim == 4:
                pseudo, confidence = pseudo[..., 0], pseudo[..., 1].float() / 255
        if "labelled" in others:
            theirs = label(others["labelled"][1])
            assert theirs is not None
            labelled = to_unit(others["labelled"][0], device), theirs
        yield Batch(
            step=item // data.accumulate,
            source=to_unit(source, device),
            source_label=known,
            target=target,
            pseudo_label=pseudo,
            pseudo_confidence=confidence,
            pseudo_probability=probability,
            generators=[position_generator(data.seed, p) for p in data.positions(item)],
            names=names,
            crop=data.crop,
            labelled=labelled,
        )


def _quiet(_worker: int) -> None:
    """Let a process that loads images tell the one that asked of broken frames."""
    info = get_worker_info()
    data = None if info is None else info.dataset
    if isinstance(data, StepData) and data.footage is not None:
        data.footage.quiet = True


def to_unit(images: Tensor, device: torch.device) -> Tensor:
    """Turn ``[N, H, W, C]`` uint8 into ``[N, C, H, W]`` float in [0, 1]."""
    moved = images.to(device, non_blocking=True)
    return moved.permute(0, 3, 1, 2).contiguous().float().div_(255)


def position_generator(seed: int, position: int) -> torch.Generator:
    """Return the generator of the random draws for one place in the stream."""
    state = int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)  # torch takes 63 bits
