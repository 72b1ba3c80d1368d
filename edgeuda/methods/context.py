"""What a stage offers to the method that is built for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeuda.methods.settings import Optimisation
from edgeuda.methods.teacher import LargeSettings, Teacher, TeacherSettings
from edgeuda.models.network import Network
from edgeuda.spec import ModelSpec


class StageContext(Protocol):
    """A stage as its method sees it: networks, numbers, and what the batches may be made to hold.

    The last three methods are requests: a method that makes none gets the target images as they
    are, without labels.
    """

    @property
    def network(self) -> Network:
        """The network that is adapted, as the stage begins."""

    @property
    def spec(self) -> ModelSpec:
        """Its label space and how it is fed."""

    @property
    def weights(self) -> Tensor:
        """``[K]`` class weights of the stage."""

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """``[M, K]`` pixels of each class in each source image."""

    @property
    def seed(self) -> int:
        """Of whatever the method draws when it is made; the stage's own stream."""

    @property
    def device(self) -> torch.device:
        """Where the stage computes."""

    @property
    def half(self) -> bool:
        """Whether networks compute in bfloat16."""

    def teacher(
        self, settings: TeacherSettings | None = None, network: Network | None = None
    ) -> Teacher:
        """Return a teacher.

        Args:
            settings: How it labels; None: a frozen copy that looks once.
            network: What it copies; by default the network that is adapted, with the temperature
                that was fitted for it.
        """

    def large_network(self, settings: LargeSettings) -> tuple[Network, ModelSpec]:
        """Return a second network, trained on source first, with its spec."""

    def stored_network(self, path: Path) -> tuple[Network, ModelSpec]:
        """Return another network from its file, with its spec.

        Raises:
            ConfigError: If its classes or its camera are not those of this run.
        """

    def learner(
        self, network: Network, settings: Optimisation
    ) -> tuple[Network, torch.optim.Optimizer]:
        """Return a copy of a network that trains beside the adapted one, and its optimiser."""

    def frames(self, batch: int, batches: int) -> Iterator[Tensor]:
        """Yield batches of target frames, ``[N, 3, H, W]`` float RGB in [0, 1], without views."""

    def use_labels_of(self, teacher: Teacher) -> None:
        """Let the batches hold classes and confidences of whole frames, labelled once, ahead."""

    def use_probabilities_of(self, teacher: Teacher, spec: ModelSpec) -> None:
        """Let the batches hold soft labels of whole frames, made once, ahead.

        Args:
            teacher: Who labels.
            spec: How it is fed.
        """

    def use_soft_labels_in(self, folder: Path) -> None:
        """Let the batches hold soft labels that lie in a folder, as `use_probabilities_of` does.

        Args:
            folder: Of pseudo-labels, see `edgeuda.records.labelling.PseudoLabelsRecord`.

        Raises:
            DataError: If they are of other classes, or a target frame has none.
        """

    def use_labelled(self, which: int | str) -> None:
        """Let the batches hold labelled target images too.

        Args:
            which: How many, a file with one name per line, or a labelled folder of its own.

        Raises:
            ConfigError: If there are none.
        """
