"""The samples beside a benchmark's record, read as if somebody else had written them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeuda.files import sha256
from edgeuda.records.bench import SamplesFile

Columns = Mapping[str, npt.NDArray[np.float64]]
MOST_BYTES = 256 * 2**20
"""Of all arrays together; a hundred thousand frames of ten models in ten stages are 80 MB."""
MOST_ARRAYS = 4096
UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, MemoryError, RuntimeError, SyntaxError, KeyError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile and NumPy raise for files that are damaged, encrypted or made up."""


def read_samples(
    entry: SamplesFile | None, path: Path
) -> tuple[dict[str, dict[str, npt.NDArray[np.float64]]], str]:
    """Return the arrays of a benchmark's samples, by model's number or ``state``, and column.

    Args:
        entry: What the record says of the file: its name and checksum; None without one.
        path: The record.

    Returns:
        The arrays, none where they cannot be drawn, and in one sentence why not, or nothing.
    """
    if entry is None:
        return {}, ""
    beside = path.with_name(Path(entry.file).name)
    unused = f"so latencies of {path.name} are not drawn"
    if not beside.is_file():
        return {}, f"{beside}: is missing, {unused}"
    try:
        # Sizes first: a few kilobytes can unpack to more than there is memory, for minutes.
        with zipfile.ZipFile(beside) as packed:
            members = packed.infolist()
        size = sum(member.file_size for member in members)
        if size > MOST_BYTES or len(members) > MOST_ARRAYS:
            return {}, (
                f"{beside}: expected at most {MOST_ARRAYS} arrays of {MOST_BYTES // 2**20} MiB "
                f"together, found {len(members)} of {size / 2**20:.0f} MiB, {unused}"
            )
        if sha256(beside) != entry.sha256:
            return {}, f"{beside}: is not the file that {path.name} was written with, {unused}"
        found: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
        with np.load(beside, allow_pickle=False) as file:
            for key in file.files:
                group, _, column = key.partition(".")
                found.setdefault(group, {})[column] = np.asarray(file[key], np.float64)
    except UNREADABLE as err:
        return {}, f"{beside}: cannot be read as samples ({err}), {unused}"
    if problem := _misfit(found):
        return {}, f"{beside}: {problem}, {unused}"
    return found, ""


def _misfit(found: Mapping[str, Columns]) -> str:
    """Say what of the arrays cannot be drawn; nothing if all can."""
    for group, columns in found.items():
        lengths = {values.size for values in columns.values()}
        if any(values.ndim != 1 for values in columns.values()) or len(lengths) > 1:
            return f"expected columns of equal length for {group!r}, found others"
        if 0 in lengths:
            return f"expected samples of {group!r}, found none"
        # A sensor may miss a reading; a frame that was timed has a time.
        if group != "state" and not all(np.isfinite(values).all() for values in columns.values()):
            return f"expected finite times of {group!r}, found others"
    return ""
