"""TUFL: threshold-adaptive unsupervised focal loss; with a teacher, its second stage, mixing.

Source: Yan, Qian, Wang, Yang, "Threshold-adaptive Unsupervised Focal Loss for Domain Adaptation of
Semantic Segmentation", IEEE T-ITS 24(1), 2023, arXiv 2208.10716. Without the focal term and with a
moving teacher, stage 2 is the ClassMix/DACS baseline.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from edgeuda.methods import ranks
from edgeuda.methods.base import Batch, Losses, Method
from edgeuda.methods.batchnorm import FROZEN, BatchNorm, forward
from edgeuda.methods.context import StageContext
from edgeuda.methods.losses import (
    Modulator,
    cross_entropy_map,
    masked_mean,
    unsupervised_focal,
)
from edgeuda.methods.mixing import Mixed, MixSettings, mix, related_classes
from edgeuda.methods.registry import MethodType, register_method
from edgeuda.methods.settings import Optimisation, Share, Weight
from edgeuda.methods.teacher import Teacher, TeacherSettings
from edgeuda.methods.thresholds import ThresholdRule, update_thresholds
from edgeuda.models.network import Network, upsample
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing
from edgeuda.views.style import restyle
from edgeuda.views.transforms import SOURCE, STRONG, colour, draw_affine, inside, warp


class TuflSettings(Optimisation):
    """Stage 1 or 2.

    Attributes:
        modulator: Base of the focal factor, see `unsupervised_focal`.
        gamma: Focusing exponent.
        update: When thresholds follow the network: ``"never"`` leaves them at the initial value;
            ``"main"`` updates once per step from the main head; ``"every-head"`` once for each
            head, as the released code does.
        target_weight: Weight of the unsupervised focal loss (lambda_u); 0 leaves it out.
        hard_mining: Share of the selected pixels, those with the largest loss, that count.
        mix_weight: Weight of the loss on mixed images (lambda_m), used with a teacher.
        mix_weighted: Whether class weights apply to the mix loss too; DACS has none there.
        rigid: See `draw_affine`.
        batch_norm: See `edgeuda.methods.batchnorm.BatchNorm`.
        source_weight: Weight of the supervised term at the start.
        source_fade: Share of the steps over which it falls to 0, linearly; 0 lets it stay.
        threshold: Parameters of the thresholds.
        mix: How images are mixed.
        teacher: Who labels the target images for mixing.
    """

    modulator: Modulator = "one-minus-q"
    gamma: Weight = 2.0
    update: Literal["never", "main", "every-head"] = "main"
    target_weight: Weight = 0.01
    hard_mining: Annotated[float, Field(gt=0, le=1)] = 1.0
    mix_weight: Weight = 1.0
    mix_weighted: bool = True
    rigid: bool = True
    batch_norm: BatchNorm = "frozen"
    source_weight: Weight = 1.0
    source_fade: Share = 0.0
    threshold: ThresholdRule = ThresholdRule()
    mix: MixSettings = MixSettings()
    teacher: TeacherSettings = TeacherSettings()

    def weight_of_source(self, step: int) -> float:
        """Return the weight of the supervised term in a step, from 0."""
        if not self.source_fade:
            return self.source_weight
        faded = round(self.source_fade * self.steps)
        return self.source_weight * max(0.0, 1 - step / max(1, faded))


class Tufl(Method):
    """Stage 1, or with a teacher stage 2, of the method.

    All views of a step go through the network as one batch; with frozen batch norm this equals
    separate passes.

    Args:
        settings: Parameters.
        weights: ``[K]`` class weights of every term.
        related: ``[K, K]`` bool, see `edgeuda.methods.mixing.related_classes`.
        teacher: Labels the target images for mixing; None in stage 1. It also stands for mixing
            where offline pseudo-labels come with the batches.
    """

    def __init__(
        self,
        settings: TuflSettings,
        weights: Tensor,
        related: Tensor,
        teacher: Teacher | None = None,
    ) -> None:
        self.settings, self.weights, self.related = settings, weights, related
        self.teacher = teacher
        self.thresholds = torch.full_like(weights, settings.threshold.initial)

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the network stays in eval mode."""
        return self.settings.batch_norm in FROZEN

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return supervised, target and (stage 2) mix losses, and the state of the thresholds."""
        settings, generators = self.settings, batch.generators
        target = batch.require_target()
        height, width = target.shape[-2:]
        weights = self.weights.to(target)
        source = restyle(batch.source, target, settings.style)
        augmented = normalise(colour(source, SOURCE, generators), preprocessing)

        views: list[Tensor] = []
        theta = target.new_zeros(0)
        if settings.target_weight:
            theta = draw_affine(height, width, generators, rigid=settings.rigid).to(target)
            strong = normalise(colour(target, STRONG, generators), preprocessing)
            views += [normalise(target, preprocessing), warp(strong, theta)]
        mixed = None
        if self.teacher is not None:
            mixed = self._mix(self.teacher, model, source, batch, preprocessing)
            rest = len(mixed.images) // len(generators)
            views.append(
                normalise(colour(mixed.images, STRONG, [*generators] * rest), preprocessing)
            )

        size = (height, width)
        outputs = forward(model, augmented, views, settings.batch_norm)
        source_heads, *heads = [found.heads() for found in outputs]
        supervised = model.weigh(
            cross_entropy_map(upsample(head, size), batch.source_label, weights).mean()
            for head in source_heads
        )
        terms = {"supervised": settings.weight_of_source(batch.step) * supervised}
        figures: dict[str, Tensor] = {}
        if settings.target_weight:
            target_loss, kept = self._target_loss(
                model, heads[0], heads[1], theta, size, weights, batch.step
            )
            terms["target"] = settings.target_weight * target_loss
            figures |= {"keep": kept[0], "keep_fixed": kept[1], "thresholds": self.thresholds}
        if mixed is not None:
            main = upsample(heads[-1][0], size)
            of_classes = weights if settings.mix_weighted else None
            loss = sum(
                (weight * cross_entropy_map(main, label, of_classes)).mean()
                for label, weight in mixed.terms
            )
            terms["mix"] = settings.mix_weight * torch.as_tensor(loss)
            figures["trust"] = mixed.trust.mean()
            return Losses(terms, figures, {"mixed": (mixed.images, mixed.label())})
        return Losses(terms, figures)

    def _target_loss(
        self,
        model: Network,
        clean: tuple[Tensor, ...],
        strong: tuple[Tensor, ...],
        theta: Tensor,
        size: tuple[int, int],
        weights: Tensor,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the focal loss averaged over heads, and two keep ratios of the main head."""
        settings = self.settings
        valid = inside(theta, *size)
        losses = []
        kept = theta.new_zeros(2)
        for index, (before, after) in enumerate(zip(clean, strong, strict=True)):
            loss, confidence, winner = unsupervised_focal(
                warp(before, theta, size),
                upsample(after, size),
                modulator=settings.modulator,
                gamma=settings.gamma,
                weights=weights,
            )
            with torch.no_grad():
                if settings.update == "every-head" or (settings.update == "main" and index == 0):
                    self.thresholds = update_thresholds(
                        self.thresholds.to(confidence),
                        confidence[valid],
                        winner[valid],
                        settings.threshold,
                        step,
                    )
                thresholds = self.thresholds.to(confidence)
                mask = (confidence > thresholds[winner]) & valid
                if index == 0:
                    fixed = (confidence > settings.threshold.initial) & valid
                    counts = torch.stack([mask.sum(), fixed.sum(), valid.sum()])
                    selected = ranks.total(counts).float()
                    kept = selected[:2] / selected[2].clamp(min=1)
            losses.append(masked_mean(loss, mask, settings.hard_mining))
        return model.weigh(losses), kept

    @torch.no_grad()
    def _mix(
        self,
        teacher: Teacher,
        model: Network,
        source: Tensor,
        batch: Batch,
        preprocessing: Preprocessing,
    ) -> Mixed:
        target = batch.require_target()
        if batch.pseudo_label is not None and batch.pseudo_confidence is not None:
            confidence, label = batch.pseudo_confidence, batch.pseudo_label
        else:
            teacher.follow(model)
            confidence, label = teacher.predict(target, preprocessing)
        return mix(
            source,
            batch.source_label,
            target,
            label,
            confidence,
            self.thresholds,
            self.settings.mix,
            self.related,
            batch.crop,
            batch.generators,
            adaptive=self.settings.update != "never",
        )

    def state(self) -> dict[str, Any]:
        """Return the thresholds and the weights of a moving teacher."""
        moving = self.teacher is not None and self.teacher.decay < 1
        teacher = self.teacher.state() if self.teacher is not None and moving else {}
        return {"thresholds": self.thresholds, **teacher}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the state back."""
        self.thresholds = state["thresholds"]
        if self.teacher is not None and self.teacher.decay < 1:
            self.teacher.load_state(state)


def _stage1(settings: TuflSettings, stage: StageContext) -> Tufl:
    return Tufl(settings, stage.weights, related_classes(stage.spec.label_space.classes))


def _stage2(settings: TuflSettings, stage: StageContext) -> Tufl:
    teacher = stage.teacher(settings.teacher)
    if settings.teacher.offline:
        stage.use_labels_of(teacher)
    related = related_classes(stage.spec.label_space.classes)
    return Tufl(settings, stage.weights, related, teacher)


STAGE1 = register_method(
    MethodType(
        "stage1",
        TuflSettings,
        title="TUFL",
        label="stage 1",
        build=_stage1,
        stream=2,
        place=3,
    )
)
STAGE2 = register_method(
    MethodType(
        "stage2",
        TuflSettings,
        title="TUFL + CIM",
        label="stage 2",
        build=_stage2,
        stream=3,
        place=4,
    )
)
