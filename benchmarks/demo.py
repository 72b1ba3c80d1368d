"""What finished demos measured, as one small record without samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.files import read_json

NEEDS = "folders that `edgeuda demo` has made"
QUICK: dict[str, Any] = {}
SCORED = "edgeuda.evaluation/1"


def summary(demo: Path) -> dict[str, Any]:
    """Collect the scores, latencies and ratios of one demo folder."""
    folders = (demo / "results", demo / "tradeoff" / "results")
    records = [read_json(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    scores = [Evaluation.from_record(record) for record in records if record["schema"] == SCORED]
    bench = read_json(demo / "tradeoff" / "results" / "bench.json", "edgeuda.bench/2")
    tradeoff = read_json(demo / "tradeoff" / "tradeoff.json", "edgeuda.tradeoff/2")
    run = read_json(demo / "source" / "run.json", "edgeuda.run/1")
    return {
        "seed": run["seed"],
        "recipe_sha256": run["recipe_sha256"],
        "versions": run["versions"],
        "miou": {score.name: round(100 * score.miou, 2) for score in scores},
        "images": scores[0].images,
        "inference_median_ms": {
            model["name"]: model["stages"]["inference"]["percentiles"]["50"]
            for model in bench["models"]
        },
        "total_ms": {row["name"]: row["total_ms"] for row in tradeoff["variants"]},
        "miou_intervals": {row["name"]: row["accuracy"] for row in tradeoff["variants"]},
        "int8_against_fp32": {
            row["name"]: row["change_from_fp32"]
            for row in tradeoff["variants"]
            if row["change_from_fp32"] is not None
        },
        "choice": tradeoff["choice"],
        "noise": bench["noise"],
        "ratios": bench["ratios"],
        "method": bench["method"],
        "machine": bench["machine"],
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("demos", type=Path, nargs="+")


def measure(given: argparse.Namespace) -> dict:
    return {"schema": "edgeuda.demos/1", "demos": [summary(demo) for demo in given.demos]}
