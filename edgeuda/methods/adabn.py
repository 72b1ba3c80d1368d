"""AdaBN: batch-norm statistics re-estimated on target images, weights untouched.

Source: Li et al., "Revisiting Batch Normalization for Practical Domain Adaptation", 2016.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from edgeuda.errors import ModelError
from edgeuda.methods.context import StageContext
from edgeuda.methods.registry import MethodType, register_method
from edgeuda.methods.settings import Positive, StageSettings
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing

logger = logging.getLogger(__name__)

LEAST_VARIANCE = 1e-3
"""Share of its old variance below which a layer's new statistics are not to be trusted."""


class AdaBNSettings(StageSettings):
    """Re-estimation of batch-norm statistics on target.

    Attributes:
        batch: Images per batch.
        batches: Number of batches, drawn without views until the frames are used up, then again.
    """

    batch: Annotated[int, Field(ge=2)] = 8
    batches: Positive = 50

    @property
    def length(self) -> int:
        """Its batches."""
        return self.batches


@torch.no_grad()
def adapt_batch_norm(
    model: nn.Module, batches: Iterable[Tensor], preprocessing: Preprocessing
) -> list[str]:
    """Replace running means and variances by averages over target batches, in place.

    Args:
        model: The network; left in eval mode.
        batches: ``[N, 3, H, W]`` float RGB in [0, 1], N at least 2: the pooled branches have one
            value per image and channel.
        preprocessing: Normalisation of the network's input.

    Returns:
        Names of layers that kept their old statistics, because over the frames their variance is
        next to nothing: a pooled branch that sees the same picture again and again.

    Raises:
        ModelError: If the network has no batch norm.
        ValueError: If there is no batch.
    """
    named = {n: module for n, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    norms = list(named.values())
    if not norms:
        msg = "AdaBN: the network has no batch norm. Leave 'adabn' out of the recipe's stages"
        raise ModelError(msg)
    momenta = [norm.momentum for norm in norms]
    before = {name: copy.deepcopy(norm.state_dict()) for name, norm in named.items()}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average, every batch weighing the same
    model.train()
    seen = False
    for images in batches:
        model(normalise(images, preprocessing), aux=True)
        seen = True
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if not seen:
        msg = "Batch-norm statistics need at least one batch of target images"
        raise ValueError(msg)
    flat = [
        name
        for name, norm in named.items()
        if norm.running_var is not None
        and float(norm.running_var.mean())
        < LEAST_VARIANCE * float(before[name]["running_var"].mean())
    ]
    for name in flat:
        named[name].load_state_dict(before[name])
    return flat


def _run(settings: AdaBNSettings, stage: StageContext) -> None:
    frames = stage.frames(settings.batch, settings.batches)
    for layer in adapt_batch_norm(stage.network, frames, stage.spec.preprocessing):
        logger.warning(
            "AdaBN: %s hardly varies over the target frames, as if they were all alike; its "
            "source statistics were kept",
            layer,
        )


ADABN = register_method(
    MethodType(
        "adabn",
        AdaBNSettings,
        title="batch-norm statistics",
        label="AdaBN",
        run=_run,
        stream=1,
        always=True,
        place=1,
    )
)
