"""What `run --adapt-bn` gains on dusk, what it costs by day, and which networks its rule refuses.

--data holds CamVid as ``camvid/{images,labels}/{train,val}`` and ``camvid/images/test``. The drive
that is adapted to is the second minute at dusk, of which there are no labels; scored is the first
one: its first half to choose by (develop), its second half is held out. --source are exported
networks that were trained by day, one per seed, and --beside NAME ONNX... are what a workstation
made of each of them, which saw the frames that are scored, without labels. --one-drive are networks
that were trained on the drive 0016E5 alone: by day they drive the first half of 0006R0 and are
scored on the second; to choose by, the other way round. All are exported with head scores.

--sweep varies layers, prior and number of frames, on the develop halves only. --rule makes
candidates of good and of spoiled drives, and holds what the rule says of them against the labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import say
from benchmarks.watch import changes
from calibration.batch_norm import adapt_batch_norm
from calibration.observe import Observer
from calibration.source import load_fp32
from calibration.stream import DETAIL, PRIOR, shift_of
from edgeuda.accuracy.evaluation import confusion, iou_of, miou_of
from edgeuda.data.folders import spread
from edgeuda.data.footage import Frame
from edgeuda.data.images import Image, LabelMap, read_image, read_label, resize_image, resize_label
from edgeuda.decision import StreamDemands, enough_seen, judge_stream
from edgeuda.records.stream_adaptation import StreamShift
from edgeuda.spec import ModelSpec
from engines.live.sample import FRAMES, Sample, Sampler
from engines.live.sinks import Result

NEEDS = "extras quantize and cpu, exported networks, and images of CamVid (--data)"
QUICK: dict[str, Any] = {"draws": 1}
PRIORS = (0.0, 16.0, 64.0, 256.0)
COUNTS = (16, 32, 64)
"""Frames that are kept, half of them to estimate on."""
LAYERS = {"detail path": DETAIL, "all": ("*",)}
THRESHOLDS = (0.0, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99)
Change = Callable[[Image], Image]


@dataclass(frozen=True)
class Drive:
    """Frames at one per second, and labels of those that have any."""

    images: list[Image]
    labels: list[LabelMap]

    def part(self, begin: float, end: float) -> Drive:
        """Return a contiguous part, from and to a share of the frames."""
        a, b = (round(one * len(self.images)) for one in (begin, end))
        return Drive(self.images[a:b], self.labels[a:b])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--source", type=Path, action="append", default=[])
    parser.add_argument("--beside", nargs="+", action="append", default=[])
    parser.add_argument("--one-drive", type=Path, action="append", default=[])
    parser.add_argument("--draws", type=int, default=3, help="Samples of the drive per setting.")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--rule", action="store_true")
    parser.add_argument("--change", action="append", help="Of --rule; all by default.")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    camvid = given.data / "camvid"
    dusk, unseen = drive(camvid, "0001TP", "train"), drive(camvid, "0001TP", "test")
    day, far = drive(camvid, "0006R0", "train"), drive(camvid, "Seq05VD", "test")
    trained = drive(camvid, "0016E5", "train")
    normal = Drive(spread(trained.images, 4), [])
    develop, held = dusk.part(0, 0.5), dusk.part(0.5, 1)
    first, second = day.part(0, 0.5), day.part(0.5, 1)
    found: dict[str, Any] = {
        "schema": "edgeuda.benchmark.stream-adaptation/1",
        "prior": PRIOR,
        "frames": FRAMES,
        "demands": asdict(StreamDemands()),
        "drives": {"dusk, driven": len(unseen.images), "dusk, develop": len(develop.images),
                   "dusk, held out": len(held.images), "day, driven": len(first.images),
                   "day, scored": len(second.images), "another day, driven": len(far.images)},
    }  # fmt: skip
    if given.sweep:
        found["sweep"] = [
            {"network": path.stem, "drive": where, **row}
            for path in (*given.source, *given.one_drive)
            for where, driven, scored in (
                ("dusk", unseen, develop),
                *([("day", second, first)] if path in given.one_drive else []),
            )
            for row in sweep(Network(path, normal), driven, scored, given.draws)
        ]
    if given.rule:
        found["rule"] = [
            {"network": path.stem, **row}
            for path in (*given.source, *given.one_drive)
            for row in rule(
                Network(path, normal),
                {"dusk": (unseen, develop), "day": (first, second)},
                given.change,
            )
        ]
        found["rule_summary"] = summary(found["rule"])
    rows = []
    for path in given.source:
        network = Network(path, normal)
        rows.append({
            "network": path.stem, "drive": "dusk",
            **adapted(network, unseen, {"held": held, "develop": develop}),
        })  # fmt: skip
        rows.append({"network": path.stem, "drive": "another day", **adapted(network, far, {})})
    for path in given.one_drive:
        network = Network(path, normal)
        to_dusk = {"held": held, "develop": develop, "day": second}
        rows.append({"network": path.stem, "drive": "dusk", **adapted(network, unseen, to_dusk)})
        rows.append(
            {"network": path.stem, "drive": "day", **adapted(network, first, {"held": second})}
        )
    for path in (*given.source, *given.one_drive):  # as stage adabn does it, see docs/int8.md
        network = Network(path, normal)
        for name, one in (("the drive", unseen), ("the frames that are scored", dusk)):
            seen = [fed(image, network.spec)[None] for image in one.images]
            after = network.candidate(seen, 0.0, ("*",), batch=8)
            scored = {"held": network.score(held, after), "develop": network.score(develop, after)}
            rows.append(
                {"network": path.stem, "drive": "dusk", "after": scored}
                | {"workstation": f"AdaBN on {name}"}
            )
            say(f"{path.stem}: AdaBN on {name} {scored['held']['miou']:.2f}")
    for name, *paths in given.beside:
        for path in map(Path, paths):
            made = Network(path, normal)
            scored = {"held": made.score(held), "develop": made.score(develop)}
            rows.append(
                {"network": path.stem, "drive": "dusk", "workstation": name, "after": scored}
            )
            say(f"{rows[-1]['network']}: {name} {scored['held']['miou']:.2f}")
    found["results"] = rows
    return found


class Network:
    """An exported network, what it makes of frames, and what it called the acceptance frames."""

    def __init__(self, path: Path, normal: Drive) -> None:
        self.path = path
        self.graph, self.spec = load_fp32(path)
        self.before = Observer(self.graph, 1)
        self.normal = {f"{n}": fed(image, self.spec) for n, image in enumerate(normal.images)}
        self.expected = {n: self.before(one[None]).labels for n, one in self.normal.items()}

    def candidate(
        self, frames: Sequence[Image], prior: float, layers: Sequence[str] = DETAIL, batch: int = 4
    ) -> Observer:
        """Return the network with the statistics of frames."""
        graph, _ = adapt_batch_norm(
            self.graph, frames, str(self.path), batch=batch, prior=prior, layers=layers, threads=1
        )
        return Observer(graph, 1)

    def score(
        self, drive: Drive, after: Observer | None = None, change: Change | None = None
    ) -> dict[str, Any]:
        """Return mIoU and IoU of each class in percent; None of a class that there is not."""
        observer, classes = after or self.before, len(self.spec.label_space)
        joint = np.zeros((classes, classes), np.int64)
        for image, label in zip(drive.images, drive.labels, strict=True):
            shown = image if change is None else change(image)
            labels = observer(fed(shown, self.spec)[None]).labels
            joint += confusion(label, resize_label(labels, *label.shape), classes)
        ious = [None if np.isnan(one) else round(100 * float(one), 2) for one in iou_of(joint)]
        return {"miou": round(100 * miou_of(joint), 3), "classes": ious}

    def shift(self, after: Observer, frames: Sequence[Image]) -> StreamShift:
        """Hold a candidate beside the network."""
        return shift_of(
            self.before, after, frames, len(self.spec.label_space), self.normal, self.expected
        )


def drive(camvid: Path, name: str, split: str) -> Drive:
    """Return a drive's frames of a split, and their labels where there are any."""
    paths = sorted((camvid / "images" / split).glob(f"{name}_*.jpg"))
    files = [camvid / "labels" / split / f"{path.stem}.png" for path in paths]
    labels = [np.asarray(read_label(file), np.uint8) for file in files if file.exists()]
    return Drive([read_image(path) for path in paths], labels)


def fed(image: Image, spec: ModelSpec) -> Image:
    return resize_image(image, spec.preprocessing.height, spec.preprocessing.width)


def sampled(
    network: Network,
    driven: Drive,
    count: int = FRAMES,
    seed: int = 0,
    change: Change | None = None,
) -> Sample:
    """Return what a vehicle would have kept of a drive."""
    sampler = Sampler(count, network.spec.preprocessing, seed=seed)
    empty = np.zeros((1, 1), np.uint8)
    for n, image in enumerate(driven.images):
        shown = image if change is None else change(image)
        frame = Frame(Path("drive"), f"{n}", n, float(n), shown)
        sampler.write(Result(frame, float(n), empty, "", time_ns=10**9 * n))
    return sampler.sample()


def sweep(network: Network, driven: Drive, develop: Drive, draws: int) -> list[dict[str, Any]]:
    """Return what each prior and number of frames gains on the develop half, over the draws."""
    rows = []
    nothing = network.score(develop)["miou"]
    for count in COUNTS:
        samples = [sampled(network, driven, count, seed) for seed in range(draws)]
        if count >= len(driven.images):
            samples = samples[:1]  # nothing is left to chance
        for name, layers in LAYERS.items():
            for prior in PRIORS:
                gains = [
                    network.score(develop, network.candidate(one.estimating, prior, layers))["miou"]
                    - nothing
                    for one in samples
                ]
                rows.append(
                    {"frames": count, "layers": name, "prior": prior}
                    | {"gains": [round(one, 3) for one in gains]}
                )
                say(f"{network.path.stem}: {rows[-1]}")
    return rows


def spoiled() -> dict[str, Change | None]:
    """What is done to a drive, by name: a light that is another, a lens, and what is no street."""
    noise = np.random.default_rng(0)

    def black(image: Image) -> Image:
        return np.asarray(noise.integers(0, 8, image.shape), np.uint8)

    def noisy(image: Image) -> Image:
        return np.asarray(np.clip(image + noise.normal(0, 40, image.shape), 0, 255), np.uint8)

    def over(image: Image) -> Image:
        return np.asarray(np.clip(2.5 * image.astype(float) + 40, 0, 255), np.uint8)

    def dark(image: Image) -> Image:
        return np.asarray(0.25 * image, np.uint8)

    found: dict[str, Change | None] = {**changes(), "as it is": None}
    return found | {
        "dark, x0.25": dark, "overexposed": over, "noise": noisy, "covered": black,
    }  # fmt: skip


def rule(
    network: Network, drives: dict[str, tuple[Drive, Drive]], wanted: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Return candidates of good and of spoiled drives: what the rule says, and what labels say.

    The gains are on the drive as it was driven, spoiled or not; on it as it is; and on the other.
    """
    rows = []
    plain_of = {name: network.score(scored)["miou"] for name, (_, scored) in drives.items()}
    for where, (driven, scored) in drives.items():
        plain = plain_of[where]
        (other,) = (name for name in drives if name != where)
        for how, change in spoiled().items():
            if wanted is not None and how not in wanted:
                continue
            sample = sampled(network, driven, change=change)
            so = plain if change is None else network.score(scored, None, change)["miou"]
            for name, frames, prior, layers in (
                ("default", sample.estimating, PRIOR, DETAIL),
                ("all layers, no prior", sample.estimating, 0.0, ("*",)),
                ("4 frames, no prior", sample.estimating[:4], 0.0, DETAIL),
            ):
                after = network.candidate(frames, prior, layers)
                shift = network.shift(after, sample.judging)
                as_is = network.score(scored, after)["miou"] - plain
                rows.append({
                    "drive": where, "change": how, "candidate": name,
                    "gain_as_driven": round(
                        as_is if change is None
                        else network.score(scored, after, change)["miou"] - so, 3,
                    ),
                    "gain_as_it_is": round(as_is, 3),
                    "gain_elsewhere": round(
                        network.score(drives[other][1], after)["miou"] - plain_of[other], 3
                    ),
                    "refused": list(judge_stream(shift, StreamDemands())),
                    "shift": asdict(shift),
                })  # fmt: skip
                say(f"{network.path.stem}: { {k: v for k, v in rows[-1].items() if k != 'shift'} }")
    return rows


def is_worse(row: dict[str, Any]) -> bool:
    """Whether a candidate should not be taken, by the labels.

    It loses more than 0.3 points on the drive as it was driven, or more than 3 on it as it is or on
    the other drive.
    """
    return bool(
        row["gain_as_driven"] < -0.3 or row["gain_as_it_is"] < -3 or row["gain_elsewhere"] < -3
    )


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count what the rule would do with candidates that are worse, and with others, by threshold.

    As the other threshold each has the default.
    """
    found = []
    usual = StreamDemands()
    for key in ("agreement", "acceptance"):
        for least in THRESHOLDS:
            demands = replace(usual, **{key: least})
            counted = {"worse, taken": 0, "worse, refused": 0, "other, taken": 0}
            counted["other, refused"] = 0
            for row in rows:
                refused = judge_stream(StreamShift(**row["shift"]), demands)
                which = "worse" if is_worse(row) else "other"
                counted[f"{which}, {'refused' if refused else 'taken'}"] += 1
            found.append({"threshold": key, "least": least, **counted})
    return found


def adapted(network: Network, driven: Drive, scored: dict[str, Drive]) -> dict[str, Any]:
    """Adapt as the vehicle does, and return what it decides and what labels say."""
    sample = sampled(network, driven)
    after = network.candidate(sample.estimating, PRIOR)
    shift = network.shift(after, sample.judging)
    demands = StreamDemands()
    found = {
        "refused": [*enough_seen(sample.about, demands), *judge_stream(shift, demands)],
        "shift": asdict(shift),
        "nothing": {name: network.score(one) for name, one in scored.items()},
        "after": {name: network.score(one, after) for name, one in scored.items()},
    }  # fmt: skip
    for name in scored:
        before, now = (found[which][name]["miou"] for which in ("nothing", "after"))
        say(
            f"{network.path.stem}, {name}: {before:.2f} -> {now:.2f}, {found['refused'] or 'taken'}"
        )
    return found
