"""New footage together with old: what was known is seen again, so that it is not forgotten.

Source: Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019: half of what is
learned from is old.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from edgeuda.camera import CameraGeometry
from edgeuda.data.frames import FrameFolder, frame_folder
from edgeuda.data.walk import Files
from edgeuda.errors import ConfigError

SHARE = 0.5
"""Of what is learned from, that is old, unless somebody says otherwise."""


@dataclass(frozen=True)
class Replay:
    """Old footage, and how much of what is learned from it is.

    Attributes:
        footage: See `edgeuda.data.frames.frame_folder`.
        share: Between 0 and 1, whatever the number of frames.
    """

    footage: Path
    share: float = SHARE

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            msg = (
                f"`replay_share`: expected a share between 0 and 1, found {self.share:g}. To learn "
                "from new frames alone, leave `replay` out"
            )
            raise ConfigError(msg)


class ReplayedFrames(FrameFolder):
    """New frames, and old ones after them, as one footage.

    Whoever draws or samples frames of it gets both in their shares, not by their numbers.

    Args:
        new: New footage.
        old: Old footage.
        share: Of the old one, between 0 and 1.
        geometry: See `FrameFolder`.
    """

    def __init__(
        self,
        new: FrameFolder,
        old: FrameFolder,
        share: float,
        geometry: CameraGeometry | None = None,
    ) -> None:
        names = (str(path) for path in chain(new, old))
        super().__init__(new.root, geometry, Files(Path(), names))
        self.new, self.old, self.share = new, old, share

    @property
    def parts(self) -> Sequence[range]:
        """Places of the new frames, and of the old ones."""
        return range(len(self.new)), range(len(self.new), len(self))

    def drawn(self, position: int) -> tuple[int, int]:
        """Return the part that a place of the endless stream is of, and its place in the part's.

        Old frames are spread evenly over the stream: a batch of four has two of each where half is
        old.
        """
        # Of the places before this one; rounded, as a sum of shares may be just below a whole.
        before, after = (int(round(p * self.share, 9)) for p in (position, position + 1))
        return (1, before) if after > before else (0, position - before)

    def divided(self, count: int) -> list[int]:
        """Return how many of ``count`` frames are new and old; a part that has fewer gives all."""
        old = round(count * self.share)
        old = min(max(old, count - len(self.new)), len(self.old))
        return [min(count - old, len(self.new)), old]

    def stretches(self, count: int) -> list[range]:
        """Return the places in as many parts as wanted, of new and old frames in their shares."""
        found = []
        for part, own in zip(self.parts, self.divided(count), strict=True):
            for n in range(own):
                first, last = (k * len(part) // own for k in (n, n + 1))
                found.append(part[first:last])
        self.saw(one.start for one in found)
        return found

    def identity(self) -> Iterator[str]:
        """Yield what tells these frames from others: names, `stamp` of both, and the share."""
        yield from self.new.identity()
        yield f"replayed with share {self.share}"
        yield from self.old.identity()

    def _instead(self, index: int) -> Iterable[int]:
        """Return the places of what stands in for a broken frame: those of its part."""
        part = next(part for part in self.parts if index in part)
        return chain(range(index, part.stop), range(part.start, index))


def replayed(
    new: Path,
    replay: Replay,
    geometry: CameraGeometry | None = None,
    *,
    learnt: bool = False,
) -> ReplayedFrames:
    """List new and old footage, see `edgeuda.data.frames.frame_folder`.

    Raises:
        DataError: See `frame_folder`.
    """
    fresh, known = (frame_folder(one, geometry, learnt=learnt) for one in (new, replay.footage))
    return ReplayedFrames(fresh, known, replay.share, geometry)
