"""The stages of a run, each on its own: source training, and every adaptation."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from edgeuda.data.folders import labelled_subset
from edgeuda.data.images import write_label
from edgeuda.errors import ConfigError
from edgeuda.files import write_text
from edgeuda.methods.adabn import adapt_batch_norm
from edgeuda.methods.adversarial import Adversarial
from edgeuda.methods.base import Method
from edgeuda.methods.entropy import EntropyMinimisation
from edgeuda.methods.mixing import related_classes
from edgeuda.methods.supervised import Supervised
from edgeuda.methods.teacher import Teacher
from edgeuda.methods.tufl import Tufl
from edgeuda.models.checkpoint import MODEL_FILE, build, load_model, save_model
from edgeuda.models.network import Network
from edgeuda.spec import ModelSpec
from edgeuda.training.fitting import Domains, Job, fit_stage, stage_weights, stream
from edgeuda.training.loader import PSEUDO_PLANES, Images, PseudoLabelled, sample, to_unit
from edgeuda.training.recipe import (
    AdaBNSection,
    AdversarialSection,
    AssSection,
    EntropySection,
    HiastSection,
    LseSection,
    Optimisation,
    Recipe,
    Stage,
    TuflSection,
)
from edgeuda.training.rounds import run_hiast, run_lse
from edgeuda.training.trainer import in_half
from edgeuda.training.views import SOURCE

logger = logging.getLogger(__name__)

LABELLED_FILE = "labelled.txt"


def run_source(recipe: Recipe, domains: Domains, job: Job) -> None:
    """Train a new network on the source images and write it to the job's folder."""
    spec = recipe.spec(domains.space)
    torch.manual_seed(recipe.seed)
    model = build(spec)
    model.load_pretrained(recipe.model.pretrained)
    section = recipe.source
    method = Supervised(
        section.loss,
        stage_weights(recipe, section, domains),
        SOURCE if section.augment else None,
        section.style,
    )
    target = domains.target if section.style != "none" else None
    fit_stage(model, spec, method, domains, section, recipe, job, "source", target=target)


def run_stage(recipe: Recipe, stage: Stage, model: Network, domains: Domains, job: Job) -> None:
    """Run one stage of an adaptation on ``model``, in place, and write it to the job's folder.

    A stage that is complete is loaded, one that was interrupted goes on.

    Raises:
        EdgeudaError: See `fit`; if a stage that needs labelled target images has none.
    """
    if (job.folder / MODEL_FILE).exists():
        model.load_state_dict(load_model(job.folder)[0].state_dict())
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    assert domains.target is not None
    section = recipe.section(stage)
    if isinstance(section, AdaBNSection):
        _adabn(model, recipe.spec(domains.space), domains.target, section, recipe.seed, job)
    elif isinstance(section, EntropySection):
        weights = stage_weights(recipe, section, domains)
        _fit(EntropyMinimisation(section.settings(), weights), recipe, stage, model, domains, job)
    elif isinstance(section, AdversarialSection):
        _adversarial(recipe, section, stage, model, domains, job)
    elif isinstance(section, HiastSection):
        run_hiast(recipe, section, model, domains, job)
    elif isinstance(section, LseSection):
        run_lse(recipe, section, model, domains, job)
    else:
        _tufl(recipe, section, stage, model, domains, job)


def _fit(
    method: Method,
    recipe: Recipe,
    stage: Stage,
    model: Network,
    domains: Domains,
    job: Job,
    target: Images | None = None,
    labelled: Images | None = None,
) -> None:
    section = recipe.section(stage)
    assert isinstance(section, Optimisation)
    fit_stage(
        model, recipe.spec(domains.space), method, domains, section, recipe, job, stage,
        target=target or domains.target, labelled=labelled,
    )  # fmt: skip


def _tufl(
    recipe: Recipe, section: TuflSection, stage: Stage, model: Network, domains: Domains, job: Job
) -> None:
    teacher, target = None, domains.target
    assert target is not None
    if stage == "stage2":
        settings = section.teacher
        half = in_half(recipe.precision)
        teacher = Teacher(model, settings.decay, settings.scales, settings.flip, half)
        if settings.offline:
            target = _pseudo_labels(teacher, target, recipe.spec(domains.space), job)
    weights = stage_weights(recipe, section, domains)
    method = Tufl(section.settings(), weights, related_classes(domains.space.classes), teacher)
    _fit(method, recipe, stage, model, domains, job, target)


def _adversarial(
    recipe: Recipe,
    section: AdversarialSection,
    stage: Stage,
    model: Network,
    domains: Domains,
    job: Job,
) -> None:
    labelled = None
    if isinstance(section, AssSection):
        if domains.labelled is None:
            msg = (
                f"Recipe {recipe.name!r}: stage 'ass' needs labelled target images. Put their "
                "label maps in the folder 'labels' beside the frames' folder 'images'"
            )
            raise ConfigError(msg)
        chosen = labelled_subset(domains.labelled, section.labels, recipe.seed)
        names = "".join(f"{pair.image.name}\n" for pair in chosen.pairs)
        if job.fabric.is_global_zero:
            write_text(job.folder / LABELLED_FILE, names)
        labelled = Images(chosen, recipe.model.input)
    method = Adversarial(
        section.settings(),
        stage_weights(recipe, section, domains),
        model,
        section.steps,
        stream(recipe, stage),
        job.fabric.device,
        in_half(recipe.precision),
    )
    _fit(method, recipe, stage, model, domains, job, labelled=labelled)


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
