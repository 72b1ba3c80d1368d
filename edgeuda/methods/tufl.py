"""TUFL: threshold-adaptive unsupervised focal loss; with image mixing, its second stage.

Source: Yan, Qian, Wang, Yang, "Threshold-adaptive Unsupervised Focal Loss for Domain Adaptation of
Semantic Segmentation", IEEE T-ITS 24(1), 2023, arXiv 2208.10716.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgeuda.methods.base import Batch, Losses
from edgeuda.methods.losses import (
    Modulator,
    cross_entropy_map,
    masked_mean,
    unsupervised_focal,
)
from edgeuda.methods.mixing import draw_class_mask, mix
from edgeuda.methods.thresholds import ThresholdRule, update_thresholds
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing
from edgeuda.training.views import (
    SOURCE,
    STRONG,
    Style,
    colour,
    draw_affine,
    inside,
    restyle,
    warp,
)


@dataclass(frozen=True)
class TuflSettings:
    """Parameters of both stages, named as in the recipe.

    Attributes:
        modulator: Base of the focal factor, see `unsupervised_focal`.
        gamma: Focusing exponent.
        adaptive: Whether thresholds follow the network; if not, they stay at the initial value.
        threshold: Parameters of the thresholds.
        target_weight: Weight of the unsupervised focal loss (lambda_u).
        mix_weight: Weight of the loss on mixed images (lambda_m), used with a frozen network.
        style: How source images are given the look of target images.
        rigid: See `draw_affine`.
    """

    modulator: Modulator = "one-minus-q"
    gamma: float = 2.0
    adaptive: bool = True
    threshold: ThresholdRule = field(default_factory=ThresholdRule)
    target_weight: float = 0.01
    mix_weight: float = 1.0
    style: Style = "none"
    rigid: bool = True


class Tufl:
    """Stage 1, or with ``frozen`` stage 2, of the method.

    All views of a step go through the network as one batch; with frozen batch norm this equals
    separate passes.

    Args:
        settings: Parameters.
        weights: ``[K]`` class weights of every term.
        frozen: The stage-1 network, which labels the target images for mixing; None in stage 1.
    """

    freezes_batch_norm = True

    def __init__(
        self, settings: TuflSettings, weights: Tensor, frozen: BiSeNet | None = None
    ) -> None:
        self.settings = settings
        self.weights = weights
        self.frozen = frozen
        self.thresholds = torch.full_like(weights, settings.threshold.initial)

    def step(self, model: BiSeNet, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return supervised, target and (stage 2) mix losses, and the state of the thresholds."""
        settings, generator = self.settings, batch.generator
        target = batch.require_target()
        n, _, height, width = target.shape
        weights = self.weights.to(target)

        source = restyle(batch.source, target, settings.style, generator)
        theta = draw_affine(n, height, width, generator, rigid=settings.rigid).to(target)
        normalised = [
            normalise(colour(source, SOURCE, generator), preprocessing),
            normalise(target, preprocessing),
            warp(normalise(colour(target, STRONG, generator), preprocessing), theta),
        ]
        if self.frozen is not None:
            mixed, mixed_label, trust = self._mix(source, batch.source_label, batch, preprocessing)
            normalised.append(normalise(colour(mixed, STRONG, generator), preprocessing))

        outputs = model(torch.cat(normalised), aux=True)
        heads = [head.float().split(n) for head in outputs.heads()]

        supervised = sum(
            cross_entropy_map(head[0], batch.source_label, weights).mean() for head in heads
        )
        terms = {"supervised": torch.as_tensor(supervised) / len(heads)}
        valid = inside(theta, height, width)
        target_loss, kept, kept_fixed = self._target_loss(heads, theta, valid, weights)
        terms["target"] = settings.target_weight * target_loss
        figures: dict[str, float | list[float]] = {
            "keep": kept,
            "keep_fixed": kept_fixed,
            "thresholds": self.thresholds.tolist(),
        }
        if self.frozen is not None:
            loss = trust * cross_entropy_map(heads[0][3], mixed_label, weights)
            terms["mix"] = settings.mix_weight * loss.mean()
            figures["trust"] = float(trust.mean())
        return Losses(terms, figures)

    def _target_loss(
        self, heads: list[tuple[Tensor, ...]], theta: Tensor, valid: Tensor, weights: Tensor
    ) -> tuple[Tensor, float, float]:
        """Return the focal loss averaged over heads, and two keep ratios of the main head."""
        settings = self.settings
        total = theta.new_zeros(())
        ratios = (0.0, 0.0)
        for index, (_, clean, strong, *_) in enumerate(heads):
            weak = warp(clean, theta)
            with torch.no_grad():
                confidence, winner = weak.softmax(1).max(1)
                if index == 0 and settings.adaptive:
                    self.thresholds = update_thresholds(
                        self.thresholds.to(weak),
                        confidence[valid],
                        winner[valid],
                        settings.threshold,
                    )
                thresholds = self.thresholds.to(weak)
                mask = (confidence > thresholds[winner]) & valid
                if index == 0:
                    fixed = (confidence > settings.threshold.initial) & valid
                    pixels = valid.sum().clamp(min=1)
                    ratios = (float(mask.sum() / pixels), float(fixed.sum() / pixels))
            loss = unsupervised_focal(
                weak, strong, modulator=settings.modulator, gamma=settings.gamma, weights=weights
            )
            total = total + masked_mean(loss, mask)
        return total / len(heads), *ratios

    @torch.no_grad()
    def _mix(
        self, source: Tensor, label: Tensor, batch: Batch, preprocessing: Preprocessing
    ) -> tuple[Tensor, Tensor, Tensor]:
        target = batch.require_target()
        assert self.frozen is not None
        self.frozen.to(target.device)  # does nothing from the second step on
        probability = self.frozen(normalise(target, preprocessing)).main.float().softmax(1)
        mask = draw_class_mask(label, batch.generator)
        return mix(mask, source, label, target, probability)

    def state(self) -> dict[str, Tensor]:
        """Return the thresholds."""
        return {"thresholds": self.thresholds}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the thresholds back."""
        self.thresholds = state["thresholds"]
