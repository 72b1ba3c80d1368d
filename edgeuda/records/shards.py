"""What a folder of shards is of, as a map over frames on a cluster keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeuda import schemas
from edgeuda.records.form import Record


@dataclass(frozen=True)
class ShardsRecord(Record):
    """A map over frames whose results lie beside this record, one file per shard.

    Attributes:
        what: What is done with the frames.
        key: Checksum of all that the results depend on.
        frames: How many frames there are.
        shard: Frames of a shard; the last one may have fewer.
    """

    SCHEMA: ClassVar[str] = schemas.SHARDS
    AGAIN: ClassVar[str] = "Remove the folder and begin again"
    FILE: ClassVar[str] = "shards.json"

    what: str
    key: str
    frames: int
    shard: int
