"""What the stages of a run share: both domains, where a stage runs, its data and its watch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor

from edgeuda.camera import CameraGeometry
from edgeuda.data.folders import LabelledFolder, class_counts
from edgeuda.data.frames import FrameFolder
from edgeuda.data.sources import Sources
from edgeuda.data.treatment import geometry_of, say_learnt
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import alone
from edgeuda.labels import LabelSpace
from edgeuda.methods.base import Method
from edgeuda.methods.losses import class_weights
from edgeuda.methods.registry import METHODS
from edgeuda.methods.settings import Optimisation, StageSettings
from edgeuda.models.checkpoint import load_model
from edgeuda.models.network import Network
from edgeuda.spec import ModelSpec
from edgeuda.training.loader import (
    Augment,
    ClassCrops,
    Images,
    Joined,
    RareClasses,
    StepData,
    Views,
    holders,
)
from edgeuda.training.monitor import Probe
from edgeuda.training.recipe import Recipe
from edgeuda.training.trackers import Tracking
from edgeuda.training.trainer import TrainingRun, fit
from edgeuda.training.watch import Watch, drop_snapshots, read_signals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Domains:
    """Decoded images of both domains.

    Attributes:
        source: Labelled images.
        target: Unlabelled frames, or None.
        space: Label space of the source labels.
        counts: ``[M, K]`` int64 pixels of each class in each source image.
        labelled: Target images of which some may be used with their labels, or None.
        temperature: By which the networks' confidence is read, see `edgeuda.training.confidence`.
        geometry: What was done to the raw frames of the target's camera; None for nothing.
    """

    source: Images
    target: Images | None
    space: LabelSpace
    counts: npt.NDArray[np.int64]
    labelled: LabelledFolder | None = None
    temperature: float = 1.0
    geometry: CameraGeometry | None = None

    def spec(self, recipe: Recipe) -> ModelSpec:
        """Return the spec of the network that a recipe trains: it knows the target's camera."""
        return recipe.spec(self.space, self.geometry)

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """``[K]`` share of each class among the labelled source pixels."""
        total = self.counts.sum(0)
        return np.asarray(total / max(1, total.sum()), np.float64)


def load_domains(
    source: Sources | LabelledFolder, frames: FrameFolder | None, size: tuple[int, int]
) -> Domains:
    """Decode both domains at network size and count the source's classes."""
    folders = source.folders if isinstance(source, Sources) else (source,)
    parts = [Images(folder, size) for folder in folders]
    images = parts[0]
    if isinstance(source, Sources) and len(parts) > 1:
        images = Joined(parts, source.weights)
    target = Images(frames, size) if frames is not None else None
    counts = class_counts(images.labels(), len(source.space))
    if not counts.sum():
        msg = (
            f"{', '.join(str(folder.root) for folder in folders)}: all pixels of all "
            f"{len(counts)} label maps are ignored (255); there is nothing to learn"
        )
        raise DataError(msg)
    absent = [source.space.classes[i] for i in np.flatnonzero(counts.sum(0) == 0)]
    if absent:
        logger.warning(
            "%s: no pixel of %s; what has no source label cannot be learned",
            ", ".join(str(folder.root) for folder in folders),
            ", ".join(absent),
        )
    geometry = None
    if frames is not None:
        geometry = geometry_of(frames.one_each)
        say_learnt(frames.one_each, geometry)
    return Domains(images, target, source.space, counts, geometry=geometry)


@dataclass(frozen=True)
class Job:
    """Where and how one stage runs.

    Attributes:
        folder: Folder of the stage.
        digest: Identity of what the stage depends on.
        fabric: Device, precision, ranks.
        workers: Processes that load images.
        tracking: Trackers that follow it.
    """

    folder: Path
    digest: str
    fabric: Fabric
    workers: int = 0
    tracking: Tracking = field(default_factory=Tracking)


def stream(recipe: Recipe, stage: str, number: int = 0) -> int:
    """Return the seed of a stage's sampling and views, and of its round; see `MethodType`."""
    return METHODS[stage].stream_of(recipe.seed, number)


def fit_stage(
    model: Network,
    spec: ModelSpec,
    method: Method,
    domains: Domains,
    section: Optimisation,
    recipe: Recipe,
    job: Job,
    stage: str,
    *,
    target: Images | None = None,
    labelled: Images | None = None,
    augment: Augment | None = None,
    steps: int | None = None,
    number: int = 0,
    finish: Callable[[], None] | None = None,
) -> None:
    """Train a network by a method on a stage's data, in place, and write it to the job's folder.

    Args:
        model: The network.
        spec: Its spec.
        method: How it learns.
        domains: The labelled images it learns from, and the frames the watch looks at.
        section: Optimisation.
        recipe: Views, monitor.
        job: Where.
        stage: Name.
        target: Target images of the batches, or None.
        labelled: Labelled target images, or None.
        augment: See `StepData`.
        steps: Length; by default the section's.
        number: Of the round, 0 in stages that have none.
        finish: See `fit`.
    """
    model.freeze(recipe.model.freeze)
    if steps is not None:
        section = section.model_copy(update={"steps": steps})
    rare = None
    if section.rare_temperature > 0:
        rare = RareClasses.of(domains.counts, section.rare_temperature)
    data = StepData(
        domains.source,
        target,
        section.batch,
        Views(recipe.crop(), recipe.geometry.scales, recipe.geometry.flip),
        stream(recipe, stage, number),
        section.steps,
        section.accumulate,
        rare,
        ClassCrops(domains.source, holders(domains.counts), recipe.crop()),
        labelled,
        augment,
    )
    watch = None
    if stage != "source" and domains.target is not None and recipe.monitor.frames:
        watch = _watch(spec, domains, domains.target, recipe, job)
        if number > 1:  # rounds that each lose a little would pass unnoticed
            watch.reference = read_signals(job.folder.parent / "round1")[0]["histogram"]
    title = METHODS[stage].label + (f", round {number}" if number else "")
    run = TrainingRun(
        job.folder, title, job.digest, job.workers, recipe.compile, job.tracking,
        recipe.model_dump(mode="json", exclude={*METHODS} - {"source", *recipe.stages}),
    )  # fmt: skip
    # Before anything is read: who comes second must not touch the log of the first.
    with alone(job.folder) if job.fabric.is_global_zero else nullcontext():
        fit(model, spec, method, data, section, run, job.fabric, watch, finish)


def load_complete(model: Network, recipe: Recipe, job: Job) -> None:
    """Load the network of a stage that is complete, and drop what its end left behind if killed."""
    model.load_state_dict(load_model(job.folder)[0].state_dict())
    if job.fabric.is_global_zero:
        drop_snapshots(job.folder, recipe.monitor)


def _watch(spec: ModelSpec, domains: Domains, target: Images, recipe: Recipe, job: Job) -> Watch:
    chosen = target.evenly(recipe.monitor.frames)
    frames = torch.from_numpy(np.stack([target[index][0] for index in chosen]))
    frequencies = torch.from_numpy(domains.frequencies).float()
    probe = Probe(frames.permute(0, 3, 1, 2), spec.preprocessing, frequencies)
    writes = job.fabric.is_global_zero
    return Watch(probe, recipe.monitor, spec, frequencies.tolist(), job.folder, writes)


def stage_weights(recipe: Recipe, section: StageSettings, domains: Domains) -> Tensor:
    """Return the ``[K]`` class weights of a stage.

    Raises:
        ConfigError: If the recipe lists weights of another number of classes.
    """
    own = section.class_weights if isinstance(section, Optimisation) else None
    mode = recipe.class_weights if own is None else own
    if isinstance(mode, tuple):
        if len(mode) != len(domains.space):
            msg = (
                f"Recipe {recipe.name!r}: expected one class weight for each of the "
                f"{len(domains.space)} classes of {domains.space.name!r}, found {len(mode)}"
            )
            raise ConfigError(msg)
        return torch.tensor(mode)
    return class_weights(torch.from_numpy(domains.frequencies).float(), mode)
