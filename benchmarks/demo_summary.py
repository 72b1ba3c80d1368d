"""What finished demos measured, as one small JSON record without samples.

python benchmarks/demo_summary.py demo --out benchmarks/results/demo.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgeuda.evaluation import Evaluation
from edgeuda.files import read_json, write_json

SCORED = "edgeuda.evaluation/1"


def summary(demo: Path) -> dict[str, Any]:
    """Collect the scores, latencies and ratios of one demo folder."""
    records = [read_json(path) for path in sorted((demo / "results").glob("*.json"))]
    scores = [Evaluation.from_record(record) for record in records if record["schema"] == SCORED]
    bench = read_json(demo / "results" / "bench.json", "edgeuda.bench/2")
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
        "ratios": bench["ratios"],
        "method": bench["method"],
        "machine": bench["machine"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demos", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    demos = [summary(demo) for demo in arguments.demos]
    write_json(arguments.out, {"schema": "edgeuda.demos/1", "demos": demos})
    for demo in demos:
        print(demo["seed"], demo["miou"], [r["inference_median"] for r in demo["ratios"]])


if __name__ == "__main__":
    main()
