"""From an alarm to the next bundle, on rendered streets: what `edgeuda demo --loop` does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cli.verbs.adapt import adapt
from cli.verbs.bundles import bundle
from cli.verbs.calibrate import calibrate
from cli.verbs.export import export
from cli.verbs.install import install, installed
from cli.verbs.report import report
from cli.verbs.run import run
from cli.verbs.shared import allowed, chapter, once
from cli.verbs.train import train
from cli.verbs.update import update
from edgeuda.errors import ConfigError
from edgeuda.files import require_absent

SIZE = (128, 256)
IMAGES, LEAST_IMAGES = 160, 64
"""By default, and fewest: with fewer by day it is not known how much normal varies."""
RATE = 2.0
"""Frames per second of the drive."""
MINUTES = 2
KEPT = 64
"""Frames that the vehicle brings home at most."""
SHORT = (
    "model.input=[128, 256]", "geometry.crop=[96, 192]", "source.steps=300", "stage1.steps=100",
    "stage2.steps=100",
)  # fmt: skip
"""What differs from the recipe: a few minutes on two cores."""


def loop(
    out: Path, recipe: str, overrides: list[str] | None, seed: int | None, resume: bool, images: int
) -> None:
    """Drive rendered streets into the evening, and make the next network of what is brought home.

    Args:
        out: Folder for everything made.
        recipe: Of the trainings.
        overrides: Settings of it to change.
        seed: Of everything random.
        resume: Whether to go on in ``out``.
        images: Rendered images by day, for each of source and footage.
    """
    from edgeuda.labels import SPACES
    from edgeuda.street import write_dataset
    from edgeuda.street.evening import falling, write_drive, write_evening

    if images < LEAST_IMAGES:
        msg = f"--images: expected {LEAST_IMAGES} or more with --loop, found {images}"
        raise ConfigError(msg)
    if not resume:
        require_absent(out)
    settings = [*SHORT, *(overrides or [])]
    cores, first = len(os.sched_getaffinity(0)), (seed or 0) * 1_000_000
    data = out / "data"
    frames, labelled = round(60 * MINUTES * RATE), max(16, images // 4)
    source, day, day_labels = (data / name for name in ("source", "day", "day-labelled"))
    evening_labels, evening = data / "evening-labelled", data / "evening"

    chapter("Rendering the simulator's labelled images, and the camera's frames by day")
    for number, (folder, domain, count) in enumerate((
        (source, "simulator", images), (day, "camera", images), (day_labels, "camera", labelled),
        (data / "lit-labelled", "camera", labelled), (data / "lit", "camera", frames),
    )):  # fmt: skip
        start = first + 100_000 * number
        write_dataset(folder, domain, count, start, *SIZE, SPACES["camvid-11"], workers=cores)
    chapter("Evening falls: the drive, and labelled images to score on")
    write_evening(data / "lit-labelled", evening_labels, [1.0] * labelled)
    write_evening(data / "lit", evening, falling(frames))
    drive = data / "drive.mkv"
    once(drive, lambda path: write_drive(sorted((evening / "images").iterdir()), path, RATE))

    chapter("Training on the simulator, adapting to the camera by day")
    train([source], out / "source", recipe, settings, seed=seed, resume=resume)
    last = out / "last"
    adapt(out / "source", [source], day, last / "run", recipe, settings, seed=seed, resume=resume)
    model, int8, packed = last / "net.onnx", last / "net-int8.onnx", last / "last.edgeuda"
    chapter("The bundle of the last network, with what is normal by day")
    once(model, lambda path: export(last / "run", day, path, "scores", confidence=True))
    if not packed.exists():  # a calibration that was stopped has no reference yet
        int8.unlink(missing_ok=True)
        allowed(lambda: calibrate(model, day, int8, "ort-x86", reference_frames=images))
        bundle([model, int8], packed, acceptance=day)
    vehicle = out / "vehicle"
    current = vehicle / "current.edgeuda"
    if not current.exists():
        install(packed, vehicle, threads=1)

    chapter("The drive into the evening: the watch gives an alarm, frames are kept")
    _driven(current, drive, out / "drive", out / "kept")

    chapter("The next network: adapted to what was kept, beside the day")
    going = (out / "next" / ".plan.json").exists()
    accepted = allowed(
        lambda: update(
            packed, last / "run", [source], day, out / "kept", out / "next",
            old_labels=day_labels, new_labels=evening_labels, seed=seed, frames=images,
            resume=going,
        )
    )  # fmt: skip
    pages = [out / "drive", last / "run" / "adaptation.json", out / "next" / "update.json"]
    if accepted:
        following = out / "next" / "next.edgeuda"
        if not (vehicle / "previous.edgeuda").exists():
            chapter("The vehicle takes it")
            install(following, vehicle, threads=1)
        chapter("The same drive again")
        _driven(current, drive, out / "drive-again", None)
        pages.append(out / "drive-again")
    installed(vehicle)
    html = out / "report.html"
    report(pages, html, "Demo: a drive into the evening, and the next network")
    chapter(f"Open {html.resolve().as_uri()}")


def _driven(model: Path, drive: Path, out: Path, keep: Path | None) -> None:
    """Drive, unless it was driven to its end."""
    if (out / "run.json").exists():
        return
    for left in (out, keep):
        if left is not None:
            shutil.rmtree(left, ignore_errors=True)
    run(model, out, str(drive), threads=1, watch=True, keep=keep, keep_frames=KEPT)
