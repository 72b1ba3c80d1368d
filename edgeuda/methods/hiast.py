"""HIAST: self-training on instance-adaptive pseudo-labels with regions and consistency.

Sources: Mei et al., "Instance Adaptive Self-training for Unsupervised Domain Adaptation", ECCV 2020
(IAST: without consistency and without hard-aware pasting), and its successor HIAST
(arXiv 2302.06992), in the form of the released code.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from edgeuda.labels import IGNORE
from edgeuda.methods import ranks
from edgeuda.methods.base import Batch, Losses, Method
from edgeuda.methods.batchnorm import forward
from edgeuda.methods.losses import cross_entropy_map, masked_mean
from edgeuda.methods.registry import MethodType, register_method
from edgeuda.methods.selection import SelectorSettings
from edgeuda.methods.settings import Optimisation, Positive, Rate, Share, Weight
from edgeuda.methods.teacher import Teacher
from edgeuda.models.network import Network, upsample
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing
from edgeuda.views.transforms import SOURCE, colour, strong_pool

Region = Literal["confident", "ignored", "all"]


class HiastSettings(Optimisation):
    """Rounds of self-training; ``steps`` are those of one round.

    Attributes:
        factors: Factor on the learning rate of each round; as many rounds as factors.
        teacher_decay: Of the mean teacher that gives soft labels, and labels the next round's
            frames; 0 is the student itself (IAST).
        confident_weight: Weight of the pull towards uniform probabilities on pseudo-labelled
            pixels (lambda_c), against over-confidence.
        ignored_weight: Weight of the entropy on the other pixels (lambda_i).
        consistency_weight: Weight of the cross-entropy with the teacher's probabilities; 0 leaves
            the teacher out of the loss.
        consistency_region: Where.
        normaliser: ``"pixel-class"``: the three terms are divided by pixels times classes, as
            released (the weights above belong to it and to 19 classes: with fewer they are
            stronger); ``"pixel"``: by pixels.
        strong: Whether images pass three colour operations drawn from eight; IAST has none.
        batch_norm: ``"joint"``: statistics follow the batches; ``"frozen"``: they stay.
        source_weight: Weight of the cross-entropy on labelled source images, which hold classes
            that are never selected; 0, as published, learns from target images alone.
        hard_share: Share of the classes that are pasted as hard, see
            `edgeuda.views.hard_paste.HardPaste`; 0 pastes none.
        donors: See `HardPaste.most`.
        label_sizes: Rows and columns, multiples of 32, at which the frames are labelled in each
            round; rounds that it does not reach, all by default, take the network's input.
        selection: Pseudo-labels.
    """

    factors: tuple[Rate, ...] = (1.0, 0.667, 0.333)
    teacher_decay: Share = 0.999
    confident_weight: Weight = 0.1
    ignored_weight: Weight = 1.0
    consistency_weight: Weight = 0.5
    consistency_region: Region = "ignored"
    normaliser: Literal["pixel-class", "pixel"] = "pixel-class"
    strong: bool = True
    batch_norm: Literal["frozen", "joint"] = "joint"
    source_weight: Weight = 0.0
    hard_share: Share = 0.74
    donors: Positive = 1
    label_sizes: tuple[tuple[Positive, Positive], ...] = ()
    selection: SelectorSettings = SelectorSettings()

    @model_validator(mode="after")
    def _sizes_fit_the_network(self) -> HiastSettings:
        if any(side % 32 for size in self.label_sizes for side in size):
            msg = "label_sizes: expected rows and columns that are multiples of 32"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _no_source(self) -> HiastSettings:
        if self.style != "none" or self.rare_temperature or self.class_weights is not None:
            msg = (
                "HIAST learns from target images alone; style, rare_temperature and class_weights "
                "have no meaning in it"
            )
            raise ValueError(msg)
        return self


def region_losses(
    logits: Tensor,
    label: Tensor,
    teacher: Tensor | None,
    settings: HiastSettings,
) -> dict[str, Tensor]:
    """Return the cross-entropy and the weighted regularisers; an empty region gives 0.

    Args:
        logits: ``[N, K, H, W]`` of the strong view.
        label: ``[N, H, W]`` int64 pseudo-labels, 255 where there is none.
        teacher: ``[N, K, H, W]`` probabilities of the weak view, or None.
        settings: Weights.
    """
    classes = logits.shape[1]
    per = 1 / classes if settings.normaliser == "pixel-class" else 1.0
    known = label != IGNORE
    log_p = logits.float().log_softmax(1)
    terms = {"pseudo": masked_mean(cross_entropy_map(logits, label), known)}
    if settings.confident_weight:
        uniform = masked_mean(-log_p.mean(1), known)
        terms["confident"] = settings.confident_weight * per * uniform
    if settings.ignored_weight:
        entropy = masked_mean(-(log_p.exp() * log_p).sum(1), ~known)
        terms["ignored"] = settings.ignored_weight * per * entropy
    if settings.consistency_weight and teacher is not None:
        region = {"ignored": ~known, "confident": known, "all": torch.ones_like(known)}
        agreement = masked_mean(-(teacher * log_p).sum(1), region[settings.consistency_region])
        terms["consistency"] = settings.consistency_weight * per * agreement
    return terms


class Hiast(Method):
    """One round of training on pseudo-labelled target images alone: the batch's labelled ones.

    Args:
        settings: Parameters.
        teacher: Mean teacher of the student, at one scale.
    """

    def __init__(self, settings: HiastSettings, teacher: Teacher) -> None:
        self.settings, self.teacher = settings, teacher

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the network stays in eval mode."""
        return self.settings.batch_norm == "frozen"

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return the loss on pseudo-labels and the regularisers of both regions."""
        settings = self.settings
        images, label = batch.source, batch.source_label
        soft = None
        if settings.consistency_weight:
            soft = self.teacher.probabilities(images, preprocessing)
        strong = strong_pool(images, batch.generators) if settings.strong else images
        size = (images.shape[2], images.shape[3])
        views = []
        if batch.labelled is not None:
            views.append(
                normalise(colour(batch.labelled[0], SOURCE, batch.generators), preprocessing)
            )
        outputs, *source = forward(
            model, normalise(strong, preprocessing), views, settings.batch_norm
        )
        main, *auxiliary = (upsample(z, size) for z in outputs.heads())
        terms = region_losses(main, label, soft, settings)
        if auxiliary:
            known = label != IGNORE
            others = [masked_mean(cross_entropy_map(z, label), known) for z in auxiliary]
            terms["pseudo"] = model.weigh([terms["pseudo"], *others])
        for logits in source:
            assert batch.labelled is not None
            known_source = [
                cross_entropy_map(upsample(z, size), batch.labelled[1]).mean()
                for z in logits.heads()
            ]
            terms["supervised"] = settings.source_weight * model.weigh(known_source)
        kept = ranks.total((label != IGNORE).sum()) / ranks.total(label.new_tensor(label.numel()))
        return Losses(terms, {"labelled": kept})

    def after_step(self, model: Network) -> None:
        """Move the teacher."""
        self.teacher.follow(model)

    def state(self) -> dict[str, Any]:
        """Return the teacher's weights."""
        return self.teacher.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the state back."""
        self.teacher.load_state(state)


HIAST = register_method(
    MethodType(
        "hiast",
        HiastSettings,
        title="instance-adaptive self-training",
        label="HIAST",
        stream=6,
        place=8,
    )
)
"""Its rounds, in which frames are labelled and learned from, are in `edgeuda.training.rounds`."""
