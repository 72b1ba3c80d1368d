"""Methods compared over seeds on one track, as `edgeuda compare` writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record
from edgeuda.records.labelling import ConfidenceFigures, KeptLabels, ReliabilityRecord

ORACLE = "oracle"
"""What a method is said to train on that saw the target's labels."""


@dataclass(frozen=True)
class OverSeeds:
    """A figure of each seed, in percent or points; None where training failed.

    Attributes:
        runs: In the order of the seeds.
        mean: Of the runs that succeeded; None if none did.
        stdev: Their standard deviation; None below two.
    """

    runs: list[float | None]
    mean: float | None
    stdev: float | None

    @property
    def known(self) -> list[float]:
        """The runs that succeeded."""
        return [value for value in self.runs if value is not None]


@dataclass(frozen=True)
class ComparedMethod:
    """A method of a comparison.

    Attributes:
        name: What tables call it.
        trains_on: ``source`` or `ORACLE`.
        miou: In percent.
        gain: Against the first method with the same seed, in points.
        failed: Why training failed, by seed.
        iou: In percent, by class, of each seed.
        gap_closed: Share of the distance from the first method to the best oracle; None without
            one.
        stages: Stages of its adaptation.
        seconds: Training time of each run that succeeded.
        waiting_for_data: Share of it that was spent on waiting for data.
        signals: What the label-free watch said of the network that was taken, by seed.
        recipe_sha256: Digest of its recipe.
        reliability: What the network's confidence is worth, by seed.
        remarks: What its stages said of themselves, by seed.
    """

    name: str
    trains_on: str
    miou: OverSeeds
    gain: OverSeeds
    failed: dict[str, str]
    iou: dict[str, list[float | None]]
    gap_closed: float | None
    stages: list[str]
    seconds: list[float]
    waiting_for_data: list[float]
    signals: list[dict[str, Any] | None]
    recipe_sha256: str
    reliability: list[ReliabilityRecord | None] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def trusted(self) -> list[ConfidenceFigures]:
        """What its confidence is worth as a teacher reads it, for each seed where that is known."""
        return [one.calibrated for one in self.reliability if one is not None]

    def labels_kept(self) -> list[KeptLabels]:
        """Return the labels above several confidences, means over the seeds; none if unknown.

        Confidences above which a seed has no label are left out.
        """
        kept = []
        for rows in zip(*(figures.kept for figures in self.trusted), strict=False):
            right = [row.accuracy for row in rows if row.accuracy is not None]
            if len(right) == len(rows):
                share = sum(row.share for row in rows) / len(rows)
                kept.append(KeptLabels(rows[0].above, share, sum(right) / len(right)))
        return kept


@dataclass(frozen=True)
class ComparisonRecord(Record):
    """One comparison.

    Attributes:
        seeds: In the order of all figures.
        classes: Names of the classes.
        images: Labelled images that the methods were scored on.
        methods: The first is what the others are held against.
        machine: See `engines.machine.hardware.identity`.
        skipped: Target frames that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.COMPARISON
    AGAIN: ClassVar[str] = "Compare again with `edgeuda compare`, which keeps finished runs"

    seeds: list[int]
    classes: list[str]
    images: int
    methods: list[ComparedMethod]
    machine: dict[str, str] | None = field(default=None, metadata={OMIT: True})
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})

    def __post_init__(self) -> None:
        if not self.methods:
            msg = "expected at least one method, found none"
            raise ValueError(msg)
        for method in self.methods:
            if missing := set(self.classes) - method.iou.keys():
                msg = f"expected an IoU of {min(missing)!r} by {method.name!r}, found none"
                raise ValueError(msg)
