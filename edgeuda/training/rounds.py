"""Stages that go in rounds: label the target frames, learn from the labels, begin again.

Every round has a folder of its own; what is complete in it is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import torch

from edgeuda.data.folders import class_counts, labelled_folder
from edgeuda.data.images import write_image, write_label
from edgeuda.errors import TrainingError
from edgeuda.files import sha256, write_text
from edgeuda.methods.hiast import HIAST, Hiast, HiastSettings
from edgeuda.methods.lse import (
    LSE,
    Lse,
    LseSettings,
    class_confidence,
    class_normalised_entropy,
    patch,
    select_images,
)
from edgeuda.methods.teacher import Teacher
from edgeuda.models.checkpoint import load_model, save_model
from edgeuda.models.network import Network
from edgeuda.records.identity import MODEL_FILE
from edgeuda.records.labelling import SelectionRecord
from edgeuda.spec import ModelSpec
from edgeuda.training.fitting import (
    Domains,
    Job,
    fit_stage,
    load_complete,
    stage_weights,
    stream,
)
from edgeuda.training.loader import Images, LabelledBy, to_unit
from edgeuda.training.procedures import procedure
from edgeuda.training.pseudo_labels import PseudoLabels, generate
from edgeuda.training.recipe import Recipe
from edgeuda.training.trainer import LOG_FILE, in_half, read_checkpoint, read_log
from edgeuda.training.watch import SIGNALS_FILE, read_signals
from edgeuda.views.hard_paste import HardPaste

TEACHER_FILE = "teacher.safetensors"
SELECTION_FILE = "selection.json"


@procedure(HIAST)
def run_hiast(
    recipe: Recipe, section: HiastSettings, model: Network, domains: Domains, job: Job
) -> None:
    """Run HIAST's rounds on ``model``, in place.

    The first round's frames are labelled by the network that the stage begins with, those of a
    later one by the mean teacher at the end of the round before. A round whose result the watch
    refuses is the last: its start is kept.
    """
    spec, target = domains.spec(recipe), domains.target
    assert target is not None
    half = in_half(recipe.precision)
    labeller = Teacher(model, half=half, temperature=domains.temperature)
    done = 0
    for number, factor in enumerate(section.factors, 1):
        at = dataclasses.replace(job, folder=job.folder / f"round{number}")
        teacher = Teacher(model, section.teacher_decay, half=half, temperature=domains.temperature)
        if not (at.folder / TEACHER_FILE).exists():
            _hiast_round(recipe, section, model, teacher, labeller, domains, at, number, factor)
        load_complete(model, recipe, at)
        done = number
        if refused(at):
            break
        teacher.model.load_state_dict(load_model(at.folder / TEACHER_FILE)[0].state_dict())
        labeller = Teacher(teacher.model, half=half, temperature=domains.temperature)
    _finish(model, spec, job, done)


def _hiast_round(
    recipe: Recipe,
    section: HiastSettings,
    model: Network,
    teacher: Teacher,
    labeller: Teacher,
    domains: Domains,
    job: Job,
    number: int,
    factor: float,
) -> None:
    spec, target = domains.spec(recipe), domains.target
    assert target is not None
    if (job.folder / MODEL_FILE).exists():  # killed before the teacher was written
        teacher.load_state(read_checkpoint(job.folder)["method"])
        save_model(teacher.model, spec, job.folder / TEACHER_FILE)
        return
    folder = job.folder / "pseudo"
    if job.fabric.is_global_zero:
        start = job.folder / "labeller.safetensors"
        if not start.exists():
            save_model(labeller.model, spec, start)
        # Labels come at the network's size, at whatever size the frames were looked at.
        size = dict(enumerate(section.label_sizes, 1)).get(number, recipe.model.input)
        pre = dataclasses.replace(spec.preprocessing, height=size[0], width=size[1])
        generate(
            labeller,
            dataclasses.replace(spec, preprocessing=pre),
            target.resized(size),
            section.selection.of_round(number),
            folder,
            model_sha256=sha256(start),
            seed=stream(recipe, "hiast", number),
            device=job.fabric.device,
            size=None if size == recipe.model.input else recipe.model.input,
        )
    job.fabric.barrier()
    labels = PseudoLabels.read(folder)
    if labels.pixels.sum() == 0:
        msg = (
            f"{folder}: no pixel of {len(target)} frames was selected in round {number}. Lower "
            "hiast.selection.initial, raise its keep, or start from a better network"
        )
        raise TrainingError(msg)
    images = LabelledBy(target, labels.labels)
    augment = None
    if section.hard_share:
        augment = HardPaste.of(
            images.__getitem__,
            labels.mean_confidence,
            labels.pixels,
            section.hard_share,
            section.donors,
        )
    fit_stage(
        model,
        spec,
        Hiast(section, teacher),
        dataclasses.replace(domains, source=images),
        section.model_copy(update={"lr": section.lr * factor}),
        recipe,
        job,
        "hiast",
        labelled=domains.source if section.source_weight else None,
        augment=augment,
        number=number,
    )
    if job.fabric.is_global_zero:
        save_model(teacher.model, spec, job.folder / TEACHER_FILE)
    job.fabric.barrier()


@procedure(LSE)
def run_lse(
    recipe: Recipe, section: LseSettings, model: Network, domains: Domains, job: Job
) -> None:
    """Run LSE's rounds on ``model``, in place; one that the watch refuses is the last."""
    spec = domains.spec(recipe)
    weights = stage_weights(recipe, section, domains)
    portions = section.portions()
    done = 0
    for number, portion in enumerate(portions, 1):
        at = dataclasses.replace(job, folder=job.folder / f"round{number}")
        if not (at.folder / MODEL_FILE).exists():
            if at.fabric.is_global_zero and not (at.folder / SELECTION_FILE).exists():
                write_patches(recipe, section, portion, model, domains, at, number)
            at.fabric.barrier()
            folder = labelled_folder(at.folder / "patches", domains.space)
            patches = Images(folder, recipe.model.input)
            together = section.batch * section.accumulate * job.fabric.world_size
            steps = math.ceil(section.epochs * len(patches) / together)
            fit_stage(
                model,
                spec,
                Lse(section, weights),
                domains,
                section,
                recipe,
                at,
                "lse",
                target=patches,
                steps=min(section.steps, steps),
                number=number,
            )
        load_complete(model, recipe, at)
        done = number
        if refused(at):
            break
    _finish(model, spec, job, done)


def refused(job: Job) -> bool:
    """Whether the watch kept the network that a round began with, see `MonitorSection.guard`."""
    return any("refused" in line for line in read_signals(job.folder))


@torch.no_grad()
def write_patches(
    recipe: Recipe,
    section: LseSettings,
    portion: float,
    model: Network,
    domains: Domains,
    job: Job,
    number: int,
) -> None:
    """Rank the frames, and write the labelled patches of the selected ones and their index.

    Raises:
        TrainingError: If no frame is selected.
    """
    spec, target = domains.spec(recipe), domains.target
    assert target is not None
    classes, device = len(domains.space), job.fabric.device
    teacher = Teacher(model, half=in_half(recipe.precision))
    teacher.model.to(device)

    def probability(index: int) -> torch.Tensor:
        image = to_unit(torch.from_numpy(target[index][0])[None], device)
        return teacher.probabilities(image, spec.preprocessing)[0]

    scores = np.stack(
        [
            class_confidence(*probability(index).max(0), classes).cpu().numpy()
            for index in range(len(target))
        ]
    )
    selection = select_images(scores, portion, section.divisor)
    if not selection.images:
        msg = (
            f"LSE, round {number}: a portion of {portion:g} of {len(target)} frames, divided by "
            f"{section.divisor or classes}, selects none. Raise lse.portion and lse.last"
        )
        raise TrainingError(msg)
    thresholds = torch.ones(classes, device=device)
    for index, missed in enumerate(selection.threshold_image):
        if missed >= 0:
            found = probability(int(missed))
            entropy = class_normalised_entropy(found)
            thresholds[index] = entropy[found.max(0).indices == index].mean()
    rng = np.random.default_rng(stream(recipe, "lse", number))
    height, width = recipe.model.input
    rows, columns = round(height / section.zoom), round(width / section.zoom)
    kept = np.zeros(classes, np.int64)
    for index in selection.images:
        image = torch.from_numpy(target[index][0]).to(device).permute(2, 0, 1).float()
        found = probability(index)
        for part in range(section.patches):
            corner = (
                int(rng.integers(height - rows + 1)),
                int(rng.integers(width - columns + 1)),
            )
            pixels, label = patch(found, image, thresholds, corner, section.zoom, section.valid)
            name = f"{index:06d}-{part}.png"
            array = pixels.round().byte().permute(1, 2, 0).cpu().numpy()
            ids = label.byte().cpu().numpy()
            write_image(job.folder / "patches/images" / name, array)
            write_label(job.folder / "patches/labels" / name, ids)
            kept += class_counts([ids], classes)[0]
    SelectionRecord(
        portion,
        [target.names[index] for index in selection.images],
        thresholds.tolist(),
        kept.tolist(),
    ).write(job.folder / SELECTION_FILE)


def _finish(model: Network, spec: ModelSpec, job: Job, rounds: int) -> None:
    """Write the stage's network, and the rounds' logs and signals as those of one stage."""
    if job.fabric.is_global_zero:
        folders = [job.folder / f"round{number}" for number in range(1, rounds + 1)]
        write_text(job.folder / LOG_FILE, _joined([read_log(folder) for folder in folders]))
        signals = [read_signals(folder) for folder in folders]
        for lines in signals[:-1]:
            for line in lines:
                line["chosen"] = False
        write_text(job.folder / SIGNALS_FILE, _joined(signals))
        save_model(model, spec, job.folder / MODEL_FILE)
    job.fabric.barrier()


def _joined(rounds: list[list[dict[str, Any]]]) -> str:
    """Return the lines of all rounds; steps and seconds go on from round to round."""
    lines = []
    step, seconds = 0, 0.0
    for number, found in enumerate(rounds, 1):
        for line in found:
            moved = line | {"round": number, "step": step + line["step"]}
            if "seconds" in line:
                moved["seconds"] = round(seconds + line["seconds"], 3)
            lines.append(json.dumps(moved) + "\n")
        if found:
            step += found[-1]["step"]
            seconds += found[-1].get("seconds", 0.0)
    return "".join(lines)
