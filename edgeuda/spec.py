"""What travels with every model: architecture, label space and preprocessing."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from edgeuda import schemas
from edgeuda.camera import CameraGeometry
from edgeuda.errors import ConfigError, ModelError
from edgeuda.labels import LabelSpace

LARGEST = 1 << 14
"""Rows or columns of an input: more is a damaged file, not a camera."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_RENAMED = {f"bisenet-r18{gate}": f"bisenet{gate}" for gate in ("", "-paper-gate", "-relu-gate")}
_RENAMED["deeplabv2-r101"] = "deeplabv2-r101-even"  # their trunk's first blocks dilated too
"""Names in files without an encoder, which were written when ResNet-18 was the only trunk."""


@dataclass(frozen=True)
class Preprocessing:
    """How a camera frame becomes the network's input.

    A raw frame is undistorted and cropped first, if ``geometry`` says so, by
    `edgeuda.data.treatment`. A frame is then resized to ``height`` x ``width`` (bilinear, or area
    when shrinking) as uint8 RGB; the rest, ``(x / 255 - mean) / std``, happens inside the exported
    graph.

    Attributes:
        height: Rows of the network's input, a multiple of 32.
        width: Columns of the network's input, a multiple of 32.
        mean: Per channel, RGB, in units of the [0, 1] range.
        std: Per channel, RGB, in units of the [0, 1] range.
        geometry: What is done to a raw frame of the camera before it is resized; None for nothing.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    geometry: CameraGeometry | None = None

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if value <= 0 or value % 32:
                msg = f"Input {name} must be a positive multiple of 32, found {value}"
                raise ConfigError(msg)
            if value > LARGEST:
                msg = f"Input {name} must be at most {LARGEST}, found {value}"
                raise ConfigError(msg)
        if not all(0 < value < math.inf for value in self.std):
            msg = f"Input std must be positive, found {self.std}"
            raise ConfigError(msg)
        if not all(math.isfinite(value) for value in self.mean):
            msg = f"Input mean must be finite, found {self.mean}"
            raise ConfigError(msg)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form; without a geometry it has no entry for it."""
        record = asdict(self)
        del record["geometry"]
        if self.geometry is not None:
            record["geometry"] = self.geometry.to_record()
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Preprocessing:
        """Read `to_record`'s form.

        Raises:
            ConfigError: If its values make no sense.
            KeyError: If an entry is missing; likewise TypeError and ValueError for wrong types.
        """
        geometry = record.get("geometry")
        return cls(
            int(record["height"]),
            int(record["width"]),
            _triple(record["mean"]),
            _triple(record["std"]),
            None if geometry is None else CameraGeometry.from_record(geometry),
        )


@dataclass(frozen=True)
class ModelSpec:
    """Identity of a segmentation model, stored in checkpoints and in ONNX metadata.

    Attributes:
        architecture: Registered name, for example ``"bisenet"``.
        width: Width multiplier of all channels, 1.0 as published.
        label_space: What the output ids mean.
        preprocessing: How frames are fed.
        encoder: Trunk of the context path of a BiSeNet; other networks have one of their own.
    """

    architecture: str
    width: float
    label_space: LabelSpace
    preprocessing: Preprocessing
    encoder: str = "resnet18"

    def __post_init__(self) -> None:
        if not 0 < self.width <= 4:  # false for what is no number, too
            msg = f"Width must be above 0 and at most 4, found {self.width}"
            raise ConfigError(msg)

    def to_json(self) -> str:
        """Serialise to one line of JSON."""
        space = self.label_space.to_record()
        record = {
            "schema": schemas.MODEL,
            "architecture": self.architecture,
            "width": self.width,
            "encoder": self.encoder,
            "label_space": {key: space[key] for key in ("name", "classes", "palette")},
            "preprocessing": self.preprocessing.to_record(),
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str, origin: str) -> ModelSpec:
        """Read `to_json`'s text; ``origin`` names the file in errors.

        Raises:
            ModelError: If the text is not such a record.
        """
        try:
            record = json.loads(text)
            if record["schema"] != schemas.MODEL:
                raise KeyError(record["schema"])
            space, pre = record["label_space"], record["preprocessing"]
            renamed = {} if "encoder" in record else _RENAMED
            return cls(
                architecture=renamed.get(record["architecture"], str(record["architecture"])),
                width=float(record["width"]),
                label_space=LabelSpace.from_record(space),
                preprocessing=Preprocessing.from_record(pre),
                encoder=str(record.get("encoder", "resnet18")),
            )
        except (AttributeError, ConfigError, KeyError, OverflowError, TypeError, ValueError) as err:
            msg = (
                f"{origin}: expected a model written by edgeuda, its 'edgeuda.model/1' record is "
                f"missing or damaged ({err!r})"
            )
            raise ModelError(msg) from err


def _triple(values: list[float]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
