"""What adapting gains on the tenth of a drive that `run --keep` keeps, and on other frames of it.

The target frames of a track of `adaptation_tracks` are played as one drive to the source network,
which keeps what it may; its reference is of source images. Each row of the plan then starts from
the same source network, and sees the kept frames, as many drawn at random, or all. Labels are read
for the scores only: on the track's develop images, and on all frames of the drive.

What ``--work`` holds is not computed again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import engines
from benchmarks import adaptation_tracks as tracks
from benchmarks.keep import keep_of
from benchmarks.turns import say
from calibration.reference import write_reference
from edgeuda.data.folders import labelled_folder
from edgeuda.data.frames import frame_folder
from edgeuda.data.lists import write_list
from edgeuda.records.keep import KeptRecord
from edgeuda.training.compare import PlanRow, Track, compare, load_plan

NEEDS = "extras train and cpu, and images of CamVid and CARLA (--data)"
QUICK = tracks.QUICK | {"rows": "source,adabn"}
REFERENCE = 256
"""Frames of source images that the reference is of."""


def options(parser: argparse.ArgumentParser) -> None:
    tracks.options(parser)
    parser.set_defaults(rows="source,adabn,tufl + cim")
    parser.add_argument("--share", type=float, default=0.1)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    track = tracks.prepare(given.track, given.data, given.work, given.streets)
    plan = load_plan(given.plan, given.recipe, tracks.overrides_of(given))
    start, *rows = tracks.chosen_rows(plan, given.rows)
    seeds = given.seeds or [0, 1, 2]
    found: dict[tuple[str, str, str], list[float]] = {}
    kept = []
    for seed in seeds:
        for split, data in _splits(track):
            _score([start], replace(track, data=data), seed, given.work, split, "none", found)
        folder = given.work / "kept" / str(seed)
        network = given.work / "networks/none" / f"{start.name}-{seed}.safetensors"
        chosen = _choose(track, network, folder, given.share, seed)
        record = KeptRecord.read(folder / "kept" / KeptRecord.FILE)
        reasons = [one.reason for one in record.frames]
        kept.append({name: reasons.count(name) for name in sorted(set(reasons))})
        for frames, target in chosen.items():
            for split, data in _splits(track):
                seen = replace(track, target=target, data=data)
                _score(rows, seen, seed, given.work, split, frames, found)
    return {
        "schema": "edgeuda.benchmark.kept_adaptation/1",
        "track": given.track,
        "seeds": seeds,
        "share": given.share,
        "reasons": kept,
        "recipes": {row.name: row.recipe.model_dump(mode="json") for row in [start, *rows]},
        "results": [
            {
                "method": method,
                "frames": frames,
                "scored_on": split,
                "miou": miou,
                "mean": statistics.mean(miou),
                "stdev": statistics.stdev(miou) if len(miou) > 1 else None,
            }
            for (method, frames, split), miou in found.items()
        ],
    }


def _splits(track: Track) -> Iterator[tuple[str, Path]]:
    yield "develop", track.data
    if track.data != track.target:
        yield "drive", track.target


def _score(
    rows: list[PlanRow],
    track: Track,
    seed: int,
    work: Path,
    split: str,
    frames: str,
    found: dict[tuple[str, str, str], list[float]],
) -> None:
    """Add the mIoU of each row, in percent, to ``found``."""
    record = compare(rows, track, [seed], work, keep=work / "networks" / frames)
    for method in record.methods:
        (miou,) = method.miou.known
        found.setdefault((method.name, frames, split), []).append(miou)
        say(f"seed {seed}, {method.name}, {frames}, {split}: {miou:.1f}")


def _choose(track: Track, network: Path, folder: Path, share: float, seed: int) -> dict[str, Path]:
    """Return footage by name: what the network keeps, as many random frames, and all."""
    data = labelled_folder(track.target)
    places = range(len(data.pairs))
    count = max(1, round(share * len(places)))
    model, random = folder / "source.onnx", folder / "random.csv"
    if not random.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not model.exists():
            engines.export(network, track.target, model, confidence=True)
        sources = [track.source] if isinstance(track.source, Path) else track.source
        write_reference(model, frame_folder(sources[0]), REFERENCE, threads=1)
        keep_of(model, data, places, count, folder / "kept", fps=1.0)
        drawn = np.random.default_rng(seed).choice(len(places), count, replace=False)
        write_list(random, ("image",), [(data.pairs[at].image,) for at in sorted(drawn.tolist())])
    return {"kept": folder / "kept", "random": random, "all": track.target}
