"""The one walk through a folder: links are followed, circles and hidden files are not."""

from __future__ import annotations

import heapq
import logging
import os
import tempfile
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

from edgeuda.data.stores import StorePath, located, names_in

logger = logging.getLogger(__name__)

SORTED_AT_ONCE = 100_000
"""Names of a folder that are sorted in memory; longer listings are merged from files."""


class Files(Sequence[Path]):
    """Many files, in little more memory than the bytes of their names.

    Attributes:
        root: The folder that names start at.
        leaders: Position of the first file of each folder.

    Args:
        root: See above.
        names: In the order that is wanted.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        self._text, self._ends = bytearray(), array("Q", [0])
        folders: dict[str, int] = {}
        for index, name in enumerate(names):
            self._text += os.fsencode(name)  # names may hold any bytes
            self._ends.append(len(self._text))
            folders.setdefault(name[: name.rfind("/") + 1], index)
        self.leaders = tuple(folders.values())

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> str:
        """Return the name of a file below `root`."""
        return os.fsdecode(bytes(self._text[self._ends[index] : self._ends[index + 1]]))

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        found = range(len(self))[index]
        if isinstance(found, range):
            return [located(self.root / self.name(one)) for one in found]
        return located(self.root / self.name(found))


def names_under(
    folder: Path,
    suffixes: Collection[str],
    folders: Callable[[str], object] = lambda _name: None,
) -> Iterator[str]:
    """Yield the files under a folder, relative to it, as the file system has them.

    No folder's listing is held. Linked folders are entered, but for one that leads back to a
    folder above it, which is said. Names that begin with a dot (temporary files, thumbnails,
    AppleDouble files) are left out, which is said too.

    Args:
        folder: Where to look.
        suffixes: Wanted endings, lower case with the dot.
        folders: Told the name of each folder that has such an ending; it is searched as others.
    """
    hidden = 0
    if isinstance(folder, StorePath):
        for name, dot in names_in(folder, suffixes):
            hidden += dot
            if not dot:
                yield name
        _say_hidden(folder, hidden)
        return
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(folder),))]
    while waiting:
        at, above = waiting.pop()
        with os.scandir(folder / at) as entries:
            for entry in entries:
                name = at + entry.name
                wanted = name[name.rfind(".") :].lower() in suffixes
                if entry.name.startswith("."):
                    hidden += wanted
                elif entry.is_dir():
                    own = _identity(Path(entry.path))
                    if own in above:
                        logger.warning("%s: leads back to a folder above it; left out", entry.path)
                    else:
                        if wanted:
                            folders(name)
                        waiting.append((name + "/", (*above, own)))
                elif wanted:
                    yield name
    _say_hidden(folder, hidden)


def _say_hidden(folder: Path, hidden: int) -> None:
    if hidden:
        logger.info("%s: left out %d files whose name begins with a dot", folder, hidden)


def _identity(folder: Path) -> tuple[int, int]:
    info = folder.stat()
    return info.st_dev, info.st_ino


def sorted_names(
    folder: Path, suffixes: Collection[str], key: Callable[[str], Any] | None = None
) -> Iterator[str]:
    """Yield the files under a folder, relative to it, sorted, in bounded memory.

    Listings beyond `SORTED_AT_ONCE` names are sorted in parts on disk and merged.

    Args:
        folder: See `names_under`.
        suffixes: See `names_under`.
        key: What names are sorted by, as in `sorted`.
    """
    names = names_under(folder, suffixes)
    first = sorted(islice(names, SORTED_AT_ONCE), key=key)
    if len(first) < SORTED_AT_ONCE:
        yield from first
        return
    with tempfile.TemporaryDirectory() as parts:
        files: list[Path] = []
        part = first
        while part:
            path = Path(parts) / f"{len(files):06d}"
            # Names may hold anything but a slash and a zero byte.
            path.write_bytes(b"".join(os.fsencode(name) + b"\0" for name in part))
            files.append(path)
            part = sorted(islice(names, SORTED_AT_ONCE), key=key)
        del first, part
        yield from heapq.merge(*map(_names_in, files), key=key)


def by_folder(name: str) -> str:
    """Return what a name below a folder is sorted by, so that names of one folder stay together."""
    return name.replace("/", "\0")


def _names_in(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        rest = b""
        while block := file.read(1 << 16):
            *names, rest = (rest + block).split(b"\0")
            yield from map(os.fsdecode, names)
