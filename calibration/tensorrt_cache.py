"""TensorRT's calibration cache: read, written, and converted to and from ranges.

The file is text. Its first line is ``TRT-<version>-<algorithm>``; every other is a tensor's name
and its scale, the largest magnitude divided by 127, as the 8 hex digits of a big-endian float32.
TensorRT 8.6 to 10 read and write it; TensorRT 11 has no calibrators.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from calibration.range_file import RangeOrigin
from edgeuda import schemas
from edgeuda.errors import DataError
from edgeuda.files import read_json, require_absent, sha256, write_bytes, write_json
from edgeuda.records.calibration import Range

SCHEMA = schemas.TENSORRT_CACHE
CacheAlgorithm = Literal["EntropyCalibration2", "MinMaxCalibration"]
LEVELS = 127
_HEADER = re.compile(r"TRT-(\d+)-(\w+)")
_LINE = re.compile(r"(.+): ([0-9a-f]{8})")


@dataclass(frozen=True)
class CalibrationCache:
    """What a cache holds.

    Attributes:
        version: TensorRT's version as it writes it, for example 8601 or 100300.
        algorithm: The calibrator's; TensorRT ignores a cache of another one.
        scales: Scale of each tensor; INT8 value times scale is the real value.
    """

    version: int
    algorithm: str
    scales: dict[str, float]

    @classmethod
    def parse(cls, content: bytes, origin: str) -> CalibrationCache:
        """Read the file's content; ``origin`` names the file in errors.

        Raises:
            DataError: If it is no such cache.
        """
        lines = content.decode("utf-8", errors="replace").splitlines()
        header = _HEADER.fullmatch(lines[0].strip()) if lines else None
        if header is None:
            msg = (
                f"{origin}: expected a TensorRT calibration cache that begins with "
                f"'TRT-<version>-<algorithm>', found {lines[0][:40]!r}"
                if lines
                else f"{origin}: expected a TensorRT calibration cache, found an empty file"
            )
            raise DataError(msg)
        scales: dict[str, float] = {}
        for number, text in enumerate(lines[1:], 2):
            if not text.strip():
                continue
            entry = _LINE.fullmatch(text.strip())
            (scale,) = struct.unpack("!f", bytes.fromhex(entry[2])) if entry else (float("nan"),)
            if entry is None or not (np.isfinite(scale) and scale >= 0):
                msg = (
                    f"{origin}, line {number}: expected 'tensor: scale' with 8 hex digits of a "
                    f"scale, found {text[:60]!r}"
                )
                raise DataError(msg)
            scales[entry[1]] = scale
        return cls(int(header[1]), header[2], scales)

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        lines = [f"TRT-{self.version}-{self.algorithm}"]
        lines += [
            f"{name}: {struct.pack('!f', scale).hex()}" for name, scale in self.scales.items()
        ]
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def from_ranges(
        cls,
        ranges: Mapping[str, Range],
        version: int = 8601,
        algorithm: CacheAlgorithm = "EntropyCalibration2",
    ) -> CalibrationCache:
        """Convert ranges: TensorRT's are symmetric, so the larger magnitude counts."""
        return cls(
            version,
            algorithm,
            {name: max(-r.low, r.high, 0.0) / LEVELS for name, r in ranges.items()},
        )

    def ranges(self, tensors: Sequence[str], origin: str) -> dict[str, Range]:
        """Convert to the ranges of some tensors.

        Raises:
            DataError: If the cache lacks one: it is of another network, or of another export.
        """
        missing = [name for name in tensors if name not in self.scales]
        if missing:
            msg = (
                f"{origin}: lacks the scales of {len(missing)} of {len(tensors)} activations, the "
                f"first {missing[0]!r}. It was made from another network or another export"
            )
            raise DataError(msg)
        return {
            name: Range(-LEVELS * self.scales[name], LEVELS * self.scales[name]) for name in tensors
        }


def identity_path(cache: Path) -> Path:
    """Return where the hashes of a cache lie: beside it, as its own format has no room."""
    return cache.with_name(f"{cache.name}.json")


def write_cache(path: Path, content: bytes, origin: RangeOrigin) -> None:
    """Write a cache, and beside it what it was made from."""
    write_bytes(path, content)
    write_json(
        identity_path(path),
        {"schema": SCHEMA, "cache_sha256": sha256(path), "origin": asdict(origin)},
    )


def read_cache(
    path: Path, origin: RangeOrigin, *, same_frames: bool, unchecked: bool = False
) -> bytes:
    """Read a cache that was made from this model and preprocessing.

    Args:
        path: The cache.
        origin: What it has to be made from; its number of bins plays no part.
        same_frames: Whether the frames have to be the same, as for building the engine again.
        unchecked: Whether a cache without hashes is taken on trust.

    Raises:
        DataError: If it is missing, was made from something else, or does not say.
    """
    if not path.is_file():
        msg = f"{path}: expected a TensorRT calibration cache, found no such file"
        raise DataError(msg)
    content = path.read_bytes()
    if not identity_path(path).exists():
        if unchecked:
            return content
        msg = (
            f"{path}: does not say which model and frames it was made from "
            f"({identity_path(path).name} is missing). If you know, use `unchecked_cache`"
        )
        raise DataError(msg)
    record = read_json(identity_path(path), SCHEMA)
    found = record["origin"]
    expected = asdict(origin)
    checks = [("model", "model_sha256"), ("input size", "height"), ("input size", "width")]
    if same_frames:
        checks.append(("set of frames", "frames"))
    for what, key in checks:
        if found[key] != (list(expected[key]) if key == "frames" else expected[key]):
            msg = f"{path}: was made from another {what}. Remove it and calibrate again"
            raise DataError(msg)
    if record["cache_sha256"] != sha256(path):
        msg = f"{path}: was changed after it had been written. Remove it and calibrate again"
        raise DataError(msg)
    return content


def export_cache(
    path: Path, ranges: Mapping[str, Range], origin: RangeOrigin, version: int
) -> None:
    """Write ranges as a cache that TensorRT's entropy calibrator takes.

    Raises:
        OutputExistsError: If the file exists.
    """
    require_absent(path)
    write_cache(path, CalibrationCache.from_ranges(ranges, version).to_bytes(), origin)
