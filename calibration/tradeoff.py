"""A sweep over deployable variants of networks: made, scored and timed on the same images.

Every product is a file that appears whole, so an interrupted sweep goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.telling_frames import draw_frames
from calibration.variants import Sweep, Variant, make
from edgeuda.accuracy.boundary import CITYSCAPES_RATIO, BoundaryCounts
from edgeuda.accuracy.evaluation import Confusion, Evaluation, agreement, evaluate, miou_of
from edgeuda.accuracy.uncertainty import miou_difference, miou_interval
from edgeuda.data.images import LabelMap, read_image
from edgeuda.decision import Candidate, choose, dominators
from edgeuda.files import alone, now_utc, require_same_plan, sha256, write_json, write_npz
from edgeuda.records.bench import BenchRecord, samples_path
from edgeuda.records.tradeoff import Budget, Estimate, ScoredImages, TradeoffRecord, VariantRow
from engines.bench.measure import bench
from engines.opening import open_runner
from engines.runner import Runner, segment

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class VariantScore:
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


def sweep(what: Sweep, out: Path, budget: Budget, *, say: Say = lambda _: None) -> TradeoffRecord:
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
    require_same_plan(out, what.plan(), "a sweep", growing=("networks",))
    with alone(out):
        return _sweep(what, out, budget, say)


def _sweep(what: Sweep, out: Path, budget: Budget, say: Say) -> TradeoffRecord:
    variants = what.variants()
    files: dict[Variant, Path] = {}
    for number, variant in enumerate(variants, 1):
        say(f"{number} of {len(variants)}: making {variant.name}")
        files[variant] = make(variant, what, out)
    scores: dict[Variant, VariantScore] = {}
    for number, variant in enumerate(variants, 1):
        say(f"{number} of {len(variants)}: scoring {variant.name}")
        scores[variant] = _score(variant, files, what, out)
    say(f"timing {len(variants)} variants in turns")
    timings = _timings(files, what, out)
    record = _record(files, scores, timings, what, budget)
    best = max(record.variants, key=lambda row: row.accuracy.value).name
    chosen = next(variant for variant in variants if variant.name == (record.taken or best))
    say("drawing frames, the worst among them")
    shown = [(one.name, files[one], one.device) for one in _beside(chosen, files, what)]
    draw_frames(shown, scores[chosen].images, what, out / "results")
    record.write(out / "tradeoff.json")
    return record


def _score(variant: Variant, files: Mapping[Variant, Path], what: Sweep, out: Path) -> VariantScore:
    """Return a variant's scores, counted unless an earlier sweep has."""
    path = files[variant]
    checksum = sha256(path)
    record_path = out / "results" / f"{variant.stem}-{variant.runtime}.json"
    counts_path = record_path.with_suffix(".images.npz")
    if counts_path.exists():
        with np.load(counts_path, allow_pickle=False) as saved:
            if str(saved["sha256"]) == checksum:
                boundary, same = (float(saved[key]) for key in ("boundary", "agreement"))
                return VariantScore(
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
        precision, known, made_from = runner.precision, runner.identity, runner.made_from
    score = VariantScore(
        np.stack(images),
        None if outlines is None or np.isnan(outlines.miou) else outlines.miou,
        float(np.mean(equal)) if equal else None,
    )
    if what.labelled is not None:
        assert outlines is not None
        evaluation = Evaluation(
            variant.name, str(path), checksum, "onnx", precision, str(what.labelled.root),
            len(what.labelled), what.labelled.labels_sha256(), what.labelled.space,
            score.images.sum(0), boundary=outlines.to_record(what.labelled.space),
            identity=known, made_from=made_from,
        )  # fmt: skip
        write_json(record_path, evaluation.to_record())

    figures = {"boundary": score.boundary, "agreement": score.agreement}
    numbers = {key: np.array(np.nan if v is None else v) for key, v in figures.items()}
    write_npz(counts_path, {"images": score.images, "sha256": np.array(checksum), **numbers})
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


def _beside(chosen: Variant, files: Mapping[Variant, Path], what: Sweep) -> list[Variant]:
    """Return what is shown: a form of each other network, the choice's FP32 form, the choice."""
    shown = []
    for network in what.networks:
        forms = [one for one in files if one.network == network.name]
        if network.name != chosen.network:
            shown.append(next((f for f in forms if f.size == chosen.size), forms[0]))
    return list(dict.fromkeys([*shown, _reference(chosen, files), chosen]))


def _opened(variant: Variant, files: Mapping[Variant, Path], what: Sweep) -> Runner:
    return open_runner(files[variant], what.threads, variant.device, trusted=True)


def _timings(files: Mapping[Variant, Path], what: Sweep, out: Path) -> BenchRecord:
    """Return the benchmark of all variants, run unless there is one of these files."""
    path = out / "results" / "bench.json"
    names = [variant.name for variant in files]
    if path.exists():
        earlier = BenchRecord.read(path)
        same = [(m.name, m.sha256) for m in earlier.models] == [
            (variant.name, sha256(file)) for variant, file in files.items()
        ]
        enough = earlier.method.samples >= what.load.samples
        if same and enough and earlier.method.complete:
            return earlier
        _keep_earlier(path, out / ".earlier")
    return bench(
        list(files.values()), what.frames, path, load=what.load, threads=what.threads,
        device=[variant.device for variant in files], repeats=what.repeats, names=names,
    )  # fmt: skip


def _keep_earlier(path: Path, folder: Path) -> None:
    """Move a benchmark and its samples aside, together: nothing measured is lost.

    Killed at any point, the next sweep finds both where they were or both in the folder.
    """
    kept = list(folder.glob("[0-9]*"))
    if not any(sha256(one / path.name) == sha256(path) for one in kept):
        new = folder / ".new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for file in (path, samples_path(path)):
            shutil.copy2(file, new)
        new.rename(folder / f"{len(kept) + 1}")
    path.unlink()  # first: without it the samples are nobody's
    samples_path(path).unlink()


def _record(
    files: Mapping[Variant, Path],
    scores: Mapping[Variant, VariantScore],
    timings: BenchRecord,
    what: Sweep,
    budget: Budget,
) -> TradeoffRecord:
    measured = {model.name: model for model in timings.models}
    tail = timings.models[0].stages["total"].tail
    measure = "mIoU" if what.labelled is not None else "mean IoU with FP32"
    accuracy: dict[Variant, float] = {v: miou_of(scores[v].images.sum(0)) for v in files}
    latency = {v: measured[v.name].stages["total"].percentiles for v in files}
    candidates = [
        Candidate(
            v.name, v.precision, v.network, latency[v]["50"], latency[v][tail], accuracy[v],
            f"{v.size[0]}x{v.size[1]} {v.head} {v.runtime}",
            measured[v.name].stages["total"].interval,
        )
        for v in files
    ]  # fmt: skip
    by_name = {variant.name: variant for variant in files}

    def difference(one: str, other: str) -> Estimate | None:
        if what.labelled is None:
            return None
        return miou_difference(scores[by_name[one]].images, scores[by_name[other]].images)

    choice = choose(candidates, budget, difference)
    front = dominators([(one.latency_ms, one.accuracy) for one in candidates])
    rows = []
    for candidate, by in zip(candidates, front, strict=True):
        variant = by_name[candidate.name]
        score, reference = scores[variant], _reference(variant, files)
        network = next(one for one in what.networks if one.name == variant.network)
        to_fp32 = None
        if reference != variant and what.labelled is not None:
            to_fp32 = miou_difference(score.images, scores[reference].images)
        rows.append(
            VariantRow(
                network=variant.network,
                size=variant.size,
                precision=variant.precision,
                head=variant.head,
                runtime=variant.runtime,
                name=variant.name,
                width=network.width,
                identity=network.identity,
                file=str(files[variant].name),
                sha256=sha256(files[variant]),
                accuracy=miou_interval(score.images),
                boundary_miou=score.boundary,
                agreement_with_fp32=score.agreement,
                change_from_fp32=to_fp32,
                total_ms=latency[variant],
                keeps_deadline=budget.fast(candidate),
                accurate_enough=budget.accurate(candidate),
                execution=measured[variant.name].execution,
                fallbacks=measured[variant.name].fallbacks,
                dominated_by=None if by is None else candidates[by].name,
            )
        )
    return TradeoffRecord(
        created=now_utc(),
        measure=measure,
        data=None
        if what.labelled is None
        else ScoredImages(str(what.labelled.root), len(what.labelled)),
        tail=tail,
        budget=budget,
        choice=choice,
        variants=rows,
        machine=timings.machine,
        intervals="95 %, block bootstrap over the images in their order; they do not cover "
        "another drive or another training",
        skipped=list(what.skipped) or None,
    )
