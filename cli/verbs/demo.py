"""The whole path on two rendered domains."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.adapt import adapt
from cli.verbs.calibrate import calibrate
from cli.verbs.evaluate import evaluate
from cli.verbs.report import report
from cli.verbs.shared import allowed, chapter, once
from cli.verbs.tradeoff import tradeoff
from cli.verbs.train import train
from edgeuda.files import require_absent, write_json

SIZE = (256, 512)
THREADS = 1
"""Of the benchmark: one core per network is what a vehicle's other work tends to leave."""
BUDGET = "33ms"
"""A camera of 30 frames per second."""


def demo(
    out: options.Out = Path("demo"),
    recipe: options.RecipeName = "small",
    overrides: options.Overrides = None,
    seed: options.Seed = None,
    resume: options.Resume = False,
    images: Annotated[
        int | None,
        typer.Option(
            min=16, help="Images per rendered domain; by default 400, and 160 with --loop."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=33, help="Rounds of the benchmark.")] = 700,
    loop: Annotated[
        bool,
        typer.Option(
            "--loop",
            help="Drive into the evening instead: from the alarm of a watched drive to the next "
            "bundle.",
        ),
    ] = False,
) -> None:
    """Render two domains, train, adapt without labels, export, calibrate, bench, report."""
    if loop:
        from cli.verbs.demo_loop import IMAGES
        from cli.verbs.demo_loop import loop as drive

        drive(out, recipe, overrides, seed, resume, images or IMAGES)
        return
    images = images or 400
    from edgeuda.labels import SPACES
    from edgeuda.street import write_dataset

    if not resume:
        require_absent(out)
    source, target, test = (out / "data" / role for role in ("source", "target", "test"))
    cores = len(os.sched_getaffinity(0))
    first = (seed or 0) * 1_000_000

    def render(folder: Path, domain: str, count: int, start: int) -> None:
        write_dataset(folder, domain, count, start, *SIZE, SPACES["camvid-11"], workers=cores)

    chapter(
        "Rendering the simulator's labelled images, and labelled ones of the camera to score on"
    )
    render(source, "simulator", images, first)
    render(test, "camera", max(16, images // 4), first + 200_000)

    runs, adapted = out / "source", out / "adapted"
    chapter("Training on the simulator")
    train([source], runs, recipe, overrides, seed=seed, resume=resume)
    page = out / "first-look" / "report.html"
    if not page.with_suffix(".csv").exists():  # what is written last
        _look(runs, test, page.parent)
        report([page.parent], page, "Demo: the simulator's network on the camera")
    chapter(f"A first page, of what is to be mended: {page.resolve().as_uri()}")
    chapter("Rendering the camera's frames")
    render(target, "camera", images, first + 100_000)
    chapter("Adapting to the camera, without its labels")
    adapt(runs, [source], target, adapted, recipe, overrides, seed=seed, resume=resume)

    chapter("Exporting, calibrating INT8 on target frames, scoring and timing, variants in turns")
    names = ["source-only", "stage 2"]
    tradeoff(
        [runs, adapted], target, out / "tradeoff", test, name=names, samples=samples,
        threads=THREADS, budget=BUDGET,
    )  # fmt: skip
    fp32 = next((out / "tradeoff" / "models").glob("stage-2-*-fp32.onnx"))
    tensorrt = out / "stage-2-INT8-for-TensorRT.onnx"
    once(tensorrt, lambda path: _int8(fp32, target, path))
    chapter("Scoring the stages between")
    results = out / "results"
    scored = {
        "AdaBN": adapted / "adabn", "stage 1": adapted / "stage1",
        "stage 2 INT8 for TensorRT": tensorrt,
    }  # fmt: skip
    for name, model in scored.items():
        if model.exists():
            once(results / f"{name.replace(' ', '-')}.json", partial(_score, model, test, name))
    html = out / "report.html"
    report(
        [out / "tradeoff", results, adapted / "adaptation.json", *out.glob("*.calibration.json")],
        html, "Demo: rendered simulator to rendered camera",
    )  # fmt: skip
    chapter(f"Open {html.resolve().as_uri()}")


def _look(model: Path, data: Path, out: Path) -> None:
    """Score a network, and draw telling frames beside the truth."""
    import numpy as np

    from calibration.telling_frames import telling_frames, write_predictions
    from edgeuda.accuracy.scoring import score
    from edgeuda.data.folders import labelled_folder
    from edgeuda.models.subject import subject_of
    from edgeuda.records.identity import model_file

    name, subject = "source-only", subject_of(model)
    scored, labelled = score(subject, data, name), labelled_folder(data)
    telling = telling_frames(np.stack([counts for _, counts in scored.images]))
    files = {index: labelled.pairs[index].image for index in telling}
    pairs = {index: labelled.read(index) for index in telling}
    found = {index: subject.predict(image) for index, (image, _) in pairs.items()}
    truth = {index: label for index, (_, label) in pairs.items()}
    space = labelled.space
    write_predictions(out / name, name, model_file(model), space, found, files, telling)
    write_predictions(out / "truth", "ground truth", None, space, truth, files, telling)
    write_json(out / f"{name}.json", scored.to_record())


def _int8(model: Path, target: Path, out: Path) -> None:
    ranges = model.with_name(f"{model.stem}.ranges.npz")  # the sweep's: of the same frames
    allowed(lambda: calibrate(model, target, out, "tensorrt", ranges=ranges))


def _score(model: Path, data: Path, name: str, out: Path) -> None:
    evaluate(model, data, out, name)
