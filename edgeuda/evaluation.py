"""Accuracy of a segmentation model on labelled images: confusion matrix, IoU, their record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from edgeuda.data.images import Image, LabelMap
from edgeuda.errors import DataError
from edgeuda.labels import IGNORE, LabelSpace

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "edgeuda.evaluation/1"

Confusion = npt.NDArray[np.int64]
"""``[K, K]`` int64 pixel counts, rows by truth, columns by prediction."""


def confusion(truth: LabelMap, prediction: LabelMap, classes: int) -> Confusion:
    """Count pixels by true and predicted class.

    Args:
        truth: ``[H, W]`` uint8 ids; `IGNORE` pixels are not counted.
        prediction: ``[H, W]`` uint8 ids, each in ``0 .. classes - 1``, also where truth is ignored.
        classes: Number of classes, K.

    Returns:
        ``[K, K]`` int64, rows truth, columns prediction.

    Raises:
        DataError: If the sizes differ or an id is outside the label space.
    """
    if truth.shape != prediction.shape:
        msg = f"Expected a prediction of the label's size {truth.shape}, found {prediction.shape}"
        raise DataError(msg)
    counted = truth != IGNORE
    _check_ids("label", truth[counted], classes)
    _check_ids("prediction", prediction, classes)
    cell = truth[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(cell, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def evaluate(
    predict: Callable[[Image], LabelMap], pairs: Iterable[tuple[Image, LabelMap]], classes: int
) -> Confusion:
    """Run a model over labelled images and return one confusion matrix over all their pixels.

    IoU from this matrix is the benchmarks' global IoU, not the mean of per-image values.

    Args:
        predict: Turns an ``[H, W, 3]`` uint8 RGB image into ``[H, W]`` uint8 ids.
        pairs: Images with their labels, read one at a time.
        classes: Number of classes, K.

    Raises:
        DataError: If there is no pair, or a prediction has another size than its label.
    """
    total = np.zeros((classes, classes), np.int64)
    count = 0
    for count, (image, truth) in enumerate(pairs, 1):
        try:
            total += confusion(truth, predict(image), classes)
        except DataError as err:  # noqa: PERF203 - the error has to name the image
            msg = f"Image {count} of the evaluation: {err}"
            raise DataError(msg) from err
    if count == 0:
        msg = "Expected at least one labelled image to evaluate on, found none"
        raise DataError(msg)
    return total


def agreement(a: LabelMap, b: LabelMap) -> float:
    """Return the fraction of pixels, 0 to 1, on which two label maps of one size are equal.

    Raises:
        DataError: If the sizes differ or there is no pixel.
    """
    if a.shape != b.shape or a.size == 0:
        msg = f"Expected two label maps of the same size, found {a.shape} and {b.shape}"
        raise DataError(msg)
    return float(np.mean(a == b))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one model scored on one labelled folder.

    Attributes:
        name: What tables call it, for example ``"stage 2"``.
        model_file: Path of the evaluated file, as given.
        model_sha256: Its checksum, which joins this record to benchmarks and bundles.
        model_kind: Whether a checkpoint or an exported graph was run.
        precision: Arithmetic of the model.
        data_folder: Folder of images and labels, as given.
        images: Number of images.
        labels_sha256: Checksum over the labels; equal sums mean comparable scores.
        label_space: What the ids mean.
        confusion: ``[K, K]`` int64, rows truth, columns prediction.
        created: ISO 8601 time, UTC.
    """

    name: str
    model_file: str
    model_sha256: str
    model_kind: Literal["checkpoint", "onnx"]
    precision: Literal["fp32", "int8"]
    data_folder: str
    images: int
    labels_sha256: str
    label_space: LabelSpace
    confusion: Confusion
    created: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )

    def __post_init__(self) -> None:
        size = len(self.label_space)
        if self.confusion.shape != (size, size) or self.confusion.min() < 0:
            msg = (
                f"Evaluation {self.name!r}: expected a [{size}, {size}] matrix of counts, one row "
                f"per class of {self.label_space.name!r}, found shape {self.confusion.shape}"
            )
            raise DataError(msg)

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """``[K]`` float64 intersection over union, 0 to 1.

        NaN where a class is in neither truth nor prediction; 0 where it was only predicted.
        """
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diagonal()
        with np.errstate(invalid="ignore"):
            return cast("npt.NDArray[np.float64]", self.confusion.diagonal() / union)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes with at least one true pixel; NaN if there is no such class.

        A class that was predicted but never occurs is left out, so that a label set without trains
        does not score a train at 0. Its pixels still count as misses of the classes they hit.
        """
        present = self.confusion.sum(1) > 0
        return float(self.iou[present].mean()) if present.any() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of counted pixels that are right; NaN if none was counted."""
        total = int(self.confusion.sum())
        return int(self.confusion.trace()) / total if total else float("nan")

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form; undefined values are null."""
        space = self.label_space.to_record()
        return {
            "schema": SCHEMA,
            "name": self.name,
            "created": self.created,
            "model": {
                "file": self.model_file,
                "sha256": self.model_sha256,
                "kind": self.model_kind,
                "precision": self.precision,
            },
            "data": {
                "folder": self.data_folder,
                "images": self.images,
                "labels_sha256": self.labels_sha256,
            },
            "label_space": {key: space[key] for key in ("name", "classes", "palette")},
            "confusion": self.confusion.tolist(),
            "iou": {
                name: _number(value)
                for name, value in zip(self.label_space.classes, self.iou.tolist(), strict=True)
            },
            "miou": _number(self.miou),
            "pixel_accuracy": _number(self.pixel_accuracy),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], origin: str = "evaluation record") -> Evaluation:
        """Read `to_record`'s form; scores are computed again from the confusion matrix.

        Args:
            record: The parsed JSON.
            origin: Names the file in errors.

        Raises:
            DataError: If it is not such a record.
        """
        try:
            if record["schema"] != SCHEMA:
                raise KeyError(record["schema"])
            model, data = record["model"], record["data"]
            kind, precision = model["kind"], model["precision"]
            if kind not in ("checkpoint", "onnx") or precision not in ("fp32", "int8"):
                raise ValueError(kind, precision)
            return cls(
                name=str(record["name"]),
                model_file=str(model["file"]),
                model_sha256=str(model["sha256"]),
                model_kind=kind,
                precision=precision,
                data_folder=str(data["folder"]),
                images=int(data["images"]),
                labels_sha256=str(data["labels_sha256"]),
                label_space=LabelSpace.from_record(record["label_space"]),
                confusion=np.array(record["confusion"], np.int64),
                created=str(record["created"]),
            )
        except (KeyError, TypeError, ValueError) as err:
            msg = f"{origin}: expected a complete {SCHEMA!r} record, found a damaged one ({err!r})"
            raise DataError(msg) from err


def table(evaluations: Sequence[Evaluation]) -> Table:
    """Return per-class IoU in percent, one column per evaluation, for the terminal.

    Raises:
        DataError: If there is no evaluation, or their label spaces have different classes.
    """
    from rich.markup import escape
    from rich.table import Table

    if not evaluations or len({e.label_space.classes for e in evaluations}) > 1:
        spaces = sorted({e.label_space.name for e in evaluations}) or "none"
        msg = f"Expected evaluations in one label space to put side by side, found {spaces}"
        raise DataError(msg)
    result = Table(title="IoU in percent", caption=escape(_caption(evaluations)))
    result.add_column("class")
    for evaluation in evaluations:
        result.add_column(escape(evaluation.name), justify="right")
    columns = [evaluation.iou for evaluation in evaluations]
    for index, name in enumerate(evaluations[0].label_space.classes):
        result.add_row(escape(name), *(_percent(float(iou[index])) for iou in columns))
    result.add_section()
    result.add_row("mIoU", *(_percent(evaluation.miou) for evaluation in evaluations))
    result.add_row(
        "pixel accuracy", *(_percent(evaluation.pixel_accuracy) for evaluation in evaluations)
    )
    return result


def _caption(evaluations: Sequence[Evaluation]) -> str:
    first = evaluations[0]
    if len({e.labels_sha256 for e in evaluations}) > 1:
        return "Not comparable: these were scored on different labels"
    return f"{first.images} images of {first.data_folder}; mIoU over the classes that occur in them"


def _check_ids(what: str, ids: LabelMap, classes: int) -> None:
    highest = int(ids.max(initial=0))
    if highest >= classes:
        msg = f"Expected {what} ids 0 to {classes - 1}, found {highest}; is it the label space?"
        raise DataError(msg)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"
