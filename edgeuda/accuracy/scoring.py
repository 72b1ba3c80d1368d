"""From anything that labels frames to its evaluation: what verb `evaluate` and both APIs share."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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
from edgeuda.files import sha256, write_atomic
from edgeuda.labels import LabelSpace
from edgeuda.records.identity import Identity, identity_of
from edgeuda.records.names import Precision
from edgeuda.spec import ModelSpec

Counts = Mapping[str, npt.NDArray[Any]]
"""What neighbouring images count, by name, see `counts_of`. Sums over any division are the same."""
_OUTLINES = ("intersection", "union", "seen")


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
        images: Of each image, its file and its confusion matrix; read anew each time it is gone
            through, where the counts lie in files.
        boundary_miou: Boundary mIoU, 0 to 1; None if it was not asked for.
        extra: What the record says besides, see `edgeuda.data.treatment.applied_to`.
    """

    evaluation: Evaluation
    images: Iterable[tuple[Path, Confusion]]
    boundary_miou: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form of the evaluation."""
        return {**self.evaluation.to_record(), **self.extra}

    def class_rows(self) -> list[dict[str, str]]:
        """Return one row per class, see `edgeuda.accuracy.evaluation.class_rows`."""
        return class_rows(self.evaluation)

    def image_rows(self) -> Iterator[dict[str, str]]:
        """Yield one row per image, see `edgeuda.accuracy.evaluation.image_row`."""
        space = self.evaluation.label_space
        return (image_row(str(path), found, space) for path, found in self.images)

    def write_tables(self, out: Path) -> None:
        """Write both as CSV beside the record ``out``, see `table_paths`."""
        for path, rows in zip(
            table_paths(out), (iter(self.class_rows()), self.image_rows()), strict=True
        ):
            write_atomic(path, partial(_write_rows, rows))


def table_paths(out: Path) -> list[Path]:
    """Return where `Scored.write_tables` writes: a row per class, and a row per image."""
    return [out.with_suffix(f".{what}.csv") for what in ("classes", "images")]


def _write_rows(rows: Iterator[dict[str, str]], path: Path) -> None:
    first = next(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, first, lineterminator="\n")
        writer.writeheader()
        for row in chain([first], rows):
            writer.writerow({key: _cell(value) for key, value in row.items()})


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
    counted: Iterable[Counts] | None = None,
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
        counted: What all images of the folder count, in order, where others ran the model; it is
            gone through more than once.

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
    parts = [counts_of(subject.predict, folder, boundary)] if counted is None else counted
    outlines = None if boundary is None else BoundaryCounts(len(folder.space), boundary)
    counts = np.zeros((len(folder.space), len(folder.space)), np.int64)
    for part in parts:
        counts += part["total"]
        if outlines is not None:
            for key in _OUTLINES:
                getattr(outlines, key)[:] += part[key]  # of truth values this is "or"
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
        _Images(files, parts),
        None if outlines is None else outlines.miou,
        applied_to(files, folder.geometry),
    )


def counts_of(
    predict: Callable[[Image], LabelMap],
    folder: LabelledFolder,
    boundary: float | None = None,
    first: int = 1,
) -> Counts:
    """Run a model over images and count.

    Args:
        predict: See `Subject`.
        folder: The images.
        boundary: See `score`.
        first: Number of the folder's first image, for errors.

    Returns:
        ``total`` ``[K, K]`` and ``images`` ``[N, K, K]`` int64, confusion matrices of all images
        and of each. With ``boundary``, ``intersection``, ``union`` and ``seen`` of
        `edgeuda.accuracy.boundary.BoundaryCounts`.

    Raises:
        DataError: See `edgeuda.accuracy.evaluation.evaluate`.
    """
    classes = len(folder.space)
    outlines = None if boundary is None else BoundaryCounts(classes, boundary)
    images: list[Confusion] = []
    total = evaluate(predict, folder, classes, each=images.append, outlines=outlines, first=first)
    found = {"total": total, "images": np.stack(images)}
    return found | (
        {} if outlines is None else {name: getattr(outlines, name) for name in _OUTLINES}
    )


@dataclass(frozen=True)
class _Images:
    """Each image with its counts, of which those of one part are held at a time."""

    files: Sequence[Path]
    parts: Iterable[Counts]

    def __iter__(self) -> Iterator[tuple[Path, Confusion]]:
        return zip(self.files, chain.from_iterable(p["images"] for p in self.parts), strict=True)
