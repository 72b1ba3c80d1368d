"""What a frame costs that workers take from footage: writing all, or reading those kept twice.

Frames of 1024x2048 are read from a JPEG, made into the thumbnail by which near-duplicates are
found, and written as a JPEG. Who writes every frame and removes the duplicates pays for each of the
three; who writes in a second map pays for reading the frames that are kept again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.networks import smooth_images
from benchmarks.turns import in_turns
from edgeuda.data.curation import thumbnail
from edgeuda.data.images import read_image, write_image

NEEDS = "nothing beside the package"
QUICK = {"runs": 3, "file_size": [128, 256]}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--file-size", type=int, nargs=2, default=[1024, 2048])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "frame.jpg"
        (image,) = smooth_images(1, *given.file_size)
        write_image(path, image)
        calls: dict[str, Callable[[], object]] = {
            "read": lambda: read_image(path),
            "thumbnail": lambda: thumbnail(image),
            "write": lambda: write_image(path.with_name("out.jpg"), image),
        }
        turns = in_turns(calls, given.runs)
    cost = turns.ms("cpu")
    return {
        "schema": "edgeuda.benchmark.curation/1",
        "file_size": given.file_size,
        "runs": given.runs,
        "cpu_ms": cost,
        "wall_ms": turns.ms(),
        "kept_share_below_which_two_maps_cost_less": round(
            cost["write"] / (cost["read"] + cost["write"]), 3
        ),
    }
