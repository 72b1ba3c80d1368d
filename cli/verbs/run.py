"""Segment a camera, a video or a folder as it comes."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.verbs.shared import console, refuse_together, say, wrote
from edgeuda.errors import ConfigError, DataError, ModelError, OutputError, without_passwords
from edgeuda.files import require_absent, sha256
from edgeuda.interrupts import stop_requests

if TYPE_CHECKING:
    from edgeuda.records.names import DeviceName
    from edgeuda.records.stream_adaptation import StreamAdaptation
    from engines.live.sample import Sampler
    from engines.live.sinks import Sink


def run(
    model: Annotated[
        Path, typer.Option("--model", help="Bundle (.edgeuda), ONNX file or .engine to run.")
    ],
    out: options.Out,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Video, MCAP file, ROS bag, shards, folder or list of frames, on disk or in an "
            "object store (s3://BUCKET/NAME), a camera's number or an rtsp:// address.",
        ),
    ] = None,
    member: Annotated[
        str | None,
        typer.Option(help="Name of a model in the bundle; by default the best for --device."),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Ed25519 public key that must have signed the bundle.")
    ] = None,
    video: Annotated[
        bool, typer.Option("--video", help="Write overlay.mkv, which plays at true speed.")
    ] = False,
    labels: Annotated[
        bool, typer.Option("--labels", help="Write label maps as PNG files.")
    ] = False,
    window: Annotated[
        bool,
        typer.Option("--window", help="Show overlays in a window, where Q or Escape ends the run."),
    ] = False,
    mcap: Annotated[
        Path | None,
        typer.Option(
            help="MCAP file to write frames, label maps and latencies to, with extra recordings."
        ),
    ] = None,
    rerun: Annotated[
        str | None,
        typer.Option(
            help="File .rrd for the viewer Rerun, `viewer` to open one, or the address of one, "
            "rerun+http://HOST:9876/proxy, with extra rerun."
        ),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            help="Port of this machine, or address and port such as 0.0.0.0:8080, where a page "
            "shows overlays, latencies and drops."
        ),
    ] = None,
    serve_token: Annotated[
        str | None,
        typer.Option(
            help="Password of the page, which an address that others reach needs; the environment "
            "variable EDGEUDA_SERVE_TOKEN keeps it out of the list of processes.",
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Frames per second at which a recording plays as a camera; late frames drop.",
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of segmented frames after which it ends; by default none."
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds after which it ends; by default none.")
    ] = None,
    ros2: Annotated[
        str | None,
        typer.Option(help="Topic of images to run on as a ROS 2 node, instead of --target."),
    ] = None,
    ros2_labels: Annotated[
        str, typer.Option(help="Topic that label images are published on.")
    ] = "/edgeuda/labels",
    threads: options.Threads = None,
    device: options.RunDevice = "cpu",
    graphs: options.Graphs = True,
    confidence: options.Confidence = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Hold frames against what was normal when the model was calibrated, and give an "
            "alarm where they are too far from it.",
        ),
    ] = False,
    alarms_per_hour: Annotated[
        float, typer.Option(help="False alarms in an hour that --watch accepts.")
    ] = 0.1,
    watch_window: Annotated[
        float, typer.Option(help="Seconds that --watch takes together.")
    ] = 10.0,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep the frames in that teach most, which adapt, calibrate and data "
            "select take as it is; a later drive with the same model goes on with it.",
            **options.WRITTEN,
        ),
    ] = None,
    keep_frames: Annotated[
        int, typer.Option(min=1, max=5000, help="Frames that --keep holds at most.")
    ] = 500,
    keep_megabytes: Annotated[
        float, typer.Option(min=0.1, help="Megabytes that the images of --keep take at most.")
    ] = 200.0,
    redact: Annotated[
        str | None,
        typer.Option(
            help="Function of yours, package.module:function, that each image goes through before "
            "--keep writes it, for example to blur faces and plates; --video, --mcap, --rerun and "
            "--serve show images as they are.",
        ),
    ] = None,
    adapt_bn: Annotated[
        bool,
        typer.Option(
            "--adapt-bn",
            help="At the end of the drive, estimate batch-norm statistics anew on what was seen; "
            "a network that passes is installed beside the one that ran, and runs the next time.",
        ),
    ] = False,
    adapt_frames: Annotated[
        int,
        typer.Option(
            min=4,
            help="Frames of the drive that --adapt-bn keeps in memory, half of them to estimate on "
            "and half to judge on.",
        ),
    ] = 64,
) -> None:
    """Segment what comes: newest frame first, drops counted, a lost camera opened again."""
    require_absent(out)
    if (target is None) is (ros2 is None):
        msg = "Expected either --target or --ros2"
        raise ConfigError(msg)
    if ros2 is not None:
        refuse_together(
            "--ros2", ("--video", video), ("--labels", labels), ("--window", window),
            ("--mcap", mcap), ("--rerun", rerun), ("--serve", serve), ("--fps", fps),
            ("--frames", frames), ("--seconds", seconds), ("--confidence", confidence),
            ("--keep", keep), ("--adapt-bn", adapt_bn),
        )  # fmt: skip
    if adapt_bn:  # kept frames are of one network, and a member is not what would run next
        refuse_together("--adapt-bn", ("--keep", keep), ("--member", member))
    if serve is None and serve_token is not None:
        msg = "--serve-token: expected --serve beside it, whose page it opens"
        raise ConfigError(msg)
    if redact is not None and keep is None:
        msg = "--redact: expected --keep beside it, whose images it changes"
        raise ConfigError(msg)
    if keep is not None and keep.resolve() == out.resolve():
        msg = f"--keep: expected another folder than --out, found {keep} for both"
        raise ConfigError(msg)
    redacting = None
    if redact is not None:
        from engines.live.keep import redactor

        redacting = redactor(redact)
    page = None
    if serve is not None:
        from engines.live.address import TOKEN_VARIABLE, address_of

        page = address_of(serve, serve_token or os.environ.get(TOKEN_VARIABLE) or None)
    if mcap is not None:  # what is missing is said before a model takes its time to open
        from engines.live.mcap_sink import libraries, require_suffix

        require_suffix(mcap)
        require_absent(mcap)
        libraries()
    if rerun is not None:
        from engines.live.rerun_sink import library

        library(rerun)
    from edgeuda.records.predictions import ModelFile
    from engines.bundle_model import model_file
    from engines.installation import attempt, note_alarms
    from engines.kept_engines import kept_engines
    from engines.opening import open_runner

    if adapt_bn:  # before the drive, whose end is too late to learn of it
        from calibration.stream import require_adaptable

        require_adaptable(model, device)
    with (
        attempt(model) as ran,
        model_file(model, device, member, public_key) as file,
        open_runner(
            file,
            threads,
            device,
            graphs=graphs,
            trusted=True,
            confidence=confidence or watch or keep is not None,
            engines=kept_engines(model, device, public_key),
        ) as runner,
    ):
        checksum = sha256(file)
        watching = None
        if watch:
            from engines.live.watch import Watch, WatchSettings
            from engines.reference import reference_of

            watching = Watch(reference_of(file), WatchSettings(alarms_per_hour, watch_window))
        if ros2 is not None:
            from engines.live.ros2 import spin

            published = spin(runner, ros2, ros2_labels, status=say, watch=watching)
            say(f"{published} label images published")
            if watching is not None:
                note_alarms(model, ran, watching.record())
            return
        from edgeuda.data.footage import camera, footage, frame_rate
        from edgeuda.data.stores import StorePath, located
        from edgeuda.records.frames import Span
        from engines.live.capture import Capture
        from engines.live.loop import StopAt
        from engines.live.loop import run as segment_stream
        from engines.live.sinks import LabelMaps, OverlayVideo, Window

        assert target is not None
        where = located(target)
        address = "://" in target and not isinstance(where, StorePath)
        live = (target.isdecimal() or address) and not where.exists()
        rate = fps or (None if live else frame_rate(where)) or 30.0
        source = (
            partial(camera, int(target) if target.isdecimal() else target)
            if live
            else partial(footage, where, Span(fps=rate))
        )
        stop = threading.Event()
        space = runner.spec.label_space
        colors = space.colors()
        whole = not live and fps is None
        sinks: list[Sink] = []
        if video:
            sinks.append(OverlayVideo(out / "overlay.mkv", rate, colors, whole))
        if labels:
            sinks.append(LabelMaps(out / "labels"))
        if window:
            sinks.append(Window(colors, stop.set))
        about = {"backend": runner.backend, "precision": runner.precision}
        arriving = Capture(source, live=live, fps=None if live else fps)
        if mcap is not None:
            from engines.live.mcap_sink import McapFile

            sinks.append(McapFile(mcap, space, {"model": checksum, **about}))
        if rerun is not None:
            from engines.live.rerun_sink import RerunLog

            sinks.append(RerunLog(rerun, space))
        if page is not None:
            from engines.live.web import StatusPage

            sinks.append(StatusPage(page, space, arriving, {"model": model.name, **about}))
            say(f"watch {page.url}")
        keeping = None
        if keep is not None:
            from edgeuda.records.keep import KeepBudget
            from edgeuda.records.reference import reference_path
            from engines.live.keep import EVERY, Keeper
            from engines.reference import reference_of

            timed = live or fps is not None or frame_rate(where) is not None
            keeping = Keeper(
                keep, KeepBudget(keep_frames, keep_megabytes),
                ModelFile(model.name, checksum), space.classes,
                reference_of(file) if reference_path(file).exists() else None,
                redacting, runner.spec.preprocessing.geometry, EVERY if timed else 0.0,
            )  # fmt: skip
        sampler = None
        if adapt_bn:
            from engines.live.sample import Sampler

            timed = live or fps is not None or frame_rate(where) is not None
            sampler = Sampler(adapt_frames, runner.spec.preprocessing, timed=timed)
            sinks.append(sampler)
            say(f"{adapt_frames} frames to adapt to take {sampler.megabytes:.1f} MB at most")
        with stop_requests(stop.set):  # what was written is finished
            record = segment_stream(
                runner,
                arriving,
                sinks,
                lossless=whole,
                limits=StopAt(frames, seconds),
                stop=stop,
                status=say,
                confidence=confidence,
                watch=watching,
                keep=keeping,
            )
            record = replace(
                record, model=ModelFile(str(model), checksum), source=without_passwords(target)
            )
            path = out / "run.json"
            record.write(path)
            say(str(record))
            if record.watch is not None:
                note_alarms(model, ran, record.watch)
    if sampler is not None and ran is not None and record.error is None:
        record = replace(record, adaptation=_adapt(model.parent, ran, sampler, device, threads))
        record.write(path)
        say(str(record.adaptation))
    files = [out / "overlay.mkv", out / "labels"]
    files += [Path(path) for path in (mcap, rerun, keep) if path is not None]
    written = [path for path in files if path.exists()]
    wrote(path, *written)
    if record.error is not None:
        raise DataError(record.error)
    if record.adaptation is not None and record.adaptation.error is not None:
        msg = f"The drive is complete, and the network stays: {record.adaptation.error}"
        raise ModelError(msg)
    failed = [f"{name}: {one.error}" for name, one in record.sinks.items() if one.error]
    if record.keep is not None and record.keep.error is not None:
        failed.append(f"kept frames: {record.keep.error}")
    if failed:
        msg = f"The network went on to the end, but not all was written. {'; '.join(failed)}"
        raise OutputError(msg)


def _adapt(
    into: Path, ran: str, sampler: Sampler, device: DeviceName, threads: int | None
) -> StreamAdaptation:
    """Adapt the network that ran; whoever does not want to wait presses Ctrl-C once more."""
    from calibration.stream import adapt_installed
    from cli.verbs.shared import shown

    with shown("adapting to the drive", console.is_terminal) as bar:
        return adapt_installed(
            into, ran, sampler.sample(), device=device, threads=threads,
            report=lambda _what, done, total: bar(done, total),
        )  # fmt: skip
