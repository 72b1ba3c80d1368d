"""Stage 0: supervised training on labelled source images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from edgeuda.labels import IGNORE
from edgeuda.methods.base import Batch, Losses
from edgeuda.methods.losses import cross_entropy_map, ohem
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing
from edgeuda.training.views import SOURCE, ColourChain, colour


@dataclass
class Supervised:
    """Cross-entropy, or its hard-example form, summed over the three heads.

    Attributes:
        loss: ``"ohem"`` or ``"ce"``.
        weights: ``[K]`` class weights.
        chain: Colour augmentation of the images.
    """

    loss: Literal["ohem", "ce"]
    weights: Tensor
    chain: ColourChain = field(default=SOURCE)
    freezes_batch_norm = False

    def step(self, model: BiSeNet, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return the loss of the source images; target images are not looked at."""
        images = colour(batch.source, self.chain, batch.generator)
        outputs = model(normalise(images, preprocessing), aux=True)
        weights = self.weights.to(images)
        terms = {}
        for name, logits in zip(("main", "aux8", "aux16"), outputs.heads(), strict=True):
            loss = cross_entropy_map(logits, batch.source_label, weights)
            hard = self.loss == "ohem"
            terms[name] = ohem(loss, batch.source_label != IGNORE) if hard else loss.mean()
        return Losses(terms)

    def state(self) -> dict[str, Tensor]:
        """Return nothing: there is no state."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take nothing."""
