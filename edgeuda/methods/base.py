"""What a method gets and gives: a batch in, named losses out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, Tensor

from edgeuda.models.network import Network
from edgeuda.spec import Preprocessing


@dataclass(frozen=True)
class Batch:
    """Images of one step after the geometric views, not yet coloured or normalised.

    Attributes:
        step: Number of the step, from 0.
        source: ``[N, 3, H, W]`` float RGB in [0, 1].
        source_label: ``[N, H, W]`` int64, 255 ignored.
        target: ``[N, 3, H, W]`` float RGB in [0, 1], or None in supervised training.
        pseudo_label: ``[N, H, W]`` int64 pseudo-labels of the target images where they were made
            beforehand, 255 ignored, or None.
        pseudo_confidence: ``[N, H, W]`` float confidence of the pseudo-labels, or None.
        pseudo_probability: ``[N, K, H, W]`` float soft labels of the target images where they were
            made beforehand, or None.
        labelled: More labelled images ``[N, 3, H, W]`` and their labels ``[N, H, W]``, or None: a
            few of the target with ASS, those of the source in rounds on pseudo-labels.
        generators: One per pair of images, on the CPU: all further draws come from them.
        names: Files of the images, for messages.
        crop: Draws a source crop that holds a class, see `edgeuda.methods.mixing.Crop`.
    """

    step: int
    source: Tensor
    source_label: Tensor
    target: Tensor | None
    pseudo_label: Tensor | None
    pseudo_confidence: Tensor | None
    generators: Sequence[Generator]
    names: tuple[str, ...]
    crop: Callable[[int, Generator], tuple[Tensor, Tensor] | None] | None = None
    labelled: tuple[Tensor, Tensor] | None = None
    pseudo_probability: Tensor | None = None

    @property
    def images(self) -> int:
        """Number of images of the batch, of both domains."""
        others = (self.target, self.labelled[0] if self.labelled else None)
        return len(self.source) + sum(len(images) for images in others if images is not None)

    def require_target(self) -> Tensor:
        """Return the target images of an adaptation step."""
        if self.target is None:
            msg = "An adaptation step needs target images"
            raise ValueError(msg)
        return self.target


@dataclass(frozen=True)
class Losses:
    """Weighted terms of a step's loss, and figures to log.

    Attributes:
        terms: Scalars, already weighted; their sum is minimised.
        figures: Scalars and vectors for the log.
        pictures: Images that the step made, for people to look at: ``[N, 3, H, W]`` in [0, 1], and
            the labels ``[N, H, W]`` that are learned with them, 255 ignored.
    """

    terms: dict[str, Tensor]
    figures: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Return the sum of the terms."""
        first, *rest = self.terms.values()
        for term in rest:
            first = first + term
        return first


class Method:
    """One way of training. It knows its paper; loops, files and ranks belong to the trainer.

    Attributes:
        freezes_batch_norm: Whether the network stays in eval mode while its weights train.
    """

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the network stays in eval mode."""
        return False

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return the losses of one batch."""
        raise NotImplementedError

    def after_step(self, model: Network) -> None:
        """Train what the method has of its own, after the network's optimiser."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides the network: tensors, numbers, containers."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
