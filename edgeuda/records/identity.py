"""Which network was scored, exported or swept: taken from its training run, not from its name."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeuda import schemas
from edgeuda.errors import DataError, ModelError
from edgeuda.files import read_json, sha256
from edgeuda.records.run import RUN_FILE, Descent, RunRecord

logger = logging.getLogger(__name__)

SCHEMA = schemas.IDENTITY
MODEL_FILE = "model.safetensors"
"""The result of a run, in its folder."""
Role = Literal["source", "adapted"]
"""Trained on labelled source images only, or changed by at least one stage of an adaptation."""

_WITHIN = re.compile(r"(?:(?P<stage>[^/]+)/(?:round\d+/)?)?model\.safetensors")
"""What lies in a run's folder and is a network of its own: its result, a stage's, a round's."""
_DEPTH = 3
_OTHERS = "large-"
"""Folders of networks that only teach begin with this."""


def model_file(path: Path) -> Path:
    """Return the weights file that a path names: itself, or ``model.safetensors`` in a run folder.

    Raises:
        ModelError: If there is none.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        msg = f"{path}: expected a model file or a run folder with {MODEL_FILE}, found neither"
        raise ModelError(msg)
    return file


@dataclass(frozen=True)
class Identity:
    """Which network a file holds, whatever the file or the table calls it.

    Attributes:
        role: Whether it was adapted.
        network: SHA-256 of the checkpoint; exported and quantized forms keep it.
        methods: Stages that made it in their order, as far as known: ``("source",)`` or
            ``("source", "adabn", "stage1")``.
        ancestors: SHA-256 of the checkpoints that it descends from, the nearest first; empty if
            there is none or the run did not record it.
        recipe: Digest of the recipe; None if the run did not record it.
    """

    role: Role
    network: str
    methods: tuple[str, ...] = ()
    ancestors: tuple[str, ...] = ()
    recipe: str | None = None

    @property
    def parent(self) -> str | None:
        """The checkpoint that its run began with; None if it began with none, or is unknown."""
        return self.ancestors[0] if self.ancestors else None

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": SCHEMA,
            "role": self.role,
            "network_sha256": self.network,
            "methods": list(self.methods),
            "ancestors_sha256": list(self.ancestors),
            "recipe_sha256": self.recipe,
        }

    def to_json(self) -> str:
        """Return the JSON form as text, for a model's metadata."""
        return json.dumps(self.to_record())

    @classmethod
    def from_record(cls, record: Any, origin: str = "its identity") -> Identity:
        """Read `to_record`'s form.

        Args:
            record: The parsed JSON.
            origin: Names the file in errors.

        Raises:
            DataError: If it is not such a record.
        """
        try:
            if record["schema"] != SCHEMA or record["role"] not in ("source", "adapted"):
                raise ValueError(record["schema"], record["role"])
            recipe = record["recipe_sha256"]
            return cls(
                record["role"],
                str(record["network_sha256"]),
                tuple(map(str, record["methods"])),
                tuple(map(str, record["ancestors_sha256"])),
                None if recipe is None else str(recipe),
            )
        except (KeyError, TypeError, ValueError) as err:
            msg = f"{origin}: expected an {SCHEMA!r} record, found a damaged one ({err!r})"
            raise DataError(msg) from err

    @classmethod
    def from_json(cls, text: str, origin: str) -> Identity:
        """Read `to_json`'s text; raises as `from_record` does."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as err:
            msg = f"{origin}: expected an {SCHEMA!r} record, found a damaged one ({err!r})"
            raise DataError(msg) from err
        return cls.from_record(record, origin)


def identity_of(model: Path) -> Identity | None:
    """Return which network a checkpoint is, by the run in whose folder it lies.

    Args:
        model: A model file of a run: its result, or that of a stage or of a round in its folder.

    Returns:
        None for a file that lies in no run's folder, or is none of the run's networks: nothing is
        guessed from names.

    Raises:
        DataError: If the run's record is damaged.
    """
    file = model.resolve()
    for folder in list(file.parents)[:_DEPTH]:
        record = _run(folder)
        if record is not None:
            found = _WITHIN.fullmatch(file.relative_to(folder).as_posix())
            return None if found is None else _of_run(record, file, found["stage"])
    return None


def descent(model: Path) -> Descent:
    """Return what a run's record says of the network it begins with: checksums and stages.

    Args:
        model: The checkpoint.

    Raises:
        DataError: If the record of the run that made it is damaged.
    """
    known = identity_of(model)
    if known is None:
        return Descent([sha256(model)])
    return Descent([sha256(model), *known.ancestors], list(known.methods))


def _run(folder: Path) -> RunRecord | None:
    """Return the run record of a folder; other programs' files of that name are passed by."""
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    try:
        record = read_json(path, RunRecord.SCHEMA)
    except DataError as err:
        logger.warning("%s. Which network lies beside it is taken for unknown", err)
        return None
    return RunRecord.from_record(record, str(path))


def _of_run(run: RunRecord, file: Path, stage: str | None) -> Identity | None:
    recipe = run.recipe_sha256
    if run.verb == "train":
        return None if stage else Identity("source", sha256(file), ("source",), (), recipe)
    if run.verb != "adapt" or (stage is not None and not _is_stage(stage, run.stages)):
        return None
    made = list(run.stages or ([] if stage is None else [stage]))  # runs of before list none
    if stage is not None:
        made = made[: made.index(stage) + 1]
    before = run.descent or Descent()
    return Identity(
        "adapted", sha256(file), (*before.methods, *made), tuple(before.ancestors_sha256), recipe
    )


def _is_stage(name: str, stages: Sequence[str] | None) -> bool:
    return name in stages if stages is not None else not name.startswith(_OTHERS)
