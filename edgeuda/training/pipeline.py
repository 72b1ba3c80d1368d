"""Whole runs: supervised training on source, and adaptation stage by stage."""

from __future__ import annotations

import json
import logging
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from edgeuda import __version__
from edgeuda.data.folders import labelled_frames
from edgeuda.data.frames import FrameFolder, frame_folder
from edgeuda.data.replay import Replay, ReplayedFrames, replayed
from edgeuda.data.shares import SharedFrames
from edgeuda.data.sources import Sources, open_sources
from edgeuda.data.stores import located, shards_of
from edgeuda.data.treatment import geometry_of
from edgeuda.errors import ConfigError, DataError, ModelError, OutputExistsError
from edgeuda.files import (
    is_empty,
    now_utc,
    require_absent,
    sha256,
    sha256_of,
    write_text,
)
from edgeuda.labels import LabelSpace
from edgeuda.methods.registry import METHODS
from edgeuda.models.checkpoint import load_model, save_model
from edgeuda.records.adaptation import (
    AdaptationRecord,
    MeasuredNetwork,
    StageCurve,
    StageRecord,
)
from edgeuda.records.form import parse
from edgeuda.records.identity import MODEL_FILE, descent, model_file
from edgeuda.records.labelling import PseudoLabelsRecord
from edgeuda.records.run import RUN_FILE, Descent, RunRecord
from edgeuda.spec import ModelSpec
from edgeuda.training.confidence import temperature_of
from edgeuda.training.fitting import Domains, Job, load_domains
from edgeuda.training.procedures import procedure_of, require_runnable
from edgeuda.training.recipe import Recipe
from edgeuda.training.remarks import remarks
from edgeuda.training.stages import labelled_apart, networks_sha256, run_source, run_stage
from edgeuda.training.trackers import Tracking
from edgeuda.training.trainer import CHECKPOINT_FILE, make_fabric, rank_of_ranks, read_log
from edgeuda.training.watch import read_signals

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.toml"
ADAPTATION_FILE = "adaptation.json"


@dataclass(frozen=True)
class RunOptions:
    """What is no setting of the method.

    Attributes:
        out: Run folder to make.
        resume: Continue the run in ``out`` instead of refusing it.
        workers: Processes that load images.
        ignore_unmapped: Whether classes that the network's label space lacks may be ignored.
        source_weights: How often images of each source are drawn, where there are several.
        trackers: What follows the run beside its own log, see `edgeuda.training.trackers`.
        replay: Old footage that an adaptation learns from beside the new, None without.
    """

    out: Path
    resume: bool = False
    workers: int = 0
    ignore_unmapped: bool = False
    source_weights: tuple[float, ...] = ()
    trackers: tuple[str, ...] = ()
    replay: Replay | None = None


def train_source(
    recipe: Recipe,
    source: Path | Sequence[Path],
    space: LabelSpace | None,
    options: RunOptions,
    stored: LabelSpace | None = None,
    target: Path | None = None,
) -> Path:
    """Train on labelled source images from scratch; returns the model file.

    Args:
        recipe: Settings.
        source: Folder with ``images`` and ``labels``, or several, see `open_sources`.
        space: Label space of the network; that of the first folder if None.
        options: Where and how.
        stored: Label space of the folder's files; by default what its ``dataset.json`` says.
        target: Folder of frames whose look the source images are given, if the recipe says so.

    Raises:
        EdgeudaError: See `labelled_folder`, `fit` and `load_trunk`.
    """
    tracking = Tracking.of(options.trackers, options.out)
    if recipe.source.style != "none" and target is None:
        msg = (
            f"Recipe {recipe.name!r}: source.style = {recipe.source.style!r} needs target frames. "
            "Give them as `target`, or take `source.style=none`"
        )
        raise ConfigError(msg)
    sources = open_sources(
        source, space, stored,
        weights=options.source_weights, ignore_unmapped=options.ignore_unmapped,
    )  # fmt: skip
    frames = None
    if target and recipe.source.style != "none":
        frames = frame_folder(target, learnt=True)
    spec = recipe.spec(sources.space, geometry_of(frames.one_each) if frames else None)
    identity = chain([recipe.digest(), spec.to_json()], _identity(sources, frames))
    digest = sha256_of(identity)
    fabric = make_fabric(recipe.precision)
    if _is_done(options, digest, fabric):
        return options.out / MODEL_FILE
    domains = load_domains(sources, frames, recipe.model.input)
    with _opened(options.out, recipe, digest, "train", _recorded(sources), fabric):
        if frames is not None:
            frames.keep(options.out)
        tracking.announce()
        run_source(recipe, domains, Job(options.out, digest, fabric, options.workers, tracking))
    return options.out / MODEL_FILE


def adapt(
    recipe: Recipe,
    init: Path,
    source: Path | Sequence[Path],
    target: Path,
    options: RunOptions,
    stored: LabelSpace | None = None,
) -> Path:
    """Adapt a source-trained network to unlabelled target frames; returns the model file.

    Each stage of ``recipe.stages`` has a folder of its own under ``options.out``. Target labels,
    where a ``labels`` folder lies beside the frames, are opened for stages alone that need a few
    (``ass``), and of those only the ones that the recipe asks for.

    Args:
        recipe: Settings; its model section gives way to the network's own spec.
        init: Model file or run folder to start from.
        source: Folder with ``images`` and ``labels``, or several, see `open_sources`.
        target: Folder of frames.
        options: Where and how.
        stored: Label space of the source folder's files, see `train_source`.

    Raises:
        EdgeudaError: See `load_model`, `labelled_folder`, `frame_folder` and `fit`.
    """
    require_runnable(recipe.stages)
    tracking = Tracking.of(options.trackers, options.out)
    model, spec = load_model(init)
    recipe = _for_network(recipe, spec, init)
    sources = open_sources(
        source, spec.label_space, stored,
        weights=options.source_weights, ignore_unmapped=options.ignore_unmapped,
    )  # fmt: skip
    target = located(target)
    frames = _target_frames(target, recipe, options.replay)
    camera = geometry_of(frames.one_each)
    spec = replace(spec, preprocessing=replace(spec.preprocessing, geometry=camera))
    networks = [found for stage in recipe.stages for found in networks_sha256(recipe, stage)]
    networks.append(sha256(model_file(init)))
    for stage in recipe.stages:
        if METHODS[stage].needs_labelled:
            apart = labelled_apart(
                recipe.section(stage).model_dump().get("labels"), spec.label_space
            )
            networks += [] if apart is None else [apart.stamp]
    if camera is not None:
        networks.append(json.dumps(camera.to_record()))
    digest = sha256_of(chain([recipe.digest(), *networks], _identity(sources, frames)))
    fabric = make_fabric(recipe.precision)
    if fabric.broadcast(digest) != digest:
        msg = (
            f"{target}: expected the same data and networks on every rank, found others on rank "
            f"{fabric.global_rank} than on rank 0. Do all machines see the same files?"
        )
        raise DataError(msg)
    if _is_done(options, digest, fabric):
        return options.out / MODEL_FILE
    domains = load_domains(sources, frames, recipe.model.input)
    domains = replace(domains, temperature=temperature_of(init))
    if any(METHODS[stage].needs_labelled for stage in recipe.stages):
        domains = replace(domains, labelled=labelled_frames(target, spec.label_space, stored))
    data = {
        "init": str(init.resolve()),
        **_recorded(sources),
        "target": str(target.resolve()),
        "target_frames": len(frames),
    }
    if isinstance(frames, ReplayedFrames):
        data |= {
            "target_frames": len(frames.new),
            "replay": str(frames.old.root.resolve()),
            "replay_frames": len(frames.old),
            "replay_share": frames.share,
        }
    before = descent(model_file(init))
    with _opened(options.out, recipe, digest, "adapt", data, fabric, before):
        frames.keep(options.out)
        tracking.announce()
        for stage in recipe.stages:
            job = Job(options.out / stage, digest, fabric, options.workers, tracking)
            run_stage(recipe, stage, model, domains, job)
    if fabric.is_global_zero:
        frames.keep(options.out)  # once more: what the other ranks met
        record = replace(adaptation_record(recipe, options.out, domains), **frames.noted())
        record.write(options.out / ADAPTATION_FILE)
        save_model(model, spec, options.out / MODEL_FILE)
    fabric.barrier()
    return options.out / MODEL_FILE


def _target_frames(target: Path, recipe: Recipe, replay: Replay | None) -> FrameFolder:
    """List the target's frames; those in shards are divided among ranks, if the stages allow it.

    Beside old footage they are not divided.

    Raises:
        DataError: See `frame_folder` and `SharedFrames`.
    """
    if replay is not None:
        return replayed(target, replay, learnt=True)
    rank, ranks = rank_of_ranks()
    if ranks == 1 or len(shards_of(target)) < 2:
        return frame_folder(target, learnt=True)
    whole = [stage for stage in recipe.stages if _needs_all_frames(recipe, stage)]
    if whole:
        logger.warning(
            "%s: each rank lists the frames of all shards, because these stages need them: %s",
            target, ", ".join(whole),
        )  # fmt: skip
        return frame_folder(target, learnt=True)
    return SharedFrames(target, rank, ranks)


def _needs_all_frames(recipe: Recipe, stage: str) -> bool:
    """Whether a stage looks at all target frames by name, or in one process."""
    made_ahead = (
        (Path(name) / PseudoLabelsRecord.FILE).is_file()
        for name in recipe.section(stage).networks()
    )
    kind = METHODS[stage]
    return procedure_of(kind) is not None or kind.needs_labelled or any(made_ahead)


def _for_network(recipe: Recipe, spec: ModelSpec, init: Path) -> Recipe:
    """Return the recipe with the network's own model section.

    Raises:
        ModelError: If the network's input size is another than the recipe's, whose crops and
            batches are made for it.
    """
    pre = spec.preprocessing
    size = (pre.height, pre.width)
    if recipe.model.input != size:
        msg = (
            f"{init}: expected a network for the input of recipe {recipe.name!r}, "
            f"{recipe.model.input[0]}x{recipe.model.input[1]}, found one for {size[0]}x{size[1]}. "
            f"Use the recipe it was trained with, or take `model.input=[{size[0]},{size[1]}]`"
        )
        raise ModelError(msg)
    own = {
        "architecture": spec.architecture,
        "encoder": spec.encoder,
        "width": spec.width,
        "mean": pre.mean,
        "std": pre.std,
    }
    changed = [name for name, value in own.items() if getattr(recipe.model, name) != value]
    if changed:
        logger.info("%s: its own %s count, not the recipe's", init, ", ".join(changed))
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=own)})


def _recorded(sources: Sources) -> dict[str, Any]:
    """Return what a run's record says of its source: a path, or several with their weights."""
    paths = [str(folder.root.resolve()) for folder in sources.folders]
    if len(paths) == 1:
        return {"source": paths[0]}
    return {"source": paths, "source_weights": list(sources.weights)}


def _identity(sources: Sources, frames: FrameFolder | None) -> Iterator[str]:
    """Yield names in their folders and what is in the files: a moved data set is the same."""
    yield from sources.identity()
    if frames is not None:
        yield from frames.identity()


def _is_done(options: RunOptions, digest: str, fabric: Fabric) -> bool:
    """Check the run folder against ``--resume``; true if the run in it is complete."""
    done = _check_folder(options, digest)
    fabric.barrier()  # all ranks have looked before one of them writes
    return done


def _check_folder(options: RunOptions, digest: str) -> bool:
    record = options.out / RUN_FILE
    if not options.resume:
        require_absent(options.out)
        return False
    if not record.exists():
        if options.out.exists() and not is_empty(options.out):
            msg = (
                f"{options.out}: expected a run to resume, found no {RUN_FILE}; nothing was written"
            )
            raise OutputExistsError(msg)
        return False
    if RunRecord.read(record).digest != digest:
        msg = (
            f"{options.out}: expected the run that these settings started, found one of another "
            f"recipe, seed, model or data; where ranks share shards, how many ranks there are "
            f"counts, too. Its settings are in {options.out / RECIPE_FILE}"
        )
        raise OutputExistsError(msg)
    return (options.out / MODEL_FILE).exists()


@contextmanager
def _opened(
    out: Path,
    recipe: Recipe,
    digest: str,
    verb: str,
    data: dict[str, Any],
    fabric: Fabric,
    before: Descent | None = None,
) -> Iterator[None]:
    """Begin a run's folder, and take it back if it ends before anything was learned.

    What is left by a recipe that cannot run, or by weights that are not there, would stand in the
    way of the next try.
    """
    new = not (out / RUN_FILE).exists()
    _open(out, recipe, digest, verb, data, before, fabric)
    try:
        yield
    except Exception:
        kept = (CHECKPOINT_FILE, MODEL_FILE)
        if new and fabric.is_global_zero and not any(any(out.rglob(name)) for name in kept):
            shutil.rmtree(out, ignore_errors=True)
        raise


def _open(
    out: Path,
    recipe: Recipe,
    digest: str,
    verb: str,
    data: dict[str, Any],
    before: Descent | None,
    fabric: Fabric,
) -> None:
    """Write the run's identity and the resolved recipe, unless a resumed run has them.

    The identity comes first: a folder with anything else in it would not be resumed.
    """
    if not fabric.is_global_zero:
        return
    if not (out / RUN_FILE).exists():
        RunRecord(
            verb,
            digest,
            recipe.digest(),
            recipe.seed,
            data,
            None if before is None else list(recipe.stages),
            before,
            now_utc(),
            {
                "edgeuda": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        ).write(out / RUN_FILE)
    if not (out / RECIPE_FILE).exists():
        write_text(out / RECIPE_FILE, recipe.to_toml())


def adaptation_record(recipe: Recipe, out: Path, domains: Domains) -> AdaptationRecord:
    """Return the stages of an adaptation with their curves and label-free signals."""
    stages = []
    for stage in recipe.stages:
        log = read_log(out / stage)
        first = log[0] if log else {}
        signals = read_signals(out / stage)
        stages.append(
            StageRecord(
                name=METHODS[stage].label,
                method=METHODS[stage].title,
                steps=log[-1]["step"] if log else recipe.section(stage).length,
                seconds=log[-1]["seconds"] if log else None,
                seed=recipe.seed,
                recipe_sha256=recipe.digest(),
                curve=StageCurve(
                    [line["step"] for line in log],
                    *(
                        [line[key] for line in log] if key in first else None
                        for key in ("loss", "keep", "thresholds")
                    ),
                ),
                signals=[parse(MeasuredNetwork, line, str(out / stage)) for line in signals],
                remarks=remarks(stage, log, signals),
            )
        )
    return AdaptationRecord(stages, list(domains.space.classes), domains.frequencies.tolist())
