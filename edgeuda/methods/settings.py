"""Settings of methods as validated data: each class is a table of the recipe as it stands there."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeuda.views.style import Style

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
ClassWeights = Literal["raw", "normalised", "none"] | tuple[Weight, ...]


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StageSettings(Section):
    """Settings of a stage: its section of the recipe.

    The order of the fields is that of a written recipe, whose checksum decides whether a run may be
    resumed: new fields go to the end.
    """

    @property
    @abstractmethod
    def length(self) -> int:
        """How far the stage goes, for records: its steps, or its batches."""

    def networks(self) -> tuple[str, ...]:
        """Return run folders or model files that the stage reads: another file is another run."""
        return ()


class Optimisation(StageSettings):
    """Optimiser, schedule and batches of a stage: what every method that trains has.

    Attributes:
        optimizer: ``"sgd"``, or ``"adam"``.
        betas: Of Adam.
        schedule: ``"polynomial"``, or ``"cosine"`` down to a thousandth.
        steps: Length of the stage.
        decay_steps: Steps after which the schedule would be at its end, where released codes stop
            before; None is ``steps``.
        batch: Images per domain and step, on each rank.
        accumulate: Batches whose gradients are added up to one step.
        lr: Learning rate after warm-up.
        head_factor: Factor on the learning rate of the heads, and of a BiSeNet's feature fusion.
        bias_factor: Factor on the learning rate of all biases of convolutions.
        momentum: Of SGD.
        weight_decay: Not applied to batch norm and biases.
        power: Exponent of the polynomial decay.
        warmup: Steps over which the rate rises exponentially from a tenth.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
        rare_temperature: Temperature of rare-class sampling of source images; 0 takes each image
            once per epoch.
        style: How source images are given the look of target images.
        class_weights: Of all terms of this stage; None takes the recipe's.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    betas: Betas = (0.9, 0.999)
    schedule: Literal["polynomial", "cosine"] = "polynomial"
    steps: Positive
    decay_steps: Positive | None = None
    batch: Positive
    accumulate: Positive = 1
    lr: Rate
    head_factor: Rate = 1.0
    bias_factor: Rate = 1.0
    momentum: Share = 0.9
    weight_decay: Weight = 5e-4
    power: Weight = 0.9
    warmup: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 500
    log_every: Positive = 10
    rare_temperature: Weight = 0.0
    style: Style = "none"
    class_weights: ClassWeights | None = None

    @property
    def length(self) -> int:
        """Its steps."""
        return self.steps

    @model_validator(mode="after")
    def _not_beyond_the_end(self) -> Optimisation:
        if self.decay_steps is not None and self.decay_steps < self.steps:
            msg = f"decay_steps: expected at least the {self.steps} of steps, or leave it out"
            raise ValueError(msg)
        return self
