"""Whole runs: supervised training on source, and adaptation stage by stage."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeuda import __version__
from edgeuda.data.folders import class_frequencies, labelled_folder, readable_frames
from edgeuda.errors import ConfigError, ModelError, OutputExistsError
from edgeuda.files import read_json, require_absent, sha256, sha256_of, write_json, write_text
from edgeuda.labels import LabelSpace
from edgeuda.methods.adabn import adapt_batch_norm
from edgeuda.methods.base import Method
from edgeuda.methods.losses import class_weights
from edgeuda.methods.supervised import Supervised
from edgeuda.methods.tufl import Tufl
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.checkpoint import MODEL_FILE, build, load_model, model_file, save_model
from edgeuda.models.pretrained import load_trunk
from edgeuda.spec import ModelSpec
from edgeuda.training.loader import Images, StepData, Views, sample, to_unit
from edgeuda.training.recipe import Optimisation, Recipe
from edgeuda.training.trainer import Run, fit, has_bf16, read_log

STAGE_NAMES: dict[str, str] = {
    "source": "source-only",
    "adabn": "AdaBN",
    "stage1": "stage 1",
    "stage2": "stage 2",
}
RECIPE_FILE = "recipe.toml"
RUN_FILE = "run.json"
ADAPTATION_FILE = "adaptation.json"


@dataclass(frozen=True)
class Options:
    """What is no setting of the method.

    Attributes:
        out: Run folder to make.
        resume: Continue the run in ``out`` instead of refusing it.
        workers: Processes that load images.
    """

    out: Path
    resume: bool = False
    workers: int = 0


def train_source(
    recipe: Recipe,
    source: Path,
    space: LabelSpace | None,
    options: Options,
    stored: LabelSpace | None = None,
) -> Path:
    """Train on labelled source images from scratch; returns the model file.

    Args:
        recipe: Settings.
        source: Folder with ``images`` and ``labels``.
        space: Label space of the network; that of the folder if None.
        options: Where and how.
        stored: Label space of the folder's files; by default what its ``dataset.json`` says.

    Raises:
        EdgeudaError: See `labelled_folder`, `fit` and `load_trunk`.
    """
    folder = labelled_folder(source, space, stored)
    spec = recipe.spec(folder.space)
    digest = sha256_of([recipe.digest(), spec.to_json(), *_names(source, folder.pairs)])
    if _is_done(options, digest):
        return options.out / MODEL_FILE
    torch.manual_seed(recipe.seed)
    model = build(spec)
    load_trunk(model.context.trunk, recipe.model.pretrained)
    images = Images(folder, recipe.model.input)
    _open(options.out, recipe, digest, "train", {"source": str(source.resolve())})
    weights = class_weights(_frequencies(images, spec), recipe.class_weights)
    method = Supervised(recipe.source.loss, weights)
    _fit(model, spec, method, (images, None), recipe.source, recipe, options, digest, "source")
    return options.out / MODEL_FILE


def adapt(
    recipe: Recipe,
    init: Path,
    source: Path,
    target: Path,
    options: Options,
    stored: LabelSpace | None = None,
) -> Path:
    """Adapt a source-trained network to unlabelled target frames; returns the model file.

    Each stage of ``recipe.stages`` has a folder of its own under ``options.out``; target labels,
    where a ``labels`` folder lies beside the frames, are never opened.

    Args:
        recipe: Settings; its model section gives way to the network's own spec.
        init: Model file or run folder to start from.
        source: Folder with ``images`` and ``labels``.
        target: Folder of frames.
        options: Where and how.
        stored: Label space of the source folder's files, see `train_source`.

    Raises:
        EdgeudaError: See `load_model`, `labelled_folder`, `readable_frames` and `fit`.
    """
    model, spec = load_model(init)
    _require_compatible(recipe, spec, init)
    folder = labelled_folder(source, spec.label_space, stored)
    frames = readable_frames(target)
    digest = sha256_of(
        [
            recipe.digest(),
            sha256(model_file(init)),
            *_names(source, folder.pairs),
            *(str(frame.relative_to(target)) for frame in frames),
        ]
    )
    if _is_done(options, digest):
        return options.out / MODEL_FILE
    size = (spec.preprocessing.height, spec.preprocessing.width)
    source_images, target_images = Images(folder, size), Images(frames, size)
    _open(
        options.out,
        recipe,
        digest,
        "adapt",
        {
            "init": str(init.resolve()),
            "source": str(source.resolve()),
            "target": str(target.resolve()),
            "target_frames": len(frames),
        },
    )
    frequencies = _frequencies(source_images, spec)
    for stage in recipe.stages:
        folder_of_stage = options.out / stage
        folder_of_stage.mkdir(exist_ok=True)
        if (folder_of_stage / MODEL_FILE).exists():
            model, _ = load_model(folder_of_stage)
            continue
        if stage == "adabn":
            _adabn(model, spec, target_images, recipe, folder_of_stage)
            continue
        section = recipe.stage1 if stage == "stage1" else recipe.stage2
        frozen = copy.deepcopy(model).eval() if stage == "stage2" else None
        weights = class_weights(frequencies, section.class_weights or recipe.class_weights)
        method = Tufl(section.settings(), weights, frozen)
        inner = Options(folder_of_stage, options.resume, options.workers)
        domains = (source_images, target_images)
        _fit(model, spec, method, domains, section, recipe, inner, digest, stage)
    save_model(model, spec, options.out / MODEL_FILE)
    write_json(options.out / ADAPTATION_FILE, _adaptation_record(recipe, options.out))
    return options.out / MODEL_FILE


def _fit(
    model: BiSeNet,
    spec: ModelSpec,
    method: Method,
    domains: tuple[Images, Images | None],
    section: Optimisation,
    recipe: Recipe,
    options: Options,
    digest: str,
    stage: str,
) -> None:
    views = Views(recipe.crop(), recipe.geometry.scales, recipe.geometry.flip)
    # Stages draw from streams of their own, so that a stage does not depend on those before it.
    seed = recipe.seed * 8 + list(STAGE_NAMES).index(stage)
    data = StepData(*domains, section.batch, views, seed, section.steps)
    precision = recipe.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_bf16() else "32-true"
    run = Run(options.out, STAGE_NAMES[stage], digest, precision, options.workers)
    fit(model, spec, method, data, section, run)


def _adabn(model: BiSeNet, spec: ModelSpec, images: Images, recipe: Recipe, folder: Path) -> None:
    section = recipe.adabn

    def frames() -> Iterator[Tensor]:
        for step in range(section.batches):
            chosen = sample(len(images), section.batch, step, recipe.seed, 0)
            stack = np.stack([images[index][0] for index in chosen])
            yield to_unit(torch.from_numpy(stack), torch.device("cpu"))

    adapt_batch_norm(model, frames(), spec.preprocessing)
    save_model(model, spec, folder / MODEL_FILE)


def _frequencies(images: Images, spec: ModelSpec) -> Tensor:
    return torch.from_numpy(class_frequencies(images.labels(), len(spec.label_space))).float()


def _require_compatible(recipe: Recipe, spec: ModelSpec, init: Path) -> None:
    wanted = recipe.spec(spec.label_space)
    if wanted != spec:
        differing = [
            f"{name}: recipe {getattr(wanted, name)!r}, model {getattr(spec, name)!r}"
            for name in ("architecture", "width", "preprocessing")
            if getattr(wanted, name) != getattr(spec, name)
        ]
        msg = (
            f"{init}: expected the network of recipe {recipe.name!r}, found another one "
            f"({'; '.join(differing)}). Use the recipe it was trained with"
        )
        raise ModelError(msg)
    if "stage2" in recipe.stages and "stage1" not in recipe.stages[: recipe.stages.index("stage2")]:
        msg = f"Recipe {recipe.name!r}: stage2 needs stage1 before it, found {recipe.stages}"
        raise ConfigError(msg)


def _names(root: Path, pairs: tuple[Any, ...]) -> list[str]:
    return [str(pair.image.relative_to(root)) for pair in pairs]


def _is_done(options: Options, digest: str) -> bool:
    """Check the run folder against ``--resume``; true if the run in it is complete."""
    record = options.out / RUN_FILE
    if not options.resume:
        require_absent(options.out)
        return False
    if not record.exists():
        if options.out.exists() and any(options.out.iterdir()):
            msg = (
                f"{options.out}: expected a run to resume, found no {RUN_FILE}; nothing was written"
            )
            raise OutputExistsError(msg)
        return False
    if read_json(record, "edgeuda.run/1")["digest"] != digest:
        msg = (
            f"{options.out}: expected the run that these settings started, found one of another "
            f"recipe, seed, model or data. Its settings are in {options.out / RECIPE_FILE}"
        )
        raise OutputExistsError(msg)
    return (options.out / MODEL_FILE).exists()


def _open(out: Path, recipe: Recipe, digest: str, verb: str, data: dict[str, Any]) -> None:
    """Write the resolved recipe and the run's identity, unless a resumed run has them."""
    if (out / RUN_FILE).exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / RECIPE_FILE, recipe.to_toml())
    write_json(
        out / RUN_FILE,
        {
            "schema": "edgeuda.run/1",
            "verb": verb,
            "digest": digest,
            "recipe_sha256": recipe.digest(),
            "seed": recipe.seed,
            "data": data,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {
                "edgeuda": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        },
    )


def _adaptation_record(recipe: Recipe, out: Path) -> dict[str, Any]:
    stages = []
    for stage in recipe.stages:
        log = read_log(out / stage)
        curve: dict[str, list[Any]] = {}
        if log:
            curve = {
                "step": [line["step"] for line in log],
                "loss": [line["loss"] for line in log],
                "keep": [line["keep"] for line in log],
                "threshold": [line["thresholds"] for line in log],
            }
        stages.append(
            {
                "name": STAGE_NAMES[stage],
                "method": "batch-norm statistics"
                if stage == "adabn"
                else "TUFL" + (" + CIM" if stage == "stage2" else ""),
                "steps": log[-1]["step"] if log else recipe.adabn.batches,
                "seconds": log[-1]["seconds"] if log else None,
                "seed": recipe.seed,
                "recipe_sha256": recipe.digest(),
                "curve": curve,
            }
        )
    return {
        "schema": "edgeuda.adaptation/1",
        "classes": list(load_model(out)[1].label_space.classes),
        "stages": stages,
    }
