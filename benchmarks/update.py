"""What the next network forgets by day when it learns dusk, with old frames replayed and without.

The last network learns the frames by day that CamVid calls train, with their labels. The next
networks go on from it with the same labels, with the first half of the dusk without labels, and,
where they replay, with the same frames by day without labels, in a share of --replay-share. One of
them goes through stage 1 of the recipe alone, without AdaBN before it and mixing after it; the
control takes the steps of that without the target's part of the loss. All are scored by day on the
frames that CamVid calls val, of the same two drives, and on the second half of the dusk: no network
knows a label that it is scored by. What lies in --work is not computed again.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.adaptation_tracks import overrides_of, write_folder
from benchmarks.turns import say
from edgeuda.accuracy.scoring import score
from edgeuda.accuracy.uncertainty import miou_difference, miou_interval
from edgeuda.data.replay import SHARE, Replay
from edgeuda.labels import SPACES
from edgeuda.models.subject import subject_of
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe

NEEDS = "extra train, and images of CamVid (--data)"
QUICK: dict[str, Any] = {}
DAY = ("0006R0", "0016E5")
DUSK = "0001TP"
SCORED = {"day": "day", "dusk": "dusk-held"}
"""Folders that networks are scored on."""
NEXT: dict[str, tuple[bool, tuple[str, ...]]] = {
    "replayed": (True, ()),
    "replayed, stage 1 alone": (True, ('stages=["stage1"]',)),
    "control": (True, ('stages=["stage1"]', "stage1.target_weight=0")),
    "new alone": (False, ()),
}
"""Next networks: whether they replay, and what of the recipe they change."""
Counts = npt.NDArray[np.int64]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="Holds camvid/images/train, ...")
    parser.add_argument("--work", type=Path, required=True, help="Folder for everything made.")
    parser.add_argument("--seed", type=int, action="append", dest="seeds")
    parser.add_argument("--recipe", default="lite")
    parser.add_argument("--replay-share", type=float, default=SHARE)
    parser.add_argument("--set", action="append", default=[], dest="overrides")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    folders = _folders(given.data, given.work)
    given.track = "day-to-dusk"
    recipe = load_recipe(given.recipe, overrides_of(given))
    rows = []
    for seed in given.seeds or [0, 1, 2]:
        last = given.work / f"last-{seed}"
        own = recipe.model_copy(update={"seed": seed})
        train_source(own, folders["source"], None, RunOptions(last, resume=True))
        scored = {"last": _scored(last, folders)}
        for name, (replays, changes) in NEXT.items():
            changed = load_recipe(given.recipe, (*overrides_of(given), *changes))
            out = given.work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            replay = Replay(folders["source"], given.replay_share) if replays else None
            adapt(
                changed.model_copy(update={"seed": seed}), last, folders["source"],
                folders["dusk"], RunOptions(out, resume=True, replay=replay),
            )  # fmt: skip
            scored[name] = _scored(out, folders)
        rows.append({"seed": seed, **{name: _row(one, scored) for name, one in scored.items()}})
        say(f"{rows[-1]}")
    return {
        "schema": "edgeuda.benchmark.update/2",
        "recipe": recipe.model_dump(mode="json"),
        "replay_share": given.replay_share,
        "images": {name: _count(folder) for name, folder in folders.items()},
        "results": rows,
        "change": {
            name: {
                time: _over_seeds([row[name]["change"][time]["value"] for row in rows])
                for time in SCORED
            }
            for name in NEXT
        },
    }


def _folders(data: Path, work: Path) -> dict[str, Path]:
    """Write labelled folders of frames to learn from and to score on."""
    found = {
        split: sorted((data / f"camvid/images/{split}").glob("*.jpg")) for split in ("train", "val")
    }
    by_day = {split: [one for one in found[split] if one.name.startswith(DAY)] for split in found}
    dusk = [one for one in found["train"] if one.name.startswith(DUSK)]
    half = len(dusk) // 2
    parts = {
        "source": by_day["train"], "day": by_day["val"],
        "dusk": dusk[:half], "dusk-held": dusk[half:],
    }  # fmt: skip
    space = SPACES["camvid-11"]
    return {name: write_folder(work / "data" / name, part, space) for name, part in parts.items()}


def _count(folder: Path) -> int:
    return len(list((folder / "images").iterdir()))


def _scored(model: Path, folders: dict[str, Path]) -> dict[str, Counts]:
    """Return ``[N, K, K]`` confusion matrices of a network by what it is scored on."""
    subject = subject_of(model)
    return {
        time: np.stack([counts for _, counts in score(subject, folders[name], time).images])
        for time, name in SCORED.items()
    }


def _row(one: dict[str, Counts], scored: dict[str, dict[str, Counts]]) -> dict[str, Any]:
    """Return mIoU, 0 to 1, and what it changed by against the last network."""
    last = scored["last"]
    row: dict[str, Any] = {time: asdict(miou_interval(images)) for time, images in one.items()}
    if one is not last:
        row["change"] = {
            time: asdict(miou_difference(images, last[time])) for time, images in one.items()
        }
    return row


def _over_seeds(values: list[float]) -> dict[str, Any]:
    return {
        "mean": mean(values),
        "stdev": stdev(values) if len(values) > 1 else None,
        "least": min(values),
    }
