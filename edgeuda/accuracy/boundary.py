"""Boundary IoU: how well the outlines of classes are met.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR
2021. A class's boundary region is what of its mask lies within a distance of its outline; boundary
IoU is the intersection over union of the boundary regions of truth and prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.data.images import LabelMap
from edgeuda.errors import ConfigError
from edgeuda.labels import IGNORE, LabelSpace

CITYSCAPES_RATIO = 0.005
"""Distance as a share of the image's diagonal that the authors use on Cityscapes."""

Mask = npt.NDArray[np.uint8]


@dataclass
class BoundaryCounts:
    """Boundary pixels of each class, summed over images.

    Ignored pixels belong to no class, in truth and prediction alike.

    Attributes:
        classes: Number of classes, K.
        ratio: Distance from the outline, as a share of the diagonal; at least one pixel.
        intersection: ``[K]`` int64.
        union: ``[K]`` int64.
        seen: ``[K]`` bool, whether a class has a true pixel.
    """

    classes: int
    ratio: float = CITYSCAPES_RATIO
    intersection: npt.NDArray[np.int64] = field(init=False)
    union: npt.NDArray[np.int64] = field(init=False)
    seen: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 0.5:
            msg = f"Boundary: expected a share of the diagonal in (0, 0.5), found {self.ratio}"
            raise ConfigError(msg)
        self.intersection = np.zeros(self.classes, np.int64)
        self.union = np.zeros(self.classes, np.int64)
        self.seen = np.zeros(self.classes, np.bool_)

    def add(self, truth: LabelMap, prediction: LabelMap) -> None:
        """Count one image, two ``[H, W]`` uint8 label maps."""
        distance = max(1, round(self.ratio * float(np.hypot(*truth.shape))))
        counted = truth != IGNORE
        for index in range(self.classes):
            true = ((truth == index) & counted).astype(np.uint8)
            predicted = ((prediction == index) & counted).astype(np.uint8)
            self.seen[index] |= bool(true.any())
            a, b = boundary(true, distance), boundary(predicted, distance)
            self.intersection[index] += int(np.count_nonzero(a & b))
            self.union[index] += int(np.count_nonzero(a | b))

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """``[K]`` float64, 0 to 1; NaN where a class has no boundary in truth and prediction."""
        with np.errstate(invalid="ignore"):
            return self.intersection / self.union

    @property
    def miou(self) -> float:
        """Mean over the classes with a true pixel; NaN if there is none."""
        return float(self.iou[self.seen].mean()) if self.seen.any() else float("nan")

    def to_record(self, space: LabelSpace) -> dict[str, Any]:
        """Return the JSON form; undefined values are null."""
        values = [None if np.isnan(value) else float(value) for value in self.iou]
        miou = self.miou
        return {
            "ratio": self.ratio,
            "iou": dict(zip(space.classes, values, strict=True)),
            "miou": None if np.isnan(miou) else miou,
        }


def boundary(mask: Mask, distance: int) -> Mask:
    """Return the pixels of a ``[H, W]`` uint8 mask within ``distance`` of its outline, 0 or 1.

    The image's border is an outline too. Distances are along the longer axis, as in the source.
    """
    if not mask.any():
        return mask
    side = 2 * distance + 1
    inner = cv2.erode(
        mask, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    return np.asarray(mask - inner, np.uint8)
