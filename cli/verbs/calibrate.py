"""Calibrate to INT8 on target frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli import options
from cli.verbs.shared import cluster_of, console, space_or_none, wrote
from edgeuda.errors import ParityError
from edgeuda.files import require_absent, require_html
from edgeuda.records.names import FrameRule, ProviderName, QuantizerName, RuleName, RuntimeName

if TYPE_CHECKING:
    from edgeuda.records.calibration import CalibrationRecord
    from edgeuda.records.reference import Reference


FRAMES, RANGES, RECOVERY = "Frames", "Ranges", "What brings accuracy back"
PLACEMENT, VERDICT, MACHINE = "What is quantized", "Verdict", "This machine"


def calibrate(
    model: options.OnnxModel,
    target: options.Target,
    out: options.Out,
    runtime: Annotated[
        RuntimeName, typer.Option(help="Runtime that the INT8 model is for.")
    ] = "ort-x86",
    rule: Annotated[
        RuleName,
        typer.Option(
            help="How the range of a tensor follows from its values.", rich_help_panel=RANGES
        ),
    ] = "percentile",
    percentile: Annotated[
        float | None,
        typer.Option(
            min=50,
            max=100,
            help="Percentage of a percentile rule; by default 99.99 of values, 90 of frames.",
            rich_help_panel=RANGES,
        ),
    ] = None,
    frames: options.Frames = 128,
    choose: Annotated[
        FrameRule,
        typer.Option(
            help="Which frames: evenly over time, most different, or showing all classes.",
            rich_help_panel=FRAMES,
        ),
    ] = "uniform",
    on: Annotated[
        list[Path] | None,
        typer.Option(
            "--on",
            help="Folder that ranges are collected on instead of --target, which then only judges "
            "(repeatable).",
            rich_help_panel=FRAMES,
            **options.READ,
        ),
    ] = None,
    adapt_bn: Annotated[
        bool,
        typer.Option(
            "--adapt-bn",
            help="Estimate batch-norm statistics anew on the frames first.",
            rich_help_panel=RECOVERY,
        ),
    ] = False,
    equalize: Annotated[
        bool,
        typer.Option(
            "--equalize", help="Equalize weights across layers first.", rich_help_panel=RECOVERY
        ),
    ] = False,
    correct_biases: Annotated[
        bool,
        typer.Option(
            "--correct-biases",
            help="Correct the mean error of rounded weights.",
            rich_help_panel=RECOVERY,
        ),
    ] = False,
    finetune: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps of training the rounded network to agree with FP32; 0 trains nothing.",
            rich_help_panel=RECOVERY,
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of --finetune.", rich_help_panel=RECOVERY)] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Points that INT8 may lose, of mIoU with --data, else of the pixels that change "
            "class; blocks that lose most return to float until that is kept.",
            rich_help_panel=PLACEMENT,
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Time each block in INT8 and in float on this machine, and keep float what is "
            "faster so.",
            rich_help_panel=PLACEMENT,
        ),
    ] = False,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights, with * for anything, whose layers stay float (repeatable).",
            rich_help_panel=PLACEMENT,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of labelled images that INT8 is scored on, but never calibrated on.",
            rich_help_panel=VERDICT,
        ),
    ] = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="Least share of the pixels that keep their class, in percent.",
            rich_help_panel=VERDICT,
        ),
    ] = 95,
    min_class_agreement: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="Least IoU with FP32 of any class, in percent.",
            rich_help_panel=VERDICT,
        ),
    ] = 50,
    page: Annotated[
        Path | None,
        typer.Option(
            help="HTML page to write too, with verdict, worst frames, layers and histograms.",
            rich_help_panel=VERDICT,
        ),
    ] = None,
    ranges: Annotated[
        Path | None,
        typer.Option(
            help="File of histograms that is kept and reused; by default beside --out.",
            rich_help_panel=RANGES,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Calibration cache of TensorRT whose scales are taken as they are.",
            rich_help_panel=RANGES,
        ),
    ] = None,
    unchecked_cache: Annotated[
        bool,
        typer.Option(
            "--unchecked-cache",
            help="Take a cache also if it does not say its origin.",
            rich_help_panel=RANGES,
        ),
    ] = False,
    write_cache: Annotated[
        Path | None,
        typer.Option(help="Calibration cache of TensorRT to write too.", rich_help_panel=RANGES),
    ] = None,
    cache_version: Annotated[
        int,
        typer.Option(
            help="Version of TensorRT for --write-cache, where 8601 is 8.6.1.",
            rich_help_panel=RANGES,
        ),
    ] = 8601,
    quantizer: Annotated[
        QuantizerName,
        typer.Option(
            help="Whose placement and ranges; modelopt is installed by hand.",
            rich_help_panel=PLACEMENT,
        ),
    ] = "edgeuda",
    reference_frames: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Frames of --target whose confidence, classes and look are kept beside the model "
            "as what is normal, in stretches that follow each other; by default as many as "
            "--frames, if the model was exported with --confidence; 0 keeps none.",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    device: Annotated[
        ProviderName,
        typer.Option(
            help="Where ONNX Runtime executes while ranges are collected.", rich_help_panel=MACHINE
        ),
    ] = "cpu",
    threads: options.Threads = None,
    ray: Annotated[
        str | None, typer.Option("--ray", rich_help_panel=MACHINE, **options.RAY)
    ] = None,
    backend: Annotated[RuntimeName | None, options.renamed("--backend")] = None,
) -> None:
    """Collect ranges on target frames, write an INT8 model, and judge it without labels.

    Exits with 9 if it is not accepted; the model is written all the same.
    """
    from calibration.api import calibrate as run
    from calibration.options import Options
    from calibration.pipeline import Cache
    from calibration.range_file import ranges_path
    from calibration.source import adapted_path
    from edgeuda.data.frames import frame_folder
    from edgeuda.records.calibration import Limits
    from edgeuda.records.reference import Reference, reference_path

    if page is not None:
        require_html(page)
        require_absent(page)
    if write_cache is not None:
        require_absent(write_cache)
    settings = Options(
        runtime=options.now("--runtime", runtime, "--backend", backend),
        rule=rule,
        percentile=percentile,
        equalize=equalize,
        correct_biases=correct_biases,
        adapt_batch_norm=adapt_bn,
        keep_float=tuple(keep_float or ()),
        measure=measure,
        max_drop=None if max_drop is None else max_drop / 100,
        whole_curve=page is not None,
        limits=Limits(min_agreement / 100, min_class_agreement / 100),
        threads=threads,
        device=device,
        quantizer=quantizer,
        cluster=cluster_of(ray, threads, device=device),
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        transient=True,
    ) as bar:
        task = bar.add_task("reading frames", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        record = run(
            model, target, out, options=settings, frames=frames, choose=choose,
            on=on or (), data=data, stored=space_or_none(label_space),
            ignore_unmapped=ignore_unmapped, finetune=finetune, seed=seed, ranges=ranges,
            cache=None if cache is None else Cache(cache, unchecked_cache),
            reference_frames=reference_frames, report=report,
        )  # fmt: skip
    written = [out]
    if reference_path(out).exists():
        written.append(reference_path(out))
        _say_reference(Reference.read(reference_path(out)))
    else:
        why = "as asked" if reference_frames == 0 else "as it was exported without --confidence"
        console.print(f"no reference of what is normal lies beside the model, {why}")
    if adapt_bn:
        written.append(adapted_path(out))
        model = adapted_path(out)
    if write_cache is not None:
        from calibration.source import load_fp32, origin_of
        from calibration.tensorrt_cache import export_cache

        sums = [frame.sha256 for frame in record.frames]
        origin = origin_of(load_fp32(model)[0], sums, record.preprocessing)
        export_cache(write_cache, record.ranges, origin, cache_version)
        written.append(write_cache)
    if page is not None:
        from calibration.page import build_calibration_page

        judged = frame_folder(target, record.preprocessing.geometry).sample(frames)
        written += build_calibration_page(
            record, model, out, judged, ranges or ranges_path(out), page
        )
    _say(record)
    wrote(
        *written,
        then=options.joined(
            options.command("bench", model=model),
            options.given(model=out, target=target, out="bench.json"),
        ),
    )
    if record.acceptance is not None and not record.acceptance.accepted:
        msg = f"{out}: not accepted. {'. '.join(record.acceptance.reasons)}"
        raise ParityError(msg)


def _say_reference(record: Reference) -> None:
    console.print(
        f"reference of what is normal: {record.frames} of {record.footage} frames in "
        f"{len(record.stretches)} stretch{'es' * (len(record.stretches) > 1)}"
    )
    for remark in record.remarks:
        console.print(f"  {remark}")


def _say(record: CalibrationRecord) -> None:
    from calibration.frame_choice import enough

    found = record.acceptance
    assert found is not None
    console.print(
        f"{sum(layer.int8 for layer in record.layers)} of {len(record.layers)} convolutions are "
        "INT8"
        + (
            f"; ONNX Runtime runs {record.int8_convs} of {record.convs} in integers here"
            if record.runtime == "ort-x86"
            else ""
        )
    )
    if record.measured is not None:
        timed = record.measured
        console.print(
            (f"{', '.join(timed.kept_float)} stay float" if timed.kept_float else "no block")
            + (
                f", for this machine then takes {timed.chosen_ms / timed.int8_ms:.2f} of the time "
                "of INT8 alone"
                if timed.kept_float
                else " is faster in float on this machine"
            )
        )
    if record.assignment is not None:
        kept = record.assignment.kept_float
        console.print(
            f"within a drop of {100 * record.assignment.max_drop:g} points "
            f"({record.assignment.measure}): "
            + (f"{', '.join(kept)} stay float" if kept else "every block is INT8")
        )
    if record.convergence:
        console.print(
            f"{enough(record.convergence)} of {len(record.frames)} frames show 98 % of the ranges"
        )
    console.print(
        f"agreement with FP32 on {len(found.frames)} target frames: {found.agreement:.2%} of the "
        f"pixels, worst frame {found.frame_agreement[found.worst[0]]:.2%}, confidence "
        f"{100 * found.confidence_shift:+.2f} points"
    )
    if record.scores is not None:
        console.print(
            f"mIoU on {record.scores['images']:.0f} labelled images: "
            f"FP32 {100 * record.scores['fp32']:.2f}, INT8 {100 * record.scores['int8']:.2f}"
        )
    console.print("verdict: " + ("accepted" if found.accepted else "not accepted"))
