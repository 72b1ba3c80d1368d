"""Recipes: every setting of a run as validated data, one TOML file per published setting."""

from __future__ import annotations

import copy
import difflib
import functools
import logging
import sys
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from edgeuda.camera import CameraGeometry
from edgeuda.errors import ConfigError
from edgeuda.files import sha256_of
from edgeuda.labels import LabelSpace
from edgeuda.methods.registry import METHODS, MethodType
from edgeuda.methods.settings import ClassWeights, Positive, Section, Share, StageSettings
from edgeuda.methods.supervised import SourceSettings
from edgeuda.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocessing
from edgeuda.training.monitor import RANKED
from edgeuda.training.recipe_files import merged, parse_tables, read_tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)


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
    """A whole run. `recipe_type` adds a section for each method, under the method's name.

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
    """

    name: str
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "bf16-mixed", "32-true"] = "auto"
    class_weights: ClassWeights = "raw"
    needs: str = ""
    published: tuple[Published, ...] = ()
    compile: bool = False
    stages: tuple[str, ...] = ("adabn", "stage1", "stage2")
    model: ModelSection = ModelSection()
    geometry: Geometry = Geometry()
    monitor: MonitorSection = MonitorSection()
    source: SourceSettings

    def section(self, stage: str) -> StageSettings:
        """Return the settings of a stage."""
        found = getattr(self, stage)
        assert isinstance(found, StageSettings)  # `load_recipe` has seen to it
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


def recipe_type() -> type[Recipe]:
    """Return `Recipe` with the sections of all methods that there are now.

    Raises:
        ConfigError: If a method has the name of something else in a recipe.
    """
    return _recipe_type(tuple(kind for kind in METHODS.values() if kind.adapts))


@functools.cache
def _recipe_type(kinds: tuple[MethodType, ...]) -> type[Recipe]:
    sections: dict[str, Any] = {}
    for kind in kinds:
        if kind.name in Recipe.model_fields or hasattr(Recipe, kind.name):
            msg = f"Method {kind.name!r}: recipes have something else of this name; take another"
            raise ConfigError(msg)
        optional = (kind.settings | None, None)
        sections[kind.name] = (kind.settings, kind.settings()) if kind.always else optional
    names: Any = Literal[tuple(sections)]
    stages = (tuple[names, ...], Recipe.model_fields["stages"].default)
    made: type[Recipe] = create_model(
        "Recipe", __base__=Recipe, __module__=__name__, stages=stages, **sections
    )
    return made


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
    model = recipe_type()
    stages = table.get("stages")
    for method, why in METHODS.broken.items():
        if method in table or (isinstance(stages, list) and method in stages):
            msg = f"{origin}: method {method!r}: {why}"
            raise ConfigError(msg)
    try:
        recipe = model.model_validate(table)
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
        msg = f"`{override}`: expected section.key=value"
        raise ConfigError(msg)
    *sections, key = path.strip().split(".")
    for section in sections:
        inner: Any = table.setdefault(section, {})
        if not isinstance(inner, dict):
            msg = f"`{override}`: {section!r} is a value, not a section"
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
        origin = f"`{given[-1]}`"
    if error["type"] != "extra_forbidden":
        return f"{origin}: {path}: {error['msg']}, found {error['input']!r}"
    whole = recipe_type()
    section: type[BaseModel] = whole
    for part in error["loc"][:-1]:
        section = _section_of(section.model_fields[str(part)].annotation) or section
    known, key = list(section.model_fields), str(error["loc"][-1])
    elsewhere = [
        f"{name}.{key}"
        for name, field in whole.model_fields.items()
        if key in getattr(_section_of(field.annotation), "model_fields", ())
    ]
    if section is whole and elsewhere:
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
