"""A sweep over deployable variants of networks: made, scored and timed on the same images.

Every product is a file that appears whole, so an interrupted sweep goes on where it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.variants import PLAN, Sweep, Variant, make
from edgeuda.boundary import CITYSCAPES_RATIO, BoundaryCounts
from edgeuda.data.images import LabelMap, read_image, write_label
from edgeuda.errors import OutputExistsError
from edgeuda.evaluation import Confusion, Evaluation, agreement, evaluate, miou_of
from edgeuda.files import read_json, sha256, sha256_of, write_atomic, write_json
from edgeuda.labels import LabelSpace
from engines.bench import bench
from engines.bench_record import SCHEMA as BENCH
from engines.opening import open_runner
from engines.pareto import Budget, Candidate, choose, dominators
from engines.runner import Runner, segment
from engines.uncertainty import Estimate, miou_difference, miou_interval

SCHEMA = "edgeuda.tradeoff/1"
WORST, TYPICAL = 4, 2
"""Frames shown: those on which the chosen variant is worst, and those around its median."""
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Score:
    """What a variant says of the images.

    Attributes:
        images: ``[N, K, K]`` confusion matrices, rows truth or, without labels, what FP32 of the
            network's largest size says.
        boundary: Boundary mIoU, 0 to 1; None without labels.
        agreement: Share of pixels with FP32's class; None where FP32 was not measured.
    """

    images: npt.NDArray[np.int64]
    boundary: float | None
    agreement: float | None


def sweep(what: Sweep, out: Path, budget: Budget, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Make, score and time all variants, and choose one; returns the record.

    Args:
        what: See `Sweep`.
        out: Folder; products of an earlier sweep of the same plan are used again.
        budget: What is allowed. It may differ from an earlier sweep's.
        say: Told what is being done.

    Raises:
        OutputExistsError: If the folder holds the products of another plan.
        EdgeudaError: If a variant cannot be made, scored or timed.
    """
    variants = what.variants()
    _require_same_plan(out, what.plan())
    files: dict[Variant, Path] = {}
    for number, variant in enumerate(variants, 1):
        say(f"{number} of {len(variants)}: making {variant.name}")
        files[variant] = make(variant, what, out)
    scores: dict[Variant, Score] = {}
    for number, variant in enumerate(variants, 1):
        say(f"{number} of {len(variants)}: scoring {variant.name}")
        scores[variant] = _score(variant, files, what, out)
    say(f"timing {len(variants)} variants in turns")
    timings = _timings(files, what, out)
    record = _record(files, scores, timings, what, budget)
    accuracies = {row["name"]: row["accuracy"]["value"] for row in record["variants"]}
    taken = record["choice"]["name"] or max(accuracies, key=lambda name: accuracies[name])
    chosen = next(variant for variant in variants if variant.name == taken)
    say("drawing frames, the worst among them")
    _draw_frames(chosen, files, scores, what, out)
    write_json(out / "tradeoff.json", record)
    return read_json(out / "tradeoff.json", SCHEMA)


def _require_same_plan(out: Path, plan: dict[str, Any]) -> None:
    path = out / ".plan.json"
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            msg = f"{out}: holds other files; choose another --out"
            raise OutputExistsError(msg)
        write_json(path, plan)
        return
    earlier = read_json(path, PLAN)
    changed = [key for key in plan if plan[key] != earlier.get(key)]
    if changed == ["networks"] and earlier["networks"].items() <= plan["networks"].items():
        write_json(path, plan)  # networks may be added
        return
    if changed:
        msg = (
            f"{out}: holds a sweep with other {', '.join(changed)}; nothing was overwritten. "
            "Choose another --out"
        )
        raise OutputExistsError(msg)


def _score(variant: Variant, files: Mapping[Variant, Path], what: Sweep, out: Path) -> Score:
    """Return a variant's scores, counted unless an earlier sweep has."""
    path = files[variant]
    record_path = out / "results" / f"{variant.stem}-{variant.backend}.json"
    counts_path = record_path.with_suffix(".images.npz")
    if counts_path.exists():
        with np.load(counts_path, allow_pickle=False) as saved:
            if str(saved["sha256"]) == sha256(path):
                boundary, same = (float(saved[key]) for key in ("boundary", "agreement"))
                return Score(
                    saved["images"],
                    None if np.isnan(boundary) else boundary,
                    None if np.isnan(same) else same,
                )
    reference = _reference(variant, files)
    images: list[Confusion] = []
    equal: list[float] = []
    with ExitStack() as stack:
        runner = stack.enter_context(_opened(variant, files, what))
        fp32 = stack.enter_context(_opened(reference, files, what))
        spec = runner.spec
        classes = len(spec.label_space)

        def predict(image: npt.NDArray[np.uint8]) -> LabelMap:
            labels = segment(runner, image)
            if reference != variant:
                equal.append(agreement(labels, segment(fp32, image)))
            return labels

        outlines = None
        if what.labelled is None:
            truth = stack.enter_context(_opened(_stand_in(variant, files), files, what))
            pairs = ((image, segment(truth, image)) for image in map(read_image, what.frames))
            evaluate(predict, pairs, classes, each=images.append)
        else:
            outlines = BoundaryCounts(classes, CITYSCAPES_RATIO)
            evaluate(predict, what.labelled, classes, each=images.append, outlines=outlines)
        precision = runner.precision
    score = Score(
        np.stack(images),
        None if outlines is None or np.isnan(outlines.miou) else outlines.miou,
        float(np.mean(equal)) if equal else None,
    )
    if what.labelled is not None:
        assert outlines is not None
        evaluation = Evaluation(
            variant.name, str(path), sha256(path), "onnx", precision, str(what.labelled.root),
            len(what.labelled), what.labelled.labels_sha256(), what.labelled.space,
            score.images.sum(0), boundary=outlines.to_record(what.labelled.space),
        )  # fmt: skip
        write_json(record_path, evaluation.to_record())

    def write(name: Path) -> None:
        figures = (score.boundary, score.agreement)
        boundary, same = (np.float64(np.nan if v is None else v) for v in figures)
        with name.open("wb") as file:
            np.savez_compressed(
                file, images=score.images, boundary=boundary, agreement=same, sha256=sha256(path)
            )

    write_atomic(counts_path, write)
    return score


def _reference(variant: Variant, files: Mapping[Variant, Path]) -> Variant:
    """Return the FP32 variant of the same network and size; itself if there is none."""
    same = [
        one
        for one in files
        if (one.network, one.size, one.precision) == (variant.network, variant.size, "fp32")
    ]
    order = [one for one in same if one.head in ("labels", "logits", "scores")] or same
    return order[0] if order else variant


def _stand_in(variant: Variant, files: Mapping[Variant, Path]) -> Variant:
    """Return what counts as the truth without labels: FP32 of the network at its largest size."""
    same = [one for one in files if one.network == variant.network]
    sizes = {one.size for one in same if one.precision == "fp32"} or {one.size for one in same}
    largest = max(sizes, key=lambda size: size[0] * size[1])
    return _reference(next(one for one in same if one.size == largest), files)


def _opened(variant: Variant, files: Mapping[Variant, Path], what: Sweep) -> Runner:
    return open_runner(files[variant], what.threads, variant.device)


def _timings(files: Mapping[Variant, Path], what: Sweep, out: Path) -> dict[str, Any]:
    """Return the benchmark of all variants, run unless there is one of these files."""
    path = out / "results" / "bench.json"
    names = [variant.name for variant in files]
    if path.exists():
        earlier = read_json(path, BENCH)
        same = [(m["name"], m["sha256"]) for m in earlier["models"]] == [
            (variant.name, sha256(file)) for variant, file in files.items()
        ]
        enough = earlier["method"]["samples"] >= what.load.samples
        if same and enough and earlier["method"]["complete"]:
            return earlier
        kept = path.with_name("bench-earlier.json")
        path.rename(kept)  # nothing measured is lost
    bench(
        list(files.values()), what.frames, path, load=what.load, threads=what.threads,
        device=[variant.device for variant in files], repeats=what.repeats, names=names,
    )  # fmt: skip
    return read_json(path, BENCH)


def _record(
    files: Mapping[Variant, Path],
    scores: Mapping[Variant, Score],
    timings: dict[str, Any],
    what: Sweep,
    budget: Budget,
) -> dict[str, Any]:
    measured = {model["name"]: model for model in timings["models"]}
    tail = max(timings["models"][0]["stages"]["total"]["percentiles"], key=float)
    measure = "mIoU" if what.labelled is not None else "mean IoU with FP32"
    accuracy: dict[Variant, float] = {v: miou_of(scores[v].images.sum(0)) for v in files}
    latency = {v: measured[v.name]["stages"]["total"]["percentiles"] for v in files}
    candidates = [
        Candidate(v.name, v.precision, v.network, latency[v]["50"], latency[v][tail], accuracy[v])
        for v in files
    ]
    by_name = {variant.name: variant for variant in files}

    def difference(one: str, other: str) -> Estimate | None:
        if what.labelled is None:
            return None
        return miou_difference(scores[by_name[one]].images, scores[by_name[other]].images)

    choice = choose(candidates, budget, f"p{tail}", measure, difference)
    front = dominators([(one.latency_ms, one.accuracy) for one in candidates])
    rows = []
    for candidate, by in zip(candidates, front, strict=True):
        variant = by_name[candidate.name]
        score, reference = scores[variant], _reference(variant, files)
        network = next(one for one in what.networks if one.name == variant.network)
        to_fp32 = None
        if reference != variant and what.labelled is not None:
            to_fp32 = asdict(miou_difference(score.images, scores[reference].images))
        rows.append(
            {
                **asdict(variant),
                "name": variant.name,
                "width": network.width,
                "file": str(files[variant].name),
                "sha256": sha256(files[variant]),
                "accuracy": asdict(miou_interval(score.images)),
                "boundary_miou": score.boundary,
                "agreement_with_fp32": score.agreement,
                "change_from_fp32": to_fp32,
                "total_ms": latency[variant],
                "keeps_deadline": budget.fast(candidate),
                "accurate_enough": budget.accurate(candidate),
                "dominated_by": None if by is None else candidates[by].name,
            }
        )
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "measure": measure,
        "data": None
        if what.labelled is None
        else {"folder": str(what.labelled.root), "images": len(what.labelled)},
        "tail": tail,
        "budget": asdict(budget),
        "choice": asdict(choice),
        "variants": rows,
        "machine": timings["machine"],
        "intervals": "95 %, block bootstrap over the images in their order; they do not cover "
        "another drive or another training",
    }


def telling_frames(images: npt.NDArray[np.int64]) -> dict[int, str]:
    """Return images to look at, by index, and why: those with the least mIoU, worst first.

    After them come some from the middle, so that nobody takes the worst for the usual.
    """
    scores = {i: miou_of(one) for i, one in enumerate(images)}
    order = sorted((i for i in scores if not np.isnan(scores[i])), key=lambda i: scores[i])
    middle = max(WORST, (len(order) - TYPICAL) // 2)
    places = dict.fromkeys(order[:WORST], "among the worst")
    places |= dict.fromkeys(order[middle : middle + TYPICAL], "typical")
    return {i: f"{place}, mIoU {100 * scores[i]:.0f} %" for i, place in places.items()}


def _draw_frames(
    chosen: Variant,
    files: Mapping[Variant, Path],
    scores: Mapping[Variant, Score],
    what: Sweep,
    out: Path,
) -> None:
    """Write label maps of telling frames: of the choice, its FP32 form, other networks, truth."""
    shown = list(dict.fromkeys([_reference(chosen, files), chosen]))
    for network in reversed(what.networks):
        forms = [one for one in files if one.network == network.name]
        if network.name != chosen.network:
            shown.insert(0, next((f for f in forms if f.size == chosen.size), forms[0]))
    paths = (
        list(what.frames) if what.labelled is None else [pair.image for pair in what.labelled.pairs]
    )
    telling = telling_frames(scores[chosen].images)
    for earlier in (out / "results").glob("frames-*"):  # of another choice
        shutil.rmtree(earlier)
    for number, variant in enumerate(shown):
        with _opened(variant, files, what) as runner:
            labels = {index: segment(runner, read_image(paths[index])) for index in telling}
            space = runner.spec.label_space
        folder = out / "results" / f"frames-{number}"
        _write_predictions(folder, variant.name, files[variant], space, labels, paths, telling)
    if what.labelled is not None:
        labels = {index: what.labelled.read(index)[1] for index in telling}
        folder, space = out / "results" / "frames-truth", what.labelled.space
        _write_predictions(folder, "ground truth", None, space, labels, paths, telling)


def _write_predictions(
    folder: Path,
    name: str,
    model: Path | None,
    space: LabelSpace,
    labels: Mapping[int, LabelMap],
    paths: Sequence[Path],
    notes: Mapping[int, str],
) -> None:
    file = {"file": "labels", "sha256": sha256_of([])}
    if model is not None:
        file = {"file": str(model), "sha256": sha256(model)}
    entries = []
    for index, label in labels.items():
        path = folder / f"{index:06d}.png"
        write_label(path, label)
        frame = os.path.relpath(paths[index].resolve(), folder.resolve())
        entries.append({"frame": frame, "labels": path.name, "note": notes[index]})
    record = {
        "schema": "edgeuda.predictions/1", "name": name, "model": file,
        "label_space": space.to_record(), "frames": entries,
    }  # fmt: skip
    write_json(folder / "predictions.json", record)
