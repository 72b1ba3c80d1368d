"""Signals of a network's state on unlabelled target frames, and decisions from them.

No signal here needs a target label. Each can mislead, so none replaces the collapse alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.data.folders import spread
from edgeuda.data.images import Image, LabelMap
from edgeuda.errors import ConfigError, TrainingError
from edgeuda.models.predictor import normalise
from edgeuda.records.adaptation import Signals
from edgeuda.spec import Preprocessing
from edgeuda.views.transforms import STRONG, colour

RANKED = {
    "entropy": False,
    "confidence": True,
    "flip_agreement": True,
    "view_agreement": True,
    "neighbourhood_density": True,
    "divergence": False,
}
"""Signals that can rank checkpoints, and whether larger is better.

``start_agreement`` is not among them: the network a stage begins with would always win.
"""

EXAMPLES = 3
"""Frames whose label maps are kept to be looked at."""
BATCH = 8
PIXELS = 2000
TEMPERATURE = 0.05
PRESENT = 0.02
"""Share of the pixels from which on a class is expected to stay; see `collapse`."""


class Probe:
    """Measures networks on the same frames, perturbed views and pixels every time.

    Args:
        frames: ``[M, 3, H, W]`` RGB at network size on the CPU, uint8 or float in [0, 1].
        preprocessing: How the network is fed.
        frequencies: ``[K]`` share of each class in the source labels.
        seed: Of the perturbed views and of the pixels of `neighbourhood_density`.
    """

    def __init__(
        self, frames: Tensor, preprocessing: Preprocessing, frequencies: Tensor, seed: int = 0
    ) -> None:
        self.frames, self.preprocessing, self.seed = frames, preprocessing, seed
        self.frequencies = frequencies.double().cpu()
        area, count = frames[0, 0].numel(), math.ceil(PIXELS / len(frames))
        generator = torch.Generator().manual_seed(seed)
        picks = [torch.randperm(area, generator=generator)[:count] for _ in frames]
        self.pixels = torch.stack(picks)
        self.reference: Tensor | None = None
        self._shown = spread(range(len(frames)), EXAMPLES)
        self._maps: Tensor | None = None

    def examples(self) -> list[tuple[Image, LabelMap]]:
        """Return a few of the frames, with the label maps of the network measured last."""
        if self._maps is None:
            return []
        frames = self.frames[self._shown].permute(0, 2, 3, 1)
        pixels = frames if frames.dtype == torch.uint8 else (frames * 255).round().byte()
        return [
            (np.ascontiguousarray(frame.numpy()), label.numpy())
            for frame, label in zip(pixels, self._maps, strict=True)
        ]

    def start(self, model: nn.Module) -> Signals:
        """Measure the network a stage begins with and remember its label maps.

        Raises:
            TrainingError: See `measure`.
        """
        self.reference = None
        return self.measure(model)

    @torch.inference_mode()
    def measure(self, model: nn.Module) -> Signals:
        """Measure a network in eval mode, where its parameters are; its modes are put back.

        Without an earlier `start`, this network is the reference.

        Raises:
            TrainingError: If a logit is not finite.
        """
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            return self._measure(model)
        finally:
            for module, mode in modes:
                module.training = mode

    def _measure(self, model: nn.Module) -> Signals:
        device = next(model.parameters()).device
        entropy, confidence = 0.0, 0.0
        maps, features = [], []
        for first in range(0, len(self.frames), BATCH):
            images = self.frames[first : first + BATCH].to(device)
            images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
            # By frame, not by batch: the views must not depend on how frames are batched.
            indices = range(first, first + len(images))
            generators = [torch.Generator().manual_seed(self.seed + i) for i in indices]
            probability = self._logits(model, images).softmax(1)
            winner, label = probability.max(1)
            flipped = self._logits(model, images.flip(3)).argmax(1).flip(2)
            coloured = self._logits(model, colour(images, STRONG, generators)).argmax(1)
            entropy += float(torch.special.entr(probability).sum(1).double().sum())
            confidence += float(winner.double().sum())
            maps.append(torch.stack([label, flipped, coloured]).cpu())
            pixels = self.pixels[first : first + BATCH, None].to(device)
            picked = probability.flatten(2).gather(2, pixels.expand(-1, probability.shape[1], -1))
            features.append(picked.transpose(1, 2).flatten(0, 1))
        labels, flips, views = torch.cat(maps, 1)
        self._maps = labels[self._shown].byte()
        if self.reference is None:
            self.reference = labels
        classes = len(self.frequencies)
        histogram = _count(labels, classes) / labels.numel()
        return Signals(
            entropy=entropy / labels.numel() / math.log(classes),
            confidence=confidence / labels.numel(),
            flip_agreement=_share(labels == flips),
            view_agreement=_mean_iou(labels, views, classes),
            start_agreement=_share(labels == self.reference),
            neighbourhood_density=neighbourhood_density(torch.cat(features)),
            divergence=divergence(histogram, self.frequencies),
            histogram=tuple(histogram.tolist()),
        )

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = model(normalise(images, self.preprocessing)).main.float()
        if not logits.isfinite().all():
            msg = (
                "The network gives logits that are not finite on target frames: its weights or "
                "batch-norm statistics have diverged. Lower the learning rate or the weights of "
                "the target terms, and go on from an earlier network"
            )
            raise TrainingError(msg)
        return logits


def neighbourhood_density(probability: Tensor, temperature: float = TEMPERATURE) -> float:
    """Return the soft neighbourhood density of softmax outputs; larger is better.

    Saito et al., "Tune it the Right Way: Unsupervised Validation of Domain Adaptation via Soft
    Neighborhood Density", ICCV 2021: mean entropy, in nats, of each sample's softmax over its
    cosine similarities to the others.

    Args:
        probability: ``[P, K]``, at least two samples.
        temperature: Divides the similarities.
    """
    feature = F.normalize(probability, dim=1)
    similarity = (feature @ feature.T / temperature).fill_diagonal_(-math.inf)
    return float(torch.special.entr(similarity.softmax(1)).sum(1).mean())


def divergence(first: Tensor, second: Tensor) -> float:
    """Return the Jensen-Shannon divergence, base 2, of two ``[K]`` distributions, 0 to 1."""
    middle, *both = (torch.special.entr(p).sum() for p in ((first + second) / 2, first, second))
    return max(0.0, float(middle - sum(both) / 2) / math.log(2))


def collapse(
    start: Sequence[float],
    now: Sequence[float],
    frequencies: Sequence[float],
    names: Sequence[str],
) -> str | None:
    """Say whether a class has swallowed the others, or else whether one has vanished.

    It swallows them at half of the pixels and twice the larger of its shares at the start and in
    source, or at 98 % if it began under 90 %. It vanishes under 5 % of the smaller of the two
    shares, if both are at least `PRESENT`.

    Args:
        start: ``[K]`` share of the pixels by class, of the network the stage began with.
        now: ``[K]``, of the network now.
        frequencies: ``[K]``, of the source labels.
        names: ``[K]``.

    Returns:
        One sentence with the class and the figures, or None.
    """
    rows = list(zip(names, start, now, frequencies, strict=True))
    for name, before, share, source in rows:
        if (share >= 0.5 and share >= 2 * max(before, source)) or (share >= 0.98 and before < 0.9):
            return f"class {name!r} swallows the rest: {_figures(before, share, source)}"
    for name, before, share, source in rows:
        if min(before, source) >= PRESENT and share < 0.05 * min(before, source):
            return f"class {name!r} has vanished: {_figures(before, share, source)}"
    return None


def choose(signals: Sequence[Signals], by: str) -> int:
    """Return the index of the best by a signal, the first of equals.

    Raises:
        ConfigError: If the signal is not one of `RANKED`.
    """
    if by not in RANKED:
        msg = f"Expected a signal that ranks networks, one of {', '.join(RANKED)}, found {by!r}"
        raise ConfigError(msg)
    values = [getattr(found, by) for found in signals]
    return values.index(max(values) if RANKED[by] else min(values))


def _figures(before: float, share: float, source: float) -> str:
    return f"{share:.2%} of the pixels now, {before:.2%} at the start, {source:.2%} in source"


def _count(labels: Tensor, classes: int) -> Tensor:
    return labels.flatten().bincount(minlength=classes).double()


def _share(equal: Tensor) -> float:
    return float(equal.double().mean())


def _mean_iou(first: Tensor, second: Tensor, classes: int) -> float:
    both = _count(first[first == second], classes)
    union = _count(first, classes) + _count(second, classes) - both
    return float((both / union)[union > 0].mean())
