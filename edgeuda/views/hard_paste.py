"""Hard-aware pseudo-label augmentation: regions of hard classes pasted between target images.

Source: HIAST (arXiv 2302.06992), in the form of the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeuda.data.images import Image, LabelMap, resize_label, scaled

DROPPED = 0.1
"""Share of a class's images, those with the fewest of its pixels, that do not donate."""
ENOUGH = 0.5
"""Share of the hard classes after whose pasting no further donor is taken."""


@dataclass(frozen=True)
class HardPaste:
    """Pastes the hard classes of a donor onto an image, at the same place.

    Attributes:
        read: Returns image ``[H, W, 3]`` and pseudo-label ``[H, W]`` of an index.
        hard: Ids of the hard classes.
        probability: ``[K]``, how often each class chooses the donor; sums to 1, or all 0.
        donors: Per class, indices of images that hold it.
        most: Donors per image at most. The released code takes one: it counts every hard class as
            pasted after the first, although its comments say otherwise.
    """

    read: Callable[[int], tuple[Image, LabelMap | None]]
    hard: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    donors: tuple[npt.NDArray[np.int64], ...]
    most: int = 1

    @classmethod
    def of(
        cls,
        read: Callable[[int], tuple[Image, LabelMap | None]],
        mean_confidence: Sequence[float],
        pixels: npt.NDArray[np.int64],
        share: float,
        most: int = 1,
    ) -> HardPaste:
        """Take the classes of lowest confidence; sure ones choose donors less often.

        A class that no image holds chooses no donor; in the released code its probability is not a
        number.

        Args:
            read: See the attribute.
            mean_confidence: ``[K]`` mean confidence of the pseudo-labels of each class.
            pixels: ``[M, K]`` pseudo-labelled pixels of each class in each image.
            share: Share of the classes that are hard, 0.74 as published (14 of 19).
            most: See the attribute.
        """
        confidence = np.asarray(mean_confidence, np.float64)
        hard = np.argsort(confidence, kind="stable")[: round(share * confidence.size)]
        donors = []
        for column in pixels.T:
            holding = np.flatnonzero(column)
            order = holding[np.argsort(column[holding], kind="stable")]
            donors.append(order[round(DROPPED * order.size) :])
        weights = (1 - confidence) ** 2 * [group.size > 0 for group in donors]
        total = weights.sum()
        probability = weights / total if total else weights
        return cls(read, np.sort(hard), probability, tuple(donors), most)

    def __call__(
        self, image: Image, label: LabelMap | None, rng: np.random.Generator
    ) -> tuple[Image, LabelMap | None]:
        """Return image and pseudo-label with the hard classes of one or more donors."""
        assert label is not None
        copied: set[int] = set()
        for _ in range(self.most):
            candidates = np.array([c for c in self.hard if c not in copied], np.int64)
            chances = self.probability[candidates] if candidates.size else np.zeros(0)
            if chances.sum() == 0:
                break
            drawn = int(rng.choice(candidates, p=chances / chances.sum()))
            other, its_label = self.read(int(rng.choice(self.donors[drawn])))
            assert its_label is not None
            if other.shape != image.shape:
                height, width = label.shape
                other, its_label = (
                    scaled(other, height, width),
                    resize_label(its_label, height, width),
                )
            table = np.zeros(256, np.uint8)
            table[self.hard] = 1
            mask = table[its_label].astype(bool)
            image = np.where(mask[..., None], other, image)
            label = np.where(mask, its_label, label)
            copied |= set(np.unique(its_label[mask]).tolist())
            if len(copied) >= ENOUGH * self.hard.size:
                break
        return image, label
