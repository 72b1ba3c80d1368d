"""The frames of unlabelled footage: listed at once, decoded when they are used.

A folder of a hundred thousand frames takes a second to list and a quarter of an hour to decode.
Which files are broken is therefore found out as they are read, and what takes their place follows
from the files alone: a resumed run and every rank put the same frame there.
"""

from __future__ import annotations

import json
import logging
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, overload

from edgeuda.camera import CameraGeometry
from edgeuda.data.curation import extracted
from edgeuda.data.folders import ahead, parallel, spread
from edgeuda.data.footage import is_moving
from edgeuda.data.images import Image, image_size, list_images, read_image
from edgeuda.data.stores import located
from edgeuda.data.treatment import is_raw, treatment_of
from edgeuda.data.walk import Files
from edgeuda.errors import DataError
from edgeuda.files import stamp

logger = logging.getLogger(__name__)

MAX_BAD_SHARE = 0.05
"""Share of unreadable frames above which a target folder is refused."""
DEVIATIONS = 3
"""Standard deviations by which a sample may hold more than its share of unreadable frames."""
DAMAGED_FILE = "damaged.jsonl"
"""In the folder of a run: a line for each frame that could not be read, and why."""


def frame_folder(
    folder: Path, geometry: CameraGeometry | None = None, *, learnt: bool = False
) -> FrameFolder:
    """List unlabelled footage; of each folder in it, the record and one frame's header are read.

    Args:
        folder: See `list_images`; or a video or recording, whose frames are extracted first, see
            `edgeuda.data.curation.extracted`.
        geometry: Of the model that the frames are for: frames that were treated otherwise are
            refused, see `FrameFolder`.
        learnt: Whether a network learns from them, whose spec will say how they were treated. Else
            what the spec does not say is warned of.

    Raises:
        DataError: If there is no image, or the first one of a folder does not fit the geometry, see
            `edgeuda.data.treatment.is_raw`.
    """
    folder = located(folder)
    if is_moving(folder):
        folder = extracted(folder)
    found = FrameFolder(folder, geometry)
    if not learnt:
        _say_untold(folder, found.one_each, geometry)
    if geometry is not None:
        for frame in found.one_each:
            try:
                size = image_size(frame)
            except DataError:
                continue  # whoever reads it says what is wrong with it
            is_raw(frame, size, geometry)
    return found


class FrameFolder(Sequence[Path]):
    """Files of unlabelled frames, sorted, and which of them turned out to be broken.

    Frames that cannot be read are skipped with a warning and counted. More than 5 % of them are an
    error, as soon as that is seen: of all frames, and of a sample where it holds so many that
    chance does not explain it, see `allowed`.

    Attributes:
        root: The folder or list.
        geometry: Of the model that the frames are for, None if there is none.
        broken: Why a frame could not be read, by its position.
        whole: Whether all frames are going to be looked at, in this process or another.
        quiet: Whether nothing is said and nothing kept: of a process that tells another one.
        rank: Whose share of the frames this is, see `edgeuda.data.shares`.
        ranks: How many shares there are; with one, all frames are this process's.

    Args:
        root: See `list_images`.
        geometry: Of the model that the frames are for. Frames that do not fit it are refused when
            they are read. What `edgeuda.data.treatment.read_frame` does to raw ones is done there.
        files: The frames, where they are known; else they are listed.
    """

    def __init__(
        self, root: Path, geometry: CameraGeometry | None = None, files: Files | None = None
    ) -> None:
        self.root, self.geometry = located(root), geometry
        self._files = list_images(self.root) if files is None else files
        self.broken: dict[int, str] = {}
        self.whole = self.quiet = False
        self.rank, self.ranks = 0, 1
        self._seen = bytearray(len(self._files))
        self._kept: Path | None = None
        self._said = ""

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        return self._files[index]

    @property
    def own(self) -> Sequence[int]:
        """Places of the frames that this process draws from."""
        return range(len(self))

    @property
    def common(self) -> Sequence[int]:
        """Places of frames that every rank can look at."""
        return range(len(self))

    @property
    def parts(self) -> Sequence[range]:
        """Places of frames that follow each other; of several footages, see `ReplayedFrames`."""
        return (range(len(self)),)

    def divided(self, count: int) -> list[int]:
        """Return how many of at most ``count`` frames are of each part."""
        return [min(count, len(self))]

    @property
    def one_each(self) -> list[Path]:
        """The first frame of each folder."""
        return [self._files[index] for index in self._files.leaders]

    @property
    def folder(self) -> Path:
        """The folder below which frames are named; of a video that to which it was extracted."""
        return self._files.root

    def name_of(self, path: Path) -> str:
        """Return a frame's name below the folder; the whole path where a list names frames."""
        root = self.folder
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()

    def identity(self) -> Iterator[str]:
        """Yield what tells these frames from others: names in the folder, and `stamp`."""
        inside = self._files.root.is_relative_to(self.root)
        below = self._files.root.relative_to(self.root) if inside else self._files.root
        for index in range(len(self)):
            yield str(below / self._files.name(index))
        yield self.stamp

    @cached_property
    def stamp(self) -> str:
        """Checksum of the files, see `edgeuda.files.stamp`."""
        return stamp(self, missing=True)

    @property
    def too_many(self) -> bool:
        """Whether more than 5 % are broken, as far as can be told by now."""
        seen, bad = self._looked()
        total = len(self.own)
        return self._bad() > MAX_BAD_SHARE * total or bad > allowed(seen, total)

    def _looked(self) -> tuple[int, int]:
        """Return how many frames were asked for, and how many of these are broken.

        What is read in the place of others does not count: frames break in a row.
        """
        if self.whole:
            return len(self.own), self._bad()
        return self._seen.count(1), sum(self._seen[index] for index in list(self.broken))

    def sample(self, count: int) -> list[Path]:
        """Return at most ``count`` frames that can be read, evenly spread and in order.

        The footage is cut into so many stretches, and the first frame of each that can be read is
        taken. No others are decoded.

        Raises:
            DataError: If too many are broken, or one does not fit the geometry.
        """
        stretches = self.stretches(count)
        # Only places are kept: images of a thousand frames would fill the memory.
        found = parallel(lambda part: (one := self._first(part)) and one[0], stretches)
        self.judge()
        return [self[index] for index in found if index is not None]

    def images(self, count: int) -> Iterator[tuple[Path, Image]]:
        """Yield what `sample` returns with its images ``[H, W, 3]`` uint8 RGB, read ahead.

        Raises:
            DataError: See `sample`; as soon as it is known.
        """
        for found in ahead(self._first, self.stretches(count)):
            if self.broken and self.too_many:
                break
            if found is not None:
                yield self[found[0]], found[1]
        self.judge()

    def read(self, index: int, *, instead: bool = True) -> Image | None:
        """Read the frame at a place, or if it is broken the next one that is not.

        Args:
            index: The place.
            instead: Whether the next one is taken; None is returned if not.

        Raises:
            DataError: If it does not fit the geometry, or too many are broken.
        """
        self._seen[index] = 1
        after = self._instead(index) if instead else (index,)
        found = self._first(after)
        if found is not None:
            return found[1]
        self.judge(say=False)
        if instead:  # one that is quiet leaves the words to another
            msg = f"{self.root}: too many images are unreadable"
            raise DataError(msg)
        return None

    def judge(self, *, say: bool = True) -> None:
        """Say how many frames were skipped.

        Raises:
            DataError: If there are too many.
        """
        if not self.broken or self.quiet:
            return
        seen, bad = self._looked()
        total, broken = len(self.own), self._bad()
        found = f"{broken} of {total}"
        if seen < total and broken <= MAX_BAD_SHARE * total:
            found = f"{bad} of {seen} that were looked at, of {total}"
        if self.too_many:
            msg = (
                f"{self.root}: expected at most {MAX_BAD_SHARE:.0%} unreadable images, "
                f"found {found}, the first: {self.broken[min(self.broken)]}"
            )
            raise DataError(msg)
        if say and found != self._said:
            logger.warning("%s: skipped %s images", self.root, found)
            self._said = found

    def saw(self, indices: Iterable[int]) -> None:
        """Count frames that were asked for, now or before by a run that goes on."""
        for index in indices:
            self._seen[index] = 1

    def note(self, index: int, why: str) -> None:
        """Write down that a frame is broken, and say it once.

        Another process may have read it, which was handed its whole path.
        """
        path = self[index]
        why = why.replace(str(path.absolute()), str(path), 1)
        if self.broken.setdefault(index, why) is not why or self.quiet:
            return
        logger.warning("Skipped: %s", why)
        if self._kept is not None:
            _append(self._kept, [self._line(index, why)])

    def keep(self, folder: Path) -> None:
        """Keep a record of what is broken in a folder's `DAMAGED_FILE`; what it says counts.

        A run that goes on counts what it met before, and does not read it again; a file that was
        changed since is another one.
        """
        path = folder / DAMAGED_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        known = {}
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:  # cut short
                continue
            index = found["index"]
            if index < len(self) and found == self._line(index, found["why"]):
                known[index] = found["why"]
        _append(path, [self._line(n, why) for n, why in self.broken.items() if n not in known])
        self.broken = {**known, **self.broken}
        self._kept = path

    def skipped(self) -> list[str]:
        """Return the names of the files that turned out to be broken."""
        return [str(self[index]) for index in sorted(self.broken)]

    def noted(self) -> dict[str, Any]:
        """Return the entry ``skipped`` of a record; nothing if no file was broken."""
        return {"skipped": self.skipped()} if self.broken else {}

    def _instead(self, index: int) -> Iterable[int]:
        """Return the places of what stands in for a broken frame, in order, its own first."""
        return chain(range(index, len(self)), range(index))

    def _bad(self) -> int:
        """Return how many of this process's frames are broken."""
        return len(self.broken)

    def _line(self, index: int, why: str) -> dict[str, Any]:
        path = self[index]
        fact = path.stat() if path.exists() else None
        changed = None if fact is None else [fact.st_size, fact.st_mtime_ns]
        return {"index": index, "file": str(path), "changed": changed, "why": why}

    def stretches(self, count: int) -> list[range]:
        """Return the places in as many parts as wanted, for each of which one frame stands.

        It is counted as looked at, in this process or another; see `sample`.
        """
        total, parts = len(self), min(count, len(self))
        self.saw(n * total // parts for n in range(parts))
        return [range(n * total // parts, (n + 1) * total // parts) for n in range(parts)]

    def _first(self, places: Iterable[int]) -> tuple[int, Image] | None:
        """Return the first of some frames that can be read, None where there is none.

        The search ends where there are too many broken ones.
        """
        for index in places:
            if index in self.broken:
                continue
            try:
                image = read_image(self[index])
            except DataError as err:
                self.note(index, str(err))
                if self.too_many:
                    return None
                continue
            if self.geometry is not None:
                is_raw(self[index], (image.shape[1], image.shape[0]), self.geometry)
            return index, image
        return None


def allowed(seen: int, total: int) -> float:
    """Return how many of ``seen`` frames that were drawn from ``total`` may be broken.

    5 % of all; of a sample three standard deviations more (drawn without replacement), and one in
    any case.
    """
    chance = math.sqrt(seen * MAX_BAD_SHARE * (1 - MAX_BAD_SHARE) * (1 - seen / total))
    return min(MAX_BAD_SHARE * total, max(1, MAX_BAD_SHARE * seen + DEVIATIONS * chance))


def sampled(folders: Sequence[FrameFolder], count: int) -> list[Path]:
    """Return at most ``count`` frames of several folders, of each in proportion to its frames.

    Raises:
        DataError: See `FrameFolder.sample`.
    """
    ends = list(accumulate(map(len, folders)))
    wanted = Counter(bisect_right(ends, place) for place in spread(range(ends[-1]), count))
    return [path for n, one in enumerate(folders) for path in one.sample(wanted[n])]


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to a log that every rank writes to; the last one may have been cut short."""
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as log:
        log.seek(max(0, log.seek(0, 2) - 1))
        cut = log.read(1) not in (b"", b"\n")
        log.write(b"\n" * cut + "".join(json.dumps(line) + "\n" for line in lines).encode())


def _say_untold(folder: Path, frames: Sequence[Path], geometry: CameraGeometry | None) -> None:
    """Warn of frames that were changed in a way that a model knows nothing of."""
    for treatment in dict.fromkeys(map(treatment_of, frames)):
        changes = () if treatment is None else treatment.changes
        unknown = [text for text in changes if geometry is None or text == "masked"]
        if unknown:
            logger.warning(
                "%s: these frames were %s by `edgeuda data frames`, and the model's spec says "
                "nothing of it: `run`, `bench` and `predict` will take the vehicle's frames "
                "without. A model that is adapted to cropped or undistorted frames knows; else "
                "keep frames as the camera gives them",
                folder, " and ".join(unknown),
            )  # fmt: skip
