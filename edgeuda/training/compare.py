"""Methods times seeds on one track: every run kept, every common part run once."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from itertools import chain as joined
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.data.folders import (
    LabelledFolder,
    labelled_folder,
    labelled_frames,
    tells_space,
)
from edgeuda.data.frames import frame_folder
from edgeuda.data.sources import open_sources
from edgeuda.errors import ConfigError, TrainingError, did_you_mean
from edgeuda.files import read_json, sha256_of, write_atomic, write_json
from edgeuda.labels import LabelSpace
from edgeuda.methods.registry import METHODS
from edgeuda.models.checkpoint import load_model
from edgeuda.models.subject import score_checkpoint
from edgeuda.records.comparison import ORACLE, ComparedMethod, ComparisonRecord, OverSeeds
from edgeuda.records.identity import MODEL_FILE
from edgeuda.records.labelling import ReliabilityRecord
from edgeuda.training.confidence import reliability_record, temperature_of
from edgeuda.training.fitting import Domains, Job, load_domains
from edgeuda.training.procedures import require_runnable
from edgeuda.training.recipe import Recipe, load_recipe
from edgeuda.training.recipe_files import merged
from edgeuda.training.remarks import remarks
from edgeuda.training.stages import networks_sha256, run_source, run_stage
from edgeuda.training.trackers import Tracking
from edgeuda.training.trainer import make_fabric, read_log
from edgeuda.training.watch import read_signals

if TYPE_CHECKING:
    from rich.table import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanRow:
    """One method of a plan: a recipe, and whether it is trained on labelled target images."""

    name: str
    recipe: Recipe
    oracle: bool


@dataclass(frozen=True)
class Track:
    """Folders of a comparison.

    Attributes:
        source: Labelled source images, in one folder or several.
        target: Target frames.
        data: Labelled images to score on.
        oracle: Labelled images that an oracle trains on, or None.
        labelled: Folder whose labelled target images stage ``ass`` draws from; by default
            ``target``.
        stored: Label space of the label files, where the folders do not say.
        ignore_unmapped: Whether classes that the source's label space lacks may be ignored.
        source_weights: How often images of each source are drawn, where there are several.
    """

    source: Path | Sequence[Path]
    target: Path
    data: Path
    oracle: Path | None = None
    stored: LabelSpace | None = None
    labelled: Path | None = None
    ignore_unmapped: bool = False
    source_weights: tuple[float, ...] = ()


def built_in_plans() -> list[str]:
    """Return the names of the plans that come with the package."""
    folder = resources.files("edgeuda") / "plans"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir())


def load_plan(name: str, recipe: str, overrides: tuple[str, ...] = ()) -> list[PlanRow]:
    """Read a plan: TOML tables, each a method's name and what it changes in the recipe.

    A table may also hold ``like``, the name of an earlier table that it is merged over, and
    ``trains_on``, ``"source"`` (the default) or ``"oracle"``.

    Args:
        name: Built-in name, or path of a ``.toml`` file.
        recipe: Recipe that the tables are merged over, see `load_recipe`.
        overrides: Of every method, ``"section.key=value"``.

    Raises:
        ConfigError: If the plan is not valid or a method's recipe is not.
    """
    if name in built_in_plans():
        text = (resources.files("edgeuda") / "plans" / f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        known = ", ".join(built_in_plans())
        hint = did_you_mean(name, built_in_plans())
        msg = f"Unknown plan {name!r}{hint}: expected a .toml file or one of {known}"
        raise ConfigError(msg)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        msg = f"{name}: expected TOML ({err})"
        raise ConfigError(msg) from err
    variants = []
    seen: dict[str, dict[str, Any]] = {}
    for method, table in tables.items():
        if not isinstance(table, dict):
            msg = f"{name}: {method}: expected a table [{json.dumps(method)}], found {table!r}"
            raise ConfigError(msg)
        like = table.pop("like", None)
        if like is not None:
            if like not in seen:
                msg = f"{name}: {method}.like: expected an earlier table's name, found {like!r}"
                raise ConfigError(msg)
            table = merged(seen[like], table)
        seen[method] = table
        trains_on = table.get("trains_on", "source")
        if trains_on not in ("source", ORACLE):
            msg = f"{name}: {method}.trains_on: expected 'source' or 'oracle', found {trains_on!r}"
            raise ConfigError(msg)
        try:
            changes = {key: value for key, value in table.items() if key != "trains_on"}
            found = load_recipe(recipe, overrides, changes)
        except ConfigError as err:
            msg = f"{name}: {method}: {err}"
            raise ConfigError(msg) from err
        variants.append(PlanRow(method, found, trains_on == ORACLE))
    return variants


def compare(
    variants: Sequence[PlanRow],
    track: Track,
    seeds: Sequence[int],
    out: Path,
    workers: int = 0,
    report: Callable[[str], None] = lambda _: None,
    keep: Path | None = None,
    trackers: Sequence[str] = (),
) -> ComparisonRecord:
    """Run every method with every seed and return the record of their scores.

    Runs lie under ``out/runs``, named by what they depend on: what two methods have in common is
    run once, what is there is not run again, and what was interrupted goes on. Target labels are
    read for scoring, and by oracles. A run that fails in training, because its loss is not finite
    or its network collapses, is recorded as failed, and the others go on.

    Args:
        variants: Methods; gains are measured from the first.
        track: Folders.
        seeds: Seeds of training; at least three make a claim.
        out: Folder of the runs.
        workers: Processes that load images.
        report: Called with a line of text after each run.
        keep: Folder for a copy of each method's network, ``METHOD-SEED.safetensors``.
        trackers: What follows the runs beside their own logs, see `edgeuda.training.trackers`.

    Returns:
        The record, schema ``edgeuda.comparison/1``.

    Raises:
        EdgeudaError: See `adapt`.
    """
    first = variants[0].recipe
    if any(variant.recipe.model.input != first.model.input for variant in variants):
        msg = "The methods of a comparison must share model.input; expected it in the recipe only"
        raise ConfigError(msg)
    stages = {stage for variant in variants for stage in variant.recipe.stages}
    require_runnable(stages)
    tracking = Tracking.of(trackers, out, out / "runs")
    sources = open_sources(
        track.source, None, track.stored,
        weights=track.source_weights, ignore_unmapped=track.ignore_unmapped,
    )  # fmt: skip

    def index(root: Path) -> LabelledFolder:
        own = None if tells_space(root) else track.stored
        return labelled_folder(root, sources.space, own, ignore_unmapped=track.ignore_unmapped)

    variants = [v for v in variants if track.oracle is not None or not v.oracle]
    frames = frame_folder(track.target, learnt=True)
    adapted = load_domains(sources, frames, first.model.input)
    frames.keep(out)
    data = replace(index(track.data), geometry=adapted.geometry)
    if any(METHODS[stage].needs_labelled for stage in stages):
        few = labelled_frames(track.labelled or track.target, sources.space, track.stored)
        adapted = replace(adapted, labelled=few)
    domains = {False: adapted}
    if any(variant.oracle for variant in variants) and track.oracle is not None:
        labelled = index(track.oracle)
        domains[True] = load_domains(labelled, None, first.model.input)
    labels = data.labels_sha256()
    tracking.announce()
    scores: dict[str, list[Evaluation | None]] = {variant.name: [] for variant in variants}
    failures: dict[str, dict[str, str]] = {variant.name: {} for variant in variants}
    costs: dict[str, list[tuple[float, float]]] = {variant.name: [] for variant in variants}
    signals: dict[str, list[dict[str, Any] | None]] = {variant.name: [] for variant in variants}
    trusted: dict[str, list[ReliabilityRecord | None]] = {variant.name: [] for variant in variants}
    notes: dict[str, dict[str, list[str]]] = {variant.name: {} for variant in variants}
    for seed in seeds:
        for variant in variants:
            recipe = variant.recipe.model_copy(update={"seed": seed})
            try:
                at = out / "runs" / f"seed{seed}"
                chain = _run(recipe, domains[variant.oracle], at, workers, tracking)
            except TrainingError as err:
                scores[variant.name].append(None)
                signals[variant.name].append(None)
                trusted[variant.name].append(None)
                failures[variant.name][str(seed)] = str(err)
                report(f"seed {seed}, {variant.name}: failed ({err})")
                continue
            found = _score(chain[-1], variant.name, data, labels)
            if keep is not None:
                network = keep / f"{variant.name}-{seed}.safetensors"
                write_atomic(network, partial(shutil.copyfile, chain[-1] / MODEL_FILE))
            scores[variant.name].append(found)
            costs[variant.name].append(_cost(chain))
            chosen = [line for line in read_signals(chain[-1]) if line["chosen"]]
            signals[variant.name].append(chosen[0] if chosen else None)
            trusted[variant.name].append(_reliability(chain, data, labels))
            said = [
                f"{stage}: {remark}"
                for stage, at in zip(recipe.stages, chain[1:], strict=True)
                for remark in remarks(stage, read_log(at), read_signals(at))
            ]
            if said:
                notes[variant.name][str(seed)] = said
            report(f"seed {seed}, {variant.name}: {100 * found.miou:.1f}")
    frames.keep(out)  # once more: what other ranks met
    record = _record(variants, seeds, scores, failures, costs, signals, trusted, notes, data)
    return replace(record, **frames.noted())


def _run(
    recipe: Recipe, domains: Domains, out: Path, workers: int, tracking: Tracking
) -> list[Path]:
    """Run a method's stages where they are not complete; returns their folders."""
    fabric = make_fabric(recipe.precision)
    spec = domains.spec(recipe)

    def frames() -> Iterable[str]:  # perhaps a million
        return () if domains.target is None else domains.target.identity()

    common = [
        spec.to_json(),
        recipe.geometry.model_dump_json(),
        recipe.precision,
        json.dumps(recipe.class_weights),
        str(recipe.seed),
        *domains.source.identity(),
    ]
    styled = recipe.source.style != "none"
    own = recipe.source.model_dump_json(), recipe.model.pretrained, str(recipe.model.freeze)
    key = sha256_of(joined(common, own, frames() if styled else ()))
    chain = [out / f"source-{key[:12]}"]
    if not (chain[0] / MODEL_FILE).exists():
        chain[0].mkdir(parents=True, exist_ok=True)
        run_source(recipe, domains, Job(chain[0], key, fabric, workers, tracking))
    model, _ = load_model(chain[0])
    domains = replace(domains, temperature=temperature_of(chain[0]))
    for stage in recipe.stages:
        settings = recipe.section(stage).model_dump_json(), recipe.monitor.model_dump_json()
        few = domains.labelled if METHODS[stage].needs_labelled else None
        drawn_from = [] if few is None else [str(pair.image) for pair in few.pairs]
        networks = networks_sha256(recipe, stage)
        key = sha256_of(joined(common, (key, stage, *settings), frames(), drawn_from, networks))
        chain.append(out / f"{stage}-{key[:12]}")
        job = Job(chain[-1], key, fabric, workers, tracking)
        run_stage(recipe, stage, model, domains, job)
    return chain


def _score(folder: Path, name: str, data: LabelledFolder, labels: str) -> Evaluation:
    record = folder / f"evaluation-{labels[:12]}.json"
    if not record.exists():
        write_json(record, score_checkpoint(folder, data, name).to_record())
    return Evaluation.from_record(read_json(record), str(record))


def _reliability(chain: Sequence[Path], data: LabelledFolder, labels: str) -> ReliabilityRecord:
    """Hold the confidence of a method's network against the labels, as a teacher reads it."""
    path = chain[-1] / f"reliability-{labels[:12]}.json"
    if not path.exists():
        model, spec = load_model(chain[-1])
        temperature = temperature_of(chain[0])
        reliability_record(model, spec, data, temperature).write(path)
    return ReliabilityRecord.read(path)


def _cost(chain: Sequence[Path]) -> tuple[float, float]:
    """Return the training seconds of all stages and the largest share of them spent waiting."""
    ends = [log[-1] for log in map(read_log, chain) if log]
    return sum(end["seconds"] for end in ends), max(end["waiting"] for end in ends)


def _record(
    variants: Sequence[PlanRow],
    seeds: Sequence[int],
    scores: dict[str, list[Evaluation | None]],
    failures: dict[str, dict[str, str]],
    costs: dict[str, list[tuple[float, float]]],
    signals: dict[str, list[dict[str, Any] | None]],
    trusted: dict[str, list[ReliabilityRecord | None]],
    notes: dict[str, dict[str, list[str]]],
    data: LabelledFolder,
) -> ComparisonRecord:
    values = {
        name: [None if found is None else 100 * found.miou for found in runs]
        for name, runs in scores.items()
    }
    base = values[variants[0].name]
    oracles = [values[v.name] for v in variants if v.oracle and not failures[v.name]]
    top = max(oracles, key=_mean) if oracles else None
    methods = []
    for variant in variants:
        name = variant.name
        gains = _differences(values[name], base)
        gap = None if top is None else _mean(_differences(top, base))
        iou = [None if found is None else found.iou for found in scores[name]]
        methods.append(
            ComparedMethod(
                name=name,
                stages=list(variant.recipe.stages),
                trains_on=ORACLE if variant.oracle else "source",
                miou=_summary(values[name]),
                gain=_summary(gains),
                failed=failures[name],
                gap_closed=None if not gap else _rounded(_mean(gains) / gap, 3),
                iou={
                    label: [None if row is None else _rounded(100 * row[index]) for row in iou]
                    for index, label in enumerate(data.space.classes)
                },
                seconds=[round(seconds, 1) for seconds, _ in costs[name]],
                waiting_for_data=[waiting for _, waiting in costs[name]],
                signals=signals[name],
                recipe_sha256=variant.recipe.digest(),
                reliability=trusted[name],
                remarks=notes[name],
            )
        )
    return ComparisonRecord(list(seeds), list(data.space.classes), len(data), methods)


def _differences(
    values: Sequence[float | None], base: Sequence[float | None]
) -> list[float | None]:
    return [
        None if value is None or zero is None else value - zero
        for value, zero in zip(values, base, strict=True)
    ]


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean of the runs that succeeded, nan if none did."""
    present = [value for value in values if value is not None]
    return statistics.mean(present) if present else float("nan")


def _rounded(value: float, digits: int = 2) -> float | None:
    return None if np.isnan(value) else round(float(value), digits)


def _summary(values: Sequence[float | None]) -> OverSeeds:
    present = [value for value in values if value is not None]
    return OverSeeds(
        [None if value is None else round(value, 2) for value in values],
        _rounded(_mean(values)),
        round(statistics.stdev(present), 2) if len(present) > 1 else None,
    )


def table(record: ComparisonRecord) -> Table:
    """Return the record's methods as a table for the terminal."""
    from rich.table import Table

    header, rows = _rows(record)
    result = Table(title="mIoU in percent", caption=_caption(record))
    for number, name in enumerate(header):
        result.add_column(name, justify="right" if number else "left")
    for row in rows:
        result.add_row(*row)
    return result


def markdown(record: ComparisonRecord) -> str:
    """Return the record's methods as a Markdown table with a caption."""
    header, rows = _rows(record)
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{_caption(record)}\n"


def _rows(record: ComparisonRecord) -> tuple[list[str], list[list[str]]]:
    seeds = ", ".join(map(str, record.seeds))
    header = ["method", "mIoU", f"seeds {seeds}", "gain", "gap closed"]
    rows = []
    for method in record.methods:
        gap = method.gap_closed
        rows.append(
            [
                method.name,
                _spread(method.miou),
                ", ".join("failed" if v is None else f"{v:.1f}" for v in method.miou.runs),
                _spread(method.gain, "+"),
                "-" if gap is None else f"{gap:.0%}",
            ]
        )
    return header, rows


def _spread(summary: OverSeeds, sign: str = "") -> str:
    if summary.mean is None:
        return "-"
    mean = f"{summary.mean:{sign}.1f}"
    return mean if summary.stdev is None else f"{mean} ± {summary.stdev:.1f}"


def _caption(record: ComparisonRecord) -> str:
    first = record.methods[0].name
    return (
        f"{record.images} images; mean ± standard deviation over {len(record.seeds)} seeds. "
        f"Gain: difference to {first!r} with the same seed. Gap closed: share of the distance from "
        f"{first!r} to the best oracle."
    )
