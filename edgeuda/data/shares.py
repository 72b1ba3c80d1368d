"""Frames in shards, divided among the ranks of a training: no rank lists all of them.

Each shard says at its end how many frames it holds, so a frame has a number before anybody knows
its name. A rank draws from every so many shards, which are its share, and the names in a shard are
read when the first of its frames is asked for. What all ranks have to look at alike, such as
batch-norm statistics, are frames of a few shards.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

from edgeuda.data.folders import spread
from edgeuda.data.frames import FrameFolder
from edgeuda.data.images import IMAGE_SUFFIXES
from edgeuda.data.stores import OWN, located, shards_of, tail
from edgeuda.data.walk import Files, by_folder, sorted_names
from edgeuda.errors import DataError
from edgeuda.files import sha256_of
from edgeuda.records.frames import ShardRecord

COMMON = 8
"""Shards at most whose frames all ranks look at."""
UNEQUAL = 1.5
"""Frames of the largest share over those of the smallest at most: how much more often the frames of
the smallest one are drawn."""
TAIL = 64 << 10
"""Bytes at the end of a shard in which its record is looked for."""


class ShardFiles(Files):
    """The frames of shards by number; a shard's names are read when one of them is asked for.

    Attributes:
        shards: The tar files.
        ends: Of each, the number after that of its last frame.

    Args:
        root: Pattern of shards that `edgeuda data shard` wrote.

    Raises:
        DataError: If a shard does not say how many frames it holds.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.shards = root, shards_of(root)
        self.ends = list(accumulate(held(shard) for shard in self.shards))
        self.leaders = tuple(self.frames(shard).start for shard in range(len(self.shards)))
        self._names: dict[int, Files] = {}

    def __len__(self) -> int:
        return self.ends[-1]

    def shard(self, index: int) -> int:
        """Return the number of the shard that a frame lies in."""
        return bisect_right(self.ends, index)

    def frames(self, shard: int) -> range:
        """Return the numbers of a shard's frames."""
        return range(self.ends[shard - 1] if shard else 0, self.ends[shard])

    def name(self, index: int) -> str:
        """Return the name of a frame below `root`.

        Raises:
            DataError: If its shard holds other frames than it says.
        """
        index = range(len(self))[index]
        shard = self.shard(index)
        stem, frames = self.shards[shard].stem, self.frames(shard)
        if shard not in self._names:
            folder = located(self.root / stem)
            found = Files(folder, sorted_names(folder, IMAGE_SUFFIXES, by_folder))
            if len(found) != len(frames):
                msg = (
                    f"{self.shards[shard]}: expected {len(frames)} frames, as its record says, "
                    f"found {len(found)}. Write the shards again"
                )
                raise DataError(msg)
            self._names[shard] = found
        return f"{stem}/{self._names[shard].name(index - frames.start)}"


def held(shard: Path) -> int:
    """Return how many frames a shard of `edgeuda data shard` holds, by its last kilobytes.

    Raises:
        DataError: If it does not say so.
    """
    end = tail(shard, TAIL)
    name = f"{OWN}{ShardRecord.FILE}".encode()
    for start in range(0, len(end) - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE):
        head = end[start : start + tarfile.BLOCKSIZE]
        if head.startswith(name + b"\0"):
            size = tarfile.TarInfo.frombuf(head, "utf-8", "strict").size
            content = end[start + tarfile.BLOCKSIZE :][:size]
            return ShardRecord.from_record(json.loads(content), f"{shard}/{ShardRecord.FILE}").count
    msg = (
        f"{shard}: expected a shard of `edgeuda data shard`, which says at its end how many frames "
        "it holds, found none. Write the shards again"
    )
    raise DataError(msg)


class SharedFrames(FrameFolder):
    """Unlabelled frames in shards of which each rank draws its share.

    Args:
        root: Pattern of shards, see `ShardFiles`.
        rank: Which share: every ``ranks``-th shard, beginning with this one.
        ranks: How many shares there are.

    Raises:
        DataError: See `ShardFiles`; if there are fewer shards than ranks, or shares are too
            unequal.
    """

    files: ShardFiles

    def __init__(self, root: Path, rank: int, ranks: int) -> None:
        super().__init__(root, files=ShardFiles(located(root)))
        self.rank, self.ranks = rank, ranks
        assert isinstance(self._files, ShardFiles)
        self.files = self._files
        count = len(self.files.shards)
        if count < ranks:
            msg = (
                f"{root}: expected a shard for each of {ranks} ranks at least, found {count}. "
                "Write smaller shards, or start fewer ranks"
            )
            raise DataError(msg)
        shares = [sum(len(self.files.frames(n)) for n in self.shards(one)) for one in range(ranks)]
        if max(shares) > UNEQUAL * min(shares):
            msg = (
                f"{root}: expected shards that give {ranks} ranks about as many frames each, found "
                f"shares of {min(shares)} to {max(shares)} frames: those of the smallest would be "
                f"drawn more than {UNEQUAL} times as often. Write smaller shards, or start another "
                "number of ranks"
            )
            raise DataError(msg)

    def shards(self, rank: int) -> range:
        """Return the numbers of the shards of a rank."""
        return range(rank, len(self.files.shards), self.ranks)

    @cached_property
    def own(self) -> Sequence[int]:
        """Numbers of the frames of this rank's share."""
        return array("Q", chain.from_iterable(map(self.files.frames, self.shards(self.rank))))

    @cached_property
    def common(self) -> Sequence[int]:
        """Numbers of frames of a few shards, the same on every rank."""
        shards = spread(range(len(self.files.shards)), COMMON)
        return array("Q", chain.from_iterable(map(self.files.frames, shards)))

    @property
    def one_each(self) -> list[Path]:
        """The first frame of each shard that this rank opens."""
        shards = {*self.shards(self.rank), *spread(range(len(self.files.shards)), COMMON)}
        return [self[self.files.frames(shard).start] for shard in sorted(shards)]

    def identity(self) -> Iterator[str]:
        """Yield what tells these frames from others: names and `stamp` of the shards, and ranks."""
        yield from (shard.name for shard in self.files.shards)
        yield self.stamp
        yield f"{self.ranks} ranks"

    @cached_property
    def stamp(self) -> str:
        """Checksum of the sizes and times of the shards; of a store, of their versions."""
        facts = [(shard.stat(), getattr(shard, "version", "")) for shard in self.files.shards]
        return sha256_of(str(told or f"{fact.st_size} {fact.st_mtime_ns}") for fact, told in facts)

    def sample(self, count: int) -> list[Path]:
        """Return those of at most ``count`` frames of this rank's share that can be read.

        Raises:
            DataError: If too many are broken.
        """
        chosen = spread(self.own, count)
        found = [index for index in chosen if self.read(index, instead=False) is not None]
        self.judge()
        return [self[index] for index in found]

    def _instead(self, index: int) -> Iterable[int]:
        """Return the frames that stand in for a broken one: those of its shard."""
        frames = self.files.frames(self.files.shard(index))
        return chain(range(index, frames.stop), range(frames.start, index))

    def _bad(self) -> int:
        """Return how many frames of this rank's share are broken."""
        return sum(self.files.shard(index) % self.ranks == self.rank for index in [*self.broken])
