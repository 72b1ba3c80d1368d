"""What was found in data, as `edgeuda data check` writes it beside its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from edgeuda import schemas
from edgeuda.records.form import OMIT, Record

Severity = Literal["error", "warning", "note"]
SHOWN = 10
"""Files that a finding names."""


@dataclass(frozen=True)
class DataFinding:
    """Something a person should know.

    Attributes:
        severity: ``error`` stops training or falsifies scores, ``warning`` may.
        role: ``source``, ``target``, ``test`` or several.
        what: One sentence.
        advice: What to do.
        files: Some of the files concerned.
        count: How many there are.
    """

    severity: Severity
    role: str
    what: str
    advice: str = ""
    files: Sequence[str] = ()
    count: int = 0

    @classmethod
    def about(
        cls, severity: Severity, role: str, what: str, advice: str, files: Sequence[str]
    ) -> DataFinding:
        """Return a finding that names the first `SHOWN` of all ``files`` and counts them."""
        return cls(severity, role, what, advice, files[:SHOWN], len(files))


@dataclass(frozen=True)
class DomainGap:
    """How far two domains are apart in brightness and colour.

    Attributes:
        frechet: Fréchet distance between Gaussians over each image's means and deviations.
        within: The same between the first and the second half of each data set, which gives it a
            scale; None below four images.
        standardised: Difference of each statistic's mean over its pooled deviation (Cohen's d).
        beyond: Share of the target's images that lie beyond the source's mean on that side.
    """

    frechet: float
    within: dict[str, float | None]
    standardised: dict[str, float]
    beyond: dict[str, float]


@dataclass(frozen=True)
class SizeCount:
    """Images of one size.

    Attributes:
        height: Rows.
        width: Columns.
        images: How many.
    """

    height: int
    width: int
    images: int


@dataclass(frozen=True)
class AxisStatistics:
    """An axis of CIELAB over images.

    Attributes:
        mean: Of the images' means.
        between_images: Deviation of these.
        within_images: Mean of the deviations inside images.
    """

    mean: float
    between_images: float
    within_images: float


@dataclass(frozen=True)
class ClassCount:
    """A class in the labels.

    Attributes:
        pixels: Its pixels.
        share: Of all labelled pixels.
        images: Images with at least one.
    """

    pixels: int
    share: float
    images: int


@dataclass(frozen=True)
class CheckedData:
    """A data set and what was seen of it.

    Attributes:
        folder: Where it is.
        images: Images in it.
        looked_at: Those that were looked at.
        readable: Those of them that can be read.
        sizes: The most frequent sizes.
        colour: By axis; None without a readable image.
        lightness: Images by mean lightness, in 20 bins from 0 to 100; None likewise.
        label_space: Of its labels; None without.
        classes: By name; None without labels.
        ignored_share: Share of the pixels whose label is ignored; None without labels.
    """

    folder: str
    images: int
    looked_at: int
    readable: int
    sizes: list[SizeCount]
    colour: dict[str, AxisStatistics] | None = field(default=None, metadata={OMIT: True})
    lightness: list[int] | None = field(default=None, metadata={OMIT: True})
    label_space: str | None = field(default=None, metadata={OMIT: True})
    classes: dict[str, ClassCount] | None = field(default=None, metadata={OMIT: True})
    ignored_share: float | None = field(default=None, metadata={OMIT: True})


@dataclass(frozen=True)
class DataCheckRecord(Record):
    """One check.

    Attributes:
        roles: Data sets by role.
        gap: Distance of source and target, if both are there.
        findings: The worst first.
    """

    SCHEMA: ClassVar[str] = schemas.DATA_CHECK
    AGAIN: ClassVar[str] = "Check again with `edgeuda data check`"

    roles: dict[str, CheckedData]
    gap: DomainGap | None
    findings: list[DataFinding]
