"""Names of frames in the order in which a file ranks them, and the files that they mean."""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from edgeuda.data.images import IMAGE_SUFFIXES
from edgeuda.data.lists import text_lines
from edgeuda.errors import DataError, did_you_mean
from edgeuda.files import read_json
from edgeuda.records.diff import DiffRecord
from edgeuda.records.frame_selection import FrameSelectionRecord


def read_names(path: Path) -> list[str]:
    """Read the names of frames in the order in which a file ranks them.

    Args:
        path: A text file with a name per line; the ``.json`` of `edgeuda data select`, or of
            `edgeuda diff`, whose worst frames are taken; or the ``.images.csv`` of
            `edgeuda evaluate --csv`, whose images are taken by their mIoU, the least first.

    Raises:
        DataError: If there is no such file, it names nothing, or is another record.
    """
    if path.suffix.lower() == ".json":
        names = _names_of_record(path)
    else:
        lines = [line.strip() for line in text_lines(path)]
        names = [line for line in lines if line and not line.startswith("#")]
        if names and {"image", "miou"} <= set(names[0].split(",")):
            rows = list(csv.DictReader(names))
            names = [row["image"] for row in sorted(rows, key=lambda row: _number(row["miou"]))]
    if not names:
        msg = f"{path}: expected the names of frames, one per line, found none"
        raise DataError(msg)
    return names


def _names_of_record(path: Path) -> list[str]:
    schema = read_json(path).get("schema")
    if schema == FrameSelectionRecord.SCHEMA:
        return [frame.frame for frame in FrameSelectionRecord.read(path).ranked]
    if schema == DiffRecord.SCHEMA:
        found = DiffRecord.read(path)
        try:
            return [found.frames[position] for position in found.worst]
        except IndexError as err:
            msg = f"{path}: its {schema!r} record is damaged ({err!r}). {DiffRecord.AGAIN}"
            raise DataError(msg) from err
    msg = (
        f"{path}: expected a record that ranks frames, of `edgeuda data select` or `edgeuda diff`, "
        f"found schema {schema!r}"
    )
    raise DataError(msg)


def _number(text: str) -> float:
    """Return a cell as a number; an image without a labelled pixel comes last."""
    try:
        found = float(text)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(found) else found


class ByName:
    """Files that are asked for by names that may lack the suffix or the first folders.

    Args:
        files: The files.
        what: What they are and where, for errors: ``"frame in FOLDER"``.
    """

    def __init__(self, files: Iterable[Path], what: str) -> None:
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            self._by_stem[file.stem].append(file)
        parents = {file.parent for alike in self._by_stem.values() for file in alike}
        self._root = Path(os.path.commonpath(map(str, parents))) if parents else Path()
        self._what = what

    def __call__(self, name: str, origin: object) -> Path:
        """Return the one file that a name means.

        Args:
            name: The name of a file, with or without its suffix and the folders it lies in. Where
                several files are called so, the folders have to tell them apart.
            origin: The file that names it, for errors.

        Raises:
            DataError: If no file, or more than one, is called so.
        """
        alike = self._alike(name)
        if len(alike) == 1:
            return alike[0]
        if not alike:
            bare = _bare(name)
            hint = did_you_mean(bare, self._by_stem.keys() - {bare})
            msg = f"{origin}: names {name!r}, which is no {self._what}{hint}"
        else:
            msg = (
                f"{origin}: names {name!r}, and there is more than one such {self._what}: "
                f"{alike[0]} and {alike[1]}. Name it with its folder"
            )
        raise DataError(msg)

    def knows(self, name: str) -> bool:
        """Return whether there is one file that a name means."""
        return len(self._alike(name)) == 1

    def _alike(self, name: str) -> list[Path]:
        alike = self._by_stem.get(_bare(name), [])
        folders = _parts(name)[:-1]
        if len(alike) < 2:
            return alike
        if exact := [file for file in alike if file.relative_to(self._root).parts[:-1] == folders]:
            return exact
        fit = [_agreeing(file.parts[:-1], folders) for file in alike]
        best = max(fit)
        return (
            alike if not folders else [f for f, n in zip(alike, fit, strict=True) if n == best > 0]
        )


def _agreeing(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many folders two paths end in alike."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _bare(name: str) -> str:
    """Return a name without folders, and without the suffix of an image: no other is one."""
    last = PurePosixPath(_parts(name)[-1] if _parts(name) else "")
    return last.stem if last.suffix.lower() in IMAGE_SUFFIXES else last.name
