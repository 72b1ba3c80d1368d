"""The threshold update against a plain sort per class, taking turns."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.turns import in_turns
from edgeuda.methods.thresholds import CAP, ThresholdRule, update_thresholds
from edgeuda.training.trainer import keep_freed_memory

NEEDS = "extra train"
QUICK = {"runs": 2, "cases": [(1, 64, 128)]}
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


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    parser.set_defaults(cases=CASES)


def measure(given: argparse.Namespace) -> dict:
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as in training
    rule, cases = ThresholdRule(), []
    for images, rows, columns in given.cases:
        for classes in (3, 11, 19):
            torch.manual_seed(0)
            coarse = 3 * torch.randn(images, classes, rows // 8, columns // 8)
            logits = F.interpolate(coarse, scale_factor=8.0, mode="bilinear")
            confidence, winner = (x.flatten() for x in logits.softmax(1).max(1))
            old = 0.6 + 0.3 * torch.rand(classes)
            both = (
                ("ours", lambda a=(old, confidence, winner, rule): update_thresholds(*a)),
                ("sorting", lambda a=(old, confidence, winner, rule): by_sorting(*a)),
            )
            turns = in_turns(dict(both), given.runs, warm_up=2)
            ratio = turns.ratio("sorting", "ours")
            cases.append(
                {
                    "pixels": confidence.numel(),
                    "classes": classes,
                    "times_faster": ratio["median"],
                    "quartiles": ratio["quartiles"],
                    "update_ms": turns.ms()["ours"],
                    "largest_difference": float((both[0][1]() - both[1][1]()).abs().max()),
                }
            )
    return {"schema": "edgeuda.threshold-update/1", "threads": given.threads, "cases": cases}
