"""The threshold update against a plain sort per class, taking turns; prints JSON.

python benchmarks/threshold_update.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeuda.methods.thresholds import CAP, ThresholdRule, update_thresholds
from edgeuda.training.trainer import keep_freed_memory
from engines.machine.hardware import identity

CASES = [(4, 160, 320), (2, 640, 1280)]
"""Images, rows, columns."""


def by_sorting(
    thresholds: Tensor, confidence: Tensor, winner: Tensor, rule: ThresholdRule
) -> Tensor:
    """Return what `update_thresholds` returns, the obvious way."""
    nearest = thresholds.clone()
    for index in range(thresholds.numel()):
        values = confidence[winner == index]
        if values.numel() == 0:
            continue
        pool = torch.cat((values, thresholds[index : index + 1])).sort(descending=True).values
        place = int(pool.numel() * rule.keep * float(thresholds[index]) ** rule.hardness)
        nearest[index] = pool[min(place, pool.numel() - 1)]
    mixed = rule.history * thresholds + (1 - rule.history) * nearest
    return torch.where(mixed >= 1, torch.full_like(mixed, CAP), mixed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as in training
    rule, cases = ThresholdRule(), []
    for images, rows, columns in CASES:
        for classes in (3, 11, 19):
            torch.manual_seed(0)
            coarse = 3 * torch.randn(images, classes, rows // 8, columns // 8)
            logits = F.interpolate(coarse, scale_factor=8.0, mode="bilinear")
            confidence, winner = (x.flatten() for x in logits.softmax(1).max(1))
            old = 0.6 + 0.3 * torch.rand(classes)
            seconds: list[tuple[float, float]] = []
            apart = 0.0
            for _ in range(arguments.runs + 2):
                began = time.perf_counter()
                ours = update_thresholds(old, confidence, winner, rule)
                middle = time.perf_counter()
                theirs = by_sorting(old, confidence, winner, rule)
                seconds.append((middle - began, time.perf_counter() - middle))
                apart = max(apart, float((ours - theirs).abs().max()))
            ratios = sorted(b / a for a, b in seconds[2:])
            cases.append(
                {
                    "pixels": confidence.numel(),
                    "classes": classes,
                    "times_faster": round(statistics.median(ratios), 1),
                    "quartiles": [round(ratios[len(ratios) * q // 4], 1) for q in (1, 3)],
                    "update_ms": round(1e3 * statistics.median(a for a, _ in seconds[2:]), 2),
                    "largest_difference": apart,
                }
            )
    record = {
        "schema": "edgeuda.threshold-update/1",
        "threads": arguments.threads,
        "cases": cases,
        "versions": {"torch": torch.__version__},
        "machine": identity(),
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
