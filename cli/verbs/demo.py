"""The whole path on two rendered domains."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.adapt import adapt
from cli.verbs.bench import bench
from cli.verbs.calibrate import Backend, calibrate
from cli.verbs.evaluate import evaluate
from cli.verbs.export import export
from cli.verbs.predict import predict
from cli.verbs.report import report
from cli.verbs.shared import console
from cli.verbs.train import train
from edgeuda.errors import ParityError
from edgeuda.files import require_absent, sha256_of, write_json

SIZE = (256, 512)
THREADS = 1
"""Of the benchmark: one core per network is what a vehicle's other work tends to leave."""


def demo(
    out: options.Out = Path("demo"),
    recipe: options.RecipeName = "small",
    overrides: options.Overrides = None,
    seed: options.Seed = None,
    resume: options.Resume = False,
    images: Annotated[int, typer.Option(min=16, help="Images per rendered domain.")] = 400,
    samples: Annotated[int, typer.Option(min=33, help="Rounds of the benchmark.")] = 700,
) -> None:
    """Render two domains, train, adapt without labels, export, calibrate, bench, report."""
    from edgeuda.data.street import write_dataset
    from edgeuda.labels import SPACES

    if not resume:
        require_absent(out)
    source, target, test = (out / "data" / role for role in ("source", "target", "test"))
    cores = len(os.sched_getaffinity(0))
    first = (seed or 0) * 1_000_000

    def render(folder: Path, domain: str, count: int, start: int) -> None:
        write_dataset(folder, domain, count, start, *SIZE, SPACES["camvid-11"], workers=cores)

    _say("Rendering the simulator's labelled images and the camera's frames")
    render(source, "simulator", images, first)
    render(target, "camera", images, first + 100_000)
    render(test, "camera", max(16, images // 4), first + 200_000)

    runs, adapted = out / "source", out / "adapted"
    _say("Training on the simulator")
    train(source, runs, recipe, overrides, seed=seed, resume=resume)
    _say("Adapting to the camera, without its labels")
    adapt(runs, source, target, adapted, recipe, overrides, seed=seed, resume=resume)

    models = {
        name: out / f"{name.replace(' ', '-')}.onnx"
        for name in ("source-only", "stage 2", "stage 2 INT8", "stage 2 INT8 for TensorRT")
    }
    before, fp32, int8, tensorrt = models.values()
    _say("Exporting to ONNX")
    _once(before, lambda path: export(runs, target, path))
    _once(fp32, lambda path: export(adapted, target, path))
    _say("Calibrating INT8 on target frames")
    _once(int8, lambda path: _int8(fp32, target, path, Backend.ort_x86))
    _once(tensorrt, lambda path: _int8(fp32, target, path, Backend.tensorrt))

    results = out / "results"
    _say("Scoring on held-out camera images")
    stages = {"AdaBN": adapted / "adabn", "stage 1": adapted / "stage1"}
    checkpoints = {name: folder for name, folder in stages.items() if folder.exists()}
    for name, model in {**checkpoints, **models}.items():
        _once(results / f"{name.replace(' ', '-')}.json", partial(_score, model, test, name))
    _say("Measuring latency, models taking turns")
    names = ["stage 2", "stage 2 INT8", "source-only"]
    files = [models[name] for name in names]
    _once(
        results / "bench.json",
        lambda path: bench(files, target, path, names, samples, threads=THREADS),
    )
    for name in ("source-only", "stage 2", "stage 2 INT8"):
        folder = results / f"predictions-{name.replace(' ', '-')}"
        if not (folder / "predictions.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            predict(models[name], test, folder, name, frames=4)
    _truth(test, results / "truth.json")
    html = out / "report.html"
    for old in (html, html.with_suffix(".json"), html.with_suffix(".md")):
        old.unlink(missing_ok=True)
    report(
        [results, adapted / "adaptation.json", *out.glob("*.calibration.json")],
        html, "Demo: rendered simulator to rendered camera",
    )  # fmt: skip
    _say(f"Open {html.resolve().as_uri()}")


def _once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file unless an earlier, interrupted demo has made it: files appear whole."""
    if not path.exists():
        make(path)


def _int8(model: Path, target: Path, out: Path, backend: Backend) -> None:
    try:
        calibrate(model, target, out, backend)
    except ParityError as refused:  # the model is there, and the report says it too
        console.print(f"[yellow]{refused}[/]", soft_wrap=True)


def _score(model: Path, data: Path, name: str, out: Path) -> None:
    evaluate(model, data, out, name)


def _truth(folder: Path, out: Path) -> None:
    """Let the report show the rendered labels beside the predictions."""
    from edgeuda.data.folders import labelled_folder

    data = labelled_folder(folder)
    write_json(
        out,
        {
            "schema": "edgeuda.predictions/1",
            "name": "ground truth",
            "model": {"file": "labels", "sha256": sha256_of([])},
            "label_space": data.space.to_record(),
            "frames": [
                {
                    "frame": os.path.relpath(pair.image.resolve(), out.parent.resolve()),
                    "labels": os.path.relpath(pair.label.resolve(), out.parent.resolve()),
                }
                for pair in data.pairs
            ],
        },
    )


def _say(text: str) -> None:
    console.rule(text, align="left")
