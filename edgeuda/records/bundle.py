"""Manifest of a bundle, as `edgeuda bundle` writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.records.form import Record
from edgeuda.records.names import MemberRole

FOLDERS: dict[MemberRole, str] = {
    "model": "models",
    "calibration": "calibration",
    "ranges": "ranges",
    "reference": "reference",
    "acceptance": "acceptance",
    "metrics": "metrics",
    "recipe": "recipe",
    "licence": "licences",
    "other": "files",
}
"""Where in the archive the members of a role lie."""


@dataclass(frozen=True)
class Member:
    """A file of a bundle.

    Attributes:
        name: Path inside the archive.
        role: What it is.
        size: Bytes.
        sha256: Checksum.
        about: What a reader wants to know without opening it.
    """

    name: str
    role: MemberRole
    size: int
    sha256: str
    about: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.name.startswith(f"{FOLDERS[self.role]}/"):
            msg = f"expected the {self.role} {self.name!r} in folder {FOLDERS[self.role]!r}"
            raise ValueError(msg)
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            msg = f"expected a SHA-256 of {self.name!r}, found {self.sha256[:80]!r}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Manifest(Record):
    """What a bundle holds.

    Attributes:
        edgeuda: Version that wrote it.
        created: When, UTC.
        files: Every other member of the archive but the signature.
        spec: Of its network, see `edgeuda.spec.ModelSpec`; empty if it holds none.
    """

    SCHEMA: ClassVar[str] = schemas.BUNDLE
    AGAIN: ClassVar[str] = "Do not use it; get it again from where it was made"

    edgeuda: str
    created: str
    files: list[Member]
    spec: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [member.name for member in self.files]
        if len(set(names)) < len(names):
            msg = "expected each file once"
            raise ValueError(msg)
