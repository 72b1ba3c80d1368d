"""Footage and labelled images as WebDataset shards: tar files of samples, read one after the other.

Python's ``tarfile`` writes them; the form is that of WebDataset
(https://github.com/webdataset/webdataset), whose readers take them as they are. How shards are read
as footage is said in `edgeuda.data.stores`.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import cv2

from edgeuda.data.folders import LabelledFolder
from edgeuda.data.footage import footage
from edgeuda.data.images import IMAGE_SUFFIXES, encode_jpeg, intact_bytes
from edgeuda.data.stores import LABEL, OWN, located
from edgeuda.data.treatment import treatment_of
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import require_absent, write_atomic
from edgeuda.records.dataset import DatasetRecord
from edgeuda.records.frames import FramesRecord, ShardRecord

QUALITY = 95
"""Of the JPEGs that frames of videos and recordings become."""
_NUMBER = re.compile(r"%0(\d)d")


@dataclass(frozen=True)
class Sample:
    """One sample of a shard, as bytes.

    Attributes:
        image: An image file.
        suffix: Its format, ``".jpg"``.
        origin: The image file, video or recording that it comes from.
        index: Its place there, or among the images.
        seconds: Since the beginning of its video; None for labelled images.
        label: A PNG of 8-bit class ids; None without.
    """

    image: bytes
    suffix: str
    origin: Path
    index: int
    seconds: float | None
    label: bytes | None = None

    def members(self, key: str) -> dict[str, bytes]:
        """Return the files that it is, by their names in a shard."""
        about = {"origin": str(self.origin), "index": self.index, "seconds": self.seconds}
        found = {key + self.suffix: self.image, f"{key}.json": json.dumps(about).encode()}
        return found if self.label is None else {**found, key + LABEL: self.label}


def write_shards(
    source: Path | LabelledFolder,
    out: Path,
    limit: int,
    resume: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> tuple[int, int]:
    """Write footage or labelled images as shards, each of which appears whole.

    Image files are copied as they are, frames of videos and recordings become JPEGs. The same call
    writes the same bytes. Where frames were treated by `edgeuda data frames`, each shard holds the
    record of that, and frames that are read from it are known to be treated so.

    Args:
        source: See `edgeuda.data.footage.footage`; or labelled images, whose label maps are written
            as ids of the space that the folder reads them in.
        out: Pattern of the shards' names, such as ``shards-%04d.tar``.
        limit: Bytes of a shard at most; a single sample that is larger makes a shard of its own.
        resume: Go on behind the shards that are there instead of refusing them. Footage is read
            from its beginning for that, as only then it is known what could not be read.
        report: Called with the number of samples after each.

    Returns:
        The numbers of samples and of shards.

    Raises:
        ConfigError: If ``out`` is no such pattern, or its number has too few digits.
        DataError: If nothing can be read, or frames were treated in different ways.
        OutputExistsError: If shards are there and are not resumed, or are of something else.
    """
    digits = _NUMBER.findall(out.name)
    if len(digits) != 1 or out.suffix != ".tar" or out.name.count("%") != 1:
        msg = f"{out}: expected a pattern of names with a number, such as shards-%04d.tar"
        raise ConfigError(msg)
    root, space = source, None
    if isinstance(source, LabelledFolder):
        root, space = source.root, source.space
    assert isinstance(root, Path)
    record = ShardRecord(str(located(root).resolve()), limit, None if space is None else space.name)
    done, number = _continued(out, record, resume)
    own: dict[str, bytes] = {}
    if space is not None:
        own[DatasetRecord.FILE] = DatasetRecord(space.to_record()).to_json().encode()
    samples = _Samples(islice(_samples(source, own), done, None), done, report)
    while samples.ahead is not None:
        if number >= 10 ** int(digits[0]):  # they would no longer be sorted as they were written
            msg = f"{out}: expected a number of more digits, as there are more than {number} shards"
            raise ConfigError(msg)

        def fill(to: Path) -> None:
            first = samples.taken
            with tarfile.open(to, "w", format=tarfile.USTAR_FORMAT) as tar:
                for name, data in samples.within(limit):
                    _add(tar, name, data)
                about = replace(record, first=first, count=samples.taken - first)
                for name, data in {**own, ShardRecord.FILE: about.to_json().encode()}.items():
                    _add(tar, OWN + name, data)

        write_atomic(out.with_name(out.name % number), fill)
        number += 1
    return samples.taken, number


class _Samples:
    """Samples of which one is known ahead.

    Attributes:
        ahead: The next one; None at the end.
        taken: How many were taken.
    """

    def __init__(self, found: Iterator[Sample], taken: int, report: Callable[[int], None]) -> None:
        self._found, self._report = found, report
        self.taken = taken
        self.ahead = next(found, None)

    def within(self, limit: int) -> Iterator[tuple[str, bytes]]:
        """Yield names and contents of the members of the samples that fit into one shard."""
        total, digits = 0, len(f"{self.taken:06d}")
        while self.ahead is not None:
            key = f"{self.taken:06d}"
            members = self.ahead.members(key)
            size = sum(map(len, members.values()))
            # A key of more digits would be sorted before its neighbours.
            if total and (total + size > limit or len(key) > digits):
                return
            yield from members.items()
            total += size
            self.taken += 1
            self._report(self.taken)
            self.ahead = next(self._found, None)


def _samples(source: Path | LabelledFolder, own: dict[str, bytes]) -> Iterator[Sample]:
    """Yield the samples; what was done to the frames before is added to ``own``.

    Raises:
        DataError: If different things were done to them.
    """
    found = _labelled(source) if isinstance(source, LabelledFolder) else _frames(source)
    for index, sample in enumerate(found):
        treatment = treatment_of(sample.origin)
        record = None if treatment is None else treatment.record.read_bytes()
        if record is not None and index == 0:
            own[FramesRecord.FILE] = record
        if record != own.get(FramesRecord.FILE):
            msg = (
                f"{sample.origin}: expected frames with the same record of `edgeuda data frames` "
                "as those before, found another. Shard folders one by one"
            )
            raise DataError(msg)
        yield sample


def _frames(source: Path) -> Iterator[Sample]:
    for frame in footage(source):
        suffix = frame.origin.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            image = intact_bytes(frame.origin).tobytes()
        else:
            image, suffix = encode_jpeg(frame.image, QUALITY), ".jpg"
        yield Sample(image, suffix, frame.origin, frame.index, round(frame.seconds, 3))


def _labelled(folder: LabelledFolder) -> Iterator[Sample]:
    for index, (_, label) in enumerate(folder):
        origin = folder.pairs[index].image
        encoded = cv2.imencode(".png", label)[1].tobytes()
        image = intact_bytes(origin).tobytes()
        yield Sample(image, origin.suffix.lower(), origin, index, None, encoded)


def _continued(out: Path, record: ShardRecord, resume: bool) -> tuple[int, int]:
    """Return how many samples and shards are there already.

    Raises:
        OutputExistsError: If some are, and are not to be resumed, or are of something else.
    """
    done = 0
    for number in count():
        path = out.with_name(out.name % number)
        if not path.exists():
            return done, number
        if not resume:
            require_absent(path)
        found = located(path) / ShardRecord.FILE
        if not found.exists() or replace(ShardRecord.read(found), first=0, count=0) != record:
            msg = f"{path}: is a shard of something else; nothing was overwritten"
            raise OutputExistsError(msg)
        done += ShardRecord.read(found).count
    raise AssertionError


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member that says nothing of when and by whom it was made."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))
