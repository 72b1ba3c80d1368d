"""Label spaces: what the ids of a label map mean, and how one space maps to another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda.errors import ConfigError
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
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]

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
    def from_record(cls, record: dict[str, Any]) -> LabelSpace:
        """Build from the JSON form ``{"name", "classes", "palette"}``."""
        palette = tuple((int(r), int(g), int(b)) for r, g, b in record["palette"])
        return cls(str(record["name"]), tuple(map(str, record["classes"])), palette)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"schema": "edgeuda.labels/1", **asdict(self)}

    def colors(self) -> npt.NDArray[np.uint8]:
        """Return a ``[256, 3]`` uint8 RGB table indexed by id; ids outside the space are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.palette
        return table


_CITYSCAPES: dict[str, Color] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

_CAMVID: dict[str, Color] = {
    "sky": (70, 130, 180),
    "building": (70, 70, 70),
    "pole": (153, 153, 153),
    "road": (128, 64, 128),
    "pavement": (244, 35, 232),
    "tree": (107, 142, 35),
    "signsymbol": (220, 220, 0),
    "fence": (190, 153, 153),
    "car": (0, 0, 142),
    "pedestrian": (220, 20, 60),
    "bicyclist": (119, 11, 32),
}


_ROBOTCAR: dict[str, Color] = {
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "two-wheel": (119, 11, 32),
    "automobile": (0, 0, 142),
    "traffic sign": (220, 220, 0),
    "traffic light": (250, 170, 30),
    "building": (70, 70, 70),
    "sidewalk": (244, 35, 232),
    "road": (128, 64, 128),
}


_CAMVID_32: dict[str, Color] = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}


def _space(name: str, colors: dict[str, Color]) -> LabelSpace:
    return LabelSpace(name, tuple(colors), tuple(colors.values()))


def _without(*names: str) -> dict[str, Color]:
    return {name: color for name, color in _CITYSCAPES.items() if name not in names}


SPACES: dict[str, LabelSpace] = {
    space.name: space
    for space in (
        _space("cityscapes-19", _CITYSCAPES),
        _space("cityscapes-16", _without("terrain", "truck", "train")),
        _space("cityscapes-13", _without("wall", "fence", "pole", "terrain", "truck", "train")),
        _space("camvid-11", _CAMVID),
        _space("camvid-32", _CAMVID_32),
        _space("robotcar-9", _ROBOTCAR),
        _space(
            "carla-3",
            {"road": (128, 64, 128), "sidewalk": (244, 35, 232), "other": (70, 130, 180)},
        ),
    )
}
"""The built-in label spaces by name. Palettes are those of the Cityscapes classes; CamVid's 31
classes (the 32nd is void) have their own."""

_CITYSCAPES_TO_CAMVID: dict[str, str] = {
    "road": "road",
    "sidewalk": "pavement",
    "building": "building",
    "wall": "building",
    "fence": "fence",
    "pole": "pole",
    "traffic light": "signsymbol",
    "traffic sign": "signsymbol",
    "vegetation": "tree",
    "sky": "sky",
    "person": "pedestrian",
    "rider": "bicyclist",
    "bicycle": "bicyclist",
    "motorcycle": "bicyclist",
    "car": "car",
    "truck": "car",
    "bus": "car",
}
"""Cityscapes classes in CamVid's 11-class grouping; terrain and train have no counterpart."""

_CAMVID_32_TO_11: dict[str, str] = {
    "Sky": "sky",
    "Building": "building",
    "Bridge": "building",
    "Wall": "building",
    "Tunnel": "building",
    "Archway": "building",
    "Column_Pole": "pole",
    "TrafficCone": "pole",
    "Road": "road",
    "LaneMkgsDriv": "road",
    "LaneMkgsNonDriv": "road",
    "Sidewalk": "pavement",
    "ParkingBlock": "pavement",
    "RoadShoulder": "pavement",
    "Tree": "tree",
    "VegetationMisc": "tree",
    "SignSymbol": "signsymbol",
    "Misc_Text": "signsymbol",
    "TrafficLight": "signsymbol",
    "Fence": "fence",
    "Car": "car",
    "SUVPickupTruck": "car",
    "Truck_Bus": "car",
    "Train": "car",
    "OtherMoving": "car",
    "Pedestrian": "pedestrian",
    "Child": "pedestrian",
    "CartLuggagePram": "pedestrian",
    "Animal": "pedestrian",
    "Bicyclist": "bicyclist",
    "MotorcycleScooter": "bicyclist",
}
"""CamVid's own grouping of 32 classes into 11."""

_CITYSCAPES_TO_ROBOTCAR: dict[str, str] = {
    "rider": "person",
    "car": "automobile",
    "truck": "automobile",
    "bus": "automobile",
    "motorcycle": "two-wheel",
    "bicycle": "two-wheel",
}
"""Cityscapes classes in the 9 classes of Oxford RobotCar, where names differ."""


def label_space(name: str) -> LabelSpace:
    """Return a built-in label space by name, or read one from a ``.json`` file.

    Raises:
        ConfigError: If the name is unknown; the message lists the known ones.
    """
    if name in SPACES:
        return SPACES[name]
    if name.endswith(".json"):
        return LabelSpace.from_record(read_json(Path(name), "edgeuda.labels/1"))
    msg = f"Unknown label space {name!r}; known: {', '.join(SPACES)}, or a .json file"
    raise ConfigError(msg)


def mapping(source: LabelSpace, target: LabelSpace) -> npt.NDArray[np.uint8]:
    """Return the ``[256]`` uint8 table that turns ids of ``source`` into ids of ``target``.

    Classes are matched by name, Cityscapes names to CamVid's and RobotCar's by their published
    grouping. Ids with no counterpart become `IGNORE`.

    Raises:
        ConfigError: If no class at all has a counterpart.
    """
    table = np.full(256, IGNORE, np.uint8)
    ids = {name: index for index, name in enumerate(target.classes)}
    groupings = (_CITYSCAPES_TO_CAMVID, _CAMVID_32_TO_11, _CITYSCAPES_TO_ROBOTCAR)
    grouping: dict[str, str] = {}
    for found in groupings:
        if set(found.values()) <= ids.keys():
            grouping |= found
    for index, name in enumerate(source.classes):
        counterpart = name if name in ids else grouping.get(name, name)
        table[index] = ids.get(counterpart, IGNORE)
    if (table == IGNORE).all():
        msg = f"No class of label space {source.name!r} has a counterpart in {target.name!r}"
        raise ConfigError(msg)
    return table
