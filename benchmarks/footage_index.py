"""Entries per second and memory of listing a large folder: ours against a sorted list of paths.

python benchmarks/footage_index.py --entries 1000000 --out benchmarks/results/footage-index.json
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeuda.data.images import IMAGE_SUFFIXES
from edgeuda.data.walk import sorted_names
from edgeuda.files import write_json
from engines.machine.hardware import identity


def measure(way: str, folder: Path) -> None:
    """List a folder in this process and print entries per second and growth in memory (KiB)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if way == "sorted on disk":
        count = sum(1 for _ in sorted_names(folder, IMAGE_SUFFIXES))
    else:
        count = len(sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES))
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(count, count / seconds, grown)


def main() -> None:
    """Make a folder of empty files, list it by each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", nargs=2)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way[0], Path(arguments.way[1]))
        return
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(arguments.entries):
            (Path(folder) / f"{index * 7919 % arguments.entries:09d}.jpg").touch()
        for way in ("sorted on disk", "list of paths"):
            run = [sys.executable, __file__, "--way", way, folder]
            printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
            count, rate, grown = printed.split()
            assert int(count) == arguments.entries
            result[way] = {"entries_per_second": float(rate), "memory_kib": int(grown)}
            print(f"{way}: {float(rate):.0f} entries/s, {int(grown) / 1024:.0f} MiB")
    record = {"schema": "edgeuda.benchmark/1", "entries": arguments.entries, "ways": result}
    write_json(arguments.out, {**record, "machine": identity()})


if __name__ == "__main__":
    main()
