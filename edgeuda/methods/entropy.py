"""Entropy minimisation and maximum squares: confident predictions on target images.

Sources: Vu et al., "ADVENT", CVPR 2019 (MinEnt); Chen et al., "Domain Adaptation for Semantic
Segmentation with Maximum Squares Loss", ICCV 2019 (MaxSquare, image-wise weighting).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from edgeuda.methods.base import Batch, Losses, Method
from edgeuda.methods.context import StageContext
from edgeuda.methods.losses import cross_entropy_map
from edgeuda.methods.registry import MethodType, register_method
from edgeuda.methods.settings import Optimisation, Weight
from edgeuda.models.network import Network, upsample
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing
from edgeuda.views.style import restyle
from edgeuda.views.transforms import SOURCE, colour


class EntropySettings(Optimisation):
    """Entropy minimisation.

    Attributes:
        loss: ``"min-entropy"`` or ``"max-square"``.
        image_wise: Whether pixels are weighted by how rare their class is in their image.
        weight: Weight of the target term on the main head. A weight of the released MaxSquare
            code, whose loss is also averaged over the K classes, is K times too large here; with
            ``image_wise`` it is half of what is meant here.
        auxiliary_weight: Its weight on each auxiliary head.
    """

    loss: Literal["min-entropy", "max-square"] = "min-entropy"
    image_wise: bool = False
    weight: Weight = 1e-3
    auxiliary_weight: Weight = 2e-4


def entropy_map(logits: Tensor) -> Tensor:
    """Return the entropy of ``[N, K, H, W]`` logits per pixel over ln K, 0 to 1."""
    log_p: Tensor = logits.log_softmax(1)
    total: Tensor = (log_p.exp() * log_p).sum(1)
    return -total / math.log(logits.shape[1])


def max_square_map(logits: Tensor) -> Tensor:
    """Return ``-1/2 sum p^2`` of ``[N, K, H, W]`` logits per pixel, -1/2 to -1/(2 K)."""
    squares: Tensor = logits.softmax(1).square().sum(1)
    return -0.5 * squares


@torch.no_grad()
def image_wise_weights(logits: Tensor, ratio: float = 0.2) -> Tensor:
    """Return ``[N, H, W]`` weights ``P / (K n^ratio P^(1 - ratio))``.

    n is the number of the image's P pixels that are predicted as the pixel's class. The published
    loss is a sum over pixels; the factor P makes it one to be averaged.
    """
    classes = logits.shape[1]
    winner = logits.max(1).indices.flatten(1)
    pixels = winner.shape[1]
    counts = torch.stack([torch.bincount(row, minlength=classes) for row in winner])
    weights: Tensor = pixels / (classes * counts.clamp(min=1) ** ratio * pixels ** (1 - ratio))
    return weights.gather(1, winner).view_as(logits[:, 0])


class EntropyMinimisation(Method):
    """Supervised training on source with a term that makes target predictions confident.

    Args:
        settings: Parameters.
        weights: ``[K]`` class weights of the supervised term.
    """

    def __init__(self, settings: EntropySettings, weights: Tensor) -> None:
        self.settings, self.weights = settings, weights

    @property
    def freezes_batch_norm(self) -> bool:
        """True: both domains are normalised by the statistics the stage begins with."""
        return True

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return the supervised and the target loss, and the mean confidence on target."""
        settings = self.settings
        target = batch.require_target()
        weights = self.weights.to(target)
        size = (target.shape[2], target.shape[3])
        source = restyle(batch.source, target, settings.style)
        views = [
            normalise(colour(source, SOURCE, batch.generators), preprocessing),
            normalise(target, preprocessing),
        ]
        joint = torch.cat(views).contiguous(memory_format=torch.channels_last)
        heads = model(joint, aux=True, upsample=False).heads()
        supervised, unsupervised = [], target.new_zeros(())
        for index, head in enumerate(heads):
            ours, theirs = (upsample(z, size) for z in head.float().contiguous().chunk(2))
            supervised.append(cross_entropy_map(ours, batch.source_label, weights).mean())
            values = (entropy_map if settings.loss == "min-entropy" else max_square_map)(theirs)
            if settings.image_wise:
                values = values * image_wise_weights(theirs)
            weight = settings.auxiliary_weight if index else settings.weight
            unsupervised = unsupervised + weight * values.mean()
            if index == 0:
                confidence = theirs.detach().softmax(1).max(1).values.mean()
        return Losses(
            {"supervised": model.weigh(supervised), "target": unsupervised},
            {"confidence": confidence},
        )


def _build(settings: EntropySettings, stage: StageContext) -> EntropyMinimisation:
    return EntropyMinimisation(settings, stage.weights)


ENTROPY = register_method(
    MethodType(
        "entropy",
        EntropySettings,
        title="entropy minimisation",
        label="entropy",
        build=_build,
        stream=4,
        small_terms=True,
        place=2,
    )
)
