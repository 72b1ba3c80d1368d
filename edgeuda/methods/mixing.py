"""Cross-domain image mixing: classes cut from a labelled source image, pasted on a target image.

Source: Olsson et al., "ClassMix", WACV 2021; Tranheden et al., "DACS", WACV 2021; in the form of
Yan et al., "Threshold-adaptive Unsupervised Focal Loss", T-ITS 2023. Soft pasting follows Gao et
al., "DSP: Dual Soft-Paste", ACM MM 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from edgeuda.labels import IGNORE, SPACES
from edgeuda.methods.settings import Section, Share

TRUSTED = 0.968
"""Confidence from which a pseudo-label counts towards an image's trust, as in DACS."""
Trust = Literal["share", "confidence", "none"]
ALPHA = 0.8
"""Opacity of soft pasting, as in DSP."""

Crop = Callable[[int, Generator], tuple[Tensor, Tensor] | None]
"""Draws a source crop with a class: ``[3, H, W]`` in [0, 1] and ``[H, W]`` int64, or None."""


class MixSettings(Section):
    """How images are mixed.

    Attributes:
        mode: ``"single"`` pastes half of the source classes on the target image; ``"dual-soft"``
            pastes two long-tail classes softly on both images.
        long_tail: Probability per image of long-tail class pasting.
        related: Whether drawn classes bring the classes that go along with them.
        boundary: Width in pixels of the band around the mask's border that weighs double; 0: none.
        trust: Weight of an image's pseudo-labels: ``"share"`` of them that is at least as sure as
            ``trusted``, their mean ``"confidence"``, or ``"none"``: 1.
        trusted: See ``trust``.
    """

    mode: Literal["single", "dual-soft"] = "single"
    long_tail: Share = 0.0
    related: bool = False
    boundary: Annotated[int, Field(ge=0)] = 0
    trust: Trust = "share"
    trusted: Share = TRUSTED


@dataclass(frozen=True)
class Mixed:
    """Mixed images; their loss is the mean over pixels of the sum of weight x cross-entropy.

    Attributes:
        images: ``[M, 3, H, W]``, M a multiple of N.
        terms: Labels ``[M, H, W]`` int64, each with weights ``[M, H, W]``.
        trust: ``[N]`` weight of the pseudo-labels of each target image.
    """

    images: Tensor
    terms: tuple[tuple[Tensor, Tensor], ...]
    trust: Tensor

    def label(self) -> Tensor:
        """Return ``[M, H, W]`` the label that weighs most in each pixel."""
        first, *rest = self.terms
        label, most = first
        for other, weight in rest:
            label = torch.where(weight > most, other, label)
            most = torch.maximum(weight, most)
        return label


def mix(
    source: Tensor,
    source_label: Tensor,
    target: Tensor,
    pseudo_label: Tensor,
    confidence: Tensor,
    thresholds: Tensor,
    settings: MixSettings,
    related: Tensor,
    crop: Crop | None,
    generators: Sequence[Generator],
    adaptive: bool = True,
) -> Mixed:
    """Paste source pixels on target images, and their labels on the pseudo-labels.

    Args:
        source: ``[N, 3, H, W]`` images in [0, 1].
        source_label: ``[N, H, W]`` int64, 255 ignored and never drawn.
        target: ``[N, 3, H, W]`` images in [0, 1].
        pseudo_label: ``[N, H, W]`` int64; every pixel has one, doubt only lowers the trust.
        confidence: ``[N, H, W]`` of the pseudo-labels.
        thresholds: ``[K]`` confidence thresholds of the classes.
        settings: How.
        related: ``[K, K]`` bool from `related_classes`.
        crop: Source of long-tail classes; None pastes none.
        generators: One per pair of images.
        adaptive: Whether hard classes, those with low thresholds, are more often the long-tail
            ones; if not, two are drawn uniformly.
    """
    trust = torch.ones_like(confidence[:, 0, 0])
    if settings.trust == "share":
        trust = (confidence >= settings.trusted).float().mean((1, 2))
    elif settings.trust == "confidence":
        trust = confidence.mean((1, 2))
    known = related.to(source_label.device)
    pick = _Picker(adaptive, thresholds.float().cpu(), known, crop)
    paste = _single if settings.mode == "single" else _dual_soft
    return paste(source, source_label, target, pseudo_label, trust, settings, pick, generators)


def _single(
    source: Tensor,
    source_label: Tensor,
    target: Tensor,
    pseudo_label: Tensor,
    trust: Tensor,
    settings: MixSettings,
    pick: _Picker,
    generators: Sequence[Generator],
) -> Mixed:
    images, labels, masks = [], [], []
    for x, y, generator in zip(source, source_label, generators, strict=True):
        fires = bool(torch.rand(1, generator=generator) < settings.long_tail)
        mask = class_mask(
            y, generator, 2 if fires else 0, pick.related if settings.related else None
        )
        for pixels, label, cut in pick.long_tail(generator) if fires else ():
            x, y = torch.where(cut, pixels, x), torch.where(cut, label, y)
            mask = mask | cut
        images.append(x)
        labels.append(y)
        masks.append(mask)
    mask = torch.stack(masks)
    weight = torch.where(mask, 1.0, trust.view(-1, 1, 1)) * _border(mask, settings.boundary)
    return Mixed(
        torch.where(mask[:, None], torch.stack(images), target),
        ((torch.where(mask, torch.stack(labels), pseudo_label), weight),),
        trust,
    )


def _dual_soft(
    source: Tensor,
    source_label: Tensor,
    target: Tensor,
    pseudo_label: Tensor,
    trust: Tensor,
    settings: MixSettings,
    pick: _Picker,
    generators: Sequence[Generator],
) -> Mixed:
    pasted, labels = torch.zeros_like(source), torch.zeros_like(source_label)
    mask = torch.zeros_like(source_label, dtype=torch.bool)
    for index, generator in enumerate(generators):
        for pixels, label, cut in pick.long_tail(generator, 2):
            pasted[index] = torch.where(cut, pixels, pasted[index])
            labels[index] = torch.where(cut, label, labels[index])
            mask[index] |= cut
    opacity = ALPHA * mask.float().repeat(2, 1, 1)
    background = torch.cat([source, target])
    images = background + opacity[:, None] * (pasted.repeat(2, 1, 1, 1) - background)
    border = _border(mask, settings.boundary).repeat(2, 1, 1)
    trusted = torch.cat([torch.ones_like(trust), trust]).view(-1, 1, 1)
    # As released: what is pasted counts in full, also with the pseudo-label beneath it, and the
    # losses of both images are added, where `Mixed` averages over all.
    trusted = torch.where(mask.repeat(2, 1, 1), 1.0, trusted)
    return Mixed(
        images,
        (
            (labels.repeat(2, 1, 1), 2 * opacity * border),
            (torch.cat([source_label, pseudo_label]), 2 * (1 - opacity) * trusted * border),
        ),
        trust,
    )


@dataclass(frozen=True)
class _Picker:
    """Draws long-tail classes and cuts them from crops."""

    adaptive: bool
    thresholds: Tensor
    related: Tensor
    crop: Crop | None

    def long_tail(
        self, generator: Generator, count: int | None = None
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return image, label and mask of each drawn class that some source image has."""
        found = []
        for drawn in self._classes(generator, count):
            piece = None if self.crop is None else self.crop(drawn, generator)
            if piece is not None:
                pixels, label = (part.to(self.related.device) for part in piece)
                found.append((pixels, label, _among(label, self.related[drawn])))
        return found

    def _classes(self, generator: Generator, count: int | None) -> list[int]:
        classes = len(self.thresholds)
        if not self.adaptive:
            order = torch.randperm(classes, generator=generator)
            return [int(drawn) for drawn in order[: count or 2]]
        count = count or int(torch.randint(2, 5, (1,), generator=generator))
        probability = (1 / self.thresholds.clamp(min=1e-3)).softmax(0)
        drawn = torch.multinomial(probability, count, replacement=True, generator=generator)
        return [int(index) for index in drawn]


def class_mask(
    label: Tensor, generator: Generator, fewer: int = 0, related: Tensor | None = None
) -> Tensor:
    """Choose half of the classes present in a label map, rounded up.

    Args:
        label: ``[H, W]`` int64, 255 never drawn.
        generator: Source of the draw.
        fewer: Classes to draw less, at least one stays.
        related: ``[K, K]`` bool: what the drawn classes bring along; None brings nothing.

    Returns:
        ``[H, W]`` bool, true on the pixels of the drawn classes.
    """
    present = torch.unique(label)
    present = present[present != IGNORE]
    count = (present.numel() + 1) // 2
    if fewer:
        count = max(count - fewer, 1)
    order = torch.randperm(present.numel(), generator=generator)[:count]
    drawn = present[order.to(present.device)]
    if related is not None:
        return _among(label, related[drawn].any(0))
    return torch.isin(label, drawn)


def _among(label: Tensor, classes: Tensor) -> Tensor:
    """Whether each pixel of ``label`` is of one of the classes of a ``[K]`` bool vector."""
    return torch.isin(label, classes.nonzero()[:, 0])


def _border(mask: Tensor, width: int) -> Tensor:
    """Return 2 on a band around the border of ``[N, H, W]`` masks and 1 elsewhere."""
    if width == 0:
        return torch.ones(mask.shape, device=mask.device)
    inner = mask[:, None].float()
    dilated, eroded = (
        sign * F.max_pool2d(sign * inner, 2 * width + 1, 1, width) for sign in (1, -1)
    )
    return 1 + (dilated - eroded)[:, 0]


_CLIQUES_19: tuple[set[str], ...] = (
    {"pole", "traffic light", "traffic sign"},
    {"rider", "motorcycle", "bicycle"},
    {"wall", "fence"},
    {"vegetation", "terrain"},
)
_ALONG_19: dict[str, set[str]] = {
    "road": {
        "terrain", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    },
    "sidewalk": {"terrain", "person"},
}  # fmt: skip
_CLIQUES_16 = _CLIQUES_19[:2]
_ALONG_16 = {
    "road": {"person", "rider", "car", "bus", "motorcycle", "bicycle"},
    "sidewalk": {"person", "rider", "motorcycle", "bicycle"},
    "building": {"pole", "traffic light", "traffic sign"},
}
_SYNONYMS = {
    "sidewalk": ("pavement",),
    "vegetation": ("tree",),
    "traffic sign": ("signsymbol",),
    "person": ("pedestrian",),
    "rider": ("bicyclist",),
}


def related_classes(names: Sequence[str]) -> Tensor:
    """Return which classes go along with which: riders with bicycles, lights with poles.

    The tables are the release's for 19 and for 16 classes, by name; its table for 13 classes has
    wrong ids, here it keeps what the 16-class table says of signs and of two-wheelers. Other label
    spaces take the 19-class table, as far as their names or common synonyms of them are in it.

    Args:
        names: The K classes.

    Returns:
        ``[K, K]`` bool; row c holds c itself and what goes along with it.
    """
    ids = {name: index for index, name in enumerate(names)}
    for name, synonyms in _SYNONYMS.items():
        for synonym in synonyms:
            if synonym in ids:
                ids.setdefault(name, ids[synonym])
    cliques, along = _CLIQUES_19, _ALONG_19
    if tuple(names) == SPACES["cityscapes-16"].classes:
        cliques, along = _CLIQUES_16, _ALONG_16
    elif tuple(names) == SPACES["cityscapes-13"].classes:
        cliques, along = _CLIQUES_16, {}
    table = torch.eye(len(names), dtype=torch.bool)
    pairs = [(a, b) for clique in cliques for a in clique for b in clique]
    pairs += [(a, b) for a, others in along.items() for b in others]
    for a, b in pairs:
        if a in ids and b in ids:
            table[ids[a], ids[b]] = True
    return table
