"""The network that labels target images for mixing: a frozen copy, or one that follows slowly.

Source: the exponential moving average is the teacher of Tarvainen and Valpola, "Mean teachers are
better role models", NeurIPS 2017; Yan et al. (T-ITS 2023) use a frozen copy instead.
"""

from __future__ import annotations

import copy
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgeuda.methods.settings import Positive, Rate, Section, Share
from edgeuda.models.network import Network, upsample
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing


class TeacherSettings(Section):
    """How a teacher labels target images; see `Teacher`.

    Attributes:
        decay: 1 keeps the network frozen that the stage starts from; less makes it follow.
        scales: Sizes at which a target image is looked at.
        flip: Whether its mirror image is looked at too.
        offline: Whether all target frames are labelled once, before the stage.
    """

    decay: Share = 1.0
    scales: tuple[Rate, ...] = (1.0,)
    flip: bool = False
    offline: bool = False


class LargeSettings(Section):
    """A large network that teaches; see `edgeuda.training.recipe.ModelSection`.

    Attributes:
        architecture: See `ModelSection`.
        encoder: See `ModelSection`.
        width: See `ModelSection`.
        pretrained: See `ModelSection`.
        lr: Its learning rate beside the small network.
        adabn: Whether its batch-norm statistics are those of the target before it teaches.
        input: Rows and columns at which it learns and labels where these are not the small
            network's; needs ``labels.offline``.
    """

    architecture: str = "bisenet"
    encoder: str = "resnet18"
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    pretrained: str = "imagenet"
    lr: Rate = 5e-3
    adabn: bool = True
    input: tuple[Positive, Positive] | None = None


class Teacher:
    """Pseudo-labels from a copy of a network.

    Args:
        student: The network as the stage begins; it is copied.
        decay: Weight of the old teacher per step; 1 keeps it frozen.
        scales: Sizes at which a target image is looked at, probabilities averaged.
        flip: Whether its mirror image is looked at too.
        half: Whether it computes in bfloat16.
        temperature: Divides the logits, so that confidence means accuracy; see
            `edgeuda.models.reliability.fit_temperature`.
    """

    def __init__(
        self,
        student: Network,
        decay: float = 1.0,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        half: bool = False,
        temperature: float = 1.0,
    ) -> None:
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay, self.scales, self.flip, self.half = decay, scales, flip, half
        self.temperature = temperature

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move weights and batch-norm statistics towards the student's; nothing if frozen."""
        if self.decay >= 1:
            return
        for mine, its in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.lerp_(its.detach().to(mine), 1 - self.decay)
        for kept, current in zip(self.model.buffers(), student.buffers(), strict=True):
            kept.copy_(current)

    @torch.no_grad()
    def predict(self, images: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
        """Return confidence ``[N, H, W]`` float and pseudo-label ``[N, H, W]`` int64.

        See `probabilities`.
        """
        confidence, label = self.probabilities(images, preprocessing).max(1)
        return confidence, label

    @torch.no_grad()
    def probabilities(self, images: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Return probabilities ``[N, K, H, W]`` float.

        Args:
            images: ``[N, 3, H, W]`` float RGB in [0, 1].
            preprocessing: Normalisation of the network's input.
        """
        self.model.to(images.device)  # does nothing from the second step on
        x = normalise(images, preprocessing).contiguous(memory_format=torch.channels_last)
        height, width = x.shape[-2:]
        total = x.new_zeros(())
        for scale in self.scales:
            size = [max(32, round(side * scale / 32) * 32) for side in (height, width)]
            scaled = x if size == [height, width] else _resize(x, size)
            for mirrored in (False, True)[: 1 + self.flip]:
                with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
                    low = self.model(scaled.flip(3) if mirrored else scaled, upsample=False).main
                low = low.float().contiguous() / self.temperature
                logits = upsample(low, (size[0], size[1]))
                probability = (logits.flip(3) if mirrored else logits).softmax(1)
                total = total + _resize(probability, [height, width])
        return total / (len(self.scales) * (1 + self.flip))

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold: weights and statistics of a moving teacher."""
        return {f"teacher.{key}": value for key, value in self.model.state_dict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        prefix = "teacher."
        mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.model.load_state_dict(mine)


def _resize(x: Tensor, size: list[int]) -> Tensor:
    if list(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
