"""What a vehicle made of a drive: a network with new statistics, how it was judged, and what then.

`edgeuda run --adapt-bn` writes it into ``run.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeuda.records.form import OMIT

StreamReason = Literal[
    "too few frames", "too short", "replaced", "less alike", "forgets", "INT8 differs"
]
"""Why a candidate is not taken: the drive shows too little; another network than the one that ran
is current now; the candidate calls too much of it something else than the network that runs; it no
longer says of the acceptance frames what the network that was installed said; its INT8 form is
farther from its FP32 form than that of the network that runs."""
StreamDecision = Literal["installed", "refused", "nothing made", "failed"]


@dataclass(frozen=True)
class StreamSample:
    """The frames of a drive that were kept in memory.

    Attributes:
        seen: Frames that they were drawn from.
        estimating: Those that statistics are estimated on.
        judging: Those that a candidate is judged on, from other stretches of the drive.
        seconds: From the first frame of the drive to the last; of a folder of images, which has no
            times, its number of frames.
        began: UTC time of the first frame, in ISO 8601.
        ended: Of the last.
        megabytes: That they took in memory, 10^6 bytes each.
    """

    seen: int
    estimating: int
    judging: int
    seconds: float
    began: str
    ended: str
    megabytes: float


@dataclass(frozen=True)
class StreamShift:
    """A candidate beside the network that runs, on frames that it was not estimated on.

    Attributes:
        agreement: Share of their pixels that both call the same, 0 to 1.
        confidence: Mean probability of the likeliest class, 0 to 1: of the network that runs, and
            of the candidate.
        entropy: Mean over the pixels in nats, likewise.
        shares: Share of each class, likewise.
        class_distance: Jensen-Shannon's distance of these shares, 0 to 1.
        acceptance: Share of the pixels of the bundle's acceptance frames that the candidate calls
            what the network that was installed calls them, 0 to 1.
    """

    agreement: float
    confidence: tuple[float, float]
    entropy: tuple[float, float]
    shares: tuple[tuple[float, ...], tuple[float, ...]]
    class_distance: float
    acceptance: float


@dataclass(frozen=True)
class StreamAdaptation:
    """What a drive with `--adapt-bn` came to.

    Attributes:
        decision: Whether the candidate was installed; ``nothing made`` where the drive shows too
            little, or another network is current now; ``failed`` where ``error`` says why.
        reasons: Why it was not; empty for one that was installed.
        sample: The frames.
        prior: Frames that the old statistics count for.
        shift: How the candidate was judged; None if it came to none.
        int8_agreement: Share of the judged frames' pixels that the INT8 form calls as the FP32 form
            does, 0 to 1: of the network that runs, and of the candidate; None where FP32 runs.
        kept: Layers that kept their old statistics.
        sha256: Of the candidate's bundle; None if it came to none.
        seconds: That it took after the drive.
        error: What went wrong; None if nothing did.
    """

    decision: StreamDecision
    reasons: tuple[StreamReason, ...]
    sample: StreamSample
    prior: float
    shift: StreamShift | None = None
    int8_agreement: tuple[float, float] | None = field(default=None, metadata={OMIT: True})
    kept: tuple[str, ...] = ()
    sha256: str | None = None
    seconds: float = 0.0
    error: str | None = field(default=None, metadata={OMIT: True})

    def __str__(self) -> str:
        frames = f"{self.sample.estimating} frames of the drive"
        if self.decision == "installed":
            return f"adapted to {frames}: {(self.sha256 or '')[:12]} runs from the next start on"
        why = "; ".join([*self.reasons, *([] if self.error is None else [self.error])])
        return f"not adapted to {frames}, {self.decision}: {why}"
