"""Splits that keep frames of one sequence together: neighbours in both parts would leak."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeuda.data.folders import LabelledFolder, Pair
from edgeuda.data.lists import write_list
from edgeuda.errors import DataError

NAMES = ("train", "val", "test")
COUNTER = re.compile(r"^(.*?)(\d+)\D*$")
"""What precedes the last number of a file name, and the number."""


@dataclass(frozen=True)
class Split:
    """Labelled images in parts.

    Attributes:
        parts: Train, then val and, where three were asked for, test.
        sequences: Number of sequences found.
        how: Whether sequences were kept whole or cut.
        left_out: Images in the gaps.
    """

    parts: tuple[tuple[Pair, ...], ...]
    sequences: int
    how: str
    left_out: int


def sequence_of(path: Path) -> tuple[str, int]:
    """Return the sequence an image belongs to, and its place in it.

    The sequence is the folder and what precedes the last number of the name:
    ``aachen/aachen_000000_000019_leftImg8bit`` is number 19 of ``aachen/aachen_000000_``.
    """
    found = COUNTER.match(path.stem.removesuffix("_leftImg8bit").removesuffix("_rgb_anon"))
    if found is None:
        return f"{path.parent}/{path.stem}", 0
    return f"{path.parent}/{found[1]}", int(found[2])


def split_pairs(
    folder: LabelledFolder, shares: Sequence[float], gap: int = 5, seed: int = 0
) -> Split:
    """Split labelled images by sequence.

    With at least twice as many sequences as parts, sequences stay whole: in an order drawn by
    ``seed``, each goes to the part that is furthest below its share. With fewer, each sequence is
    cut into contiguous parts with ``gap`` images between them left out.

    Args:
        folder: The images.
        shares: Of each part, positive.
        gap: Images between parts of one sequence.
        seed: Of the order.

    Raises:
        DataError: If a part would be empty.
    """
    sequences: dict[str, list[tuple[int, Pair]]] = {}
    for pair in folder.pairs:
        name, place = sequence_of(pair.image)
        sequences.setdefault(name, []).append((place, pair))
    ordered = [
        [pair for _, pair in sorted(found, key=lambda entry: entry[0])]
        for _, found in sorted(sequences.items())
    ]
    wanted = np.asarray(shares, np.float64) / sum(shares)
    parts: list[list[Pair]] = [[] for _ in wanted]
    whole = len(ordered) >= 2 * len(parts)
    if whole:
        for index in np.random.default_rng(seed).permutation(len(ordered)):
            counts = np.array([len(part) for part in parts]) / wanted
            parts[int(counts.argmin())] += ordered[index]
    else:
        for sequence in ordered:
            _cut(sequence, wanted, gap, parts)
    taken = sum(map(len, parts))
    if not all(parts):
        empty = NAMES[next(i for i, part in enumerate(parts) if not part)]
        msg = (
            f"{folder.root}: {len(folder)} images in {len(ordered)} sequences leave none for "
            f"{empty}. Ask for other shares, or a smaller gap than {gap}"
        )
        raise DataError(msg)
    how = "kept whole" if whole else f"cut into parts with {gap} images between"
    found_parts = tuple(tuple(sorted(part, key=lambda pair: str(pair.image))) for part in parts)
    return Split(found_parts, len(ordered), how, len(folder) - taken)


def _cut(sequence: list[Pair], shares: np.ndarray, gap: int, parts: list[list[Pair]]) -> None:
    """Cut one sequence into contiguous parts."""
    room = max(0, len(sequence) - gap * (len(parts) - 1))
    ends = np.rint(np.cumsum(shares) * room).astype(int)
    start = 0
    for index, end in enumerate(ends):
        shift = index * gap
        parts[index] += sequence[start + shift : end + shift]
        start = int(end)


def write_splits(out: Path, split: Split) -> list[Path]:
    """Write a list of pairs for each part, ``train.csv`` and so on; returns the files."""
    files = []
    for name, part in zip(NAMES, split.parts, strict=False):
        files.append(out / f"{name}.csv")
        write_list(files[-1], ("image", "label"), [(pair.image, pair.label) for pair in part])
    return files
