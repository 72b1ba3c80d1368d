"""Whether a quantized model may replace its FP32 form, judged on target frames without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from calibration.frames import Frames
from calibration.observe import Observation, Observer
from edgeuda.accuracy.evaluation import confusion, iou_of
from edgeuda.errors import DataError
from edgeuda.labels import LabelSpace
from edgeuda.records.calibration import Acceptance, ClassAgreement, Limits

REGIONS = (4, 4)
"""Rows and columns of the grid by which the image is judged."""
RARE = 0.001
"""Share of the pixels below which a class does not decide: a handful of borders."""
WORST = 6
"""Frames that are named, and shown on the page."""


def judge(
    reference: Observer,
    quantized: Observer,
    frames: Frames,
    names: Sequence[str],
    space: LabelSpace,
    limits: Limits,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Acceptance:
    """Compare two forms of one network on frames of the target domain.

    Args:
        reference: The FP32 form.
        quantized: The INT8 form.
        frames: The frames.
        names: One name per frame.
        space: What the ids mean.
        limits: What is accepted.
        progress: Called with frames done and frames to do.

    Raises:
        DataError: If there are no frames.
    """
    if not len(frames):
        msg = "Expected at least one frame to judge by, found none"
        raise DataError(msg)
    size = len(space)
    joint = np.zeros((size, size), np.int64)
    regions = np.zeros(REGIONS)
    equal, divergences, before, after = [], [], [], []
    for position in range(len(frames)):
        frame = frames[position]
        fp32, int8 = reference(frame), quantized(frame)
        same = fp32.labels == int8.labels
        equal.append(float(same.mean()))
        joint += confusion(fp32.labels, int8.labels, size)
        regions += _by_region(same)
        divergences.append(divergence(fp32, int8))
        before.append(fp32.confidence)
        after.append(int8.confidence)
        progress(position + 1, len(frames))
    total = float(np.mean(equal))
    classes = _classes(joint, space)
    order = np.argsort(equal, kind="stable")[:WORST]
    return Acceptance(
        tuple(names),
        total,
        tuple(equal),
        classes,
        tuple(map(tuple, (regions / len(frames)).tolist())),
        float(np.mean(divergences)),
        float(np.mean(before)),
        float(np.mean(after) - np.mean(before)),
        tuple(order.tolist()),
        limits,
        _reasons(total, classes, limits),
    )


def divergence(fp32: Observation, int8: Observation) -> float:
    """Return the mean over pixels of KL(FP32 || INT8), in nats."""
    p, q = fp32.log_probabilities, int8.log_probabilities
    return float((np.exp(p) * (p - q)).sum(0).mean())


def _by_region(same: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    rows = np.array_split(same, REGIONS[0], axis=0)
    return np.array([[part.mean() for part in np.array_split(row, REGIONS[1], 1)] for row in rows])


def _classes(joint: npt.NDArray[np.int64], space: LabelSpace) -> dict[str, ClassAgreement]:
    ious = iou_of(joint)
    found: dict[str, ClassAgreement] = {}
    for row, name in enumerate(space.classes):
        lost = joint[row].copy()
        lost[row] = 0
        found[name] = ClassAgreement(
            float(joint[row].sum() / joint.sum()),
            None if np.isnan(ious[row]) else float(ious[row]),
            space.classes[int(lost.argmax())] if lost.any() else None,
            float(joint[:, row].sum() / joint.sum()),
        )
    return found


def _reasons(total: float, classes: dict[str, ClassAgreement], limits: Limits) -> tuple[str, ...]:
    reasons = []
    if total < limits.agreement:
        reasons.append(
            f"{total:.2%} of the pixels keep their class, at least {limits.agreement:.2%} have to"
        )
    reasons += [
        f"class {name!r}: IoU with FP32 is {found.iou:.2%}, at least "
        f"{limits.class_agreement:.2%} is wanted"
        + (f"; it mostly becomes {found.became!r}" if found.became else "")
        for name, found in classes.items()
        if found.iou is not None and found.share >= RARE and found.iou < limits.class_agreement
    ]
    return tuple(reasons)
