"""Entries per second and memory of listing a large folder: ours against a sorted list of paths."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.turns import alone, peak_kib
from edgeuda.data.images import IMAGE_SUFFIXES
from edgeuda.data.walk import sorted_names

NEEDS = "nothing beside the package"
QUICK = {"entries": 2000}


def listed(way: str, folder: str) -> tuple[int, float, int]:
    """List a folder; returns how many there are, seconds and growth in memory (KiB)."""
    before = peak_kib()
    start = time.perf_counter()
    if way == "sorted on disk":
        count = sum(1 for _ in sorted_names(Path(folder), IMAGE_SUFFIXES))
    else:
        paths = Path(folder).rglob("*")
        count = len(sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES))
    return count, time.perf_counter() - start, peak_kib() - before


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entries", type=int, default=1_000_000)


def measure(given: argparse.Namespace) -> dict:
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(given.entries):
            (Path(folder) / f"{index * 7919 % given.entries:09d}.jpg").touch()
        for way in ("sorted on disk", "list of paths"):
            count, seconds, grown = alone(listed, way, folder).value
            assert count == given.entries
            result[way] = {"entries_per_second": count / seconds, "memory_kib": grown}
    return {"schema": "edgeuda.benchmark.footage-index/1", "entries": given.entries, "ways": result}
