"""What `run --keep` keeps of real drives at a tenth of the frames, against frames drawn at random.

--data holds labelled images of drives, whose names begin with the drive's: --drives says which are
played, one after the other, as one drive at --fps. The labels are read for the figures only: the
share of pixels of the --rare classes, how many stretches of ten frames a kept frame is of, and the
network's mIoU on the kept frames, which should be lower than on others. Random frames are drawn
three times. With --frames the folder that was kept, and lists of the random frames, stay there, to
adapt on: each can be a `--target`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.turns import say
from edgeuda.accuracy.evaluation import confusion, miou_of
from edgeuda.data.folders import LabelledFolder, labelled_folder
from edgeuda.data.footage import Frame
from edgeuda.data.images import read_image
from edgeuda.data.lists import write_list
from edgeuda.files import sha256
from edgeuda.labels import label_space
from edgeuda.records.keep import KeepBudget, KeptRecord
from edgeuda.records.predictions import ModelFile
from edgeuda.records.reference import reference_path
from engines.live.capture import Capture
from engines.live.keep import Keeper
from engines.live.loop import run
from engines.onnxruntime_runner import OnnxRunner
from engines.reference import reference_of
from engines.runner import segment

NEEDS = "extra cpu, an exported network and labelled drives"
QUICK: dict[str, Any] = {}
SEEDS = 3
STRETCH = 10
"""Frames that are taken for one scene."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="Exported with confidence.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--label-space", default="camvid-11")
    parser.add_argument("--drives", nargs="+", required=True)
    parser.add_argument("--rare", nargs="+", required=True, help="Classes.")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--frames", type=Path, help="Where kept and random frames stay.")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    space = label_space(given.label_space)
    data = labelled_folder(given.data, space, space, every=False)
    places = [
        place
        for drive in given.drives
        for place, pair in enumerate(data.pairs)
        if pair.image.name.startswith(f"{drive}_")
    ]
    count = max(1, round(given.share * len(places)))
    with tempfile.TemporaryDirectory() as folder:
        out = given.frames or Path(folder)
        model: Path = given.model
        with OnnxRunner(model, 1) as runner:
            counts = _confusions(runner, data, places)
        keep_of(model, data, places, count, out / "kept", given.fps)
        record = KeptRecord.read(out / "kept" / KeptRecord.FILE)
        order = {str(data.pairs[place].image): at for at, place in enumerate(places)}
        kept = [order[one.origin] for one in record.frames]
        drawn = [
            sorted(np.random.default_rng(seed).choice(len(places), count, replace=False).tolist())
            for seed in range(SEEDS)
        ]
        if given.frames is not None:
            for seed, chosen in enumerate(drawn):
                files = [(data.pairs[places[at]].image,) for at in chosen]
                write_list(out / f"random-{seed}.csv", ("image",), files)
    drives = [data.pairs[place].image.name.partition("_")[0] for place in places]
    rare = [space.classes.index(name) for name in given.rare]
    rows = [
        {"frames": name, **_figures(chosen, counts, rare, drives)}
        for name, chosen in [
            ("all", list(range(len(places)))),
            ("kept", kept),
            *((f"random, seed {seed}", chosen) for seed, chosen in enumerate(drawn)),
        ]
    ]
    for row in rows:
        say(f"{row}")
    reasons = [one.reason for one in record.frames]
    return {
        "schema": "edgeuda.benchmark.keep/1",
        "drives": given.drives,
        "played": len(places),
        "budget": count,
        "reference": record.reference,
        "rare": given.rare,
        "reasons": {name: reasons.count(name) for name in sorted(set(reasons))},
        "results": rows,
    }


def keep_of(
    model: Path, data: LabelledFolder, places: Sequence[int], count: int, out: Path, fps: float
) -> None:
    """Play frames of a folder as one drive, of which ``count`` frames are kept in ``out``."""
    reference = reference_of(model) if reference_path(model).exists() else None
    keeper = Keeper(
        out, KeepBudget(count, 1e6), ModelFile(model.name, sha256(model)),
        tuple(data.space.classes), reference,
    )  # fmt: skip
    with OnnxRunner(model, 1, confidence=True) as runner:
        source = Capture(lambda: _frames(data, places, fps), live=False)
        run(runner, source, [], lossless=True, keep=keeper)


def _frames(data: LabelledFolder, places: Sequence[int], fps: float) -> Iterator[Frame]:
    for at, place in enumerate(places):
        path = data.pairs[place].image
        yield Frame(path, path.stem, at, at / fps, read_image(path))


def _confusions(
    runner: OnnxRunner, data: LabelledFolder, places: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Return the confusion matrix of each frame, ``[N, K, K]``."""
    found = []
    for place in places:
        image, label = data.read(place)
        found.append(confusion(label, segment(runner, image), len(data.space)))
    return np.stack(found)


def _figures(
    chosen: Sequence[int], counts: npt.NDArray[np.int64], rare: list[int], drives: list[str]
) -> dict[str, Any]:
    total = counts[list(chosen)].sum(0)
    truth = total.sum(1)
    return {
        "count": len(chosen),
        "rare_share": float(truth[rare].sum() / truth.sum()),
        "stretches": len({at // STRETCH for at in chosen}),
        "miou": 100 * miou_of(total),
        "mean_frame_miou": 100 * float(np.mean([miou_of(counts[at]) for at in chosen])),
        "by_drive": {
            drive: sum(drives[at] == drive for at in chosen) for drive in sorted(set(drives))
        },
    }
