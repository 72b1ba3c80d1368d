"""mIoU of source-only, AdaBN, stage 1 and stage 2 on two real tracks, over several seeds.

    python benchmarks/adaptation_tracks.py carla-to-camvid --data DATA --work WORK --out JSON

DATA holds CamVid and CARLA images as ``camvid/{images,labels}/{train,val}`` and
``carla/{images,labels}/train``; they cannot be redistributed. Every run is resumable: what WORK
holds is not computed again. Target labels are read by the evaluation only.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch

from edgeuda import __version__
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import read_image, read_label, write_image, write_label
from edgeuda.evaluation import Evaluation, evaluate
from edgeuda.files import read_json, sha256, write_json
from edgeuda.labels import SPACES, LabelSpace
from edgeuda.models.checkpoint import load_model, model_file
from edgeuda.models.predictor import Predictor
from edgeuda.training.pipeline import STAGE_NAMES, Options, adapt, train_source
from edgeuda.training.recipe import Recipe, load_recipe
from engines.machine import identity

TRACKS = {
    "carla-to-camvid": ("model.input=[160, 320]", "geometry.crop=[160, 320]"),
    "day-to-dusk": ("model.input=[192, 256]", "geometry.crop=[192, 256]"),
}
"""Sizes by track on top of the recipe; CARLA's images are 80x160, CamVid's 360x480."""
COMMON = (
    "geometry.scales=[1.0, 1.25, 1.5]",
    "stage2.mix_weight=1.0",
    "stage2.class_weights=none",
)

Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def keep(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return image, label


def carla_view(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut CamVid's frame to CARLA's aspect and reduce 11 classes to road, sidewalk, other."""
    table = np.full(256, 2, np.uint8)
    table[[3, 4, 255]] = 0, 1, 255
    image = cv2.resize(image[60:300], (160, 80), interpolation=cv2.INTER_AREA)
    label = cv2.resize(table[label[60:300]], (160, 80), interpolation=cv2.INTER_NEAREST)
    return image, label


def write_folder(
    folder: Path, images: Iterable[Path], space: LabelSpace, change: Change = keep
) -> None:
    """Write images and labels as a folder of this project, unless it is there already."""
    record = folder / "dataset.json"
    if record.exists():
        return
    for path in images:
        label = Path(str(path.with_suffix(".png")).replace("/images/", "/labels/"))
        image, ids = change(read_image(path), read_label(label))
        write_image(folder / "images" / f"{path.stem}.png", image)
        write_label(folder / "labels" / f"{path.stem}.png", ids)
    write_json(record, {"schema": "edgeuda.dataset/1", "label_space": space.to_record()})


def prepare(track: str, data: Path, work: Path) -> dict[str, Path]:
    """Write the track's source, target and evaluation folders; returns them by role."""
    roles = {role: work / role for role in ("source", "target", "develop")}
    camvid = {
        split: sorted((data / f"camvid/images/{split}").glob("*.jpg")) for split in ("train", "val")
    }
    if track == "carla-to-camvid":
        carla = sorted((data / "carla/images/train").glob("*.jpg"))
        write_folder(roles["source"], carla, SPACES["carla-3"])
        write_folder(roles["target"], camvid["train"], SPACES["carla-3"], carla_view)
        write_folder(roles["develop"], camvid["val"], SPACES["carla-3"], carla_view)
    else:
        everything = camvid["train"] + camvid["val"]
        day = [p for p in everything if p.name.startswith(("0006R0", "0016E5"))]
        dusk = [p for p in camvid["train"] if p.name.startswith("0001TP")]
        write_folder(roles["source"], day, SPACES["camvid-11"])
        write_folder(roles["target"], dusk, SPACES["camvid-11"])
        roles["develop"] = roles["target"]
    return roles


def score(model: Path, name: str, folder: Path) -> Evaluation:
    network, spec = load_model(model)
    data = labelled_folder(folder, spec.label_space)
    counts = evaluate(Predictor(network, spec), data, len(spec.label_space))
    file = model_file(model)
    return Evaluation(
        name=name,
        model_file=file.name,
        model_sha256=sha256(file),
        model_kind="checkpoint",
        precision="fp32",
        data_folder=folder.name,
        images=len(data),
        labels_sha256="",
        label_space=spec.label_space,
        confusion=counts,
    )


def run_seed(recipe: Recipe, roles: dict[str, Path], work: Path) -> dict[str, Evaluation]:
    """Train, adapt and evaluate one seed; returns evaluations by stage name."""
    runs = work / f"seed{recipe.seed}"
    train_source(recipe, roles["source"], None, Options(runs / "source", resume=True))
    adapt(
        recipe,
        runs / "source",
        roles["source"],
        roles["target"],
        Options(runs / "adapted", resume=True),
    )
    folders = {"source": runs / "source"} | {s: runs / "adapted" / s for s in recipe.stages}
    scores = {}
    for stage, folder in folders.items():
        record = folder / "evaluation.json"
        name = STAGE_NAMES[stage]
        if not record.exists():
            write_json(record, score(folder, name, roles["develop"]).to_record())
        scores[name] = Evaluation.from_record(read_json(record))
        print(f"seed {recipe.seed} {name}: {100 * scores[name].miou:.1f}", flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("track", choices=TRACKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    roles = prepare(arguments.track, arguments.data, arguments.work)
    recipe = load_recipe(
        arguments.recipe, (*TRACKS[arguments.track], *COMMON, *arguments.overrides)
    )
    runs = {}
    for seed in arguments.seeds:
        seeded = recipe.model_copy(update={"seed": seed})
        runs[seed] = run_seed(seeded, roles, arguments.work)
    stages = {}
    for name in next(iter(runs.values())):
        values = [100 * scores[name].miou for scores in runs.values()]
        stages[name] = {
            "miou": [round(v, 2) for v in values],
            "mean": round(statistics.mean(values), 2),
            "stdev": round(statistics.stdev(values), 2) if len(values) > 1 else None,
            "iou_mean": {
                c: round(100 * statistics.mean(float(s[name].iou[i]) for s in runs.values()), 1)
                for i, c in enumerate(next(iter(runs.values()))[name].label_space.classes)
            },
        }
        print(f"{name}: {stages[name]['mean']} +- {stages[name]['stdev']}")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    write_json(
        arguments.out,
        {
            "schema": "edgeuda.tracks/1",
            "track": arguments.track,
            "split": "develop",
            "seeds": arguments.seeds,
            "stages": stages,
            "recipe": recipe.model_dump(mode="json"),
            "recipe_sha256": recipe.digest(),
            "commit": commit,
            "versions": {"edgeuda": __version__, "torch": torch.__version__},
            "machine": identity(),
        },
    )


if __name__ == "__main__":
    main()
