"""What a run folder was made from, as `edgeuda train` and `edgeuda adapt` write it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Descent:
    """What is known of the network that a run begins with.

    Attributes:
        ancestors_sha256: Checksums of it and of those that it was made from, the nearest first.
        methods: Stages that made it.
    """

    ancestors_sha256: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunRecord(Record):
    """One run; it is complete once its folder holds a network.

    Attributes:
        verb: ``train`` or ``adapt``.
        digest: SHA-256 of all that the result depends on; a run that is resumed must have it.
        recipe_sha256: Digest of the recipe.
        seed: Of the recipe.
        data: Paths of images and networks.
        stages: Of the recipe; None for training on source, and in runs of before.
        descent: Of the network that was adapted; None likewise.
        created: When it began, UTC.
        versions: Of what computed it.
    """

    SCHEMA: ClassVar[str] = schemas.RUN
    AGAIN: ClassVar[str] = "Begin the run again in a new folder"

    verb: str
    digest: str
    recipe_sha256: str
    seed: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    stages: list[str] | None = field(default=None, metadata={OMIT: True})
    descent: Descent | None = field(default=None, metadata={OMIT: True})
    created: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
