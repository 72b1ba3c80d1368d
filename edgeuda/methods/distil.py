"""Self-training by a teacher that may be larger than the network that is deployed.

Three networks: a large teacher, which is the moving average of a large student or stays as it is,
and the small student that is deployed. The teacher labels the target images for both students.
While the large student learns, both see mixed images and source; at the end the small one learns
alone, on target images and soft labels only.

Sources: Kang et al., "Distilled Unsupervised Domain Adaptation for Lightweight Semantic
Segmentation" (DUDA), arXiv 2504.09814, 2025: three networks, and classes on which small and large
disagree weigh more; Hoyer et al., "MIC: Masked Image Consistency", CVPR 2023: masked target images;
Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: temperature. The form is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Generator, Tensor

from edgeuda.methods import ranks
from edgeuda.methods.base import Batch, Losses, Method
from edgeuda.methods.batchnorm import FROZEN, BatchNorm, forward
from edgeuda.methods.context import StageContext
from edgeuda.methods.losses import cross_entropy_map
from edgeuda.methods.mixing import class_mask
from edgeuda.methods.registry import MethodType, register_method
from edgeuda.methods.settings import Optimisation, Positive, Rate, Share, Weight
from edgeuda.methods.teacher import LargeSettings, Teacher, TeacherSettings
from edgeuda.models.network import Network, upsample
from edgeuda.models.predictor import normalise
from edgeuda.records.labelling import PseudoLabelsRecord
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.views.style import restyle
from edgeuda.views.transforms import SOURCE, STRONG, colour

PACE = 0.99
"""Of the running overlap by class."""
POWER = 0.9
"""Of the polynomial decay of the large student's learning rate over the joint steps."""


class DistilSettings(Optimisation):
    """Learning from a teacher.

    Attributes:
        teacher: ``"large"``: the moving average of a large network that is first trained on
            source; ``"self"``: of the network itself; else the run folder or model file of an
            adapted network, which stays as it is, or a folder of soft labels that
            `edgeuda pseudo-label --soft` wrote or that have its form: those of any network.
        large: The large network.
        labels: How the teacher labels; its ``decay`` is that of the moving average. With
            ``offline`` every frame is labelled once as a whole, at the teacher's own size, and
            views are cut from frame and soft label alike; the teacher then stays as it is.
        source_weight: Weight of the cross-entropy on source images; 0 uses no source image.
        mix: Share of the joint steps' target images on which source classes are pasted.
        mask: Share of the blocks of an image that are hidden from the students (MIC); 0 hides none.
        block: Side of a hidden block in pixels.
        temperature: Divides the teacher's log-probabilities: above 1 softens its labels.
        hard: Whether the teacher's winner counts alone.
        disagreement: How much more a class weighs on which student and teacher do not overlap.
        quality: How pixels weigh: ``"none"`` all alike, ``"image"`` by the mean confidence of their
            image, ``"pixel"`` by their own.
        alone: Share of the steps, at the end, in which the small student learns alone from target
            images.
        batch_norm: See `edgeuda.methods.batchnorm.BatchNorm`.
    """

    teacher: str = "large"
    large: LargeSettings = LargeSettings()
    labels: TeacherSettings = TeacherSettings(decay=0.99)
    source_weight: Weight = 1.0
    mix: Share = 1.0
    mask: Share = 0.0
    block: Positive = 32
    temperature: Rate = 1.0
    hard: bool = False
    disagreement: Weight = 1.0
    quality: Literal["none", "image", "pixel"] = "none"
    alone: Share = 0.5
    batch_norm: BatchNorm = "domain"

    @model_validator(mode="after")
    def _offline_or_not(self) -> DistilSettings:
        if self.labels.offline and self.labels.decay < 1:
            msg = (
                "labels that are made ahead are those of a teacher that stays: set "
                "distil.labels.decay = 1, or distil.labels.offline = false"
            )
            raise ValueError(msg)
        if self.large.input is not None and not self.labels.offline:
            msg = (
                "a large network that looks at another size labels whole frames ahead: set "
                "distil.labels.offline = true and distil.labels.decay = 1"
            )
            raise ValueError(msg)
        return self

    def networks(self) -> tuple[str, ...]:
        """Return the teacher, where it is a file."""
        return () if self.teacher in ("large", "self") else (self.teacher,)


@dataclass(frozen=True)
class Lesson:
    """What a student learns from in a step: images and labels of both domains.

    Attributes:
        source: ``[N, 3, H, W]`` in [0, 1], perturbed, or None.
        source_label: ``[N, H, W]`` int64.
        target: ``[N, 3, H, W]`` in [0, 1]: strongly perturbed, mixed, masked.
        probability: ``[N, K, H, W]`` labels, one-hot where source was pasted.
        weight: ``[N, H, W]`` of the pixels.
    """

    source: Tensor | None
    source_label: Tensor
    target: Tensor
    probability: Tensor
    weight: Tensor


class LargeStudent:
    """The large network that learns beside the small one, and the teacher that follows it.

    Args:
        model: The network; it trains in place.
        preprocessing: How it is fed.
        teacher: A moving average of it.
        optimizer: Of its parameters; each group's ``lr`` is the rate at the start.
        batch_norm: See `edgeuda.methods.batchnorm.BatchNorm`.
        half: Whether it computes in bfloat16.
    """

    def __init__(
        self,
        model: Network,
        preprocessing: Preprocessing,
        teacher: Teacher,
        optimizer: torch.optim.Optimizer,
        batch_norm: BatchNorm,
        half: bool,
    ) -> None:
        self.model, self.preprocessing, self.teacher = model, preprocessing, teacher
        self.optimizer, self.batch_norm, self.half = optimizer, batch_norm, half
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def learn(self, lesson: Lesson, weights: Tensor, factor: float) -> Tensor:
        """Take one step on a lesson; returns its loss, detached.

        Args:
            lesson: What the small student learned from too.
            weights: ``[K]`` class weights of the source term.
            factor: On the learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
        self.model.train(self.batch_norm not in FROZEN)
        self.optimizer.zero_grad()
        with torch.autocast(lesson.target.device.type, torch.bfloat16, enabled=self.half):
            terms, _ = losses_of(self.model, lesson, weights, self.preprocessing, self.batch_norm)
        loss = Losses(terms).total()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad = ranks.total(parameter.grad) / ranks.count()
        self.optimizer.step()
        self.teacher.follow(self.model)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "large": self.model.state_dict(),
            "large_optimizer": self.optimizer.state_dict(),
            **self.teacher.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.model.load_state_dict(state["large"])
        self.optimizer.load_state_dict(state["large_optimizer"])
        self.teacher.load_state(state)


class Distil(Method):
    """One stage of learning from a teacher.

    Args:
        settings: Parameters.
        weights: ``[K]`` class weights of the source term.
        teacher: Labels the target images; None where their soft labels come with the batches.
        preprocessing: How the teacher is fed.
        steps: Length of the stage.
        large: The large student whose moving average the teacher is; None with a teacher that is
            frozen, or is the moving average of the small student itself.
    """

    def __init__(
        self,
        settings: DistilSettings,
        weights: Tensor,
        teacher: Teacher | None,
        preprocessing: Preprocessing,
        steps: int,
        large: LargeStudent | None = None,
    ) -> None:
        self.settings, self.weights = settings, weights
        self.teacher, self.preprocessing, self.large = teacher, preprocessing, large
        self.joint = steps - round(settings.alone * steps)
        self.overlap = torch.ones_like(weights)
        self.large_loss: Tensor | None = None
        self._lesson: Lesson | None = None
        self._done = 0

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the network stays in eval mode."""
        return self.settings.batch_norm in FROZEN

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return the loss on source images and on the teacher's labels of target images."""
        settings = self.settings
        lesson, confidence = self._prepare(batch)
        weight = lesson.weight
        if settings.disagreement:
            unlike = 1 + settings.disagreement * (1 - self.overlap.to(weight))
            weight = weight * unlike[lesson.probability.max(1).indices]
            weight = weight / weight.mean().clamp(min=1e-6) * lesson.weight.mean()
        own = Lesson(lesson.source, lesson.source_label, lesson.target, lesson.probability, weight)
        terms, logits = losses_of(model, own, self.weights, preprocessing, settings.batch_norm)
        terms = {
            name: term * (settings.source_weight if name == "supervised" else 1.0)
            for name, term in terms.items()
        }
        winner = logits.detach().max(1).indices
        taught = lesson.probability.max(1).indices
        self._compare(winner, taught)
        self._done = batch.step
        self._lesson = lesson if self.large is not None and batch.step < self.joint else None
        figures = {
            "confidence": confidence,
            "agreement": (winner == taught).float().mean(),
            "overlap": self.overlap,
        }
        if self.large_loss is not None:  # of the step before
            figures["large_loss"] = self.large_loss
        return Losses(terms, figures, {"mixed": (lesson.target, taught)})

    def after_step(self, model: Network) -> None:
        """Let the large student learn, or move a teacher that follows the small one."""
        if self.large is None:
            if self.teacher is not None:
                self.teacher.follow(model)
        elif self._lesson is not None:
            factor = (1 - self._done / max(1, self.joint)) ** POWER
            weights = self.weights.to(self._lesson.target)
            self.large_loss = self.large.learn(self._lesson, weights, factor)
            self._lesson = None

    @torch.no_grad()
    def _prepare(self, batch: Batch) -> tuple[Lesson, Tensor]:
        """Label and perturb the target images; returns also the teacher's mean confidence."""
        settings, generators = self.settings, batch.generators
        target = batch.require_target()
        probability = batch.pseudo_probability
        if probability is None:
            if self.teacher is None:
                msg = "Distil: the batch has no soft labels, and there is no teacher to make them"
                raise ValueError(msg)
            probability = self.teacher.probabilities(target, self.preprocessing)
        confidence = probability.max(1).values
        weight = torch.ones_like(confidence)
        if settings.quality == "image":
            weight = confidence.mean((1, 2), keepdim=True).expand_as(confidence)
        elif settings.quality == "pixel":
            weight = confidence
        if settings.hard:
            labels = probability.max(1).indices
            probability = F.one_hot(labels, probability.shape[1]).permute(0, 3, 1, 2).float()
        elif settings.temperature != 1:
            probability = (probability.clamp(min=1e-8).log() / settings.temperature).softmax(1)
        joint = batch.step < self.joint
        source = restyle(batch.source, target, settings.style)
        images = target
        if joint and settings.mix:
            images, probability, weight = paste(
                source, batch.source_label, target, probability, weight, settings.mix, generators
            )
        images = colour(images, STRONG, generators)
        if settings.mask:
            images = hide(images, settings.mask, settings.block, generators)
        with_source = settings.source_weight > 0 and joint
        lesson = Lesson(
            colour(source, SOURCE, generators) if with_source else None,
            batch.source_label,
            images,
            probability,
            weight,
        )
        return lesson, confidence.mean()

    @torch.no_grad()
    def _compare(self, student: Tensor, teacher: Tensor) -> None:
        """Move the running overlap (IoU by class) of student and teacher."""
        classes = len(self.weights)
        both, ours, theirs = (
            ranks.total(labels.flatten().bincount(minlength=classes).float())
            for labels in (student[student == teacher], student, teacher)
        )
        union = ours + theirs - both
        now = torch.where(union > 0, both / union.clamp(min=1), self.overlap.to(union))
        self.overlap = PACE * self.overlap.to(now) + (1 - PACE) * now

    def state(self) -> dict[str, Any]:
        """Return the overlap, the large student and a moving teacher."""
        state: dict[str, Any] = {"overlap": self.overlap}
        if self.large is not None:
            return state | self.large.state()
        moving = self.teacher if self.teacher is not None and self.teacher.decay < 1 else None
        return state | (moving.state() if moving is not None else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the state back."""
        self.overlap = state["overlap"]
        if self.large is not None:
            self.large.load_state(state)
        elif self.teacher is not None and self.teacher.decay < 1:
            self.teacher.load_state(state)


def paste(
    source: Tensor,
    source_label: Tensor,
    target: Tensor,
    probability: Tensor,
    weight: Tensor,
    share: float,
    generators: Sequence[Generator],
) -> tuple[Tensor, Tensor, Tensor]:
    """Paste half of the source classes on some target images, labels and weights with them.

    Args:
        source: ``[N, 3, H, W]`` in [0, 1].
        source_label: ``[N, H, W]`` int64, 255 never pasted.
        target: ``[N, 3, H, W]`` in [0, 1].
        probability: ``[N, K, H, W]`` labels of the target images.
        weight: ``[N, H, W]``.
        share: Probability that an image is mixed.
        generators: One per pair of images.

    Returns:
        Images, labels and weights of the same shapes.
    """
    masks = []
    for label, generator in zip(source_label, generators, strict=True):
        mask = class_mask(label, generator)
        chosen = bool(torch.rand(1, generator=generator) < share)
        masks.append(mask if chosen else torch.zeros_like(mask))
    mask = torch.stack(masks)
    known = F.one_hot(source_label.clamp(max=probability.shape[1] - 1), probability.shape[1])
    pasted = known.permute(0, 3, 1, 2).to(probability)
    return (
        torch.where(mask[:, None], source, target),
        torch.where(mask[:, None], pasted, probability),
        torch.where(mask, 1.0, weight),
    )


def hide(images: Tensor, share: float, block: int, generators: Sequence[Generator]) -> Tensor:
    """Replace random square blocks by the mean colour of the image.

    Args:
        images: ``[N, 3, H, W]``.
        share: Share of the blocks.
        block: Side in pixels.
        generators: One per image.
    """
    height, width = images.shape[-2:]
    rows, columns = -(-height // block), -(-width // block)
    masks = torch.stack([torch.rand(1, rows, columns, generator=g) < share for g in generators])
    hidden = F.interpolate(masks.float(), scale_factor=block, mode="nearest")[..., :height, :width]
    return torch.where(hidden.to(images) > 0, images.mean((2, 3), keepdim=True), images)


def losses_of(
    model: Network,
    lesson: Lesson,
    weights: Tensor,
    preprocessing: Preprocessing,
    batch_norm: BatchNorm,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the terms of a student's loss, unweighted, and its main logits on target images.

    Args:
        model: The student.
        lesson: What it learns from.
        weights: ``[K]`` class weights of the source term.
        preprocessing: How the student is fed.
        batch_norm: See `edgeuda.methods.batchnorm.BatchNorm`.
    """
    size = (lesson.target.shape[2], lesson.target.shape[3])
    target = normalise(lesson.target, preprocessing)
    terms: dict[str, Tensor] = {}
    if lesson.source is None:
        (theirs,) = forward(model, target, [], batch_norm)
    else:
        source = normalise(lesson.source, preprocessing)
        ours, theirs = forward(model, source, [target], batch_norm)
        terms["supervised"] = model.weigh(
            cross_entropy_map(upsample(head, size), lesson.source_label, weights.to(target)).mean()
            for head in ours.heads()
        )
    full = [upsample(head, size) for head in theirs.heads()]
    terms["distil"] = model.weigh(
        (lesson.weight * -(lesson.probability * z.float().log_softmax(1)).sum(1)).mean()
        for z in full
    )
    return terms, full[0]


def _build(settings: DistilSettings, stage: StageContext) -> Distil:
    if (Path(settings.teacher) / PseudoLabelsRecord.FILE).is_file():
        stage.use_soft_labels_in(Path(settings.teacher))
        fed = stage.spec.preprocessing
        return Distil(settings, stage.weights, None, fed, settings.steps)
    teacher, spec = _teacher(settings, stage)
    large = None
    if settings.labels.offline:
        stage.use_probabilities_of(teacher, spec)
    elif settings.teacher == "large":
        optimisation = settings.model_copy(update={"lr": settings.large.lr})
        network, optimizer = stage.learner(teacher.model, optimisation)
        large = LargeStudent(
            network, spec.preprocessing, teacher, optimizer, settings.batch_norm, stage.half
        )
    return Distil(
        settings,
        stage.weights,
        None if settings.labels.offline else teacher,
        spec.preprocessing,
        settings.steps,
        large,
    )


def _teacher(settings: DistilSettings, stage: StageContext) -> tuple[Teacher, ModelSpec]:
    """Return who labels the target images, and the spec that it is fed by."""
    if settings.teacher == "self":
        return stage.teacher(settings.labels), stage.spec
    if settings.teacher == "large":
        network, spec = stage.large_network(settings.large)
        return stage.teacher(settings.labels, network), spec
    network, spec = stage.stored_network(Path(settings.teacher))
    stays = settings.labels.model_copy(update={"decay": 1.0})
    return stage.teacher(stays, network), spec


DISTIL = register_method(
    MethodType(
        "distil",
        DistilSettings,
        title="distillation from a teacher",
        label="distil",
        build=_build,
        stream=6,
        place=5,
    )
)
