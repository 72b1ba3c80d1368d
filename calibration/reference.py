"""The reference of a model: what it says of target frames, kept for the vehicle."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.options import Report, silent
from edgeuda.data.frames import FrameFolder
from edgeuda.data.treatment import as_shown
from edgeuda.errors import DataError
from edgeuda.files import now_utc, sha256
from edgeuda.records.arrays import Floats
from edgeuda.records.predictions import ModelFile
from edgeuda.records.reference import (
    CLASSES,
    COLUMNS,
    DISTANCE,
    FEW,
    SURENESS,
    FeatureModel,
    Reference,
    Region,
    Spread,
    Stretch,
    reference_path,
)
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import signals_of
from engines.signals import (
    GRID,
    FrameStatistics,
    class_distance,
    confidence_distance,
    statistics,
)

Numbers = npt.NDArray[np.float64]

STRETCH = 16
"""Frames that follow each other, where not all are taken: how much one says of the next."""
DIRECTIONS = 16
"""Of the features, at most."""
FRAMES_PER_DIRECTION = 8
LEAST = 2 * FRAMES_PER_DIRECTION
"""Frames below which nothing is said of the features."""
PARTS = 4
"""Contiguous parts of the frames, of which each is measured by the others."""
LEAST_SPREAD = 0.1
"""Of a channel, as a part of the usual one."""
LEAST_REST = 1e-3
DIGITS = 6
"""Of shares and spreads."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """A frame of the footage: where it lies, and what it says."""

    place: int
    said: FrameStatistics


def write_reference(
    model: Path,
    footage: FrameFolder,
    count: int,
    *,
    apart: bool = False,
    threads: int | None = None,
    report: Report = silent,
) -> Reference:
    """Run a model over target frames and write what was normal beside it.

    It is run as it is, an INT8 model in INT8, by ONNX Runtime on the CPU. A Q/DQ model for TensorRT
    rounds as it does there, and differs in the order of sums.

    Args:
        model: An ONNX file that was exported with confidence, in any form.
        footage: Target frames. All are taken if they are no more than ``count``, else stretches of
            `STRETCH` that follow each other, evenly spread.
        count: Frames at most.
        apart: Whether no frame follows the one before it, however they are named: drawn from a
            drive, they do not say how much one says of the next.
        threads: Threads of one operator; None takes every usable core.
        report: See `calibration.options.Report`.

    Returns:
        The record, which was written to `reference_path`.

    Raises:
        ModelError: If the model gives no confidence.
        DataError: If no frame can be read, or too many cannot.
    """
    with OnnxRunner(model, threads, confidence=True) as runner:
        seen = list(_look(runner, footage, count, report))
        footage.judge()
        if not seen:
            msg = f"{footage.root}: expected frames to remember what is normal, found none"
            raise DataError(msg)
        spec, backend = runner.spec, runner.backend
        network = None if runner.identity is None else runner.identity.network
    said = [one.said for one in seen]
    stretches = (
        [Stretch(one.place, 1) for one in seen]
        if apart
        else _stretches([one.place for one in seen], {part.start for part in footage.parts})
    )
    values = np.column_stack([[one.values for one in said], _unlike(said)])
    columns = [*COLUMNS, CLASSES, SURENESS]
    features = [one.features for one in said if one.features is not None]
    kept = None
    if len(features) == len(said) >= LEAST:
        matrix = np.stack(features).astype(np.float64)
        kept = feature_model(matrix)
        values = np.column_stack([values, _apart(matrix)])
        columns.append(DISTANCE)
    lengths = [one.frames for one in stretches]
    whole, regions = _region(said, -1), [_region(said, n) for n in range(GRID[0] * GRID[1])]
    record = Reference(
        created=now_utc(),
        model=ModelFile(model.name, sha256(model)),
        network=network,
        backend=backend,
        classes=spec.label_space.classes,
        rows=spec.preprocessing.height,
        columns=spec.preprocessing.width,
        frames=len(said),
        footage=len(footage),
        stretches=tuple(stretches),
        grid=GRID,
        whole=whole,
        regions=tuple(regions),
        per_frame=tuple(columns),
        values=Floats.of(values),
        autocorrelation=tuple(autocorrelation(column, lengths) for column in values.T),
        features=kept,
        remarks=tuple(_remarks(lengths, len(features), kept)),
        skipped=footage.skipped() or None,
    )
    record.write(reference_path(model))
    return record


def successive(total: int, count: int) -> list[int]:
    """Return the places of at most ``count`` frames of ``total``, in stretches that are spread."""
    if total <= count:
        return list(range(total))
    length = min(STRETCH, count)
    number = count // length
    starts = [n * total // number for n in range(number)]
    return [start + step for start in starts for step in range(length)]


def feature_model(features: Numbers) -> FeatureModel:
    """Fit mean and covariance, see `FeatureModel`.

    A direction for every `FRAMES_PER_DIRECTION` frames, at most `DIRECTIONS`, has its own variance.

    Args:
        features: ``[N, C]`` of at least two frames.
    """
    count, channels = features.shape
    mean, spread = features.mean(0), features.std(0, ddof=1)
    usual = float(np.sqrt(np.mean(spread**2)))
    spread = np.maximum(spread, LEAST_SPREAD * usual if usual else 1.0)
    rank = max(0, min(DIRECTIONS, count // FRAMES_PER_DIRECTION, channels - 1))
    _, singular, directions = np.linalg.svd((features - mean) / spread, full_matrices=False)
    variances = singular**2 / (count - 1)
    rest = max(float(variances[rank:].sum()) / (channels - rank), LEAST_REST)
    own = np.maximum(variances[:rank], rest)
    return FeatureModel(
        Floats.of(mean),
        Floats.of(spread),
        Floats.of(directions[:rank], "float16"),
        tuple(float(f"{one:.6g}") for one in own),
        rest,
    )


def autocorrelation(values: Numbers, lengths: Sequence[int]) -> float | None:
    """Return the correlation of values with those before them, within stretches.

    Args:
        values: ``[N]``.
        lengths: Of the stretches, N together.

    Returns:
        None where no two follow each other, or nothing varies.
    """
    ends = np.cumsum(lengths)
    follows = np.ones(len(values), bool)
    follows[[0, *ends[:-1]]] = False
    apart = values - values.mean()
    power = float((apart**2).mean())
    # A constant may be off its mean by rounding.
    if not follows.any() or power <= 1e-12 * float((values**2).mean()):
        return None
    later = np.flatnonzero(follows)
    found = float((apart[later] * apart[later - 1]).mean()) / power
    return round(float(np.clip(found, -1, 1)), 4)


def _look(runner: OnnxRunner, footage: FrameFolder, count: int, report: Report) -> Iterator[_Seen]:
    spec = runner.spec
    own = zip(footage.parts, footage.divided(count), strict=True)
    places = [part[place] for part, most in own for place in successive(len(part), most)]
    progress = partial(report, "remembering what is normal")
    for done, place in enumerate(places, 1):
        image = footage.read(place, instead=False)
        if image is not None:
            shown = as_shown(image, footage[place], spec.preprocessing.geometry)
            yield _Seen(place, statistics(signals_of(runner, shown), len(spec.label_space)))
        progress(done, len(places))


def _stretches(places: Sequence[int], begins: Container[int]) -> list[Stretch]:
    """Return what follows each other; at the beginning of another footage nothing does."""
    starts = [
        n
        for n, place in enumerate(places)
        if not n or place in begins or place != places[n - 1] + 1
    ]
    return [
        Stretch(places[start], end - start)
        for start, end in zip(starts, [*starts[1:], len(places)], strict=True)
    ]


def _region(said: Sequence[FrameStatistics], number: int) -> Region:
    classes = sum(one.classes[number] for one in said)
    shares = classes / max(1, classes.sum())
    return Region(
        tuple(sum(one.confidence[number] for one in said).tolist()),
        tuple(round(share, DIGITS) for share in shares.tolist()),
        _spread([one.brightness[number] for one in said]),
        _spread([one.sharpness[number] for one in said]),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(
        round(float(np.mean(values)), DIGITS),
        round(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, DIGITS),
    )


def _unlike(said: Sequence[FrameStatistics]) -> Numbers:
    """Return how far each frame's classes and confidence are from those of the other parts.

    Returns:
        ``[N, 2]``.
    """
    classes, sure = (
        np.stack([whole[:-1] for whole in one])
        for one in ([frame.classes for frame in said], [frame.confidence for frame in said])
    )
    found = np.zeros((len(said), 2))
    for part in np.array_split(np.arange(len(said)), min(PARTS, len(said))):
        usual = [values.sum(0) - values[part].sum(0) for values in (classes, sure)]
        found[part] = [
            (class_distance(classes[n], usual[0]), confidence_distance(sure[n], usual[1]))
            for n in part
        ]
    return found


def _apart(features: Numbers) -> Numbers:
    """Return each frame's distance by the frames of the other parts: its own do not flatter it."""
    parts = np.array_split(np.arange(len(features)), PARTS)
    found = [
        feature_model(np.delete(features, part, 0)).distances(features[part]) for part in parts
    ]
    return np.concatenate(found)


def _remarks(lengths: Sequence[int], featured: int, kept: FeatureModel | None) -> Iterator[str]:
    frames = sum(lengths)
    if frames < FEW:
        yield f"{frames} frames are few: {FEW} or more show how much normal varies"
    if max(lengths) == 1:
        yield "no two frames follow each other: how much one says of the next is not known"
    if not featured:
        yield "the network gives no pooled features"
    elif kept is None:
        yield f"{frames} frames are too few for the features, of which nothing is kept"
