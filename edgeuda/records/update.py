"""What came of the next network of a vehicle, as `edgeuda update` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from edgeuda import schemas
from edgeuda.records.bundle import Lineage
from edgeuda.records.form import Record
from edgeuda.records.predictions import ModelFile
from edgeuda.records.tradeoff import Change, Estimate, Figure, ScoredImages

UpdateStatus = Literal["taken", "refused", "not judged"]
UpdateReason = Literal["kept", "forgets", "worse on new frames", "INT8 not accepted", "no labels"]
Part = Literal["old", "new"]
"""What the last network was made for, and what the next one is made for beside it."""


@dataclass(frozen=True)
class UpdateVerdict:
    """The next network against the last one.

    Attributes:
        status: The verdict; not judged where no labels say what became of old frames.
        reason: What decided it.
        old: mIoU of the next network less that of the last one on old frames, 0 to 1; None where
            they have no labels.
        new: The same on new frames.
        old_change: What the first difference is, see `edgeuda.decision.change_of`.
        new_change: What the second one is.
        most_forgotten: What may be lost on old frames, 0 to 1.
    """

    status: UpdateStatus
    reason: UpdateReason
    old: Figure | None
    new: Figure | None
    old_change: Change
    new_change: Change
    most_forgotten: float


@dataclass(frozen=True)
class SaidAlike:
    """What two networks say of the same frames, without labels.

    Attributes:
        frames: Number of frames.
        agreement: Share of the pixels with the same class, 0 to 1.
        confidence: Mean probability of the likeliest class, of the last network and of the next.
        classes: Share of the pixels of each class, likewise.
    """

    frames: int
    agreement: float
    confidence: tuple[float, float]
    classes: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Scored:
    """Both networks on the same labelled images, which the next one did not adapt to.

    Attributes:
        data: The images.
        last: mIoU of the last network, 0 to 1.
        next: That of the next one.
        change: The second less the first, on the same draws of images.
        in_source: How many of the images the next network learned from with their labels.
    """

    data: ScoredImages
    last: Estimate
    next: Estimate
    change: Estimate
    in_source: int = 0


@dataclass(frozen=True)
class Compared:
    """Both networks on the frames of one part.

    Attributes:
        footage: Where the frames are.
        frames: How many the next network adapted to.
        left_out: How many it did not, because they have labels and are scored on.
        without_labels: What both say of them.
        with_labels: How right both are; None without labels.
    """

    footage: str
    frames: int
    left_out: int
    without_labels: SaidAlike
    with_labels: Scored | None = None


@dataclass(frozen=True)
class QuantizedForm:
    """An INT8 form of the next network against its float form.

    Attributes:
        file: Its name.
        agreement: Share of the pixels with the same class on old and new frames, 0 to 1.
        accepted: Whether it may replace its float form.
        reasons: Why not.
    """

    file: str
    agreement: float
    accepted: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class UpdateRecord(Record):
    """The next network beside the last one, and whether it is packed.

    Attributes:
        created: UTC time in ISO 8601.
        last: The bundle of the last network.
        bundle: The bundle that was written; None where it was refused.
        networks: SHA-256 of the checkpoints of the last network and of the next one.
        member: The form of both that was compared, by its name in the bundles.
        models: All forms of the next network.
        int8: Those in INT8.
        old: On frames that the last network was made for.
        new: On the frames that the next one is made for beside them.
        verdict: Whether to take it.
        overridden: Whether the bundle was written though the verdict refuses it.
        lineage: What the bundle says of itself.
    """

    SCHEMA: ClassVar[str] = schemas.UPDATE
    AGAIN: ClassVar[str] = "Update again with `edgeuda update`"
    FILE: ClassVar[str] = "update.json"

    created: str
    last: ModelFile
    bundle: ModelFile | None
    networks: tuple[str, str]
    member: str
    models: tuple[str, ...]
    int8: tuple[QuantizedForm, ...]
    old: Compared
    new: Compared
    verdict: UpdateVerdict
    overridden: bool
    lineage: Lineage
