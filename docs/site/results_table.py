"""One Markdown table from comparison records: a row per method, a column per track.

PYTHONPATH=. python docs/site/results_table.py benchmarks/results/{carla-to-camvid,day-to-dusk}.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.result import payload_of


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, nargs="+")
    records = [payload_of(path, "edgeuda.comparison/1") for path in parser.parse_args().records]
    tables = [{method["name"]: method for method in record["methods"]} for record in records]
    names = dict.fromkeys(name for table in tables for name in table)
    print(f"| | {' | '.join(record['track'] for record in records)} |")
    print("|---" * (1 + len(records)) + "|")
    for name in names:
        cells = []
        for table in tables:
            found = table.get(name)
            if found is None or found["miou"]["mean"] is None:
                cells.append("-" if found is None else "failed")
                continue
            spread = found["miou"]["stdev"]
            cells.append(f"{found['miou']['mean']:.1f} ± {spread:.1f}")
            if found["gap_closed"] is not None and found["gain"]["mean"]:
                cells[-1] += f" ({found['gap_closed']:.0%})"
            if found.get("failed"):
                cells[-1] += f", {len(found['failed'])} failed"
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
