"""Which pixels of a prediction become pseudo-labels: constant, class-balanced, instance-adaptive.

Sources: Mei et al., "Instance Adaptive Self-training for Unsupervised Domain Adaptation", ECCV
2020, and its successor HIAST (arXiv 2302.06992), in the form of the released code; Zou et al.,
"Class-Balanced Self-Training", ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeuda.methods.settings import Positive, Section, Share, Weight
from edgeuda.records.names import Selector

PATTERNS = 0x3C00 + 1
"""Half-precision numbers from 0 to 1. They are ordered like their bits, so that a histogram over
the bits is a sorted list."""
HIGHEST = 0.999
"""What a threshold of 1 or more becomes."""


class SelectorSettings(Section):
    """Which pixels get a pseudo-label.

    Attributes:
        selector: ``"instance-adaptive"`` (IAST, HIAST); ``"class-balanced"``: per class the surest
            ``keep`` of all frames' pixels (CBST), which takes two passes; ``"constant"``: one
            threshold; ``"all"``: every pixel.
        keep: Share of a class's pixels, see `InstanceAdaptive`; in rounds, that of the first.
        growth: What later rounds add to it.
        history: See `InstanceAdaptive`.
        hardness: See `InstanceAdaptive`.
        initial: Threshold before the first frame, and the constant one.
        batch: Frames whose confidences are pooled; 1 is the published definition, 2 the released
            code.
    """

    selector: Selector = "instance-adaptive"
    keep: Share = 0.5
    growth: Weight = 0.0
    history: Share = 0.9
    hardness: Weight = 8.0
    initial: Share = 0.9
    batch: Positive = 2

    def of_round(self, number: int) -> SelectorSettings:
        """Return the parameters of a round, from 1."""
        keep = min(1.0, self.keep + (number - 1) * self.growth)
        return self.model_copy(update={"keep": keep, "growth": 0.0})

    def to_record(self) -> dict[str, Any]:
        """Return what one pass depends on, for its index."""
        return self.model_dump(exclude={"growth"})


@dataclass(frozen=True)
class InstanceAdaptive:
    """Parameters of the instance-adaptive selector.

    Attributes:
        keep: Share of a class's pixels that is kept while its threshold is 1 (alpha).
        history: Weight of the old threshold (beta).
        hardness: The lower a class's threshold, the less is kept of it (gamma).
        initial: Threshold before the first image.
    """

    keep: float = 0.5
    history: float = 0.9
    hardness: float = 8.0
    initial: float = 0.9

    def update(self, thresholds: Tensor, histogram: Tensor) -> Tensor:
        """Return the thresholds ``[K]`` float64 for the images of a histogram.

        ``theta <- history * theta + (1 - history) * psi`` where psi is the ``1 - keep * theta **
        hardness`` quantile of the class's confidences together with theta itself; a class without
        pixels keeps its threshold. The images are labelled with what comes out.

        Args:
            thresholds: ``[K]`` float64 after the images before.
            histogram: ``[K, PATTERNS]``, see `confidence_histogram`.
        """
        share = 1 - self.keep * thresholds**self.hardness
        psi = quantiles(histogram, thresholds, share).float()  # as the release stores it
        updated = self.history * thresholds + ((1 - self.history) * psi).double()
        return torch.where(updated >= 1, HIGHEST, updated)


def confidence_histogram(confidence: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count half-precision confidences per predicted class.

    Args:
        confidence: ``[...]`` float in [0, 1].
        label: Same shape, int32 or int64 predicted classes.
        classes: Number of classes K.

    Returns:
        ``[K, PATTERNS]`` int64.
    """
    bits = confidence.half().view(torch.int16)
    code = torch.add(bits, label.int(), alpha=PATTERNS).flatten()
    return torch.bincount(code, minlength=classes * PATTERNS).view(classes, PATTERNS)


def quantiles(histogram: Tensor, extra: Tensor, share: Tensor) -> Tensor:
    """Return each class's quantile with linear interpolation, exactly.

    Args:
        histogram: ``[K, PATTERNS]`` of `confidence_histogram`.
        extra: ``[K]`` float64, one more sample of each class.
        share: ``[K]`` float64, 0 to 1: which quantile.

    Returns:
        ``[K]`` float64.
    """
    cumulative = histogram.cumsum(1)
    count = cumulative[:, -1:]
    values = torch.arange(PATTERNS, dtype=torch.int16, device=histogram.device)
    values = values.view(torch.float16).double()
    # Where the extra sample stands among the others.
    place = torch.searchsorted(values, extra[:, None].contiguous())
    below = torch.where(place > 0, cumulative.gather(1, (place - 1).clamp(min=0)), 0)

    def at(rank: Tensor) -> Tensor:
        """Return the sample of a rank in the joint sorted list, ``[K, 1]``."""
        among = (rank - (rank > below).long()).clamp(min=0)
        pattern = torch.searchsorted(cumulative, among, right=True).clamp(max=PATTERNS - 1)
        return torch.where(rank == below, extra[:, None], values[pattern])

    position = count * share[:, None]  # samples are count + 1
    lower = position.floor()
    weight = position - lower
    first = at(lower.long())
    second = at(torch.minimum(lower.long() + 1, count))
    difference = second - first
    # NumPy's interpolation, from the nearer end.
    result = torch.where(
        weight >= 0.5, second - difference * (1 - weight), first + difference * weight
    )
    return result[:, 0]


def balanced_thresholds(histogram: Tensor, keep: float) -> Tensor:
    """Return CBST's thresholds ``[K]`` float64: of each class, the share ``keep`` lies above.

    Args:
        histogram: ``[K, PATTERNS]`` over all images.
        keep: Share of a class's pixels.
    """
    classes = histogram.shape[0]
    share = torch.full((classes,), 1 - keep, dtype=torch.float64, device=histogram.device)
    one = torch.ones_like(share)  # a class without pixels selects nothing
    return quantiles(histogram, one, share)


def select(confidence: Tensor, label: Tensor, thresholds: Tensor) -> Tensor:
    """Return the labels ``[...]`` uint8, 255 where the confidence is below its class's threshold.

    Args:
        confidence: ``[...]`` float.
        label: Same shape, int32 or int64.
        thresholds: ``[K]``.
    """
    # On CPUs this is several times as fast as indexing and `torch.where`: what is refused becomes
    # 255 by setting all bits.
    least = thresholds.to(confidence).index_select(0, label.flatten()).view_as(confidence)
    refused = (confidence >= least).logical_not_().view(torch.uint8)
    return label.byte().bitwise_or_(refused.neg_())
