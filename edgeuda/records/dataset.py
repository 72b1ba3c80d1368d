"""Label space of a folder of labelled images, in its ``dataset.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.labels import LabelSpace, label_space
from edgeuda.records.form import OMIT, Record


@dataclass(frozen=True)
class DatasetRecord(Record):
    """What the files of a folder are.

    Attributes:
        label_space: Of the label maps: its name, or all of it as JSON.
        images: Where the images lie, relative to the folder; None: in ``images``.
        skipped: Images without labels, for they could not be read; None if there are none.
        origin: What rendered the images, and with which settings; None for photographs.
    """

    SCHEMA: ClassVar[str] = schemas.DATASET
    AGAIN: ClassVar[str] = (
        f'Put {{"schema": "{schemas.DATASET}", "label_space": NAME}} there, or remove it'
    )
    FILE: ClassVar[str] = "dataset.json"

    label_space: Any
    images: str | None = field(default=None, metadata={OMIT: True})
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})
    origin: dict[str, Any] | None = field(default=None, metadata={OMIT: True})

    @property
    def space(self) -> LabelSpace:
        """The label space.

        Raises:
            ConfigError: If there is none of that name.
            KeyError: If it is damaged.
        """
        if isinstance(self.label_space, str):
            return label_space(self.label_space)
        return LabelSpace.from_record(self.label_space)
