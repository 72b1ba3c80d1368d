"""Text and CSV files that list images, or pairs of image and label."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeuda.data.stores import located, located_in
from edgeuda.errors import DataError
from edgeuda.files import write_text

LIST_SUFFIXES = frozenset({".txt", ".csv"})


def is_list(path: Path) -> bool:
    """Return whether a path is a file that lists others, by its suffix."""
    return path.suffix.lower() in LIST_SUFFIXES and not path.is_dir()


def read_list(path: Path, columns: int) -> list[tuple[Path, ...]]:
    """Read the files that a list names.

    A line of a ``.csv`` holds them between commas, one of a ``.txt`` between tabs, or blanks where
    there are no tabs. Relative names start at the list's folder. Empty lines and those that begin
    with ``#`` are left out, and so is a first line of column titles: names without a dot or slash
    that are not there.

    Args:
        path: The list.
        columns: How many files a line must name: 1 for frames, 2 for image and label. A list of
            pairs serves as one of frames.

    Raises:
        DataError: If there is no such file, it is not UTF-8 text, a line has too few names, or it
            names nothing.
    """
    path = located(path)
    lines = text_lines(path)
    entries: list[tuple[Path, ...]] = []
    for number, line in enumerate(lines, 1):
        names = _names(line, path.suffix.lower() == ".csv", columns)
        if not names or (number == 1 and not any(_is_file(path.parent, name) for name in names)):
            continue
        if len(names) < columns:
            what = "an image and its label" if columns == 2 else f"{columns} files"
            msg = f"{path}: line {number}: expected {what}, found {line.strip()!r}"
            raise DataError(msg)
        entries.append(tuple(located_in(path.parent, name) for name in names[:columns]))
    if not entries:
        msg = f"{path}: expected the names of files, one entry per line, found none"
        raise DataError(msg)
    return entries


def write_list(path: Path, titles: Sequence[str], rows: Iterable[Sequence[Path]]) -> None:
    """Write a ``.csv`` list of files by their absolute names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows([name.resolve() for name in row] for row in rows)
    write_text(path, text.getvalue())


def text_lines(path: Path) -> list[str]:
    """Return the lines of a list.

    Raises:
        DataError: If there is no such file, or it is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as err:
        msg = f"{path}: expected a readable list of files ({err.strerror})"
        raise DataError(msg) from err
    except UnicodeDecodeError as err:
        msg = f"{path}: expected a list in UTF-8, found other bytes ({err.reason})"
        raise DataError(msg) from err


def _is_file(folder: Path, name: str) -> bool:
    return bool({".", "/", "\\"} & set(name)) or (folder / name).exists()


def _names(line: str, by_commas: bool, columns: int) -> list[str]:
    line = line.strip()
    if not line or line.startswith("#"):
        return []
    if by_commas:
        return [name.strip() for name in next(csv.reader([line])) if name.strip()]
    if "\t" in line:
        return [name.strip() for name in line.split("\t") if name.strip()]
    return [line] if columns == 1 else line.split()
