"""The README's picture: frames of a finished demo under its models, and its trade-off.

PYTHONPATH=. python docs/site/demo_picture.py demo --out docs/demo.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from edgeuda.data.images import paint, read_image, read_label
from edgeuda.files import read_json
from edgeuda.labels import LabelSpace
from engines.report.latency_plots import DEADLINE
from engines.report.plots import COLORS, MARKERS

ROWS = 2


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folder = options.demo / "tradeoff"
    sets = [
        (path.parent, read_json(path, "edgeuda.predictions/1"))
        for path in sorted(folder.glob("results/frames-[0-9]*/predictions.json"))
    ]
    space = LabelSpace.from_record(sets[0][1]["label_space"])
    typical = [
        index for index, entry in enumerate(sets[0][1]["frames"]) if "typical" in entry["note"]
    ][:ROWS]
    figure = Figure(figsize=(13, 2.9), layout="constrained", dpi=110)
    grid = figure.add_gridspec(ROWS, len(sets) + 3)
    for row, index in enumerate(typical):
        beside, record = sets[0]
        frame = read_image((beside / record["frames"][index]["frame"]).resolve())
        pictures = [("camera, never labelled", frame)]
        for beside, record in sets:
            label = read_label(beside / record["frames"][index]["labels"])
            pictures.append((record["name"], paint(frame, label, space.colors())))
        for column, (name, picture) in enumerate(pictures):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=9)
    record = read_json(folder / "tradeoff.json", "edgeuda.tradeoff/2")
    axes = figure.add_subplot(grid[:, len(sets) + 1 :])
    for index, row in enumerate(record["variants"]):
        estimate, total = row["accuracy"], row["total_ms"]
        value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
        chosen = row["name"] == record["choice"]["name"]
        axes.errorbar(
            total["50"], value, xerr=[[0], [total[record["tail"]] - total["50"]]],
            yerr=[[value - low], [high - value]], fmt=MARKERS[index], ms=7, capsize=2,
            color=COLORS[index], label=row["name"] + (", chosen" if chosen else ""),
        )  # fmt: skip
    if record["budget"]["latency_ms"] is not None:
        axes.axvline(record["budget"]["latency_ms"], color=DEADLINE, ls="--", lw=1)
    axes.set(xlim=(0, None), xlabel="latency of a frame, ms", ylabel="mIoU, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
