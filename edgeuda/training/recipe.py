"""Recipes: every setting of a run as validated data, one TOML file per published setting."""

from __future__ import annotations

import difflib
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeuda.errors import ConfigError
from edgeuda.files import sha256_of
from edgeuda.labels import LabelSpace
from edgeuda.methods.thresholds import ThresholdRule
from edgeuda.methods.tufl import TuflSettings
from edgeuda.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocessing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Positive = Annotated[int, Field(gt=0)]
ClassWeights = Literal["raw", "normalised", "none"]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The network.

    Attributes:
        architecture: Registered name.
        width: Multiplier of the channel counts.
        input: Rows and columns of the network's input, multiples of 32.
        pretrained: ``"none"``, ``"imagenet"`` (torch's hub cache) or a file of trunk weights.
        mean: Input statistics, RGB in [0, 1].
        std: Input statistics, RGB in [0, 1].
    """

    architecture: str = "bisenet-r18"
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    input: tuple[Positive, Positive] = (512, 1024)
    pretrained: str = "imagenet"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


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
    """SGD with momentum and a polynomial schedule.

    Attributes:
        steps: Length of the stage.
        batch: Images per domain and step.
        lr: Learning rate after warm-up.
        head_factor: Factor on the learning rate of everything but the trunk and spatial path.
        momentum: SGD momentum.
        weight_decay: Not applied to batch norm and biases.
        power: Exponent of the polynomial decay.
        warmup: Steps over which the rate rises exponentially from a tenth.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
    """

    steps: Positive
    batch: Positive
    lr: Annotated[float, Field(gt=0)]
    head_factor: Annotated[float, Field(gt=0)] = 1.0
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    power: Annotated[float, Field(ge=0)] = 0.9
    warmup: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 500
    log_every: Positive = 10


class SourceSection(Optimisation):
    """Stage 0: supervised training on source.

    Attributes:
        loss: ``"ohem"`` or ``"ce"``.
    """

    loss: Literal["ohem", "ce"] = "ohem"


class AdaBNSection(Section):
    """Re-estimation of batch-norm statistics on target.

    Attributes:
        batch: Images per batch.
        batches: Number of batches, drawn without views until the frames are used up, then again.
    """

    batch: Annotated[int, Field(ge=2)] = 8
    batches: Positive = 50


class ThresholdSection(Section):
    """Confidence thresholds; see `edgeuda.methods.thresholds.ThresholdRule`."""

    initial: Share = 0.8
    keep: Share = 0.8
    hardness: Annotated[float, Field(ge=0)] = 8.0
    history: Share = 0.9


class TuflSection(Optimisation):
    """Stage 1 or 2; see `edgeuda.methods.tufl.TuflSettings`.

    Attributes:
        class_weights: Of all terms of this stage; None takes the recipe's.
    """

    modulator: Literal["one-minus-q", "difference", "none"] = "one-minus-q"
    gamma: Annotated[float, Field(ge=0)] = 2.0
    adaptive: bool = True
    target_weight: Annotated[float, Field(ge=0)] = 0.01
    mix_weight: Annotated[float, Field(ge=0)] = 1.0
    style: Literal["none", "colour", "fourier"] = "none"
    rigid: bool = True
    class_weights: ClassWeights | None = None
    threshold: ThresholdSection = ThresholdSection()

    def settings(self) -> TuflSettings:
        """Return the method's parameters."""
        return TuflSettings(
            self.modulator,
            self.gamma,
            self.adaptive,
            ThresholdRule(**self.threshold.model_dump()),
            self.target_weight,
            self.mix_weight,
            self.style,
            self.rigid,
        )


Stage = Literal["adabn", "stage1", "stage2"]


class Recipe(Section):
    """A whole run.

    Attributes:
        name: Shown in logs and reports.
        description: What it is for and where its values come from.
        seed: Seed of everything random.
        precision: ``"bf16-mixed"``, ``"32-true"``, or ``"auto"``: bf16 where the processor has it.
        class_weights: See `edgeuda.methods.losses.class_weights`.
        stages: What `adapt` does, in this order.
        model: The network.
        geometry: Geometric views.
        source: Stage 0.
        adabn: AdaBN.
        stage1: Unsupervised focal loss.
        stage2: The same with cross-domain mixing, from the frozen stage-1 network.
    """

    name: str
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "bf16-mixed", "32-true"] = "auto"
    class_weights: ClassWeights = "raw"
    stages: tuple[Stage, ...] = ("adabn", "stage1", "stage2")
    model: ModelSection = ModelSection()
    geometry: Geometry = Geometry()
    source: SourceSection
    adabn: AdaBNSection = AdaBNSection()
    stage1: TuflSection
    stage2: TuflSection

    def spec(self, space: LabelSpace) -> ModelSpec:
        """Return the spec of the network this recipe trains for a label space."""
        section = self.model
        pre = Preprocessing(*section.input, mean=section.mean, std=section.std)
        return ModelSpec(section.architecture, section.width, space, pre)

    def crop(self) -> tuple[int, int]:
        """Return rows and columns of the training crop."""
        return self.geometry.crop or self.model.input

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def digest(self) -> str:
        """Return the SHA-256 of the resolved recipe."""
        return sha256_of([self.to_toml()])


def built_in() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("edgeuda") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by built-in name or path and apply overrides.

    Args:
        name: Built-in name, or path of a ``.toml`` file.
        overrides: ``"section.key=value"`` with a TOML value; a bare word counts as a string.

    Raises:
        ConfigError: If the file, a key or a value is not valid; each is named.
    """
    if name in built_in():
        origin = f"{name}.toml"
        text = (resources.files("edgeuda") / "recipes" / origin).read_text(encoding="utf-8")
    elif Path(name).is_file():
        origin, text = name, Path(name).read_text(encoding="utf-8")
    else:
        msg = f"Unknown recipe {name!r}: expected a .toml file or one of {', '.join(built_in())}"
        raise ConfigError(msg)
    return parse_recipe(text, origin, overrides)


def parse_recipe(text: str, origin: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Validate a recipe's text; ``origin`` names it in errors. See `load_recipe`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        msg = f"{origin}: expected TOML ({err})"
        raise ConfigError(msg) from err
    for override in overrides:
        _apply(table, override)
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as err:
        raise ConfigError("\n".join(_explain(origin, e) for e in err.errors())) from err
    if any(side % 32 for side in (*recipe.model.input, *recipe.crop())):
        msg = f"{origin}: model.input and geometry.crop must be multiples of 32"
        raise ConfigError(msg)
    return recipe


def _apply(table: dict[str, Any], override: str) -> None:
    path, found, value = override.partition("=")
    if not found:
        msg = f"--set {override}: expected section.key=value"
        raise ConfigError(msg)
    *sections, key = path.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            msg = f"--set {override}: {section!r} is a value, not a section"
            raise ConfigError(msg)
    try:
        table[key] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[key] = value.strip()


def _explain(origin: str, error: Any) -> str:
    """Turn one of pydantic's errors into file, key, expected and found."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{origin}: {path}: {error['msg']}, found {error['input']!r}"
    section: type[BaseModel] = Recipe
    for part in error["loc"][:-1]:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        section = annotation
    known = list(section.model_fields)
    close = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{origin}: unknown key {path!r}; {hint}"
