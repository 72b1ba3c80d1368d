"""What each term of a method's loss does to the weights: its share of the gradient, by stage.

A plan's rows run on a track of real images as in `adaptation_tracks`. Every so many steps the
gradient of each term is taken by itself: its norm, and how far it points where the first term, that
of the source labels, points (the cosine, -1 to 1). A term whose norm is a hundredth of the others'
trains nothing, however large its value.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks import adaptation_tracks as tracks
from edgeuda.methods.base import Batch, Losses, Method
from edgeuda.models.network import Network
from edgeuda.spec import Preprocessing
from edgeuda.training import stages
from edgeuda.training.compare import compare, load_plan
from edgeuda.training.trainer import read_log

NEEDS = "extra train, and images of CamVid and CARLA (--data)"
QUICK = tracks.QUICK
NORM, COSINE = "gradient ", "cosine "


def options(parser: argparse.ArgumentParser) -> None:
    tracks.options(parser)


class Measured(Method):
    """A method whose figures say what its terms do to the weights, every ``every`` steps."""

    def __init__(self, method: Method, every: int) -> None:
        self._method, self._every = method, every

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the network stays in eval mode."""
        return self._method.freezes_batch_norm

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return the losses, with figures of their gradients now and then."""
        losses = self._method.step(model, batch, preprocessing)
        if (batch.step + 1) % self._every:
            return losses
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        found = {}
        for name, term in losses.terms.items():
            parts = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            found[name] = torch.cat(
                [
                    (torch.zeros_like(weight) if part is None else part).flatten()
                    for part, weight in zip(parts, weights, strict=True)
                ]
            )
        first, *_ = found.values()
        for name, gradient in found.items():
            losses.figures[NORM + name] = gradient.norm()
            losses.figures[COSINE + name] = torch.cosine_similarity(first, gradient, 0)
        return losses

    def after_step(self, model: Network) -> None:
        """See `Method`."""
        self._method.after_step(model)

    def state(self) -> dict[str, Any]:
        """See `Method`."""
        return self._method.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Method`."""
        self._method.load_state(state)


@contextmanager
def _measuring(every: int) -> Iterator[None]:
    build = stages._method
    stages._method = lambda context: Measured(build(context), every)
    try:
        yield
    finally:
        stages._method = build


def measure(given: argparse.Namespace) -> dict[str, Any]:
    out, seeds = given.work, given.seeds or [0]
    folders = tracks.prepare(given.track, given.data, out, given.streets)
    rows = tracks.chosen_rows(
        load_plan(given.plan, given.recipe, tracks.overrides_of(given)), given.rows
    )
    with _measuring(rows[0].recipe.source.log_every):
        record = compare(rows, folders, seeds, out, report=tracks.say)
    found = []
    for folder in sorted((out / "runs").glob("seed*/*")):
        lines = read_log(folder)
        if lines and any(key.startswith(NORM) for key in lines[-1]):
            seed = int(folder.parent.name.removeprefix("seed"))
            found.append({"seed": seed, "run": folder.name, **_summary(lines)})
    return {
        "schema": "edgeuda.benchmark.term-gradients/1",
        "track": given.track,
        "overrides": list(given.overrides),
        "images": record.images,
        "miou": {one.name: one.miou.mean for one in record.methods},
        "stages": found,
    }


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over a stage's measured steps."""
    lines = [line for line in lines if any(key.startswith(NORM) for key in line)]
    names = [key.removeprefix(NORM) for key in lines[0] if key.startswith(NORM)]
    norms = {name: float(np.mean([line[NORM + name] for line in lines])) for name in names}
    whole = math.fsum(norms.values())
    return {
        "steps": len(lines),
        "terms": {
            name: {
                "value": round(float(np.mean([line[name] for line in lines])), 5),
                "gradient_norm": round(norms[name], 5),
                "share": round(norms[name] / whole, 4),
                "cosine": round(float(np.mean([line[COSINE + name] for line in lines])), 4),
            }
            for name in names
        },
        "keep": _mean(lines, "keep"),
        "trust": _mean(lines, "trust"),
    }


def _mean(lines: list[dict[str, Any]], key: str) -> float | None:
    found = [line[key] for line in lines if key in line]
    return round(float(np.mean(found)), 4) if found else None
