"""How well label-free signals rank checkpoints, against mIoU on labelled target images.

--work are work folders of the benchmark `adaptation_tracks`, whose runs keep every measured
network. Each is scored on the track's develop images (kept beside it); then, per signal:

- ``within``: Spearman correlation with mIoU over the networks of one stage, mean over stages;
- ``across``: the same over the results of all methods with one seed, mean over seeds and tracks;
- ``loss``: mIoU points lost by taking the network the signal prefers instead of the stage's best,
  and, as ``last``, instead of the last one.

Signals are signed so that a perfect one correlates with +1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.turns import say
from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.data.folders import LabelledFolder, labelled_folder
from edgeuda.files import read_json, write_json
from edgeuda.models.subject import score_checkpoint
from edgeuda.records.identity import MODEL_FILE
from edgeuda.training.monitor import RANKED
from edgeuda.training.watch import SNAPSHOTS, read_signals

NEEDS = "extra train, and work folders of adaptation_tracks"
QUICK = {"stages": 1}


def miou(snapshot: Path, data: LabelledFolder) -> float:
    """Return the mIoU of a kept network in percent, from the record beside it if there is one."""
    record = snapshot.with_suffix(".json")
    if not record.exists():
        write_json(record, score_checkpoint(snapshot, data, snapshot.stem).to_record())
    return 100 * Evaluation.from_record(read_json(record)).miou


def spearman(a: list[float], b: list[float]) -> float | None:
    """Return the rank correlation, ties sharing their mean rank; None without variation."""
    first, second = (ranks(np.asarray(values)) for values in (a, b))
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


def mean(values: list[float | None]) -> dict[str, float | int] | None:
    known = np.array([value for value in values if value is not None])
    if known.size == 0:
        return None
    spread = float(known.std(ddof=1)) if known.size > 1 else 0.0
    return {"mean": round(float(known.mean()), 3), "stdev": round(spread, 3), "n": known.size}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, nargs="+", required=True)
    parser.add_argument("--stages", type=int, help="so many of each seed; all by default")


def measure(given: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    within: dict[str, list[float | None]] = {name: [] for name in RANKED}
    across: dict[str, list[float | None]] = {name: [] for name in RANKED}
    lost: dict[str, list[float | None]] = {name: [] for name in (*RANKED, "last")}
    stages = networks = 0
    for work in given.work:
        develop = work / "develop" if (work / "develop").exists() else work / "target"
        data = labelled_folder(develop)
        for seed in sorted((work / "runs").iterdir()):
            results = []
            complete = sorted(path for path in seed.iterdir() if (path / MODEL_FILE).exists())
            measured = [path for path in complete if (path / SNAPSHOTS).exists()]
            for folder in measured[: given.stages]:
                lines = read_signals(folder)
                names = [folder / SNAPSHOTS / f"step-{x['step']:06d}.safetensors" for x in lines]
                scores = [miou(name, data) for name in names]
                say(seed.name, folder.name, [round(value, 1) for value in scores])
                stages, networks = stages + 1, networks + len(scores)
                results.append((lines[-1], scores[-1]))
                lost["last"].append(max(scores) - scores[-1])
                for signal, larger in RANKED.items():
                    signed = [line[signal] * (1 if larger else -1) for line in lines]
                    within[signal].append(spearman(signed, scores))
                    lost[signal].append(max(scores) - scores[int(np.argmax(signed))])
            for signal, larger in RANKED.items():
                signed = [line[signal] * (1 if larger else -1) for line, _ in results]
                across[signal].append(spearman(signed, [value for _, value in results]))
    return {
        "schema": "edgeuda.label-free/1",
        "tracks": [work.name for work in given.work],
        "stages": stages,
        "networks": networks,
        "signals": {
            name: {
                "within": mean(within[name]),
                "across": mean(across[name]),
                "loss": mean(lost[name]),
            }
            for name in RANKED
        },
        "last": {"loss": mean(lost["last"])},
    }
