"""The stages of a run, each on its own: source training, and every adaptation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import edgeuda.training.rounds  # noqa: F401  (registers the stages that go in rounds)
from edgeuda.camera import CameraGeometry
from edgeuda.data.folders import LabelledFolder, labelled_folder, labelled_subset
from edgeuda.data.images import write_label
from edgeuda.data.treatment import geometry_of
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import sha256, sha256_of, stamp, write_text
from edgeuda.labels import LabelSpace
from edgeuda.methods.base import Method
from edgeuda.methods.registry import METHODS
from edgeuda.methods.settings import Optimisation, Section, StageSettings
from edgeuda.methods.teacher import LargeSettings, Teacher, TeacherSettings
from edgeuda.models.checkpoint import build, load_model, save_model
from edgeuda.models.network import Network
from edgeuda.records.identity import MODEL_FILE, model_file
from edgeuda.records.labelling import PseudoLabelsRecord
from edgeuda.spec import ModelSpec
from edgeuda.training.confidence import hold_out, write_reliability
from edgeuda.training.fitting import (
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
    soft_label,
    to_unit,
)
from edgeuda.training.procedures import procedure_of
from edgeuda.training.recipe import Recipe
from edgeuda.training.remarks import remarks
from edgeuda.training.trainer import in_half, make_optimizer, read_log
from edgeuda.training.watch import read_signals

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
    method = _method(Context(recipe, "source", section, model, domains, job))
    target = domains.target if section.style != "none" else None
    taught, held = hold_out(domains, section.held)

    def finish() -> None:
        if len(held):
            write_reliability(model, spec, held, job.folder)

    fit_stage(
        model, spec, method, taught, section, recipe, job, "source",
        target=target, finish=finish,
    )  # fmt: skip


def run_stage(recipe: Recipe, stage: str, model: Network, domains: Domains, job: Job) -> None:
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
    # Whether the stage before was trained just now or loaded: other layouts round otherwise.
    model.to(device=job.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _run(recipe, stage, model, domains, job)
    for remark in remarks(stage, read_log(job.folder), read_signals(job.folder)):
        logger.warning("%s: %s", METHODS[stage].label, remark)


def _run(recipe: Recipe, stage: str, model: Network, domains: Domains, job: Job) -> None:
    kind, section = METHODS[stage], recipe.section(stage)
    context = Context(recipe, stage, section, model, domains, job)
    procedure = procedure_of(kind)
    if procedure is not None:
        procedure(recipe, section, model, domains, job)
    elif kind.run is not None:
        kind.run(section, context)
        if job.fabric.is_global_zero:
            save_model(model, context.spec, job.folder / MODEL_FILE)
        job.fabric.barrier()
    else:
        assert isinstance(section, Optimisation)  # `MethodType` has seen to it
        method = _method(context)
        fit_stage(
            model, context.spec, method, domains, section, recipe, job, stage,
            target=context.target, labelled=context.labelled,
        )  # fmt: skip


def _method(context: Context) -> Method:
    build = METHODS[context.stage].build
    assert build is not None  # `require_runnable` has seen to it
    return build(context.section, context)


@dataclass
class Context:
    """What a stage offers to its method, see `edgeuda.methods.context.StageContext`.

    Attributes:
        recipe: Views, precision, seed.
        stage: Name.
        section: Its settings.
        model: The network that is adapted.
        domains: Both domains.
        job: Where.
        target: Target images of the batches, as the method asks for them.
        labelled: Labelled target images, if the method asks for them.
    """

    recipe: Recipe
    stage: str
    section: StageSettings
    model: Network
    domains: Domains
    job: Job
    target: Images | None = None
    labelled: Images | None = None

    def __post_init__(self) -> None:
        self.target = self.domains.target

    @property
    def network(self) -> Network:
        """The network that is adapted."""
        return self.model

    @property
    def spec(self) -> ModelSpec:
        """Its spec."""
        return self.domains.spec(self.recipe)

    @property
    def weights(self) -> Tensor:
        """``[K]`` class weights."""
        return stage_weights(self.recipe, self.section, self.domains)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """``[M, K]`` pixels of each class in each source image."""
        return self.domains.counts

    @property
    def seed(self) -> int:
        """The stage's stream."""
        return stream(self.recipe, self.stage)

    @property
    def device(self) -> torch.device:
        """Where the stage computes."""
        return self.job.fabric.device

    @property
    def half(self) -> bool:
        """Whether networks compute in bfloat16."""
        return in_half(self.recipe.precision)

    def teacher(
        self, settings: TeacherSettings | None = None, network: Network | None = None
    ) -> Teacher:
        """Return a teacher."""
        how = settings or TeacherSettings()
        # A temperature was fitted for the network that is adapted, and for no other.
        temperature = self.domains.temperature if network is None else 1.0
        taught = self.model if network is None else network
        return Teacher(taught, how.decay, how.scales, how.flip, self.half, temperature)

    def large_network(self, settings: LargeSettings) -> tuple[Network, ModelSpec]:
        """Return a second network, trained on source and with the target's statistics."""
        recipe = large_recipe(self.recipe, settings)
        network = _large(recipe, settings, self.domains, self.job)
        return network, self.domains.spec(recipe)

    def stored_network(self, path: Path) -> tuple[Network, ModelSpec]:
        """Return another network from its file.

        Raises:
            ConfigError: If its classes or its camera are not those of this run.
        """
        network, spec = load_model(path)
        space, geometry = self.domains.space, self.domains.geometry
        if spec.label_space.classes != space.classes:
            msg = (
                f"{path}: expected a teacher for the classes of {space.name!r}, "
                f"found one for those of {spec.label_space.name!r}"
            )
            raise ConfigError(msg)
        own = spec.preprocessing.geometry
        if own is not None and (geometry is None or not own.same_as(geometry)):
            found = "raw" if geometry is None else geometry.describe()
            msg = (
                f"{path}: expected a teacher for frames as these, which are {found}, "
                f"found one whose frames are {own.describe()}. Adapt it to these frames first"
            )
            raise ConfigError(msg)
        return network, spec

    def learner(
        self, network: Network, settings: Optimisation
    ) -> tuple[Network, torch.optim.Optimizer]:
        """Return a copy of a network that trains beside the adapted one, and its optimiser."""
        copied = copy.deepcopy(network).requires_grad_(True)
        copied.freeze(self.recipe.model.freeze)
        copied.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return copied, make_optimizer(copied, settings)

    def frames(self, batch: int, batches: int) -> Iterator[Tensor]:
        """Yield batches of target frames without views, in the order that the seed draws."""
        images = self._frames()
        for step in range(batches):
            positions = range(step * batch, (step + 1) * batch)
            chosen = images.draw_common(positions, self.recipe.seed)
            stack = np.stack([images[index][0] for index in chosen])
            yield to_unit(torch.from_numpy(stack), self.device)

    def use_labels_of(self, teacher: Teacher) -> None:
        """Let the batches hold classes and confidences of whole frames."""
        self.target = _pseudo_labels(teacher, self._frames(), self.spec, self.job)

    def use_probabilities_of(self, teacher: Teacher, spec: ModelSpec) -> None:
        """Let the batches hold soft labels of whole frames."""
        size = self.recipe.model.input
        self.target = _soft_labels(teacher, self._frames(), spec, size, self.job)

    def use_soft_labels_in(self, folder: Path) -> None:
        """Let the batches hold soft labels that `edgeuda pseudo-label --soft` wrote.

        Raises:
            DataError: If they are of other classes, or a target frame has none.
        """
        frames, space = self._frames(), self.domains.space
        record = PseudoLabelsRecord.read(folder / PseudoLabelsRecord.FILE)
        if record.label_space.classes != space.classes:
            msg = (
                f"{folder}: expected soft labels for the classes of {space.name!r}, found those of "
                f"{record.label_space.name!r}"
            )
            raise DataError(msg)
        known = {}
        for one in record.frames:
            if one.soft is not None:
                known[one.frame] = known[one.label] = folder / one.soft
        files = []
        for name in frames.names:
            path = Path(name)
            below = name if frames.footage is None else frames.footage.name_of(path)
            found = known.get(name) or known.get(f"labels/{Path(below).with_suffix('.png')}")
            if found is None:
                msg = (
                    f"{folder}: has no soft label of {name}. Label all target frames: "
                    "edgeuda pseudo-label --soft"
                )
                raise DataError(msg)
            files.append(found)
        self.target = SoftLabelled(frames, files, len(space))

    def use_labelled(self, which: int | str) -> None:
        """Let the batches hold labelled target images too, and write down which.

        Args:
            which: How many of those beside the target frames, a file that lists some of them, or a
                labelled folder of its own.

        Raises:
            ConfigError: If there are none, or those of a folder were cropped or undistorted
                otherwise than the target frames.
        """
        own = labelled_apart(which, self.domains.space)
        if own is None and self.domains.labelled is None:
            msg = (
                f"Recipe {self.recipe.name!r}: stage {self.stage!r} needs labelled target images. "
                "Put their label maps in the folder 'labels' beside the frames' folder 'images', "
                "or name a labelled folder"
            )
            raise ConfigError(msg)
        if own is not None:
            _require_same_camera(own, self.domains.geometry)
            chosen = own
        else:
            assert self.domains.labelled is not None
            chosen = labelled_subset(self.domains.labelled, which, self.recipe.seed)
        names = "".join(f"{pair.image.name}\n" for pair in chosen.pairs)
        if self.job.fabric.is_global_zero:
            write_text(self.job.folder / LABELLED_FILE, names)
        self.labelled = Images(chosen, self.recipe.model.input)

    def _frames(self) -> Images:
        assert self.domains.target is not None
        return self.domains.target


def labelled_apart(which: object, space: LabelSpace) -> LabelledFolder | None:
    """Return the labelled target images of a folder of their own, None if that is not asked for.

    Args:
        which: See `Context.use_labelled`.
        space: Label space wanted.

    Raises:
        DataError: See `labelled_folder`; if no image has labels.
    """
    if not isinstance(which, str) or not Path(which).is_dir():
        return None
    found = labelled_folder(Path(which), space, every=False, ignore_unmapped=True)
    if not found.pairs:
        msg = f"{which}: expected images with label maps, found images only"
        raise DataError(msg)
    return found


def _require_same_camera(labelled: LabelledFolder, geometry: CameraGeometry | None) -> None:
    own = geometry_of([pair.image for pair in labelled.pairs])
    if own == geometry or (own is not None and geometry is not None and own.same_as(geometry)):
        return
    theirs, ours = ("raw" if one is None else one.describe() for one in (own, geometry))
    msg = (
        f"{labelled.root}: expected labelled target images as the target frames, which are {ours}, "
        f"found some that are {theirs}. Label frames of the folder that is adapted to"
    )
    raise ConfigError(msg)


def networks_sha256(recipe: Recipe, stage: str) -> list[str]:
    """Return the checksums of the networks, or of the soft labels, that a stage reads."""
    return [_teacher_sha256(Path(name)) for name in recipe.section(stage).networks()]


def _teacher_sha256(path: Path) -> str:
    index = path / PseudoLabelsRecord.FILE
    if not index.is_file():
        return sha256(model_file(path))
    soft = [path / one.soft for one in PseudoLabelsRecord.read(index).frames if one.soft]
    return sha256_of([sha256(index), stamp(soft)])


def large_recipe(recipe: Recipe, large: LargeSettings) -> Recipe:
    """Return the recipe with the large network in the place of its own."""
    own = large.model_dump(include={"architecture", "encoder", "width", "pretrained"})
    changed: dict[str, Section] = {}
    if large.input is not None:
        own["input"] = large.input
        changed["geometry"] = recipe.geometry.model_copy(update={"crop": large.input})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=own), **changed})


def _large(recipe: Recipe, section: LargeSettings, domains: Domains, job: Job) -> Network:
    """Return the large network, trained on source and with the target's statistics.

    It lies beside the stage's folder, named by what it depends on: stages that need the same share
    it.
    """
    spec, target = domains.spec(recipe), domains.target
    assert target is not None
    size = recipe.model.input
    domains = replace(domains, source=domains.source.resized(size), target=target.resized(size))
    own = (
        "large", spec.to_json(), recipe.model.pretrained, str(recipe.model.freeze),
        recipe.source.model_dump_json(),
        recipe.geometry.model_dump_json(), recipe.precision, str(recipe.class_weights),
        str(recipe.seed),
    )  # fmt: skip
    frames = target.identity() if recipe.source.style != "none" or section.adabn else ()
    key = sha256_of(chain(own, domains.source.identity(), frames))
    folder = job.folder.parent / f"large-{key[:12]}"
    at = replace(job, folder=folder / "source", digest=key)
    if not (at.folder / MODEL_FILE).exists():
        at.folder.mkdir(parents=True, exist_ok=True)
        run_source(recipe, domains, at)
    model, _ = load_model(at.folder)
    if section.adabn:
        run_stage(recipe, "adabn", model, domains, replace(job, folder=folder / "adabn"))
    return model


def _soft_labels(
    teacher: Teacher, target: Images, spec: ModelSpec, size: tuple[int, int], job: Job
) -> SoftLabelled:
    """Write the teacher's probabilities of every whole target frame as PNG, once.

    The frames are looked at in the teacher's size.
    """
    folder, device = job.folder / "soft", job.fabric.device
    frames = target.resized((spec.preprocessing.height, spec.preprocessing.width))
    names = [folder / f"{index:06d}.png" for index in range(len(target))]
    for index in target.portion(job.fabric.global_rank, job.fabric.world_size):
        if names[index].exists():
            continue
        image = torch.from_numpy(frames[index][0])[None]
        probability = teacher.probabilities(to_unit(image, device), spec.preprocessing)
        write_label(names[index], soft_label(probability[0], size))
    job.fabric.barrier()
    return SoftLabelled(target, names, len(spec.label_space))


def _pseudo_labels(teacher: Teacher, target: Images, spec: ModelSpec, job: Job) -> PseudoLabelled:
    """Write class and confidence (0 to 255) of every target frame as PNG, once."""
    folder = job.folder / "pseudo"
    for index in target.portion(job.fabric.global_rank, job.fabric.world_size):
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
