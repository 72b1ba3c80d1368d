"""Manifest of a bundle, as `edgeuda bundle` writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record
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
        _require_sha256(repr(self.name), self.sha256)


def _require_sha256(what: str, text: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        msg = f"expected a SHA-256 of {what}, found {text[:80]!r}"
        raise ValueError(msg)


ANCESTORS = 20
"""Bundles that a lineage goes back at most."""


@dataclass(frozen=True)
class Ancestor:
    """A bundle that another one descends from.

    Attributes:
        bundle: SHA-256 of the file.
        network: SHA-256 of its checkpoint; None if it does not say.
        created: When it was packed, UTC.
    """

    bundle: str
    network: str | None
    created: str

    def __post_init__(self) -> None:
        _require_sha256("an ancestor", self.bundle)
        if self.network is not None:
            _require_sha256("an ancestor's network", self.network)


@dataclass(frozen=True)
class FrameList:
    """Frames that a network adapted to; the images are no part of a bundle.

    Attributes:
        file: Member that names them, one a line.
        count: How many there are.
        sha256: Of their names, and of `edgeuda.data.frames.FrameFolder.stamp`.
    """

    file: str
    count: int
    sha256: str

    def __post_init__(self) -> None:
        _require_sha256(f"the frames in {self.file!r}", self.sha256)


@dataclass(frozen=True)
class Learned:
    """What `edgeuda update` taught a network.

    Attributes:
        old: Frames that it went on learning from, so that it does not forget them.
        new: Frames that it was adapted to.
        replay_share: Of what it learned from frames, that is of old ones, 0 to 1.
        recipe_sha256: Digest of the recipe.
        versions: Of what computed it.
    """

    old: FrameList
    new: FrameList
    replay_share: float
    recipe_sha256: str
    versions: dict[str, str]

    def __post_init__(self) -> None:
        _require_sha256("the recipe", self.recipe_sha256)


@dataclass(frozen=True)
class Driven:
    """What `edgeuda run --adapt-bn` estimated a network's batch-norm statistics on.

    Attributes:
        origin: SHA-256 of the bundle that was installed before anything was adapted on the vehicle;
            the parent, or what the parent comes from.
        generation: How often statistics were estimated anew since then, from 1.
        frames: Frames that they were estimated on.
        began: UTC time of the first frame of the drive, in ISO 8601.
        ended: Of the last.
        prior: Frames that the old statistics count for.
        layers: Patterns of the layers whose statistics were estimated.
        kept: Those of them that kept their old statistics, because these frames hardly vary there.
    """

    origin: str
    generation: int
    frames: int
    began: str
    ended: str
    prior: float
    layers: tuple[str, ...]
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_sha256("what was installed first", self.origin)

    def __str__(self) -> str:
        return f"{self.frames} frames from {self.began} to {self.ended}"


@dataclass(frozen=True)
class Lineage:
    """Where a bundle's network comes from.

    Attributes:
        parent: SHA-256 of the bundle of the network before.
        network: SHA-256 of its own checkpoint, or what its graph gives for it; None if it gives
            none.
        ancestors: The parent, the parent's parent and so on, `ANCESTORS` at most.
        learned: What it was taught on a workstation.
        driven: What it was adapted to on a vehicle; one of the two.
    """

    parent: str
    network: str | None
    ancestors: tuple[Ancestor, ...]
    learned: Learned | None = field(default=None, metadata={OMIT: True})
    driven: Driven | None = field(default=None, metadata={OMIT: True})

    def __post_init__(self) -> None:
        _require_sha256("the parent", self.parent)
        if self.network is not None:
            _require_sha256("the network", self.network)
        if (self.learned is None) == (self.driven is None):
            msg = "expected either `learned` or `driven`"
            raise ValueError(msg)


@dataclass(frozen=True)
class Manifest(Record):
    """What a bundle holds.

    Attributes:
        edgeuda: Version that wrote it.
        created: When, UTC.
        files: Every other member of the archive but the signature.
        spec: Of its network, see `edgeuda.spec.ModelSpec`; empty if it holds none.
        lineage: Where its network comes from, if it was made from another bundle's.
    """

    SCHEMA: ClassVar[str] = schemas.BUNDLE
    AGAIN: ClassVar[str] = "Do not use it; get it again from where it was made"

    edgeuda: str
    created: str
    files: list[Member]
    spec: dict[str, Any] = field(default_factory=dict)
    lineage: Lineage | None = field(default=None, metadata={OMIT: True})

    def __post_init__(self) -> None:
        names = [member.name for member in self.files]
        if len(set(names)) < len(names):
            msg = "expected each file once"
            raise ValueError(msg)

    def descent(self, bundle: str, network: str | None) -> tuple[Ancestor, ...]:
        """Return the ancestors of a network that is made from this bundle's.

        Args:
            bundle: SHA-256 of this bundle.
            network: Of the checkpoint of its network.
        """
        before = () if self.lineage is None else self.lineage.ancestors
        return (Ancestor(bundle, network, self.created), *before)[:ANCESTORS]
