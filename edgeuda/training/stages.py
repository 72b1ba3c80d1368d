"""The stages of a run, each on its own: source training, and every adaptation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeuda.data.folders import labelled_subset
from edgeuda.data.images import write_label
from edgeuda.errors import ConfigError
from edgeuda.files import sha256, sha256_of, write_text
from edgeuda.methods.adabn import adapt_batch_norm
from edgeuda.methods.adversarial import Adversarial
from edgeuda.methods.base import Method
from edgeuda.methods.distil import Distil, LargeStudent
from edgeuda.methods.entropy import EntropyMinimisation
from edgeuda.methods.mixing import related_classes
from edgeuda.methods.supervised import Supervised
from edgeuda.methods.teacher import Teacher
from edgeuda.methods.tufl import Tufl
from edgeuda.models.checkpoint import MODEL_FILE, build, load_model, model_file, save_model
from edgeuda.models.network import Network
from edgeuda.spec import ModelSpec
from edgeuda.training.confidence import hold_out, write_reliability
from edgeuda.training.fitting import (
    STAGE_NAMES,
    Domains,
    Job,
    fit_stage,
    load_complete,
    stage_weights,
    stream,
)
from edgeuda.training.loader import (
    PSEUDO_PLANES,
    Images,
    PseudoLabelled,
    SoftLabelled,
    sample,
    to_unit,
)
from edgeuda.training.recipe import (
    AdaBNSection,
    AdversarialSection,
    AssSection,
    DistilSection,
    EntropySection,
    HiastSection,
    LargeSection,
    LseSection,
    Optimisation,
    Recipe,
    Section,
    Stage,
    StageSection,
    TuflSection,
)
from edgeuda.training.remarks import remarks
from edgeuda.training.rounds import run_hiast, run_lse
from edgeuda.training.trainer import in_half, make_optimizer, read_log
from edgeuda.training.watch import read_signals
from edgeuda.views.transforms import SOURCE

logger = logging.getLogger(__name__)

LABELLED_FILE = "labelled.txt"


def run_source(recipe: Recipe, domains: Domains, job: Job) -> None:
    """Train a new network on the source images and write it to the job's folder."""
    spec = domains.spec(recipe)
    torch.manual_seed(recipe.seed)
    model = build(spec)
    model.load_pretrained(recipe.model.pretrained)
    section = recipe.source
    if section.affine:
        model.learn_affine()
    method = Supervised(
        section.loss,
        stage_weights(recipe, section, domains),
        SOURCE if section.augment else None,
        section.style,
        section.steps - round(section.tail * section.steps),
    )
    target = domains.target if section.style != "none" else None
    taught, held = hold_out(domains, section.held)

    def finish() -> None:
        if len(held):
            write_reliability(model, spec, held, job.folder)

    fit_stage(
        model, spec, method, taught, section, recipe, job, "source",
        target=target, finish=finish,
    )  # fmt: skip


def run_stage(recipe: Recipe, stage: Stage, model: Network, domains: Domains, job: Job) -> None:
    """Run one stage of an adaptation on ``model``, in place, and write it to the job's folder.

    A stage that is complete is loaded, one that was interrupted goes on.

    Raises:
        EdgeudaError: See `fit`; if a stage that needs labelled target images has none.
    """
    if (job.folder / MODEL_FILE).exists():
        load_complete(model, recipe, job)
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    assert domains.target is not None
    section = recipe.section(stage)
    # Whether the stage before was trained just now or loaded: other layouts round otherwise.
    model.to(device=job.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _run(recipe, stage, section, model, domains, job)
    for remark in remarks(stage, read_log(job.folder), read_signals(job.folder)):
        logger.warning("%s: %s", STAGE_NAMES[stage], remark)


def _run(
    recipe: Recipe,
    stage: Stage,
    section: StageSection,
    model: Network,
    domains: Domains,
    job: Job,
) -> None:
    assert domains.target is not None
    if isinstance(section, AdaBNSection):
        _adabn(model, domains.spec(recipe), domains.target, section, recipe.seed, job)
    elif isinstance(section, EntropySection):
        weights = stage_weights(recipe, section, domains)
        _fit(EntropyMinimisation(section.settings(), weights), recipe, stage, model, domains, job)
    elif isinstance(section, AdversarialSection):
        _adversarial(recipe, section, stage, model, domains, job)
    elif isinstance(section, HiastSection):
        run_hiast(recipe, section, model, domains, job)
    elif isinstance(section, LseSection):
        run_lse(recipe, section, model, domains, job)
    elif isinstance(section, DistilSection):
        _distil(recipe, section, model, domains, job)
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
        model, domains.spec(recipe), method, domains, section, recipe, job, stage,
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
        teacher = Teacher(
            model, settings.decay, settings.scales, settings.flip, half, domains.temperature
        )
        if settings.offline:
            target = _pseudo_labels(teacher, target, domains.spec(recipe), job)
    weights = stage_weights(recipe, section, domains)
    method = Tufl(section.settings(), weights, related_classes(domains.space.classes), teacher)
    _fit(method, recipe, stage, model, domains, job, target)


def _distil(
    recipe: Recipe, section: DistilSection, model: Network, domains: Domains, job: Job
) -> None:
    teacher, spec = _teacher(recipe, section, model, domains, job)
    target, large = domains.target, None
    assert target is not None
    if section.labels.offline:
        target = _soft_labels(teacher, target, spec, recipe.model.input, job)
    elif section.teacher == "large":
        optimisation = section.model_copy(update={"lr": section.large.lr})
        network = copy.deepcopy(teacher.model).requires_grad_(True)
        network.freeze(recipe.model.freeze)
        network.to(device=job.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        large = LargeStudent(
            network,
            spec.preprocessing,
            teacher,
            make_optimizer(network, optimisation),
            section.batch_norm,
            in_half(recipe.precision),
        )
    method = Distil(
        section.settings(),
        stage_weights(recipe, section, domains),
        None if section.labels.offline else teacher,
        spec.preprocessing,
        section.steps,
        large,
    )
    _fit(method, recipe, "distil", model, domains, job, target)


def _teacher(
    recipe: Recipe, section: DistilSection, model: Network, domains: Domains, job: Job
) -> tuple[Teacher, ModelSpec]:
    """Return who labels target images in stage ``distil``, and the spec that it is fed by."""
    spec, temperature = domains.spec(recipe), 1.0
    if section.teacher == "self":
        network, temperature = model, domains.temperature
    elif section.teacher == "large":
        big = large_recipe(recipe, section.large)
        network, spec = _large(big, section.large, domains, job), domains.spec(big)
    else:
        network, spec = load_model(Path(section.teacher))
        if spec.label_space.classes != domains.space.classes:
            msg = (
                f"{section.teacher}: expected a teacher for the classes of {domains.space.name!r}, "
                f"found one for those of {spec.label_space.name!r}"
            )
            raise ConfigError(msg)
        own = spec.preprocessing.geometry
        if own is not None and (domains.geometry is None or not own.same_as(domains.geometry)):
            found = "raw" if domains.geometry is None else domains.geometry.describe()
            msg = (
                f"{section.teacher}: expected a teacher for frames as these, which are {found}, "
                f"found one whose frames are {own.describe()}. Adapt it to these frames first"
            )
            raise ConfigError(msg)
    labels = section.labels
    decay = labels.decay if section.teacher in ("self", "large") else 1.0
    half = in_half(recipe.precision)
    return Teacher(network, decay, labels.scales, labels.flip, half, temperature), spec


def teacher_sha256(recipe: Recipe) -> list[str]:
    """Return the checksum of the network that teaches in stage ``distil``, if it is a file."""
    section = recipe.distil
    if section is None or "distil" not in recipe.stages or section.teacher in ("large", "self"):
        return []
    return [sha256(model_file(Path(section.teacher)))]


def large_recipe(recipe: Recipe, large: LargeSection) -> Recipe:
    """Return the recipe with the large network in the place of its own."""
    own = large.model_dump(include={"architecture", "encoder", "width", "pretrained"})
    changed: dict[str, Section] = {}
    if large.input is not None:
        own["input"] = large.input
        changed["geometry"] = recipe.geometry.model_copy(update={"crop": large.input})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=own), **changed})


def _large(recipe: Recipe, section: LargeSection, domains: Domains, job: Job) -> Network:
    """Return the large network, trained on source and with the target's statistics.

    It lies beside the stage's folder, named by what it depends on: stages that need the same share
    it.
    """
    spec, target = domains.spec(recipe), domains.target
    assert target is not None
    size = recipe.model.input
    domains = replace(domains, source=domains.source.resized(size), target=target.resized(size))
    frames = target.identity() if recipe.source.style != "none" or section.adabn else []
    key = sha256_of(
        [
            "large", spec.to_json(), recipe.model.pretrained, str(recipe.model.freeze),
            recipe.source.model_dump_json(),
            recipe.geometry.model_dump_json(), recipe.precision, str(recipe.class_weights),
            str(recipe.seed), *domains.source.identity(), *frames,
        ]
    )  # fmt: skip
    folder = job.folder.parent / f"large-{key[:12]}"
    at = replace(job, folder=folder / "source", digest=key)
    if not (at.folder / MODEL_FILE).exists():
        at.folder.mkdir(parents=True, exist_ok=True)
        run_source(recipe, domains, at)
    model, _ = load_model(at.folder)
    if section.adabn:
        run_stage(recipe, "adabn", model, domains, replace(job, folder=folder / "adabn"))
    return model


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
        section.decay_steps or section.steps,
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


def _soft_labels(
    teacher: Teacher, target: Images, spec: ModelSpec, size: tuple[int, int], job: Job
) -> SoftLabelled:
    """Write the teacher's probabilities (0 to 255) of every whole target frame as PNG, once.

    The frames are looked at in the teacher's size; probabilities are kept at half of ``size``, for
    networks decide at an eighth.
    """
    folder, device = job.folder / "soft", job.fabric.device
    frames = target.resized((spec.preprocessing.height, spec.preprocessing.width))
    half = [side // 2 for side in size]
    for index in range(job.fabric.global_rank, len(target), job.fabric.world_size):
        name = folder / f"{index:06d}.png"
        if name.exists():
            continue
        image = torch.from_numpy(frames[index][0])[None]
        probability = teacher.probabilities(to_unit(image, device), spec.preprocessing)
        probability = F.interpolate(probability, half, mode="bilinear", antialias=True)
        write_label(name, (255 * probability[0].flatten(0, 1)).round().byte().cpu().numpy())
    job.fabric.barrier()
    return SoftLabelled(target, folder, len(spec.label_space))


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
