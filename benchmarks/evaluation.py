"""Time to score label maps: ours against cityscapesScripts, on the same files in one run.

python benchmarks/evaluation.py --images 20 --out benchmarks/results/evaluation.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling

from edgeuda.accuracy.boundary import BoundaryCounts
from edgeuda.accuracy.evaluation import confusion, miou_of
from edgeuda.data.images import read_label, write_label
from edgeuda.data.layouts import CITYSCAPES_IDS
from edgeuda.files import write_json
from engines.machine.hardware import identity


def write(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """Write predictions and truth of Cityscapes' size as labelIds."""
    back = np.zeros(256, np.uint8)
    for number, index in enumerate(CITYSCAPES_IDS):
        if index != 255:
            back[index] = number
    files: tuple[list[str], list[str]] = ([], [])
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 20, (32, 64), dtype=np.uint8)
        truth = cv2.resize(coarse, (2048, 1024), interpolation=cv2.INTER_NEAREST)
        prediction = np.roll(truth, 5, 1) % 19
        truth[truth == 19] = 255
        for paths, what, ids in zip(files, ("pred", "gt"), (prediction, truth), strict=True):
            paths.append(str(folder / f"{what}{seed}_gtFine_labelIds.png"))
            write_label(Path(paths[-1]), back[ids])
    return files


def main() -> None:
    """Take turns, print medians, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    options = evalPixelLevelSemanticLabeling.args
    options.evalInstLevelScore = options.JSONOutput = False
    options.quiet = True
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        predictions, truths = write(Path(folder), arguments.images)

        def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
            files = zip(truths, predictions, strict=True)
            return [
                (CITYSCAPES_IDS[read_label(Path(t))], CITYSCAPES_IDS[read_label(Path(p))])
                for t, p in files
            ]

        def ours() -> float:
            total = np.zeros((19, 19), np.int64)
            for truth, prediction in pairs():
                total += confusion(truth, prediction, 19)
            return miou_of(total)

        def theirs() -> float:
            found = evalPixelLevelSemanticLabeling.evaluateImgLists(predictions, truths, options)
            return float(found["averageScoreClasses"])

        def reading() -> float:
            pairs()
            return 0.0

        def outlines() -> float:
            counts = BoundaryCounts(19)
            for truth, prediction in pairs():
                counts.add(truth, prediction)
            return counts.miou

        ways: dict[str, Callable[[], float]] = {
            "cityscapesscripts": theirs, "ours": ours, "ours, boundary IoU": outlines,
            "reading the files": reading,
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        scores = {}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                scores[name] = way()
                seconds[name].append((time.perf_counter() - start) / arguments.images)
    ratios = [a / b for a, b in zip(seconds["cityscapesscripts"], seconds["ours"], strict=True)]
    record = {
        "schema": "edgeuda.benchmark/1",
        "images": arguments.images,
        "size": [1024, 2048],
        "seconds_per_image": {k: statistics.median(v) for k, v in seconds.items()},
        "ratio_to_cityscapesscripts": {
            "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)
        },
        "miou": {name: scores[name] for name in ("cityscapesscripts", "ours")},
        "machine": identity(),
    }  # fmt: skip
    write_json(arguments.out, record)
    for name, values in seconds.items():
        print(f"{name}: {1000 * statistics.median(values):.1f} ms per image")
    print(f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    assert abs(scores["ours"] - scores["cityscapesscripts"]) < 1e-9


if __name__ == "__main__":
    main()
