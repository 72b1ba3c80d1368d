"""Whole runs: supervised training on source, and adaptation stage by stage."""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor

from edgeuda import __version__
from edgeuda.data.folders import (
    LabelledFolder,
    class_counts,
    labelled_folder,
    readable_frames,
    spread,
)
from edgeuda.data.images import write_label
from edgeuda.errors import ConfigError, ModelError, OutputExistsError
from edgeuda.files import read_json, require_absent, sha256, sha256_of, write_json, write_text
from edgeuda.labels import LabelSpace
from edgeuda.methods.adabn import adapt_batch_norm
from edgeuda.methods.base import Method
from edgeuda.methods.entropy import EntropyMinimisation
from edgeuda.methods.losses import class_weights
from edgeuda.methods.mixing import related_classes
from edgeuda.methods.supervised import Supervised
from edgeuda.methods.teacher import Teacher
from edgeuda.methods.tufl import Tufl
from edgeuda.models.checkpoint import MODEL_FILE, build, load_model, model_file, save_model
from edgeuda.models.network import Network
from edgeuda.spec import ModelSpec
from edgeuda.training.loader import (
    PSEUDO_PLANES,
    ClassCrops,
    Images,
    PseudoLabelled,
    RareClasses,
    StepData,
    Views,
    holders,
    sample,
    to_unit,
)
from edgeuda.training.monitor import Probe
from edgeuda.training.recipe import AdaBNSection, EntropySection, Optimisation, Recipe, Stage
from edgeuda.training.trainer import Run, fit, in_half, make_fabric, read_log
from edgeuda.training.views import SOURCE
from edgeuda.training.watch import Watch, read_signals

logger = logging.getLogger(__name__)

STAGE_NAMES: dict[str, str] = {
    "source": "source-only",
    "adabn": "AdaBN",
    "stage1": "stage 1",
    "stage2": "stage 2",
    "entropy": "entropy",
}
METHOD_NAMES = {
    "adabn": "batch-norm statistics",
    "entropy": "entropy minimisation",
    "stage1": "TUFL",
    "stage2": "TUFL + CIM",
}
RECIPE_FILE = "recipe.toml"
RUN_FILE = "run.json"
ADAPTATION_FILE = "adaptation.json"


@dataclass(frozen=True)
class Options:
    """What is no setting of the method.

    Attributes:
        out: Run folder to make.
        resume: Continue the run in ``out`` instead of refusing it.
        workers: Processes that load images.
    """

    out: Path
    resume: bool = False
    workers: int = 0


def train_source(
    recipe: Recipe,
    source: Path,
    space: LabelSpace | None,
    options: Options,
    stored: LabelSpace | None = None,
    target: Path | None = None,
) -> Path:
    """Train on labelled source images from scratch; returns the model file.

    Args:
        recipe: Settings.
        source: Folder with ``images`` and ``labels``.
        space: Label space of the network; that of the folder if None.
        options: Where and how.
        stored: Label space of the folder's files; by default what its ``dataset.json`` says.
        target: Folder of frames whose look the source images are given, if the recipe says so.

    Raises:
        EdgeudaError: See `labelled_folder`, `fit` and `load_trunk`.
    """
    if recipe.source.style != "none" and target is None:
        msg = (
            f"Recipe {recipe.name!r}: source.style = {recipe.source.style!r} needs target frames. "
            "Give them with --target, or set source.style=none"
        )
        raise ConfigError(msg)
    folder = labelled_folder(source, space, stored)
    frames = readable_frames(target) if target and recipe.source.style != "none" else None
    spec = recipe.spec(folder.space)
    digest = sha256_of(
        [recipe.digest(), spec.to_json(), *_names(source, folder, target, frames or ())]
    )
    fabric = make_fabric(recipe.precision)
    if _is_done(options, digest, fabric):
        return options.out / MODEL_FILE
    domains = load_domains(folder, frames, recipe.model.input)
    _open(options.out, recipe, digest, "train", {"source": str(source.resolve())}, fabric)
    run_source(recipe, domains, Job(options.out, digest, fabric, options.workers))
    return options.out / MODEL_FILE


def adapt(
    recipe: Recipe,
    init: Path,
    source: Path,
    target: Path,
    options: Options,
    stored: LabelSpace | None = None,
) -> Path:
    """Adapt a source-trained network to unlabelled target frames; returns the model file.

    Each stage of ``recipe.stages`` has a folder of its own under ``options.out``; target labels,
    where a ``labels`` folder lies beside the frames, are never opened.

    Args:
        recipe: Settings; its model section gives way to the network's own spec.
        init: Model file or run folder to start from.
        source: Folder with ``images`` and ``labels``.
        target: Folder of frames.
        options: Where and how.
        stored: Label space of the source folder's files, see `train_source`.

    Raises:
        EdgeudaError: See `load_model`, `labelled_folder`, `readable_frames` and `fit`.
    """
    model, spec = load_model(init)
    _require_compatible(recipe, spec, init)
    folder = labelled_folder(source, spec.label_space, stored)
    frames = readable_frames(target)
    digest = sha256_of(
        [recipe.digest(), sha256(model_file(init)), *_names(source, folder, target, frames)]
    )
    fabric = make_fabric(recipe.precision)
    if _is_done(options, digest, fabric):
        return options.out / MODEL_FILE
    domains = load_domains(folder, frames, recipe.model.input)
    data = {
        "init": str(init.resolve()),
        "source": str(source.resolve()),
        "target": str(target.resolve()),
        "target_frames": len(frames),
    }
    _open(options.out, recipe, digest, "adapt", data, fabric)
    for stage in recipe.stages:
        job = Job(options.out / stage, digest, fabric, options.workers)
        run_stage(recipe, stage, model, domains, job)
    if fabric.is_global_zero:
        write_json(options.out / ADAPTATION_FILE, adaptation_record(recipe, options.out, domains))
        save_model(model, spec, options.out / MODEL_FILE)
    fabric.barrier()
    return options.out / MODEL_FILE


@dataclass(frozen=True)
class Domains:
    """Decoded images of both domains.

    Attributes:
        source: Labelled images.
        target: Unlabelled frames, or None.
        space: Label space of the source labels.
        counts: ``[M, K]`` int64 pixels of each class in each source image.
    """

    source: Images
    target: Images | None
    space: LabelSpace
    counts: npt.NDArray[np.int64]

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """``[K]`` share of each class among the labelled source pixels."""
        total = self.counts.sum(0)
        return np.asarray(total / max(1, total.sum()), np.float64)


def load_domains(
    source: LabelledFolder, frames: Sequence[Path] | None, size: tuple[int, int]
) -> Domains:
    """Decode both domains at network size and count the source's classes."""
    images = Images(source, size)
    target = Images(frames, size) if frames is not None else None
    counts = class_counts(images.labels(), len(source.space))
    absent = [source.space.classes[i] for i in np.flatnonzero(counts.sum(0) == 0)]
    if absent:
        logger.warning(
            "%s: no pixel of %s; what has no source label cannot be learned",
            source.root,
            ", ".join(absent),
        )
    return Domains(images, target, source.space, counts)


@dataclass(frozen=True)
class Job:
    """Where and how one stage runs.

    Attributes:
        folder: Folder of the stage.
        digest: Identity of what the stage depends on.
        fabric: Device, precision, ranks.
        workers: Processes that load images.
    """

    folder: Path
    digest: str
    fabric: Fabric
    workers: int = 0


def run_source(recipe: Recipe, domains: Domains, job: Job) -> None:
    """Train a new network on the source images and write it to the job's folder."""
    spec = recipe.spec(domains.space)
    torch.manual_seed(recipe.seed)
    model = build(spec)
    model.load_pretrained(recipe.model.pretrained)
    section = recipe.source
    method = Supervised(
        section.loss,
        _class_weights(recipe, section, domains),
        SOURCE if section.augment else None,
        section.style,
    )
    styled = section.style != "none"
    used = domains if styled else dataclasses.replace(domains, target=None)
    _fit(model, spec, method, used, section, recipe, job, "source")


def run_stage(recipe: Recipe, stage: Stage, model: Network, domains: Domains, job: Job) -> None:
    """Run one stage of an adaptation on ``model``, in place, and write it to the job's folder.

    A stage that is complete is loaded, one that was interrupted goes on.
    """
    if (job.folder / MODEL_FILE).exists():
        model.load_state_dict(load_model(job.folder)[0].state_dict())
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    assert domains.target is not None
    spec, section = recipe.spec(domains.space), recipe.section(stage)
    if isinstance(section, AdaBNSection):
        _adabn(model, spec, domains.target, section, recipe.seed, job)
        return
    weights = _class_weights(recipe, section, domains)
    if isinstance(section, EntropySection):
        entropy = EntropyMinimisation(section.settings(), weights)
        _fit(model, spec, entropy, domains, section, recipe, job, stage)
        return
    teacher = None
    if stage == "stage2":
        settings = section.teacher
        half = in_half(recipe.precision)
        teacher = Teacher(model, settings.decay, settings.scales, settings.flip, half)
        if settings.offline:
            pseudo = _pseudo_labels(teacher, domains.target, spec, job)
            domains = dataclasses.replace(domains, target=pseudo)
    method = Tufl(section.settings(), weights, related_classes(domains.space.classes), teacher)
    _fit(model, spec, method, domains, section, recipe, job, stage)


def _fit(
    model: Network,
    spec: ModelSpec,
    method: Method,
    domains: Domains,
    section: Optimisation,
    recipe: Recipe,
    job: Job,
    stage: str,
) -> None:
    rare = None
    if section.rare_temperature > 0:
        rare = RareClasses.of(domains.counts, section.rare_temperature)
    data = StepData(
        domains.source,
        domains.target,
        section.batch,
        Views(recipe.crop(), recipe.geometry.scales, recipe.geometry.flip),
        # Stages draw from streams of their own, so that none depends on those before it.
        recipe.seed * 8 + list(STAGE_NAMES).index(stage),
        section.steps,
        section.accumulate,
        rare,
        ClassCrops(domains.source, holders(domains.counts), recipe.crop()),
    )
    watch = None
    if stage != "source" and domains.target is not None and recipe.monitor.frames:
        watch = _watch(spec, domains, domains.target, recipe, job)
    run = Run(job.folder, STAGE_NAMES[stage], job.digest, job.workers, recipe.compile)
    fit(model, spec, method, data, section, run, job.fabric, watch)


def _watch(spec: ModelSpec, domains: Domains, target: Images, recipe: Recipe, job: Job) -> Watch:
    chosen = spread(range(len(target)), recipe.monitor.frames)
    frames = torch.from_numpy(np.stack([target[index][0] for index in chosen]))
    frequencies = torch.from_numpy(domains.frequencies).float()
    probe = Probe(frames.permute(0, 3, 1, 2), spec.preprocessing, frequencies)
    writes = job.fabric.is_global_zero
    return Watch(probe, recipe.monitor, spec, frequencies.tolist(), job.folder, writes)


def _adabn(
    model: Network, spec: ModelSpec, images: Images, section: AdaBNSection, seed: int, job: Job
) -> None:
    device = job.fabric.device
    model.to(device)

    def frames() -> Iterator[Tensor]:
        for step in range(section.batches):
            positions = range(step * section.batch, (step + 1) * section.batch)
            chosen = sample(len(images), positions, seed, 0)
            stack = np.stack([images[index][0] for index in chosen])
            yield to_unit(torch.from_numpy(stack), device)

    for layer in adapt_batch_norm(model, frames(), spec.preprocessing):
        logger.warning(
            "AdaBN: %s hardly varies over the target frames, as if they were all alike; its "
            "source statistics were kept",
            layer,
        )
    if job.fabric.is_global_zero:
        save_model(model, spec, job.folder / MODEL_FILE)
    job.fabric.barrier()


def _pseudo_labels(teacher: Teacher, target: Images, spec: ModelSpec, job: Job) -> PseudoLabelled:
    """Write class and confidence (0 to 255) of every target frame as PNG, once."""
    folder = job.folder / "pseudo"
    rank, ranks = job.fabric.global_rank, job.fabric.world_size
    for index in range(rank, len(target), ranks):
        names = [folder / plane / f"{index:06d}.png" for plane in PSEUDO_PLANES]
        if all(name.exists() for name in names):
            continue
        image = torch.from_numpy(target[index][0])[None]
        confidence, label = teacher.predict(to_unit(image, job.fabric.device), spec.preprocessing)
        planes = label[0].byte(), (255 * confidence[0]).round().byte()
        for name, plane in zip(names, planes, strict=True):
            write_label(name, plane.cpu().numpy())
    job.fabric.barrier()
    return PseudoLabelled(target, folder)


def _class_weights(recipe: Recipe, section: Optimisation, domains: Domains) -> Tensor:
    mode = recipe.class_weights if section.class_weights is None else section.class_weights
    if isinstance(mode, tuple):
        if len(mode) != len(domains.space):
            msg = (
                f"Recipe {recipe.name!r}: expected one class weight for each of the "
                f"{len(domains.space)} classes of {domains.space.name!r}, found {len(mode)}"
            )
            raise ConfigError(msg)
        return torch.tensor(mode)
    return class_weights(torch.from_numpy(domains.frequencies).float(), mode)


def _require_compatible(recipe: Recipe, spec: ModelSpec, init: Path) -> None:
    wanted = recipe.spec(spec.label_space)
    if wanted != spec:
        differing = [
            f"{name}: recipe {getattr(wanted, name)!r}, model {getattr(spec, name)!r}"
            for name in ("architecture", "width", "preprocessing")
            if getattr(wanted, name) != getattr(spec, name)
        ]
        msg = (
            f"{init}: expected the network of recipe {recipe.name!r}, found another one "
            f"({'; '.join(differing)}). Use the recipe it was trained with"
        )
        raise ModelError(msg)


def _names(
    source: Path, folder: LabelledFolder, target: Path | None, frames: Sequence[Path]
) -> list[str]:
    return [
        *(str(pair.image.relative_to(source)) for pair in folder.pairs),
        *(str(frame.relative_to(target)) for frame in frames if target is not None),
    ]


def _is_done(options: Options, digest: str, fabric: Fabric) -> bool:
    """Check the run folder against ``--resume``; true if the run in it is complete."""
    done = _check_folder(options, digest)
    fabric.barrier()  # all ranks have looked before one of them writes
    return done


def _check_folder(options: Options, digest: str) -> bool:
    record = options.out / RUN_FILE
    if not options.resume:
        require_absent(options.out)
        return False
    if not record.exists():
        if options.out.exists() and any(options.out.iterdir()):
            msg = (
                f"{options.out}: expected a run to resume, found no {RUN_FILE}; nothing was written"
            )
            raise OutputExistsError(msg)
        return False
    if read_json(record, "edgeuda.run/1")["digest"] != digest:
        msg = (
            f"{options.out}: expected the run that these settings started, found one of another "
            f"recipe, seed, model or data. Its settings are in {options.out / RECIPE_FILE}"
        )
        raise OutputExistsError(msg)
    return (options.out / MODEL_FILE).exists()


def _open(
    out: Path, recipe: Recipe, digest: str, verb: str, data: dict[str, Any], fabric: Fabric
) -> None:
    """Write the resolved recipe and the run's identity, unless a resumed run has them."""
    if not fabric.is_global_zero or (out / RUN_FILE).exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / RECIPE_FILE, recipe.to_toml())
    write_json(
        out / RUN_FILE,
        {
            "schema": "edgeuda.run/1",
            "verb": verb,
            "digest": digest,
            "recipe_sha256": recipe.digest(),
            "seed": recipe.seed,
            "data": data,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {
                "edgeuda": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        },
    )


def adaptation_record(recipe: Recipe, out: Path, domains: Domains) -> dict[str, Any]:
    """Return the stages of an adaptation with their curves and label-free signals."""
    stages = []
    for stage in recipe.stages:
        log = read_log(out / stage)
        curve = {
            name: [line[key] for line in log]
            for name, key in (
                ("step", "step"),
                ("loss", "loss"),
                ("keep", "keep"),
                ("threshold", "thresholds"),
            )
            if log and key in log[0]
        }
        section = recipe.section(stage)
        stages.append(
            {
                "name": STAGE_NAMES[stage],
                "method": METHOD_NAMES[stage],
                "steps": section.batches if isinstance(section, AdaBNSection) else log[-1]["step"],
                "seconds": log[-1]["seconds"] if log else None,
                "seed": recipe.seed,
                "recipe_sha256": recipe.digest(),
                "curve": curve,
                "signals": read_signals(out / stage),
            }
        )
    return {
        "schema": "edgeuda.adaptation/1",
        "classes": list(domains.space.classes),
        "source_shares": domains.frequencies.tolist(),
        "stages": stages,
    }
