"""Variants of networks, scored and timed, and which to take, as `edgeuda tradeoff` writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from edgeuda import schemas
from edgeuda.records.form import OMIT, SPELT, Record
from edgeuda.records.identity import Identity

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A ratio or a difference.

    Attributes:
        value: The figure.
        interval: Lower and upper end; None if none is known.
    """

    value: float
    interval: Interval | None = None

    @classmethod
    def of(cls, estimate: Estimate | None) -> Figure | None:
        """Return an estimate as a figure."""
        if estimate is None:
            return None
        return cls(estimate.value, (estimate.low, estimate.high))

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value; without one, whether the figure is that value."""
        low, high = self.interval or (self.value, self.value)
        return low <= value <= high


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: Over all images.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def none(self) -> bool:
        """Whether the interval holds zero: of a difference, that it is within noise."""
        return self.low <= 0 <= self.high

    @property
    def interval(self) -> Interval:
        """Both ends."""
        return self.low, self.high


Change = Literal["better", "worse", "noise", "unknown"]


Int8Status = Literal["worth it", "not worth it", "unknown"]
Int8Reason = Literal[
    "faster", "slower", "not faster", "not accurate enough", "misses the deadline",
    "costs accuracy", "not needed", "not recorded",
]  # fmt: skip


@dataclass(frozen=True)
class Int8Verdict:
    """INT8 against its float form.

    Attributes:
        status: The verdict.
        reason: What decided it.
        speed: Time of the float form over that of INT8; None if it was not measured.
        accuracy: Accuracy of INT8 less that of the float form, 0 to 1; None if it was not scored.
        change: What that difference is, see `change_of`.
        max_drop: What INT8 was allowed to lose.
    """

    status: Int8Status
    reason: Int8Reason
    speed: Figure | None
    accuracy: Figure | None
    change: Change
    max_drop: float


class Timed(Protocol):
    """What a budget is held against."""

    @property
    def tail_ms(self) -> float:
        """The percentile of its latency that the budget means, in milliseconds."""

    @property
    def accuracy(self) -> float:
        """0 to 1."""


@dataclass(frozen=True)
class Budget:
    """What is allowed.

    Attributes:
        latency_ms: Largest tail latency; None for any.
        min_accuracy: Least mIoU, 0 to 1; None for any.
    """

    latency_ms: float | None = None
    min_accuracy: float | None = None

    def allows(self, one: Timed) -> bool:
        """Whether a variant keeps both."""
        return self.fast(one) and self.accurate(one)

    def fast(self, one: Timed) -> bool:
        """Whether it keeps the deadline."""
        return self.latency_ms is None or one.tail_ms <= self.latency_ms

    def accurate(self, one: Timed) -> bool:
        """Whether it is accurate enough."""
        return self.min_accuracy is None or one.accuracy >= self.min_accuracy


@dataclass(frozen=True)
class Measured:
    """A variant's figures, as a decision names them.

    Attributes:
        name: What tables call it.
        latency_ms: Median of a frame.
        tail_ms: The percentile that the budget is held against.
        accuracy: 0 to 1.
    """

    name: str
    latency_ms: float
    tail_ms: float
    accuracy: float


@dataclass(frozen=True)
class Int8Choice:
    """Whether a sweep's INT8 is worth it.

    Attributes:
        verdict: The verdict.
        int8: The INT8 variant.
        rival: The float variant that it was held against.
        taken: Whether INT8 was chosen.
    """

    verdict: Int8Verdict
    int8: Measured
    rival: Measured
    taken: bool


@dataclass(frozen=True)
class Choice:
    """A sweep's decision.

    Attributes:
        name: The variant; None if none keeps the budget.
        taken: Its figures.
        allowed: Variants that keep the budget.
        measured: Variants in all.
        equal: A more accurate variant within the budget that is equal within noise, and slower.
        beyond: The most accurate of the variants that are more accurate and miss the deadline.
        fastest: The fastest of all, where none keeps the budget.
        best: The most accurate of all, where none keeps the budget.
        int8: Whether INT8 is worth it; None if there is no choice, or INT8 or float was not
            measured.
    """

    name: str | None
    taken: Measured | None
    allowed: int
    measured: int
    equal: Measured | None = None
    beyond: Measured | None = None
    fastest: Measured | None = None
    best: Measured | None = None
    int8: Int8Choice | None = None

    def __post_init__(self) -> None:
        if (self.name is None) is not (self.taken is None) or (
            self.name is None and (self.fastest is None or self.best is None)
        ):
            msg = f"expected figures of the choice {self.name!r}, found none"
            raise ValueError(msg)


@dataclass(frozen=True)
class SaidChoice:
    """The decision of an ``edgeuda.tradeoff/1`` record, which was sentences.

    Attributes:
        name: The variant; None if none keeps the budget.
        why: Why that one, or why none.
        int8: Whether INT8 is worth it; None if nothing is said of it.
    """

    name: str | None
    why: str
    int8: str | None


Standing = Literal["chosen", "too slow", "too inaccurate", "on the front", "dominated"]


@dataclass(frozen=True)
class VariantRow:
    """A variant of a sweep.

    Attributes:
        name: What tables call it.
        network: The network it is a form of.
        size: Rows and columns of its input.
        precision: Arithmetic of its graph.
        head: What its graph returns.
        runtime: What ran it.
        width: Width multiplier of its channels.
        file: Name of its file.
        sha256: Checksum of its file.
        accuracy: mIoU, or what stands for it without labels, 0 to 1.
        boundary_miou: 0 to 1; None without labels.
        agreement_with_fp32: Share of the pixels with FP32's class; None of FP32 itself.
        change_from_fp32: Difference of mIoU, 0 to 1; None of FP32 itself, or without labels.
        total_ms: Milliseconds of a frame by percentile.
        keeps_deadline: Whether it is fast enough.
        accurate_enough: Whether it is.
        dominated_by: Name of a variant that is as good in both and better in one; None on the
            front.
        identity: Which network it is; None if that is not known, and in earlier records.
        execution: How the runtime ran it, see `engines.runner.Runner`.
        fallbacks: What came otherwise than asked.
    """

    name: str
    network: str
    size: tuple[int, int]
    precision: str
    head: str
    runtime: str = field(metadata={SPELT: "backend"})
    width: float
    file: str
    sha256: str
    accuracy: Estimate
    boundary_miou: float | None
    agreement_with_fp32: float | None
    change_from_fp32: Estimate | None
    total_ms: dict[str, float]
    keeps_deadline: bool
    accurate_enough: bool
    dominated_by: str | None
    identity: Identity | None = None
    execution: dict[str, str] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)

    def standing(self, chosen: str | None) -> Standing:
        """Return where it stands beside the chosen variant, the gravest first."""
        if self.name == chosen:
            return "chosen"
        if not self.keeps_deadline:
            return "too slow"
        if not self.accurate_enough:
            return "too inaccurate"
        return "on the front" if self.dominated_by is None else "dominated"


@dataclass(frozen=True)
class ScoredImages:
    """What variants were scored on.

    Attributes:
        folder: The folder.
        images: Its labelled images.
    """

    folder: str
    images: int


@dataclass(frozen=True)
class TradeoffRecord(Record):
    """One sweep.

    Attributes:
        created: UTC time in ISO 8601.
        measure: What accuracy is: ``mIoU``, or what stands for it without labels.
        data: What was scored on; None without labels.
        tail: Percentile that the budget is held against, for example ``"99"``.
        budget: What was allowed.
        choice: The decision; None in a record of before, see ``said``.
        variants: In the order they were made.
        machine: See `engines.machine.hardware.identity`.
        intervals: What the intervals cover.
        said: The decision of a record of before.
        skipped: Files among those looked at that could not be read; None if all could.
    """

    SCHEMA: ClassVar[str] = schemas.TRADEOFF
    OLDER: ClassVar[tuple[str, ...]] = (schemas.TRADEOFF_1,)
    AGAIN: ClassVar[str] = "Sweep again with `edgeuda tradeoff`, which keeps finished variants"

    created: str
    measure: str
    data: ScoredImages | None
    tail: str
    budget: Budget
    choice: Choice | None
    variants: list[VariantRow]
    machine: dict[str, str]
    intervals: str
    said: SaidChoice | None = field(default=None, metadata={OMIT: True})
    skipped: list[str] | None = field(default=None, metadata={OMIT: True})

    def __post_init__(self) -> None:
        if (self.choice is None) is (self.said is None):
            msg = "expected a choice, found none"
            raise ValueError(msg)
        for row in self.variants:
            if missing := {"50", self.tail} - row.total_ms.keys():
                msg = f"expected p{min(missing)} of {row.name!r}, found none"
                raise ValueError(msg)

    @property
    def taken(self) -> str | None:
        """Name of the chosen variant; None if none keeps the budget."""
        decided = self.choice or self.said
        return None if decided is None else decided.name

    @classmethod
    def modern(cls, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of version 1 with its sentences where they are now."""
        if record["schema"] != schemas.TRADEOFF_1:
            return record
        return {**record, "choice": None, "said": record["choice"]}
