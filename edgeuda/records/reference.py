"""What was normal: what a model says of the frames it was made for, and how they look.

`edgeuda calibrate` writes it beside the model. A vehicle holds what comes later against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgeuda import schemas
from edgeuda.records.arrays import Floats
from edgeuda.records.form import OMIT, Record
from edgeuda.records.predictions import ModelFile

SUFFIX = ".reference.json"
BINS = 32
"""Of a histogram of confidence; each is of 8 of the 256 levels."""
FEW = 100
"""Frames below which a reference says of itself that they are few."""
COLUMNS = (
    "confidence", "brightness", "sharpness", "red", "green", "blue", "red_spread", "green_spread",
    "blue_spread",
)  # fmt: skip
"""What is kept of each frame: mean confidence 0 to 1; mean of the grey image, 0 to 255; variance of
its Laplacian; mean and standard deviation of each channel, 0 to 255."""
CLASSES, SURENESS, DISTANCE = "class_distance", "confidence_distance", "distance"
"""Further columns, how far a frame is from the others: in its classes by region (mean of
Jensen-Shannon's distances, 0 to 1), in its confidence by region (mean of Kolmogorov-Smirnov's
distances, 0 to 1), and, where there are features, in these. Of a frame of the reference, by the
frames of the other three quarters."""


def reference_path(model: Path) -> Path:
    """Return where the reference of a model's file lies."""
    return model.with_name(model.name + SUFFIX)


@dataclass(frozen=True)
class Spread:
    """Mean over the frames, and their standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Region:
    """A part of the image, or all of it.

    Attributes:
        confidence: Places by confidence, in `BINS` bins, over all frames.
        classes: Share of the pixels of each class, 0 to 1.
        brightness: Mean of the grey image, 0 to 255.
        sharpness: Variance of its Laplacian.
    """

    confidence: tuple[int, ...]
    classes: tuple[float, ...]
    brightness: Spread
    sharpness: Spread

    def __post_init__(self) -> None:
        if len(self.confidence) != BINS:
            msg = f"expected {BINS} bins of confidence, found {len(self.confidence)}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Stretch:
    """Frames that follow each other in the footage, by the names of their files."""

    first: int
    frames: int


@dataclass(frozen=True)
class FeatureModel:
    """Mean and covariance of the pooled features, in a form that is small and can be inverted.

    Each channel is divided by its spread. Of what is left the covariance is that of probabilistic
    principal components: some directions with a variance of their own, and one variance for all
    others. Source: Tipping and Bishop, "Probabilistic Principal Component Analysis", Journal of the
    Royal Statistical Society B, 1999.

    Attributes:
        mean: ``[C]``.
        spread: ``[C]``; that of a channel that hardly varies is a tenth of the usual one.
        directions: ``[R, C]``, of length 1 and square to each other up to rounding.
        variances: ``[R]``, largest first.
        rest: Variance in every other direction.
    """

    mean: Floats
    spread: Floats
    directions: Floats
    variances: tuple[float, ...]
    rest: float

    def __post_init__(self) -> None:
        (channels,) = self.mean.shape
        shapes = self.spread.shape, self.directions.shape
        if shapes != ((channels,), (len(self.variances), channels)):
            msg = f"expected sizes that fit {channels} channels, found {shapes}"
            raise ValueError(msg)
        if min(*self.variances, self.rest, self.spread.array.min()) <= 0:
            msg = "expected positive variances and spreads"
            raise ValueError(msg)

    def distances(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return how far features are from the mean: Mahalanobis' distance by root of C.

        The frames it was made from are at 1 in the mean of squares.

        Args:
            features: ``[N, C]``.

        Returns:
            ``[N]`` float64.
        """
        z = (features - self.mean.array) / self.spread.array.astype(np.float64)
        along = z @ self.directions.array.T.astype(np.float64)
        inside = (along**2 / np.array(self.variances)).sum(1)
        outside = np.maximum((z**2).sum(1) - (along**2).sum(1), 0) / self.rest
        return np.asarray(np.sqrt((inside + outside) / z.shape[1]), np.float64)


@dataclass(frozen=True)
class Reference(Record):
    """What was normal.

    Attributes:
        created: UTC time in ISO 8601.
        model: The file whose outputs these are.
        network: SHA-256 of the checkpoint it descends from; None if that is not known.
        backend: What ran it.
        classes: Names of the classes.
        rows: Of the network's input, in which brightness, sharpness and colour are taken.
        columns: Likewise.
        frames: Number of frames, N.
        footage: Frames of the footage they were taken from.
        stretches: Which of them, in order.
        grid: Rows and columns of the regions.
        whole: The whole image.
        regions: Its parts, by rows from the top.
        per_frame: What each column of `values` is, see `COLUMNS` and the names below it.
        values: ``[N, columns]``, in the order of the frames.
        autocorrelation: Of each column between frames that follow each other, -1 to 1; None where
            none do, or nothing varies.
        features: Of the pooled features; None if the model gives none, or frames were too few.
        remarks: What makes it worth less than it could be.
        skipped: Files that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.REFERENCE
    AGAIN: ClassVar[str] = "Calibrate again with `edgeuda calibrate`"

    created: str
    model: ModelFile
    network: str | None
    backend: str
    classes: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    footage: int
    stretches: tuple[Stretch, ...]
    grid: tuple[int, int]
    whole: Region
    regions: tuple[Region, ...]
    per_frame: tuple[str, ...]
    values: Floats
    autocorrelation: tuple[float | None, ...]
    features: FeatureModel | None = None
    remarks: tuple[str, ...] = ()
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})

    def __post_init__(self) -> None:
        for subject, expected, found in (
            ("regions", self.grid[0] * self.grid[1], len(self.regions)),
            ("frames in stretches", self.frames, sum(one.frames for one in self.stretches)),
            ("values", (self.frames, len(self.per_frame)), self.values.shape),
            ("autocorrelations", len(self.per_frame), len(self.autocorrelation)),
        ):
            if found != expected:
                msg = f"expected {subject} {expected}, found {found}"
                raise ValueError(msg)
        if any(len(one.classes) != len(self.classes) for one in (self.whole, *self.regions)):
            msg = f"expected a share of each of {len(self.classes)} classes in every region"
            raise ValueError(msg)

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """Return what is kept of each frame under a name of `per_frame`, ``[N]`` float32."""
        found: npt.NDArray[np.float32] = self.values.array[:, self.per_frame.index(name)]
        return found
