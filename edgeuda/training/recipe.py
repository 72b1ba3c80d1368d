"""Recipes: every setting of a run as validated data, one TOML file per published setting."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import logging
import sys
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeuda.data.camera import CameraGeometry
from edgeuda.errors import ConfigError
from edgeuda.files import sha256_of
from edgeuda.labels import LabelSpace
from edgeuda.methods.adversarial import AdversarialSettings
from edgeuda.methods.distil import DistilSettings
from edgeuda.methods.entropy import EntropySettings
from edgeuda.methods.hiast import HiastSettings
from edgeuda.methods.lse import LseSettings
from edgeuda.methods.mixing import TRUSTED, MixSettings, Trust
from edgeuda.methods.thresholds import ThresholdRule
from edgeuda.methods.tufl import TuflSettings
from edgeuda.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocessing
from edgeuda.training.monitor import RANKED
from edgeuda.training.pseudo_labels import SelectorSettings
from edgeuda.training.recipe_files import merged, parse_tables, read_tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
ClassWeights = Literal["raw", "normalised", "none"] | tuple[Weight, ...]
StyleName = Literal["none", "colour", "histogram", "fourier"]


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The network.

    Attributes:
        architecture: Registered name.
        encoder: Trunk of a BiSeNet's context path: ``"resnet18"``, or another model of timm with
            features at 1/8, 1/16 and 1/32.
        width: Multiplier of the channel counts.
        input: Rows and columns of the network's input, multiples of 32.
        pretrained: ``"none"``, ``"imagenet"`` (downloaded to the usual cache) or a file of trunk
            weights.
        freeze: The trunk's layers down to this stride (4: to a quarter of the input's size) do not
            train; 0 trains all. What they learned on ImageNet holds in both domains.
        mean: Input statistics, RGB in [0, 1]; by default those that pretrained weights of the
            encoder were made with.
        std: Likewise.
    """

    architecture: str = "bisenet"
    encoder: str = "resnet18"
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    input: tuple[Positive, Positive] = (512, 1024)
    pretrained: str = "imagenet"
    freeze: Literal[0, 2, 4, 8, 16, 32] = 0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="before")
    @classmethod
    def _follow_the_weights(cls, section: Any) -> Any:
        """Take the encoder's input statistics, or say that the recipe has others."""
        if not isinstance(section, dict) or section.get("pretrained") == "none":
            return section
        name = section.get("encoder", "resnet18")
        if not isinstance(name, str) or name == "resnet18":
            return section
        from edgeuda.models.encoders import input_statistics

        own = dict(zip(("mean", "std"), input_statistics(name), strict=True))
        other = [key for key, value in own.items() if tuple(section.get(key, value)) != value]
        if other:
            logger.warning(
                "model.%s: the weights of %s were made with %s. Leave it out of the recipe to take "
                "that",
                " and model.".join(other),
                name,
                " and ".join(str(list(own[key])) for key in other),
            )
        return {**own, **section}


class Geometry(Section):
    """Geometric views of source and target images, on images resized to the network's input.

    Attributes:
        crop: Rows and columns of the crop, multiples of 32; None takes the network's input size.
        scales: Factors, one drawn per image; never so small that the crop would not fit.
        flip: Probability of a horizontal flip.
    """

    crop: tuple[Positive, Positive] | None = None
    scales: tuple[float, ...] = (0.75, 1.0, 1.25, 1.5)
    flip: Share = 0.5


class Optimisation(Section):
    """Optimiser, schedule and batches of a stage.

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
    lr: Annotated[float, Field(gt=0)]
    head_factor: Annotated[float, Field(gt=0)] = 1.0
    bias_factor: Annotated[float, Field(gt=0)] = 1.0
    momentum: Share = 0.9
    weight_decay: Weight = 5e-4
    power: Weight = 0.9
    warmup: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 500
    log_every: Positive = 10
    rare_temperature: Weight = 0.0
    style: StyleName = "none"
    class_weights: ClassWeights | None = None

    @model_validator(mode="after")
    def _not_beyond_the_end(self) -> Optimisation:
        if self.decay_steps is not None and self.decay_steps < self.steps:
            msg = f"decay_steps: expected at least the {self.steps} of steps, or leave it out"
            raise ValueError(msg)
        return self


class SourceSection(Optimisation):
    """Stage 0: supervised training on source.

    Attributes:
        loss: ``"ohem"`` or ``"ce"``.
        tail: Share of the steps, at the end, in which ``"ohem"`` gives way to plain cross-entropy,
            without which the network's confidence stays low.
        held: Share of the source images that is kept from this stage; on them a temperature is
            fitted, by which later stages read the network's confidence.
        augment: Whether source images pass the colour chain of their branch.
        affine: Whether the batch norms of a DeepLabV2, whose scale and shift no other stage
            changes, learn them here. Other networks learn theirs always.
    """

    loss: Literal["ohem", "ce"] = "ohem"
    tail: Share = 0.0
    held: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    augment: bool = True
    affine: bool = False


class AdaBNSection(Section):
    """Re-estimation of batch-norm statistics on target.

    Attributes:
        batch: Images per batch.
        batches: Number of batches, drawn without views until the frames are used up, then again.
    """

    batch: Annotated[int, Field(ge=2)] = 8
    batches: Positive = 50


class EntropySection(Optimisation):
    """Entropy minimisation; see `edgeuda.methods.entropy.EntropySettings`."""

    loss: Literal["min-entropy", "max-square"] = "min-entropy"
    image_wise: bool = False
    weight: Weight = 1e-3
    auxiliary_weight: Weight = 2e-4

    def settings(self) -> EntropySettings:
        """Return the method's parameters."""
        return EntropySettings(
            self.loss, self.image_wise, self.weight, self.auxiliary_weight, self.style
        )


class ThresholdSection(Section):
    """Confidence thresholds; see `edgeuda.methods.thresholds.ThresholdRule`."""

    initial: Share = 0.8
    keep: Share = 0.8
    hardness: Weight = 8.0
    history: Share = 0.9
    decay: Weight = 0.0
    floor: Share = 0.0


class MixSection(Section):
    """Cross-domain mixing; see `edgeuda.methods.mixing.MixSettings`."""

    mode: Literal["single", "dual-soft"] = "single"
    long_tail: Share = 0.0
    related: bool = False
    boundary: Annotated[int, Field(ge=0)] = 0
    trust: Trust = "share"
    trusted: Share = TRUSTED


class TeacherSection(Section):
    """Pseudo-labels for mixing; see `edgeuda.methods.teacher.Teacher`.

    Attributes:
        decay: 1 keeps the network frozen that the stage starts from; less makes it follow.
        scales: Sizes at which a target image is looked at.
        flip: Whether its mirror image is looked at too.
        offline: Whether all target frames are labelled once, before the stage.
    """

    decay: Share = 1.0
    scales: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    flip: bool = False
    offline: bool = False


class TuflSection(Optimisation):
    """Stage 1 or 2; see `edgeuda.methods.tufl.TuflSettings`.

    Attributes:
        source_weight: See `edgeuda.methods.tufl.TuflSettings`.
        source_fade: Share of the steps over which it falls to 0; 0 lets it stay.
    """

    modulator: Literal["one-minus-q", "difference", "none"] = "one-minus-q"
    gamma: Weight = 2.0
    update: Literal["never", "main", "every-head"] = "main"
    target_weight: Weight = 0.01
    hard_mining: Annotated[float, Field(gt=0, le=1)] = 1.0
    mix_weight: Weight = 1.0
    mix_weighted: bool = True
    rigid: bool = True
    batch_norm: Literal["frozen", "joint", "domain", "split"] = "frozen"
    source_weight: Weight = 1.0
    source_fade: Share = 0.0
    threshold: ThresholdSection = ThresholdSection()
    mix: MixSection = MixSection()
    teacher: TeacherSection = TeacherSection()

    def settings(self) -> TuflSettings:
        """Return the method's parameters."""
        return TuflSettings(
            modulator=self.modulator,
            gamma=self.gamma,
            update=self.update,
            threshold=ThresholdRule(**self.threshold.model_dump()),
            target_weight=self.target_weight,
            hard_mining=self.hard_mining,
            mix_weight=self.mix_weight,
            mix_weighted=self.mix_weighted,
            mix=MixSettings(**self.mix.model_dump(), adaptive=self.update != "never"),
            style=self.style,
            rigid=self.rigid,
            batch_norm=self.batch_norm,
            source_weight=self.source_weight,
            source_fade=round(self.source_fade * self.steps) if self.source_fade else None,
        )


class LargeSection(Section):
    """The large network of stage ``distil``; see `ModelSection`.

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
    lr: Annotated[float, Field(gt=0)] = 5e-3
    adabn: bool = True
    input: tuple[Positive, Positive] | None = None


class DistilSection(Optimisation):
    """Learning from a teacher; see `edgeuda.methods.distil.DistilSettings`.

    Attributes:
        teacher: ``"large"``: the moving average of a large network that is first trained on
            source; ``"self"``: of the network itself; else the run folder or model file of an
            adapted network, which stays as it is.
        large: The large network.
        labels: How the teacher labels; its ``decay`` is that of the moving average. With
            ``offline`` every frame is labelled once as a whole, at the teacher's own size, and
            views are cut from frame and soft label alike; the teacher then stays as it is.
    """

    teacher: str = "large"
    large: LargeSection = LargeSection()
    labels: TeacherSection = TeacherSection(decay=0.99)
    source_weight: Weight = 1.0
    mix: Share = 1.0
    mask: Share = 0.0
    block: Positive = 32
    temperature: Annotated[float, Field(gt=0)] = 1.0
    hard: bool = False
    disagreement: Weight = 1.0
    quality: Literal["none", "image", "pixel"] = "none"
    alone: Share = 0.5
    batch_norm: Literal["frozen", "joint", "domain", "split"] = "domain"

    @model_validator(mode="after")
    def _offline_or_not(self) -> DistilSection:
        if self.labels.offline and self.labels.decay < 1:
            msg = (
                "labels that are made ahead are those of a teacher that stays: set "
                "distil.labels.decay = 1, or distil.labels.offline = false"
            )
            raise ValueError(msg)
        if self.large.input is not None and not self.labels.offline:
            msg = (
                "a large network that looks at another size labels whole frames ahead: set "
                "distil.labels.offline = true and distil.labels.decay = 1"
            )
            raise ValueError(msg)
        return self

    def settings(self) -> DistilSettings:
        """Return the method's parameters."""
        names = {field.name for field in dataclasses.fields(DistilSettings)}
        return DistilSettings(**self.model_dump(include=names))


class AdversarialSection(Optimisation):
    """Adversarial adaptation; see `edgeuda.methods.adversarial.AdversarialSettings`.

    Attributes:
        discriminator_schedule: How their rate decays; ``"as-network"`` is the stage's ``schedule``
            with its ``power`` and ``decay_steps``. They have no warm-up.
    """

    loss: Literal["bce", "ls"] = "bce"
    weight: Weight = 1e-3
    auxiliary_weight: Weight = 0.0
    entropy_input: bool = False
    light: bool = False
    first_kernel: Literal[3, 4] = 4
    discriminator_lr: Annotated[float, Field(gt=0)] = 1e-4
    discriminator_betas: Betas = (0.9, 0.99)
    discriminator_schedule: Literal["as-network", "polynomial", "cosine", "constant"] = "as-network"
    augment: bool = True
    batch_norm: Literal["frozen", "joint", "domain", "split"] = "frozen"

    def settings(self) -> AdversarialSettings:
        """Return the method's parameters."""
        names = {field.name for field in dataclasses.fields(AdversarialSettings)}
        values = self.model_dump(include=names)
        if self.discriminator_schedule == "as-network":
            values["discriminator_schedule"] = self.schedule
        return AdversarialSettings(**values)


class AssSection(AdversarialSection):
    """The same with a few labelled target images (ASS).

    Attributes:
        labels: How many images, drawn by the recipe's seed so that fewer are among more, or a file
            with one name per line.
        semantic: See `AdversarialSettings`.
        semantic_weight: See `AdversarialSettings`.
    """

    labels: Positive | str = 100
    semantic: Literal["none", "feature-fc", "output-fc", "output-cnn"] = "feature-fc"
    semantic_weight: Weight = 1e-3


class SelectionSection(Section):
    """Pseudo-labels of a round; see `edgeuda.training.pseudo_labels.SelectorSettings`.

    Attributes:
        keep: In the first round.
        growth: What later rounds add to it.
    """

    selector: Literal["instance-adaptive", "class-balanced", "constant", "all"] = (
        "instance-adaptive"
    )
    keep: Share = 0.5
    growth: Weight = 0.0
    history: Share = 0.9
    hardness: Weight = 8.0
    initial: Share = 0.9
    batch: Positive = 2

    def settings(self, number: int = 1) -> SelectorSettings:
        """Return the parameters of a round, from 1."""
        values = self.model_dump(exclude={"growth"})
        return SelectorSettings(
            **values | {"keep": min(1.0, self.keep + (number - 1) * self.growth)}
        )


class HiastSection(Optimisation):
    """Rounds of self-training; see `edgeuda.methods.hiast.HiastSettings`.

    ``steps`` are those of one round.

    Attributes:
        factors: Factor on the learning rate of each round; as many rounds as factors.
        teacher_decay: Of the mean teacher that gives soft labels, and labels the next round's
            frames; 0 is the student itself (IAST).
        hard_share: Share of the classes that are pasted as hard, see `HardPaste`; 0 pastes none.
        donors: See `HardPaste.most`.
        source_weight: See `edgeuda.methods.hiast.HiastSettings`.
        label_sizes: Rows and columns, multiples of 32, at which the frames are labelled in each
            round; rounds that it does not reach, all by default, take the network's input.
        selection: Pseudo-labels.
    """

    factors: tuple[Annotated[float, Field(gt=0)], ...] = (1.0, 0.667, 0.333)
    teacher_decay: Share = 0.999
    confident_weight: Weight = 0.1
    ignored_weight: Weight = 1.0
    consistency_weight: Weight = 0.5
    consistency_region: Literal["ignored", "confident", "all"] = "ignored"
    normaliser: Literal["pixel-class", "pixel"] = "pixel-class"
    strong: bool = True
    batch_norm: Literal["frozen", "joint"] = "joint"
    source_weight: Weight = 0.0
    hard_share: Share = 0.74
    donors: Positive = 1
    label_sizes: tuple[tuple[Positive, Positive], ...] = ()
    selection: SelectionSection = SelectionSection()

    @model_validator(mode="after")
    def _sizes_fit_the_network(self) -> HiastSection:
        if any(side % 32 for size in self.label_sizes for side in size):
            msg = "label_sizes: expected rows and columns that are multiples of 32"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _no_source(self) -> HiastSection:
        if self.style != "none" or self.rare_temperature or self.class_weights is not None:
            msg = (
                "HIAST learns from target images alone; style, rare_temperature and class_weights "
                "have no meaning in it"
            )
            raise ValueError(msg)
        return self

    def settings(self) -> HiastSettings:
        """Return the method's parameters."""
        names = {field.name for field in dataclasses.fields(HiastSettings)}
        return HiastSettings(**self.model_dump(include=names))


class LseSection(Optimisation):
    """Rounds of learning from up-scaled patches; see `edgeuda.methods.lse.LseSettings`.

    Attributes:
        steps: Most steps of a round; the round has ``epochs`` passes over its patches.
        epochs: Passes.
        portion: Share of images in the first round, divided by ``divisor``, see `select_images`.
        divisor: By default the number of classes.
        growth: What later rounds add to it.
        last: The last portion.
        patches: Per selected image.
        zoom: Factor per axis by which a patch is scaled up.
        valid: Which pixels of a scaled patch have a label, see `edgeuda.methods.lse.patch`.
    """

    epochs: Positive = 2
    portion: Annotated[float, Field(gt=0)] = 0.1
    divisor: Positive | None = None
    growth: Weight = 0.05
    last: Weight = 0.4
    patches: Positive = 4
    zoom: Annotated[float, Field(ge=1)] = 2.0
    valid: Literal["any", "nearest", "half"] = "any"
    focal_weight: Weight = 0.1
    gamma: Weight = 3.0
    augment: bool = True

    def settings(self) -> LseSettings:
        """Return the method's parameters."""
        return LseSettings(self.focal_weight, self.gamma, self.style, self.augment)

    def portions(self) -> list[float]:
        """Return the portion of each round."""
        found = [self.portion]
        while self.growth and found[-1] + self.growth <= self.last + 1e-9:
            found.append(found[-1] + self.growth)
        return found


class MonitorSection(Section):
    """What is watched while a stage runs, without labels; see `edgeuda.training.monitor`.

    Attributes:
        frames: Target frames that are watched, evenly spread; 0 switches all of it off.
        every: Steps between measurements.
        select: Signal by which the stage's network is chosen among the measured ones, or
            ``"last"``.
        on_collapse: What follows when a class vanishes or swallows the rest: ``"rollback"`` ends
            the stage with the last healthy network, ``"stop"`` ends the run with an error,
            ``"continue"`` only warns.
        guard: Signal by which a stage's result must be at least as good as the network that the
            stage began with; else that network is kept. ``"none"`` takes the result as it is.
        keep_all: Whether the network of every measurement is kept.
    """

    frames: Annotated[int, Field(ge=0)] = 16
    every: Positive = 100
    select: str = "last"
    on_collapse: Literal["rollback", "stop", "continue"] = "rollback"
    guard: str = "none"
    keep_all: bool = False


Stage = Literal[
    "adabn", "entropy", "stage1", "stage2", "distil", "adversarial", "ass", "hiast", "lse"
]
StageName = Stage | Literal["source"]
StageSection = (
    AdaBNSection
    | EntropySection
    | TuflSection
    | DistilSection
    | AdversarialSection
    | AssSection
    | HiastSection
    | LseSection
)


class Published(Section):
    """A published result that a recipe aims at.

    Attributes:
        setting: Data, network, evaluation.
        miou: In percent.
        source: Where it was published.
    """

    setting: str
    miou: Annotated[float, Field(gt=0, lt=100)]
    source: str


class Recipe(Section):
    """A whole run.

    Attributes:
        name: Shown in logs and reports.
        description: What it is for and where its values come from.
        seed: Seed of everything random.
        precision: ``"bf16-mixed"``, ``"32-true"``, or ``"auto"``: bf16 where the processor has it.
        class_weights: See `edgeuda.methods.losses.class_weights`.
        needs: Data and weights it expects, in words.
        published: Published results of the setting.
        compile: Whether the network is compiled (torch.compile); pays off in long runs.
        stages: What `adapt` does, in this order.
        model: The network.
        geometry: Geometric views.
        monitor: Label-free watch.
        source: Stage 0.
        adabn: AdaBN.
        entropy: Entropy minimisation.
        stage1: Unsupervised focal loss.
        stage2: The same with cross-domain mixing, pseudo-labelled by a teacher.
        distil: Learning from a large teacher.
        adversarial: Adversarial adaptation in output space.
        ass: The same with a few labelled target images.
        hiast: Self-training on instance-adaptive pseudo-labels.
        lse: Self-training on up-scaled patches.
    """

    name: str
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "bf16-mixed", "32-true"] = "auto"
    class_weights: ClassWeights = "raw"
    needs: str = ""
    published: tuple[Published, ...] = ()
    compile: bool = False
    stages: tuple[Stage, ...] = ("adabn", "stage1", "stage2")
    model: ModelSection = ModelSection()
    geometry: Geometry = Geometry()
    monitor: MonitorSection = MonitorSection()
    source: SourceSection
    adabn: AdaBNSection = AdaBNSection()
    entropy: EntropySection | None = None
    stage1: TuflSection | None = None
    stage2: TuflSection | None = None
    distil: DistilSection | None = None
    adversarial: AdversarialSection | None = None
    ass: AssSection | None = None
    hiast: HiastSection | None = None
    lse: LseSection | None = None

    def section(self, stage: Stage) -> StageSection:
        """Return the settings of a stage."""
        found: StageSection | None = getattr(self, stage)
        assert found is not None  # `parse_recipe` has seen to it
        return found

    def spec(self, space: LabelSpace, geometry: CameraGeometry | None = None) -> ModelSpec:
        """Return the spec of the network this recipe trains for a label space and a camera."""
        section = self.model
        pre = Preprocessing(*section.input, section.mean, section.std, geometry)
        return ModelSpec(section.architecture, section.width, space, pre, section.encoder)

    def crop(self) -> tuple[int, int]:
        """Return rows and columns of the training crop."""
        return self.geometry.crop or self.model.input

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def digest(self) -> str:
        """Return the SHA-256 of the resolved recipe."""
        return sha256_of([self.to_toml()])


def load_recipe(
    name: str, overrides: tuple[str, ...] = (), variant: dict[str, Any] | None = None
) -> Recipe:
    """Read a recipe by built-in name or path and apply overrides.

    Args:
        name: Built-in name, or path of a ``.toml`` file.
        overrides: ``"section.key=value"`` with a TOML value; a bare word counts as a string.
        variant: Tables that are merged over the recipe before the overrides.

    Raises:
        ConfigError: If the file, a key or a value is not valid; each is named.
    """
    table, origin = read_tables(name)
    return _validate(merged(table, variant or {}), origin, overrides)


def parse_recipe(text: str, origin: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Validate a recipe's text; ``origin`` names it in errors. See `load_recipe`."""
    return _validate(parse_tables(text, origin), origin, overrides)


def _validate(table: dict[str, Any], origin: str, overrides: tuple[str, ...]) -> Recipe:
    table = copy.deepcopy(table)
    for override in overrides:
        _apply(table, override)
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as err:
        raise ConfigError("\n".join(_explain(origin, e, overrides) for e in err.errors())) from err
    if any(side % 32 for side in (*recipe.model.input, *recipe.crop())):
        msg = f"{origin}: model.input and geometry.crop must be multiples of 32"
        raise ConfigError(msg)
    missing = [stage for stage in recipe.stages if getattr(recipe, stage) is None]
    if missing:
        msg = f"{origin}: stages names {missing[0]!r}, expected a section [{missing[0]}] for it"
        raise ConfigError(msg)
    if len(set(recipe.stages)) < len(recipe.stages):
        msg = f"{origin}: expected each stage once, found {', '.join(recipe.stages)}"
        raise ConfigError(msg)
    if recipe.monitor.select not in ("last", *RANKED):
        msg = (
            f"{origin}: monitor.select: expected 'last' or one of {', '.join(RANKED)}, "
            f"found {recipe.monitor.select!r}"
        )
        raise ConfigError(msg)
    if recipe.monitor.guard not in ("none", *RANKED):
        msg = (
            f"{origin}: monitor.guard: expected 'none' or one of {', '.join(RANKED)}, "
            f"found {recipe.monitor.guard!r}"
        )
        raise ConfigError(msg)
    return recipe


def _apply(table: dict[str, Any], override: str) -> None:
    path, found, value = override.partition("=")
    if not found:
        msg = f"--set {override}: expected section.key=value"
        raise ConfigError(msg)
    *sections, key = path.strip().split(".")
    for section in sections:
        inner: Any = table.setdefault(section, {})
        if not isinstance(inner, dict):
            msg = f"--set {override}: {section!r} is a value, not a section"
            raise ConfigError(msg)
        table = inner
    try:
        table[key] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[key] = value.strip()


def _explain(origin: str, error: Any, overrides: tuple[str, ...] = ()) -> str:
    """Turn one of pydantic's errors into file or option, key, expected and found."""
    path = ".".join(str(part) for part in error["loc"])
    given = [item for item in overrides if item.partition("=")[0].strip() == path]
    if given:
        origin = f"--set {given[-1]}"
    if error["type"] != "extra_forbidden":
        return f"{origin}: {path}: {error['msg']}, found {error['input']!r}"
    section: type[BaseModel] = Recipe
    for part in error["loc"][:-1]:
        section = _section_of(section.model_fields[str(part)].annotation) or section
    known, key = list(section.model_fields), str(error["loc"][-1])
    elsewhere = [
        f"{name}.{key}"
        for name, field in Recipe.model_fields.items()
        if key in getattr(_section_of(field.annotation), "model_fields", ())
    ]
    if section is Recipe and elsewhere:
        return f"{origin}: unknown key {path!r}; it is a key of sections: {', '.join(elsewhere)}"
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{origin}: unknown key {path!r}; {hint}"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the table that a key holds, or None; an optional one is a union with None."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
