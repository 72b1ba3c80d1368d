"""Methods and seeds on a track of real images: what each gains over its control.

DATA holds CamVid and CARLA images as ``camvid/{images,labels}/{train,val}`` and
``carla/{images,labels}/train``; they cannot be redistributed. ``WORK/comparison.json`` is the
record that `edgeuda report` reads, ``WORK/networks/ROW-SEED.safetensors`` are the networks. What
``WORK/runs`` holds is not computed again, so an interrupted call goes on, and seeds can be run by
several processes and collected by a last call with all of them. Target labels are read by the
evaluation and the oracle only.

    python benchmarks/adaptation_tracks.py --track day-to-dusk --seed 0 --out WORK
    ... --rows source,adabn,control,edge,distil
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from edgeuda.data.images import read_image, read_label, write_image, write_label
from edgeuda.files import write_json, write_text
from edgeuda.labels import SPACES, LabelSpace
from edgeuda.records.dataset import DatasetRecord
from edgeuda.street import write_dataset
from edgeuda.training.compare import PlanRow, Track, compare, load_plan, markdown
from engines.machine.hardware import identity
from engines.report.plots import comparison, confidence_file

NEEDS = "extra train, and images of CamVid and CARLA (--data)"
QUICK = {
    "seeds": [0],
    "rows": "source",
    "overrides": ["source.steps=2", "model.width=0.125", "model.pretrained=none"],
}
SIZES = {
    "carla-to-camvid": "[96, 192]",
    "day-to-dusk": "[352, 480]",  # poles and signs are a pixel wide at half of it
    "day-to-dusk-held": "[352, 480]",
    "streets-to-camvid": "[160, 224]",
    "streets-and-carla-to-camvid": "[160, 224]",
}
"""Rows and columns of the network's input; CARLA's images are 80x160, CamVid's 360x480."""

LARGER = {
    "carla-to-camvid": "[160, 320]",
    "day-to-dusk": "[352, 480]",
    "day-to-dusk-held": "[352, 480]",
    "streets-to-camvid": "[224, 320]",
    "streets-and-carla-to-camvid": "[224, 320]",
}
"""Rows and columns at which the large network of stage ``distil`` learns and labels."""

SOURCE = {
    "day-to-dusk": ("source.steps=1200", "source.batch=4"),
    "day-to-dusk-held": ("source.steps=1200", "source.batch=4"),
    "streets-to-camvid": ("source.steps=1000",),
    "streets-and-carla-to-camvid": ("source.steps=1000",),
}
"""How long a source network learns, if not as the recipe says: 500 steps are few for 11 classes."""

RENDERED = 800
"""Source images of streets-to-camvid."""

RAIN = LabelSpace.from_record(
    {key: SPACES["camvid-11"].to_record()[key][:9] for key in ("classes", "palette")}
    | {"name": "camvid-9"}
)
"""Classes of CARLA's rainy street: CamVid's, without pedestrian and bicyclist."""

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
) -> Path:
    """Write images and labels as a folder of this project, unless it is there already."""
    record = folder / DatasetRecord.FILE
    if not record.exists():
        for path in images:
            label = Path(str(path.with_suffix(".png")).replace("/images/", "/labels/"))
            image, ids = change(read_image(path), read_label(label))
            write_image(folder / "images" / f"{path.stem}.png", image)
            write_label(folder / "labels" / f"{path.stem}.png", ids)
        DatasetRecord(space.to_record()).write(record)
    return folder


def prepare(track: str, data: Path, work: Path, streets: str = "simulator") -> Track:
    """Write the track's folders and return them."""
    camvid = {
        split: sorted((data / f"camvid/images/{split}").glob("*.jpg")) for split in ("train", "val")
    }
    space = SPACES["carla-3" if track == "carla-to-camvid" else "camvid-11"]
    if track.startswith("day-to-dusk"):
        everything = camvid["train"] + camvid["val"]
        day = [p for p in everything if p.name.startswith(("0006R0", "0016E5"))]
        dusk = [p for p in camvid["train"] if p.name.startswith("0001TP")]
        source = write_folder(work / "source", day, space)
        target = write_folder(work / "target", dusk, space)
        if track == "day-to-dusk-held":  # labels from every fourth frame, scores on the others
            pool = write_folder(work / "pool", dusk[::4], space)
            held = [path for path in dusk if path not in dusk[::4]]
            return Track(source, target, write_folder(work / "held", held, space), labelled=pool)
        return Track(source, target, target, write_folder(work / "both", day + dusk, space))
    change = keep
    if track == "carla-to-camvid":
        change = carla_view
        carla = sorted((data / "carla/images/train").glob("*.jpg"))
        source = write_folder(work / "source", carla, space)
    else:
        source = work / "source"
        write_dataset(source, streets, RENDERED, 0, 192, 256, space)
    if track == "streets-and-carla-to-camvid":
        rain = sorted((data / "carla_rain/images").glob("*.jpg"))
        return Track(
            [source, write_folder(work / "rain", rain, RAIN)],
            write_folder(work / "target", camvid["train"], space),
            write_folder(work / "develop", camvid["val"], space),
            work / "target",
            source_weights=(2.0, 1.0),
        )
    target = write_folder(work / "target", camvid["train"], space, change)
    return Track(
        source, target, write_folder(work / "develop", camvid["val"], space, change), target
    )


def chosen_rows(variants: list[PlanRow], rows: str | None) -> list[PlanRow]:
    """Return the rows of a plan that are asked for, by name or its beginning, whatever the case."""
    if rows is None:
        return variants
    found = []
    for row in rows.split(","):
        names = [v.name for v in variants if v.name.lower().startswith(row.strip().lower())]
        if not names:
            known = ", ".join(variant.name for variant in variants)
            sys.exit(f"--rows {row}: expected rows of the plan, which are {known}")
        exact = [name for name in names if name.lower() == row.strip().lower()]
        found += [v for v in variants if v.name == (exact or names)[0] and v not in found]
    return found


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--track", choices=SIZES, required=True)
    parser.add_argument("--rows", help="Rows of the plan, separated by commas; all by default.")
    parser.add_argument("--seed", type=int, action="append", dest="seeds")
    parser.add_argument("--work", type=Path, required=True, help="Folder for everything made.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="lite")
    parser.add_argument("--plan", default="adaptation")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument(
        "--split", choices=("develop", "target"), default="develop",
        help="Score on the develop images, or on the target frames themselves, to see what a "
        "method did to the frames that it saw.",
    )  # fmt: skip
    parser.add_argument("--streets", default="simulator", help="Domain of the rendered source.")


def overrides_of(given: argparse.Namespace) -> tuple[str, ...]:
    """Return the settings of a track's size and length, and after them those that were given."""
    size = SIZES[given.track]
    common = (f"model.input={size}", f"geometry.crop={size}", "geometry.scales=[1.0, 1.25, 1.5]")
    larger = f"distil.large.input={LARGER[given.track]}"
    return (*common, larger, *SOURCE.get(given.track, ()), *given.overrides)


def measure(given: argparse.Namespace) -> dict:
    out, seeds = given.work, given.seeds or [0, 1, 2]
    folders = prepare(given.track, given.data, out, given.streets)
    if given.split == "target":
        folders = replace(folders, data=folders.target)
    variants = chosen_rows(load_plan(given.plan, given.recipe, overrides_of(given)), given.rows)
    record = compare(variants, folders, seeds, out, report=say, keep=out / "networks")
    whole = record.to_record() | {
        "track": given.track,
        "split": given.split,
        **({"streets": given.streets} if given.track.startswith("streets") else {}),
        "plan": given.plan,
        "recipes": {variant.name: variant.recipe.model_dump(mode="json") for variant in variants},
        "machine": identity(),
    }
    write_json(out / "comparison.json", whole)
    write_text(out / "comparison.svg", comparison(record))
    write_text(out / "confidence.svg", confidence_file(record))
    say(markdown(record))
    return whole


def main() -> None:
    """Run without the envelope of `python -m benchmarks`; here ``--out`` is the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    options(parser)
    given = ["--work" if one == "--out" else one for one in sys.argv[1:]]
    if "--data" not in given:
        given += ["--data", "../shared/data"]
    measure(parser.parse_args(given))


if __name__ == "__main__":
    main()
