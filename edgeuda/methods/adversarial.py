"""Adversarial adaptation in output space, and with a few labelled target images per class (ASS).

Sources: Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation", CVPR
2018; Vu et al., "ADVENT", CVPR 2019 (self-information as input); Wang et al., "Alleviating
Semantic-level Shift: A Semi-supervised Domain Adaptation Method for Semantic Segmentation", CVPRW
2020. No code of the latter was released and its text was not at hand: what is known is that
features are averaged per class over labelled pixels of both domains and told apart by a
discriminator; sizes, weights and the class-conditional outputs are proposed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.errors import ConfigError
from edgeuda.labels import IGNORE
from edgeuda.methods import ranks
from edgeuda.methods.base import Batch, Losses, Method
from edgeuda.methods.batchnorm import FROZEN, BatchNorm, forward
from edgeuda.methods.context import StageContext
from edgeuda.methods.losses import cross_entropy_map
from edgeuda.methods.registry import MethodType, register_method
from edgeuda.methods.schedules import Schedule, decayed
from edgeuda.methods.settings import Betas, Optimisation, Positive, Rate, Weight
from edgeuda.models.discriminators import output_discriminator, vector_discriminator
from edgeuda.models.network import Network, upsample
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing
from edgeuda.views.style import restyle
from edgeuda.views.transforms import SOURCE, colour

SOURCE_DOMAIN, TARGET_DOMAIN = 0.0, 1.0

Semantic = Literal["none", "feature-fc", "output-fc", "output-cnn"]


class AdversarialSettings(Optimisation):
    """Adversarial adaptation.

    Attributes:
        loss: ``"bce"``, or ``"ls"``: least squares, as in LSGAN.
        weight: Weight of fooling the discriminator of the main head.
        auxiliary_weight: The same on each auxiliary head; 0 leaves their discriminators out.
        entropy_input: Whether discriminators see self-information instead of probabilities.
        light: Whether discriminators are depthwise separable.
        first_kernel: Of the discriminators.
        discriminator_lr: Learning rate of Adam.
        discriminator_betas: Of Adam: AdaptSegNet has the default, IAST and HIAST (0.9, 0.999).
        discriminator_schedule: How the rate decays; ``"as-network"``, as in AdaptSegNet and HIAST,
            is the stage's ``schedule`` with its ``power`` and ``decay_steps``. There is no warm-up.
        augment: Whether labelled images pass the colour chain of the source branch.
        batch_norm: See `edgeuda.methods.batchnorm.BatchNorm`.
    """

    loss: Literal["bce", "ls"] = "bce"
    weight: Weight = 1e-3
    auxiliary_weight: Weight = 0.0
    entropy_input: bool = False
    light: bool = False
    first_kernel: Literal[3, 4] = 4
    discriminator_lr: Rate = 1e-4
    discriminator_betas: Betas = (0.9, 0.99)
    discriminator_schedule: Literal["as-network", "polynomial", "cosine", "constant"] = "as-network"
    augment: bool = True
    batch_norm: BatchNorm = "frozen"

    def schedule_of_discriminators(self) -> Schedule:
        """Return how the discriminators' rate decays."""
        own = self.discriminator_schedule
        return self.schedule if own == "as-network" else own


class AssSettings(AdversarialSettings):
    """The same with a few labelled target images (ASS).

    Attributes:
        labels: How many images, drawn by the recipe's seed so that fewer are among more; a file
            with one name per line; or a labelled folder of its own.
        semantic: What is averaged per class: ``"none"``; ``"feature-fc"``: the main head's input;
            ``"output-fc"``: probabilities; ``"output-cnn"``: probabilities stay maps, masked by
            class.
        semantic_weight: Weight of fooling the semantic discriminator.
    """

    labels: Positive | str = 100
    semantic: Semantic = "feature-fc"
    semantic_weight: Weight = 1e-3


class ClassVectors(NamedTuple):
    """Means over the pixels of one class in one image.

    Attributes:
        values: ``[M, F]``.
        classes: ``[M]`` int64.
    """

    values: Tensor
    classes: Tensor


def class_means(features: Tensor, label: Tensor) -> ClassVectors:
    """Average features over the labelled pixels of each class that an image holds.

    Args:
        features: ``[N, F, h, w]``.
        label: ``[N, H, W]`` int64, 255 ignored; brought to ``h x w`` by the nearest pixel.
    """
    size = features.shape[2:]
    small = F.interpolate(label[:, None].float(), size, mode="nearest")[:, 0].long().flatten(1)
    classes = int(small.masked_fill(small == IGNORE, -1).max()) + 1
    masks = (small[:, None] == torch.arange(classes, device=small.device)[:, None]).to(features)
    counts = masks.sum(2)
    means = masks @ features.flatten(2).transpose(1, 2) / counts.clamp(min=1)[..., None]
    image, found = (counts > 0).nonzero(as_tuple=True)
    return ClassVectors(means[image, found], found)


def self_information(probability: Tensor) -> Tensor:
    """Return ``-p log2 p / log2 K`` of ``[N, K, H, W]`` probabilities."""
    information: Tensor = -probability * torch.log2(probability + 1e-30)
    return information / math.log2(probability.shape[1])


class Adversarial(Method):
    """Supervised training while discriminators learn to tell target predictions from source's.

    The network learns to be taken for source on target images, the discriminators after each of
    its steps on what it just predicted.

    Args:
        settings: Parameters.
        weights: ``[K]`` class weights of the supervised term.
        network: What is adapted, for the number of its heads and channels.
        steps: After which the discriminators' schedule is at its end.
        seed: Of the discriminators' initial weights.
        device: Where they live.
        half: Whether they compute in bfloat16.
    """

    def __init__(
        self,
        settings: AdversarialSettings,
        weights: Tensor,
        network: Network,
        steps: int,
        seed: int,
        device: torch.device,
        half: bool = False,
    ) -> None:
        self.settings, self.weights, self.half = settings, weights, half
        self.steps, self.done = steps, 0
        self.semantic: Semantic = settings.semantic if isinstance(settings, AssSettings) else "none"
        self.auxiliary = len(network.heads) - 1 if settings.auxiliary_weight else 0
        classes = len(weights)
        if self.semantic != "none" and not network.channels:
            msg = (
                f"{type(network).__name__}: hands out no features, which a semantic-level "
                "adversary compares. Set ass.semantic = none, or leave stage 'ass' out"
            )
            raise ConfigError(msg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = [
                output_discriminator(
                    classes, light=settings.light, first_kernel=settings.first_kernel
                )
                for _ in range(1 + self.auxiliary)
            ]
            semantic = _semantic_discriminator(self.semantic, classes, network.channels)
        self.discriminators = nn.ModuleDict({str(i): d for i, d in enumerate(heads)})
        if semantic is not None:
            self.discriminators["semantic"] = semantic
        self.discriminators.to(device)
        self.optimizer = torch.optim.Adam(
            self.discriminators.parameters(),
            settings.discriminator_lr,
            settings.discriminator_betas,
        )
        self._seen: list[tuple[str, Tensor | ClassVectors, Tensor | ClassVectors]] = []

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the network stays in eval mode."""
        return self.settings.batch_norm in FROZEN

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return supervised and adversarial losses."""
        settings = self.settings
        target = batch.require_target()
        size = (target.shape[2], target.shape[3])
        weights = self.weights.to(target)
        source = self._coloured(restyle(batch.source, target, settings.style), batch)
        views = [normalise(target, preprocessing)]
        labels = [batch.source_label]
        if batch.labelled is not None:
            views.append(normalise(self._coloured(batch.labelled[0], batch), preprocessing))
            labels.append(batch.labelled[1])
        ours, theirs, *few = forward(
            model, normalise(source, preprocessing), views, settings.batch_norm
        )
        supervised = [
            model.weigh(
                cross_entropy_map(upsample(head, size), label, weights).mean()
                for head in logits.heads()
            )
            for logits, label in zip([ours, *few], labels, strict=True)
        ]
        terms = {"supervised": supervised[0]}
        if few:
            terms["labelled target"] = supervised[1]
        with self._held_still():
            terms["adversarial"] = self._adversarial(ours.heads(), theirs.heads(), size)
            if few and isinstance(settings, AssSettings) and self.semantic != "none":
                known = [
                    self._of_classes(logits.features, logits.main, label, size)
                    for logits, label in zip([ours, *few], labels, strict=True)
                ]
                self._seen.append(("semantic", _detached(known[0]), _detached(known[1])))
                semantic = self._judge("semantic", known[1], SOURCE_DOMAIN)
                terms["semantic"] = settings.semantic_weight * semantic
        return Losses(terms)

    def _coloured(self, images: Tensor, batch: Batch) -> Tensor:
        return colour(images, SOURCE, batch.generators) if self.settings.augment else images

    def after_step(self, model: Network) -> None:
        """Train the discriminators on what the network predicted in this step."""
        settings = self.settings
        done = self.done / max(1, self.steps)
        factor = decayed(done, settings.schedule_of_discriminators(), settings.power)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.discriminator_lr * factor
        self.optimizer.zero_grad()
        for name, source, target in self._seen:
            loss = self._judge(name, source, SOURCE_DOMAIN)
            loss = 0.5 * (loss + self._judge(name, target, TARGET_DOMAIN))
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.discriminators.parameters():
            if parameter.grad is not None:
                parameter.grad = ranks.total(parameter.grad) / ranks.count()
        self.optimizer.step()
        self._seen.clear()
        self.done += 1

    def _adversarial(
        self, source: Sequence[Tensor], target: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """Return the loss of not being taken for source, and note what was predicted."""
        settings = self.settings
        total = target[0].new_zeros(())
        for index in range(1 + self.auxiliary):
            ours, theirs = (
                upsample(heads[index], size).softmax(1)
                for heads in ([head.detach() for head in source], target)
            )
            if settings.entropy_input:
                ours, theirs = self_information(ours), self_information(theirs)
            self._seen.append((str(index), ours, theirs.detach()))
            weight = settings.auxiliary_weight if index else settings.weight
            total = total + weight * self._judge(str(index), theirs, SOURCE_DOMAIN)
        return total

    def _of_classes(
        self, features: Tensor | None, main: Tensor, label: Tensor, size: tuple[int, int]
    ) -> ClassVectors:
        if self.semantic == "feature-fc":
            assert features is not None
            return class_means(features.float(), label)
        probability = upsample(main, size).softmax(1)
        if self.semantic == "output-fc":
            return class_means(probability, label)
        image, found = zip(
            *((n, int(c)) for n, row in enumerate(label) for c in row.unique() if c != IGNORE),
            strict=True,
        )
        classes = torch.tensor(found, device=label.device)
        masks = label[list(image)] == classes.view(-1, 1, 1)
        return ClassVectors(probability[list(image)] * masks[:, None], classes)

    def _judge(self, name: str, seen: Tensor | ClassVectors, domain: float) -> Tensor:
        """Return a discriminator's loss if ``seen`` were to be taken for a domain."""
        x = seen.values if isinstance(seen, ClassVectors) else seen
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            verdict = self.discriminators[name](x)
        verdict = verdict.float()
        if isinstance(seen, ClassVectors):
            place = torch.arange(len(verdict), device=verdict.device)
            verdict = verdict[place, seen.classes]
            if verdict.ndim == 3:  # averaged over where the class is
                mask = (x.detach().sum(1, keepdim=True) > 0).float()
                share = F.adaptive_avg_pool2d(mask, (verdict.shape[1], verdict.shape[2]))[:, 0]
                verdict = (verdict * share).sum((1, 2)) / share.sum((1, 2))
        wanted = torch.full_like(verdict, domain)
        if self.settings.loss == "ls":
            return F.mse_loss(verdict, wanted)
        return F.binary_cross_entropy_with_logits(verdict, wanted)

    @contextmanager
    def _held_still(self) -> Iterator[None]:
        """Let gradients pass through the discriminators without reaching their weights."""
        self.discriminators.requires_grad_(False)
        try:
            yield
        finally:
            self.discriminators.requires_grad_(True)

    def state(self) -> dict[str, Any]:
        """Return the discriminators and their optimiser."""
        return {
            "discriminators": self.discriminators.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the state back."""
        self.discriminators.load_state_dict(state["discriminators"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]


def _detached(vectors: ClassVectors) -> ClassVectors:
    return ClassVectors(vectors.values.detach(), vectors.classes)


def _semantic_discriminator(mode: Semantic, classes: int, channels: int) -> nn.Module | None:
    if mode == "none":
        return None
    if mode == "output-cnn":
        return output_discriminator(classes, classes)
    if mode == "output-fc":
        return vector_discriminator(classes, 256, classes)
    return vector_discriminator(channels, min(1024, 4 * channels), classes)


def _build(settings: AdversarialSettings, stage: StageContext) -> Adversarial:
    return Adversarial(
        settings,
        stage.weights,
        stage.network,
        settings.decay_steps or settings.steps,
        stage.seed,
        stage.device,
        stage.half,
    )


def _ass(settings: AssSettings, stage: StageContext) -> Adversarial:
    stage.use_labelled(settings.labels)
    return _build(settings, stage)


ADVERSARIAL = register_method(
    MethodType(
        "adversarial",
        AdversarialSettings,
        title="output-space adversary",
        label="adversarial",
        build=_build,
        stream=5,
        place=6,
    )
)
ASS = register_method(
    MethodType(
        "ass",
        AssSettings,
        title="semantic-level adversary, a few target labels",
        label="ASS",
        build=_ass,
        stream=5,
        needs_labelled=True,
        place=7,
    )
)
