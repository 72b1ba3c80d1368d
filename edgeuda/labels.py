"""Label spaces: what the ids of a label map mean, and how one space maps to another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda import schemas
from edgeuda.errors import ConfigError, did_you_mean
from edgeuda.files import read_json

IGNORE = 255
"""Id of pixels that neither train nor count, in every label space."""

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
    """Names and colours of classes ``0 .. len(classes) - 1``.

    Attributes:
        name: For example ``"camvid-11"``.
        classes: Names by id.
        palette: RGB colours by id, 0 to 255.
        groups: By name of another space, the class there of each class here, None if it is ignored
            there. Two spaces are equal whatever they say about others.
        ids: By name of an encoding, the class of each id in the files, None if it is ignored.
        files: The encoding of label files of this space; its own ids if None.
        also: Colours, besides the palette's, that stand for a class in colour-coded files.
        about: One line for people.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    groups: Mapping[str, Mapping[str, str | None]] = field(
        default_factory=dict, compare=False, repr=False
    )
    ids: Mapping[str, Mapping[int, str | None]] = field(
        default_factory=dict, compare=False, repr=False
    )
    files: str | None = field(default=None, compare=False)
    also: Mapping[str, tuple[Color, ...]] = field(default_factory=dict, compare=False, repr=False)
    about: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) < IGNORE or len(set(self.classes)) != len(self.classes):
            msg = f"Label space {self.name!r} needs 1 to 254 distinct class names"
            raise ConfigError(msg)
        if len(self.palette) != len(self.classes):
            msg = (
                f"Label space {self.name!r}: expected {len(self.classes)} colours, "
                f"found {len(self.palette)}"
            )
            raise ConfigError(msg)

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> LabelSpace:
        """Build from the JSON form of `to_record`, or that of a file with ids and groups.

        Raises:
            ConfigError: If something is missing, or a class is named that the space lacks.
        """
        try:
            space = cls(
                str(record["name"]),
                tuple(map(str, record["classes"])),
                tuple(_color(color) for color in record["palette"]),
                record.get("groups", {}),
                {
                    name: {int(number): found for number, found in table.items()}
                    for name, table in record.get("ids", {}).items()
                },
                record.get("files"),
                {
                    name: tuple(map(_color, colors))
                    for name, colors in record.get("also", {}).items()
                },
                str(record.get("about", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            msg = f"Expected a label space with name, classes and palette, found {err!r} wrong"
            raise ConfigError(msg) from err
        named = {name for table in space.ids.values() for name in table.values() if name}
        named |= {name for table in space.groups.values() for name in table} | space.also.keys()
        if not named <= set(space.classes):
            unknown = ", ".join(sorted(named - set(space.classes)))
            msg = f"Label space {space.name!r}: {unknown}: no such class"
            raise ConfigError(msg)
        if space.files is not None and space.files not in space.ids:
            msg = f"Label space {space.name!r}: files are in {space.files!r}, which is not in ids"
            raise ConfigError(msg)
        return space

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form that travels with models and data: what the ids mean."""
        return {
            "schema": schemas.LABELS,
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(color) for color in self.palette],
        }

    def colors(self) -> npt.NDArray[np.uint8]:
        """Return a ``[256, 3]`` uint8 RGB table indexed by id; ids outside the space are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.palette
        return table


def hex_color(color: Color) -> str:
    """Return a colour as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _color(values: Any) -> Color:
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(values)
    return red, green, blue


def _built_in() -> dict[str, LabelSpace]:
    files = sorted((Path(__file__).parent / "spaces").glob("*.json"))
    found = [LabelSpace.from_record(read_json(file, schemas.LABELS)) for file in files]
    return {space.name: space for space in found}


SPACES: dict[str, LabelSpace] = _built_in()
"""The built-in label spaces by name, from ``edgeuda/spaces/*.json``."""

SYNONYMS = (
    ("road", "street"),
    ("sidewalk", "pavement"),
    ("vegetation", "tree"),
    ("person", "pedestrian"),
    ("rider", "bicyclist", "cyclist"),
    ("motorcycle", "motorbike"),
    ("bicycle", "bike"),
    ("car", "vehicle", "automobile"),
    ("traffic sign", "sign", "signsymbol"),
    ("traffic light", "signal", "traffic signal"),
)
"""Names that mean the same class. They serve spaces that say nothing about each other."""


def label_space(name: str) -> LabelSpace:
    """Return a built-in label space by name, or read one from a ``.json`` file.

    Raises:
        ConfigError: If the name is unknown; the message lists the known ones.
    """
    if name in SPACES:
        return SPACES[name]
    if name.endswith(".json"):
        return LabelSpace.from_record(read_json(Path(name), schemas.LABELS))
    msg = (
        f"Unknown label space {name!r}{did_you_mean(name, SPACES)}; known: {', '.join(SPACES)}, or "
        "a .json file"
    )
    raise ConfigError(msg)


def counterparts(
    source: LabelSpace, target: LabelSpace, ignore_unmapped: bool = False
) -> dict[str, str | None]:
    """Return the class of ``target`` for each class of ``source``, None where it is ignored.

    What ``source`` says about ``target`` in its groups counts; a group may also be meant for
    another space whose classes ``target`` has. Otherwise classes are matched by name, whatever
    its case and separators, and then by synonym.

    Args:
        source: Space of the labels.
        target: Space wanted.
        ignore_unmapped: Whether classes without counterpart may be ignored.

    Raises:
        ConfigError: If no class has a counterpart, or some lack one and may not be ignored.
    """
    if source.classes == target.classes:
        return {name: name for name in source.classes}
    names = set(target.classes)
    stated: dict[str, str | None] = {}
    for other, group in _groups(source).items():
        if other == target.name or {name for name in group.values() if name} <= names:
            stated = dict(group)
            if other == target.name:
                break
    result: dict[str, str | None] = {}
    unmapped = []
    for name in source.classes:
        if name in stated:
            result[name] = stated[name]
            continue
        result[name] = name if name in names else _by_synonym(name, target)
        if result[name] is None:
            unmapped.append(name)
    if not any(result.values()):
        msg = f"No class of label space {source.name!r} has a counterpart in {target.name!r}"
        raise ConfigError(msg)
    if unmapped and not ignore_unmapped:
        msg = (
            f"{', '.join(unmapped)} of label space {source.name!r} have no counterpart in "
            f"{target.name!r} ({', '.join(target.classes)}). Ignore them with `ignore_unmapped`, "
            f'or say in a .json file of {source.name!r}, under "groups", what they become'
        )
        raise ConfigError(msg)
    return result


def mapping(
    source: LabelSpace, target: LabelSpace, ignore_unmapped: bool = False
) -> npt.NDArray[np.uint8]:
    """Return the ``[256]`` uint8 table that turns ids of ``source`` into ids of ``target``.

    Ids of classes that are ignored become `IGNORE`. See `counterparts`.

    Raises:
        ConfigError: See `counterparts`.
    """
    table = np.full(256, IGNORE, np.uint8)
    ids = {name: index for index, name in enumerate(target.classes)}
    for index, found in enumerate(counterparts(source, target, ignore_unmapped).values()):
        table[index] = IGNORE if found is None else ids[found]
    return table


def describe(found: Mapping[str, str | None]) -> str:
    """Return `counterparts` as text: what keeps its name, is renamed or joined, or is ignored."""
    same = [before for before, after in found.items() if after == before]
    renamed = [
        f"{before} -> {after}" for before, after in found.items() if after not in (None, before)
    ]
    ignored = [before for before, after in found.items() if after is None]
    parts = [f"{len(same)} classes by name"] if same else []
    parts += [", ".join(renamed)] if renamed else []
    parts += [f"ignored: {', '.join(ignored)}"] if ignored else []
    return "; ".join(parts)


def subsets_of(space: LabelSpace) -> dict[str, tuple[str, ...]]:
    """Return the spaces that a space becomes by leaving classes out, with the classes that stay.

    What a space says of others in its groups counts: ``"cityscapes-16"`` names the 13 classes that
    publications read off a 16-class network.
    """
    found = {}
    for name, group in _groups(space).items():
        kept = tuple(before for before, after in group.items() if after == before)
        left_out = [before for before, after in group.items() if after is None]
        if kept and left_out and len(kept) + len(left_out) == len(space):
            found[name] = kept
    return found


def _groups(space: LabelSpace) -> Mapping[str, Mapping[str, str | None]]:
    """What a space says about others; without a word, what the built-in one of its name does."""
    namesake = SPACES.get(space.name)
    if not space.groups and namesake is not None and namesake.classes == space.classes:
        return namesake.groups
    return space.groups


def _by_synonym(name: str, target: LabelSpace) -> str | None:
    """Return the one class of a space that means the same, if there is exactly one."""
    found = [other for other in target.classes if _meaning(other) == _meaning(name)]
    return found[0] if len(found) == 1 else None


@cache
def _meaning(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    singular = plain.removesuffix("s")
    for names in SYNONYMS:
        if {plain, singular} & {other.replace(" ", "") for other in names}:
            return names[0]
    return plain
