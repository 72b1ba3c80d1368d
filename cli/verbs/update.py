"""The next network of a vehicle, from the last one and what it brought home."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.verbs.shared import (
    choose_device,
    console,
    require_inputs,
    resolved_recipe,
    say,
    space_or_none,
    wrote,
)
from edgeuda.errors import ParityError, require

if TYPE_CHECKING:
    from edgeuda.data.replay import Replay

FOOTAGE = "a folder or list of frames, a video, an MCAP file, a ROS bag or shards"


def update(
    bundle: Annotated[
        Path, typer.Option(help="Bundle of the last network, which runs on the vehicle.")
    ],
    model: Annotated[
        Path, typer.Option("--model", help="Run folder of the last network, as adapt wrote it.")
    ],
    source: options.Source,
    old: Annotated[
        Path,
        typer.Option(help=f"Frames that the last network was made for: {FOOTAGE}.", **options.READ),
    ],
    new: Annotated[
        Path,
        typer.Option(help=f"Frames that the vehicle brought home: {FOOTAGE}.", **options.READ),
    ],
    out: options.Out,
    old_labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of labelled images like --old, by which it is judged what the next "
            "network has forgotten; frames of --old among them are kept out of the adaptation.",
            **options.READ,
        ),
    ] = None,
    new_labels: Annotated[
        Path | None,
        typer.Option(help="Folder of labelled images like --new, likewise.", **options.READ),
    ] = None,
    replay_share: options.ReplayShare = 0.5,
    most_forgotten: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Points of mIoU that may be lost on --old-labels; beyond, no "
            "bundle is written.",
        ),
    ] = 1.0,
    pack_anyway: Annotated[
        bool,
        typer.Option(
            "--pack-anyway", help="Write the bundle whatever the verdict says; it is recorded."
        ),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="The recipe, by its built-in name or as a .toml file; by default that of the "
            "last network's run.",
        ),
    ] = None,
    overrides: options.Overrides = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    seed: options.Seed = None,
    source_weight: options.SourceWeights = None,
    frames: Annotated[
        int,
        typer.Option(
            "--frames", min=1, help="Frames of both to calibrate on, and to remember what is "
            "normal.",
        ),
    ] = 128,
    sign: Annotated[
        Path | None, typer.Option(help="Ed25519 private key to sign with, PEM without a password.")
    ] = None,
    public_key: options.PublicKey = None,
    resume: options.Resume = False,
    workers: options.Workers = 0,
    threads: options.Threads = None,
    device: options.TrainDevice = "auto",
    log: options.Log = None,
) -> None:  # fmt: skip
    """Adapt a vehicle's network to new frames beside old ones, compare it, and pack it."""
    require_inputs([model], (*source, old, new, old_labels, new_labels))
    choose_device(device)
    from rich.progress import Progress

    from calibration.next_network import RECIPE
    from calibration.next_network import update as run
    from engines.bundle_model import trusted_bundle
    from engines.report.words import said_of_update

    size = trusted_bundle(bundle, public_key).manifest.spec.get("preprocessing")
    own = None if size is None else [size["height"], size["width"]]
    fits = [f"{key}={own}" for key in ("model.input", "geometry.crop") if own]
    named = recipe or str(model / RECIPE)
    settings = resolved_recipe(named, [*fits, *(overrides or [])], seed)
    for package in ("onnx", "onnxruntime"):
        require(package, "quantize")

    def adapt(target: Path, replay: Replay, folder: Path) -> None:
        from edgeuda.training.pipeline import RunOptions
        from edgeuda.training.pipeline import adapt as train

        how = RunOptions(
            folder, True, workers, ignore_unmapped, tuple(source_weight or ()), tuple(log or ()),
            replay,
        )  # fmt: skip
        train(settings, model, source, target, how, space_or_none(label_space))

    bar = Progress(console=console, transient=True)
    task = bar.add_task("", total=None)

    def report(what: str, done: int, total: int) -> None:
        bar.start()  # only now: the training has a display of its own
        bar.update(task, description=what, completed=done, total=total)

    try:
        record = run(
            bundle, model, old, new, out, adapt=adapt, sources=source, old_labels=old_labels,
            new_labels=new_labels, stored=space_or_none(label_space),
            ignore_unmapped=ignore_unmapped, replay_share=replay_share,
            most_forgotten=most_forgotten / 100, pack_anyway=pack_anyway, frames=frames,
            resume=resume, private_key=sign, public_key=public_key, threads=threads, say=say,
            report=report,
        )  # fmt: skip
    finally:
        bar.stop()
    headline, why = said_of_update(record)
    say(f"{headline} {why}")
    page = options.joined(f"edgeuda report {options.typed(out)}", options.given(out=f"{out}.html"))
    if record.bundle is None:
        wrote(out / record.FILE, then=page)
        msg = f"{out}: no bundle was written. {headline} `edgeuda update --pack-anyway` writes it"
        if record.verdict.reason == "forgets" and len(settings.stages) > 1:
            msg += (
                ". Where old and new frames are not far apart, stage 1 alone forgets less: "
                "--set 'stages=[\"stage1\"]' and another --out"
            )
        raise ParityError(msg)
    packed = out / record.bundle.file
    wrote(out / record.FILE, packed, then=page)
    say(f"next: edgeuda install {options.typed(packed)} --into FOLDER")
