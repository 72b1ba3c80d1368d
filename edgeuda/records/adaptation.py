"""Stages of an adaptation, their curves and label-free signals, as `edgeuda adapt` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record


@dataclass(frozen=True)
class Signals:
    """State of a network on the probe's frames, without labels.

    Attributes:
        entropy: Mean pixel entropy over ln K, 0 to 1.
        confidence: Mean probability of the winner.
        flip_agreement: Share of the pixels whose class survives a horizontal flip.
        view_agreement: Mean IoU, over the classes predicted in either, between the label maps of
            the frames as they are and perturbed in colour.
        start_agreement: Share of the pixels with the class that the stage's first network gave.
        neighbourhood_density: See `edgeuda.training.monitor.neighbourhood_density`.
        divergence: Jensen-Shannon divergence, base 2, between ``histogram`` and the shares of the
            classes in the source labels, 0 to 1.
        histogram: ``[K]`` share of the pixels predicted as each class.
    """

    entropy: float
    confidence: float
    flip_agreement: float
    view_agreement: float
    start_agreement: float
    neighbourhood_density: float
    divergence: float
    histogram: tuple[float, ...]


@dataclass(frozen=True)
class MeasuredNetwork(Signals):
    """A network of a stage and what it says of itself.

    Attributes:
        step: Steps done.
        alarm: What is wrong if it has collapsed.
        chosen: Whether it is the stage's result.
        refused: Why the stage's own result was not taken, of the network it began with.
    """

    step: int
    alarm: str | None
    chosen: bool
    refused: str | None = field(default=None, metadata={OMIT: True})


@dataclass(frozen=True)
class StageCurve:
    """What a stage's training logged; None what it did not.

    Attributes:
        step: Steps of the other entries.
        loss: The loss.
        keep: Share of the pixels that the threshold lets through, 0 to 1.
        threshold: ``[steps, K]`` thresholds of the classes.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] | None = field(default=None, metadata={OMIT: True})
    keep: list[float] | None = field(default=None, metadata={OMIT: True})
    threshold: list[list[float]] | None = field(default=None, metadata={OMIT: True})

    def __post_init__(self) -> None:
        for name in ("loss", "keep", "threshold"):
            values: Sequence[object] | None = getattr(self, name)
            if values and len(values) != len(self.step):
                msg = f"expected {name!r} of {len(self.step)} steps, found {len(values)}"
                raise ValueError(msg)
        if len(set(map(len, self.threshold or ()))) > 1:
            msg = "expected as many thresholds in every step, found others"
            raise ValueError(msg)

    @property
    def drawn(self) -> bool:
        """Whether there is a line to draw."""
        return len(self.step) > 1 and bool(self.loss or self.keep or self.threshold)


@dataclass(frozen=True)
class StageRecord:
    """A stage of an adaptation.

    Attributes:
        name: Its label, for example ``stage 1``.
        method: What it does, in words.
        steps: Steps done; of a stage that does not train, images.
        seconds: Duration; None of a stage that does not train.
        seed: Seed of the recipe.
        recipe_sha256: Digest of the recipe.
        curve: What it logged.
        signals: The networks that were measured without labels.
        remarks: What it says of itself.
    """

    name: str
    method: str
    steps: int | None = None
    seconds: float | None = None
    seed: int | None = None
    recipe_sha256: str | None = None
    curve: StageCurve = field(default_factory=StageCurve)
    signals: list[MeasuredNetwork] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AdaptationRecord(Record):
    """One adaptation.

    Attributes:
        stages: In their order.
        classes: ``[K]`` names of the classes.
        source_shares: ``[K]`` share of each class in the source labels, 0 to 1.
        skipped: Target frames that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.ADAPTATION
    AGAIN: ClassVar[str] = "Adapt again with `edgeuda adapt`"

    stages: list[StageRecord]
    classes: list[str] = field(default_factory=list)
    source_shares: list[float] = field(default_factory=list)
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})

    def said(self) -> list[str]:
        """Return what the stages say of themselves."""
        return [f"{stage.name}: {text}" for stage in self.stages for text in stage.remarks]
