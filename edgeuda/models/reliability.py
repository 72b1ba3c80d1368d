"""What a network's confidence means: calibration error, the worth of confident labels, temperature.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, for expected calibration
error and temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeuda.data.images import Image, LabelMap, resize_image, resize_label
from edgeuda.errors import DataError
from edgeuda.labels import IGNORE
from edgeuda.models.network import Network
from edgeuda.models.predictor import normalise, to_tensor
from edgeuda.records.labelling import ConfidenceFigures, ConfidenceOfClass, KeptLabels
from edgeuda.spec import ModelSpec

BINS = 50
PIXELS = 4000
"""Pixels of each image from which the temperature is fitted."""
KEPT = (0.5, 0.8, 0.9, 0.95, 0.968)
"""Confidences at which the share and accuracy of the labels above are recorded."""

DIGITS = 4
"""Of the figures in a record."""

BinCounts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Pixels by predicted class and confidence, of those whose true class is known.

    Attributes:
        pixels: ``[K, BINS]`` int64; bin b holds confidences from ``b / BINS`` on.
        correct: ``[K, BINS]`` int64, those that are right.
        confidence: ``[K, BINS]`` float64, sum of their confidences.
    """

    pixels: BinCounts
    correct: BinCounts
    confidence: npt.NDArray[np.float64]

    def error(self) -> float:
        """Return the expected calibration error, 0 to 1: mean of |accuracy - confidence| by bin."""
        gaps = np.abs(self.correct.sum(0) - self.confidence.sum(0))
        return float(gaps.sum() / self.pixels.sum())

    def kept(self, threshold: float) -> tuple[float, float]:
        """Return the share of the pixels at least as sure, and the share of those that is right.

        The accuracy is nan where no pixel is.
        """
        above = slice(math.ceil(threshold * BINS - 1e-9), None)
        count = int(self.pixels[:, above].sum())
        right = int(self.correct[:, above].sum())
        return count / int(self.pixels.sum()), right / count if count else math.nan

    def figures(self, classes: Iterable[str]) -> ConfidenceFigures:
        """Return the figures, shares from 0 to 1, by class where a class is predicted at all."""
        total = int(self.pixels.sum())
        by_class = {
            name: ConfidenceOfClass(
                round(count / total, DIGITS),
                _rounded(right / count if count else math.nan),
                _rounded(sure / count if count else math.nan),
            )
            for name, count, right, sure in zip(
                classes,
                self.pixels.sum(1).tolist(),
                self.correct.sum(1).tolist(),
                self.confidence.sum(1).tolist(),
                strict=True,
            )
        }
        return ConfidenceFigures(
            round(self.error(), DIGITS),
            round(float(self.confidence.sum()) / total, DIGITS),
            round(int(self.correct.sum()) / total, DIGITS),
            [
                KeptLabels(t, round(share, DIGITS), _rounded(accuracy))
                for t in KEPT
                for share, accuracy in [self.kept(t)]
            ],
            by_class,
        )


def reliability(
    model: Network,
    spec: ModelSpec,
    pairs: Iterable[tuple[Image, LabelMap]],
    temperature: float = 1.0,
) -> Reliability:
    """Hold a network's confidence against labels, at the network's input size.

    Args:
        model: The network, in eval mode.
        spec: Its spec.
        pairs: Images with label maps.
        temperature: Divides the logits.

    Raises:
        DataError: If no pixel has a label.
    """
    (found,) = reliabilities(model, spec, pairs, (temperature,))
    return found


@torch.inference_mode()
def reliabilities(
    model: Network,
    spec: ModelSpec,
    pairs: Iterable[tuple[Image, LabelMap]],
    temperatures: Sequence[float],
) -> list[Reliability]:
    """Do as `reliability` at several temperatures, each image passing the network once.

    Raises:
        DataError: If no pixel has a label.
    """
    classes = len(spec.label_space)
    shape = (classes, BINS)
    found = [
        Reliability(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape))
        for _ in temperatures
    ]
    for logits, label in _logits(model, spec, pairs):
        known = label != IGNORE
        for temperature, one in zip(temperatures, found, strict=True):
            sure, winner = (logits / temperature).softmax(0).max(0)
            cell = winner[known] * BINS + (sure[known] * BINS).long().clamp(max=BINS - 1)
            cells = cell.numpy()
            one.pixels[:] += np.bincount(cells, minlength=classes * BINS).reshape(shape)
            right = (winner == label)[known].double().numpy()
            counted = np.bincount(cells, right, classes * BINS).reshape(shape)
            one.correct[:] += counted.astype(np.int64)
            weights = sure[known].double().numpy()
            one.confidence[:] += np.bincount(cells, weights, classes * BINS).reshape(shape)
    if not all(one.pixels.any() for one in found):
        msg = "Expected at least one labelled pixel to hold confidence against, found none"
        raise DataError(msg)
    return found


@torch.inference_mode()
def fit_temperature(
    model: Network, spec: ModelSpec, pairs: Iterable[tuple[Image, LabelMap]], seed: int = 0
) -> float:
    """Return the temperature that makes the labels of some images most likely, 0.1 to 10.

    The negative log-likelihood is convex in the inverse temperature, so a search by sections finds
    its minimum.

    Args:
        model: The network, in eval mode.
        spec: Its spec.
        pairs: Images with label maps that the network was not trained on.
        seed: Of the choice of pixels.

    Raises:
        DataError: If no pixel has a label.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, truths = [], []
    for logits, label in _logits(model, spec, pairs):
        known = (label != IGNORE).flatten().nonzero()[:, 0]
        chosen = known[torch.randperm(len(known), generator=generator)[:PIXELS]]
        rows.append(logits.flatten(1)[:, chosen].T)
        truths.append(label.flatten()[chosen])
    if not sum(map(len, truths)):
        msg = "Expected at least one labelled pixel to fit a temperature to, found none"
        raise DataError(msg)
    scores, truth = torch.cat(rows), torch.cat(truths)

    def surprise(inverse: float) -> float:
        return float(F.cross_entropy(scores * inverse, truth))

    low, high = 0.1, 10.0
    for _ in range(40):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if surprise(left) < surprise(right):
            high = right
        else:
            low = left
    return 2 / (low + high)


def _logits(
    model: Network, spec: ModelSpec, pairs: Iterable[tuple[Image, LabelMap]]
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield logits ``[K, H, W]`` and labels ``[H, W]`` int64 at network size, on the CPU."""
    pre = spec.preprocessing
    device = next(model.parameters()).device
    for image, label in pairs:
        x = to_tensor(resize_image(image, pre.height, pre.width))[None].to(device)
        logits = model(normalise(x, pre)).main[0].float().cpu()
        yield logits, torch.from_numpy(resize_label(label, pre.height, pre.width)).long()


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, DIGITS)
