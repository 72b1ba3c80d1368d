"""From anything that labels frames to its evaluation: what verb `evaluate` and both APIs share."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeuda.accuracy.boundary import BoundaryCounts
from edgeuda.accuracy.evaluation import (
    DEPLOYED,
    Confusion,
    Evaluation,
    class_rows,
    evaluate,
    image_row,
)
from edgeuda.data.folders import LabelledFolder, labelled_folder
from edgeuda.data.images import Image, LabelMap
from edgeuda.data.treatment import applied_to
from edgeuda.files import sha256, write_text
from edgeuda.labels import LabelSpace
from edgeuda.records.identity import Identity, identity_of
from edgeuda.records.names import Precision
from edgeuda.spec import ModelSpec


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        predict: Turns an ``[H, W, 3]`` uint8 RGB frame into ``[H, W]`` uint8 class ids.
        spec: What the ids mean, and which camera the model is for.
        file: The file it was read from.
        kind: Whether that is a checkpoint or an exported graph.
        precision: Its arithmetic.
        protocol: How predictions are made, if not as the exported model makes them.
        passes: Called after the last frame: how frames were looked at, where that varies.
        identity: Which network an exported graph says it is; of a checkpoint, its run says it.
        made_from: Checksum of the model that a form in fewer bits was made from, if recorded.
    """

    predict: Callable[[Image], LabelMap]
    spec: ModelSpec
    file: Path
    kind: Literal["checkpoint", "onnx"]
    precision: Precision = "fp32"
    protocol: str = DEPLOYED
    passes: Callable[[], list[dict[str, Any]]] | None = None
    identity: Identity | None = None
    made_from: str | None = None


@dataclass(frozen=True)
class Scored:
    """An evaluation with the counts of each image.

    Attributes:
        evaluation: Over all images.
        images: Of each image, its file and its confusion matrix.
        boundary_miou: Boundary mIoU, 0 to 1; None if it was not asked for.
        extra: What the record says besides, see `edgeuda.data.treatment.applied_to`.
    """

    evaluation: Evaluation
    images: Sequence[tuple[Path, Confusion]]
    boundary_miou: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form of the evaluation."""
        return {**self.evaluation.to_record(), **self.extra}

    def class_rows(self) -> list[dict[str, str]]:
        """Return one row per class, see `edgeuda.accuracy.evaluation.class_rows`."""
        return class_rows(self.evaluation)

    def image_rows(self) -> list[dict[str, str]]:
        """Return one row per image, see `edgeuda.accuracy.evaluation.image_row`."""
        space = self.evaluation.label_space
        return [image_row(str(path), found, space) for path, found in self.images]

    def write_tables(self, out: Path) -> None:
        """Write both as CSV beside the record ``out``, see `table_paths`."""
        for path, rows in zip(
            table_paths(out), (self.class_rows(), self.image_rows()), strict=True
        ):
            text = io.StringIO()
            writer = csv.DictWriter(text, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
            write_text(path, text.getvalue())


def table_paths(out: Path) -> list[Path]:
    """Return where `Scored.write_tables` writes: a row per class, and a row per image."""
    return [out.with_suffix(f".{what}.csv") for what in ("classes", "images")]


def _cell(text: str) -> str:
    """Return a cell that a spreadsheet takes for text, whatever a file is called."""
    number = re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", text)
    return text if number or not text.startswith(("=", "+", "-", "@", "\t", "\r")) else f"'{text}"


def score(
    subject: Subject,
    data: Path | LabelledFolder,
    name: str,
    *,
    stored: LabelSpace | None = None,
    ignore_unmapped: bool = False,
    boundary: float | None = None,
) -> Scored:
    """Run a model over labelled images.

    Args:
        subject: What is scored.
        data: Labelled images, see `edgeuda.data.folders.labelled_folder`. A folder that is read
            already is taken as it is.
        name: What tables call it. A score of several passes says so in its name: the vehicle will
            not see it.
        stored: Label space of the folder's files; by default what its ``dataset.json`` says.
        ignore_unmapped: Whether classes that the model's label space lacks may be ignored.
        boundary: Width of the band along outlines that is scored by itself, as a share of the
            image's diagonal; None leaves it out.

    Raises:
        EdgeudaError: See `labelled_folder` and `edgeuda.accuracy.evaluation.evaluate`.
    """
    spec = subject.spec
    if isinstance(data, LabelledFolder):
        folder = data
    else:
        folder = labelled_folder(
            data, spec.label_space, stored, ignore_unmapped=ignore_unmapped,
            geometry=spec.preprocessing.geometry,
        )  # fmt: skip
    outlines = None if boundary is None else BoundaryCounts(len(folder.space), boundary)
    images: list[Confusion] = []
    counts = evaluate(
        subject.predict, folder, len(folder.space), each=images.append, outlines=outlines
    )
    evaluation = Evaluation(
        name if subject.protocol == DEPLOYED else f"{name} ({subject.protocol})",
        str(subject.file), sha256(subject.file), subject.kind, subject.precision,
        str(folder.root), len(folder), folder.labels_sha256(), folder.space, counts,
        subject.protocol,
        None if outlines is None else outlines.to_record(folder.space),
        None if subject.passes is None else subject.passes(),
        identity_of(subject.file) if subject.kind == "checkpoint" else subject.identity,
        subject.made_from,
    )  # fmt: skip
    files = [pair.image for pair in folder.pairs]
    return Scored(
        evaluation,
        list(zip(files, images, strict=True)),
        None if outlines is None else outlines.miou,
        applied_to(files, folder.geometry),
    )
