"""Stage 0: supervised training on labelled source images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from edgeuda.labels import IGNORE
from edgeuda.methods.base import Batch, Losses, Method
from edgeuda.methods.context import StageContext
from edgeuda.methods.losses import cross_entropy_map, ohem
from edgeuda.methods.registry import MethodType, register_method
from edgeuda.methods.settings import Optimisation, Share
from edgeuda.models.network import Network, upsample
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing
from edgeuda.views.style import Style, restyle
from edgeuda.views.transforms import SOURCE, ColourChain, colour


class SourceSettings(Optimisation):
    """Stage 0: supervised training on source.

    Attributes:
        loss: ``"ohem"`` or ``"ce"``.
        tail: Share of the steps, at the end, in which ``"ohem"`` gives way to plain cross-entropy,
            without which the network's confidence stays low.
        held: Share of the source images that is kept from this stage; on them a temperature is
            fitted, by which later stages read the network's confidence.
        augment: Whether source images pass the colour chain of their branch.
        affine: Whether the batch norms of a DeepLabV2, whose scale and shift no other stage
            changes, learn them here. Other networks learn theirs always.
    """

    loss: Literal["ohem", "ce"] = "ohem"
    tail: Share = 0.0
    held: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    augment: bool = True
    affine: bool = False


@dataclass
class Supervised(Method):
    """Cross-entropy, or its hard-example form, summed over the heads.

    Class weights multiply the loss; which examples are hard, the bare probability says.

    Attributes:
        loss: ``"ohem"`` or ``"ce"``.
        weights: ``[K]`` class weights.
        chain: Colour augmentation of the images, or None.
        style: How source images are given the look of target images, where there are any.
        hard_steps: Steps after which ``"ohem"`` gives way to plain cross-entropy, None for never.
            Hard examples alone teach a network no confidence above OHEM's threshold.
    """

    loss: Literal["ohem", "ce"]
    weights: Tensor
    chain: ColourChain | None = SOURCE
    style: Style = "none"
    hard_steps: int | None = None

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return the loss of the source images, target images only lend their look."""
        images = batch.source
        if self.style != "none":
            images = restyle(images, batch.require_target(), self.style)
        if self.chain is not None:
            images = colour(images, self.chain, batch.generators)
        x = normalise(images, preprocessing).contiguous(memory_format=torch.channels_last)
        outputs = model(x, aux=True, upsample=False)
        size = (images.shape[2], images.shape[3])
        weights = self.weights.to(images)
        hard = self.loss == "ohem" and (self.hard_steps is None or batch.step < self.hard_steps)
        terms = {}
        for name, head_weight, logits in zip(
            model.heads, model.head_weights, outputs.heads(), strict=True
        ):
            full = upsample(logits.float().contiguous(), size)  # faster than in half precision
            if hard:
                averaged = self._hard(cross_entropy_map(full, batch.source_label), batch, weights)
            else:
                averaged = cross_entropy_map(full, batch.source_label, weights).mean()
            terms[name] = head_weight * averaged
        return Losses(terms)

    def _hard(self, loss: Tensor, batch: Batch, weights: Tensor) -> Tensor:
        valid = batch.source_label != IGNORE
        of_pixels = weights[batch.source_label.masked_fill(~valid, 0)]
        return ohem(loss, valid, weights=of_pixels)


def _build(settings: SourceSettings, stage: StageContext) -> Supervised:
    return Supervised(
        settings.loss,
        stage.weights,
        SOURCE if settings.augment else None,
        settings.style,
        settings.steps - round(settings.tail * settings.steps),
    )


SUPERVISED = register_method(
    MethodType(
        "source",
        SourceSettings,
        title="supervised training on source",
        label="source-only",
        build=_build,
        stream=0,
        adapts=False,
        place=0,
    )
)
