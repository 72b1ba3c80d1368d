"""Accuracy of a segmentation model on labelled images: confusion matrix, IoU, their record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda import schemas
from edgeuda.data.images import Image, LabelMap
from edgeuda.errors import ConfigError, DataError, require
from edgeuda.files import now_utc
from edgeuda.labels import IGNORE, LabelSpace, subsets_of
from edgeuda.records.identity import Identity
from edgeuda.records.names import Precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.table import Table

    from edgeuda.accuracy.boundary import BoundaryCounts

SCHEMA = schemas.EVALUATION
DEPLOYED = "as deployed"
"""Frames resized to the network's input, one pass, labels resized to the frame."""

EXACT = 1 << 24
"""Pixels that OpenCV's histogram, which counts in float32, counts without loss."""

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
    joint = np.zeros((256, 256), np.int64)
    for first in range(0, truth.size, EXACT):
        ids = [labels.reshape(-1)[first : first + EXACT] for labels in (truth, prediction)]
        joint += cv2.calcHist(ids, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    _check_ids("label", joint[:IGNORE], 1, classes)
    _check_ids("prediction", joint, 0, classes)
    return np.ascontiguousarray(joint[:classes, :classes])


def evaluate(
    predict: Callable[[Image], LabelMap],
    pairs: Iterable[tuple[Image, LabelMap]],
    classes: int,
    *,
    each: Callable[[Confusion], None] | None = None,
    outlines: BoundaryCounts | None = None,
    first: int = 1,
) -> Confusion:
    """Run a model over labelled images and return one confusion matrix over all their pixels.

    IoU from this matrix is the benchmarks' global IoU, not the mean of per-image values.

    Args:
        predict: Turns an ``[H, W, 3]`` uint8 RGB image into ``[H, W]`` uint8 ids.
        pairs: Images with their labels, read one at a time.
        classes: Number of classes, K.
        each: Called with the confusion matrix of each image.
        outlines: Counts boundary pixels too.
        first: Number of the first image, for errors.

    Raises:
        DataError: If there is no pair, or a prediction has another size than its label.
    """
    total = np.zeros((classes, classes), np.int64)
    count = 0
    for count, (image, truth) in enumerate(pairs, first):
        try:
            prediction = predict(image)
            found = confusion(truth, prediction, classes)
        except DataError as err:
            msg = f"Image {count} of the evaluation: {err}"
            raise DataError(msg) from err
        total += found
        if each is not None:
            each(found)
        if outlines is not None:
            outlines.add(truth, prediction)
    if count == 0:
        msg = "Expected at least one labelled image to evaluate on, found none"
        raise DataError(msg)
    return total


def iou_of(counts: Confusion) -> npt.NDArray[np.float64]:
    """Return ``[K]`` float64 intersection over union, 0 to 1, of a confusion matrix.

    NaN where a class is in neither truth nor prediction; 0 where it was only predicted.
    """
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    with np.errstate(invalid="ignore"):
        return cast("npt.NDArray[np.float64]", counts.diagonal() / union)


def miou_of(counts: Confusion) -> float:
    """Return the mean IoU over the classes with a true pixel; NaN if there is no such class."""
    present = counts.sum(1) > 0
    return float(iou_of(counts)[present].mean()) if present.any() else float("nan")


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
        protocol: How predictions were made, if not as the exported model makes them.
        boundary: ``ratio`` of the diagonal, ``iou`` by class and ``miou``, see
            `edgeuda.accuracy.boundary`.
        passes: How the frames were really looked at, where not as the exported model does: see
            `edgeuda.models.predictor.Pass`.
        identity: Which network it is, by its training run; None if that is not known.
        made_from: Checksum of the model that a quantized or half-precision one was made from; None
            where it was not made from another, or that was not recorded.
        created: ISO 8601 time, UTC.
    """

    name: str
    model_file: str
    model_sha256: str
    model_kind: Literal["checkpoint", "onnx"]
    precision: Precision
    data_folder: str
    images: int
    labels_sha256: str
    label_space: LabelSpace
    confusion: Confusion
    protocol: str = DEPLOYED
    boundary: dict[str, Any] | None = None
    passes: list[dict[str, Any]] | None = None
    identity: Identity | None = None
    made_from: str | None = None
    created: str = field(default_factory=now_utc)

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
        """``[K]`` float64 intersection over union, 0 to 1, see `iou_of`."""
        return iou_of(self.confusion)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes with at least one true pixel; NaN if there is no such class.

        A class that was predicted but never occurs is left out, so that a label set without trains
        does not score a train at 0. Its pixels still count as misses of the classes they hit.
        """
        return miou_of(self.confusion)

    def subsets(self) -> dict[str, tuple[str, ...]]:
        """Return the smaller label spaces whose mIoU papers read off this one, and their classes.

        A 16-class network is scored on SYNTHIA's 13 by leaving wall, fence and pole out of the
        mean. The network still predicts them, so that their pixels count as misses of the 13.
        """
        return subsets_of(self.label_space)

    def miou_over(self, classes: Sequence[str]) -> float:
        """Return the mean IoU over those of the named classes that have a true pixel.

        All else stays as it is: true pixels of other classes count against what was predicted on
        them.
        """
        chosen = [self.label_space.classes.index(name) for name in classes]
        iou, present = self.iou[chosen], self.confusion.sum(1)[chosen] > 0
        return float(iou[present].mean()) if present.any() else float("nan")

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
                **({} if self.made_from is None else {"made_from_sha256": self.made_from}),
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
            **({"subsets": self._subset_records()} if self.subsets() else {}),
            "pixel_accuracy": _number(self.pixel_accuracy),
            "protocol": self.protocol,
            **({} if self.boundary is None else {"boundary": self.boundary}),
            **({} if self.passes is None else {"passes": self.passes}),
            **({} if self.identity is None else {"identity": self.identity.to_record()}),
        }

    def to_json(self) -> str:
        """Return `to_record` as text."""
        return json.dumps(self.to_record())

    def to_pandas(self) -> DataFrame:
        """Return pixels, accuracy and IoU in percent as a data frame, one row per class.

        Raises:
            DependencyError: If pandas is not installed.
        """
        frame: DataFrame = require("pandas", "pandas").DataFrame(class_rows(self))
        return frame

    def plot(self) -> Figure:
        """Draw the IoU of every class as bars, and mIoU as a line."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.add_subplot(ylabel="IoU, %", title=self.name)
        axes.bar(self.label_space.classes, 100 * np.nan_to_num(self.iou))
        axes.axhline(100 * self.miou, linestyle="--", color="black", label="mIoU")
        axes.tick_params(axis="x", rotation=60)
        axes.legend()
        return figure

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as text:
            console.print(table([self]))
        return text.get()

    def _subset_records(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "classes": len(classes),
                "without": [other for other in self.label_space.classes if other not in classes],
                "miou": _number(self.miou_over(classes)),
            }
            for name, classes in self.subsets().items()
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
            if kind not in ("checkpoint", "onnx") or precision not in ("fp32", "fp16", "int8"):
                raise ValueError(kind, precision)
            known, made_from = record.get("identity"), model.get("made_from_sha256")
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
                protocol=str(record.get("protocol", DEPLOYED)),
                boundary=record.get("boundary"),
                passes=_passes(record.get("passes")),
                identity=None if known is None else Identity.from_record(known, origin),
                made_from=None if made_from is None else str(made_from),
                created=str(record["created"]),
            )
        except (ConfigError, KeyError, TypeError, ValueError) as err:
            msg = f"{origin}: expected a complete {SCHEMA!r} record, found a damaged one ({err!r})"
            raise DataError(msg) from err


def _passes(record: Any) -> list[dict[str, Any]] | None:
    """Return the passes of a record, checked as far as a reader relies on them."""
    if record is None:
        return None
    for entry in record:
        for key in ("frame", "seen", "window"):
            rows, columns = entry[key]
            int(rows), int(columns)
        int(entry["windows"]), float(entry["scale"])
    return list(record)


def table(evaluations: Sequence[Evaluation]) -> Table:
    """Return per-class IoU in percent, one column per evaluation, for the terminal.

    Raises:
        DataError: If there is no evaluation, or their label spaces have different classes.
    """
    from rich.table import Table
    from rich.text import Text

    if not evaluations or len({e.label_space.classes for e in evaluations}) > 1:
        spaces = sorted({e.label_space.name for e in evaluations}) or "none"
        msg = f"Expected evaluations in one label space to put side by side, found {spaces}"
        raise DataError(msg)
    result = Table(title="IoU in percent", caption=Text(_caption(evaluations)))
    result.add_column("class")
    for evaluation in evaluations:
        result.add_column(Text(evaluation.name), justify="right")
    columns = [evaluation.iou for evaluation in evaluations]
    for index, name in enumerate(evaluations[0].label_space.classes):
        result.add_row(Text(name), *(_percent(float(iou[index])) for iou in columns))
    result.add_section()
    result.add_row("mIoU", *(_percent(evaluation.miou) for evaluation in evaluations))
    for classes in evaluations[0].subsets().values():
        every = evaluations[0].label_space.classes
        without = ", ".join(name for name in every if name not in classes)
        result.add_row(
            f"mIoU, {len(classes)} of {len(every)} (without {without})",
            *(_percent(evaluation.miou_over(classes)) for evaluation in evaluations),
        )
    result.add_row(
        "pixel accuracy", *(_percent(evaluation.pixel_accuracy) for evaluation in evaluations)
    )
    return result


def class_rows(evaluation: Evaluation) -> list[dict[str, str]]:
    """Return one row per class: pixels, accuracy (recall) and IoU in percent, for a CSV file."""
    true, iou = evaluation.confusion.sum(1), evaluation.iou
    outline = (evaluation.boundary or {}).get("iou")
    rows = []
    for index, name in enumerate(evaluation.label_space.classes):
        hits = int(evaluation.confusion[index, index])
        row = {
            "class": name,
            "pixels": str(int(true[index])),
            "predicted": str(int(evaluation.confusion[:, index].sum())),
            "accuracy": _percent(hits / int(true[index]) if true[index] else float("nan")),
            "iou": _percent(float(iou[index])),
        }
        if outline is not None:
            value = outline[name]
            row["boundary_iou"] = _percent(float("nan") if value is None else value)
        rows.append(row)
    return rows


def image_row(name: str, counts: Confusion, space: LabelSpace) -> dict[str, str]:
    """Return one image's row for a CSV file: pixels, accuracy, mIoU of its classes, IoU of each."""
    total = int(counts.sum())
    return {
        "image": name,
        "pixels": str(total),
        "pixel_accuracy": _percent(int(counts.trace()) / total if total else float("nan")),
        "miou": _percent(miou_of(counts)),
        **{
            name: _percent(float(value))
            for name, value in zip(space.classes, iou_of(counts), strict=True)
        },
    }


def _caption(evaluations: Sequence[Evaluation]) -> str:
    first = evaluations[0]
    if len({e.labels_sha256 for e in evaluations}) > 1:
        return "Not comparable: these were scored on different labels"
    return f"{first.images} images of {first.data_folder}; mIoU over the classes that occur in them"


def _check_ids(what: str, joint: Confusion, axis: int, classes: int) -> None:
    highest = int(np.flatnonzero(np.sum(joint, axis=axis)).max(initial=0))
    if highest >= classes:
        msg = f"Expected {what} ids 0 to {classes - 1}, found {highest}; is it the label space?"
        raise DataError(msg)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"
