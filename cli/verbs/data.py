"""Look after data: extract frames, check, split, render."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli import options
from cli.verbs.labelling import export_labels, import_labels, select
from cli.verbs.shared import cluster_of, console, parse_size, say, shown, space_or_none, wrote
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import parse_bytes, require_absent, require_html

app = typer.Typer(
    no_args_is_help=True,
    help="Extract frames, check, split and render data; choose frames to label, and exchange "
    "labels with annotation tools.",
)
app.command(cls=options.Verb)(select)
app.command()(export_labels)
app.command()(import_labels)


@app.command(cls=options.Verb)
def frames(
    footage: Annotated[
        Path,
        typer.Option(
            "--footage",
            help="Folder, video, image, MCAP file or ROS bag (drive.mcap, or one topic of it: "
            "drive.mcap:/camera/image_raw), WebDataset shards (shards-{0000..0099}.tar), or a .txt "
            "or .csv list of any; on disk or in an object store (s3://BUCKET/NAME).",
            **options.READ,
        ),
    ],
    out: options.Out,
    rate: Annotated[
        float | None, typer.Option(help="Frames per second to look at; by default all frames.")
    ] = None,
    start: Annotated[float, typer.Option(help="Seconds that are left out at the beginning.")] = 0.0,
    end: Annotated[
        float | None, typer.Option(help="Second at which to end; by default the last.")
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames per second of a folder of images.")] = 30.0,
    distinct: Annotated[
        float,
        typer.Option(
            help="Grey levels by which a frame must differ from the last one kept; 0 keeps all."
        ),
    ] = 2.0,
    crop: Annotated[
        str | None, typer.Option(help="Part of the frame to keep: LEFT,TOP,WIDTH,HEIGHT in pixels.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Image of the cropped frame's size; where it is black, frames are painted grey."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="OpenCV calibration file to undistort by, or the word recording for the one that "
            "the recording holds."
        ),
    ] = None,
    suffix: Annotated[
        Literal["jpg", "png"], typer.Option("--format", help="Format of the frames.")
    ] = "jpg",
    resume: options.Resume = False,
    ray: options.Ray = None,
) -> None:
    """Write the distinct frames of footage to a folder that every verb takes as target."""
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn

    from edgeuda.cluster_curation import curate_on_cluster
    from edgeuda.data.curation import INDEX_FILE, CurationProgress, curate, parse_crop
    from edgeuda.records.frames import Curation, Span

    curation = Curation(
        None if calibration is None else str(calibration),
        None if crop is None else parse_crop(crop),
        None if mask is None else str(mask),
        distinct,
    )
    span, form, cluster = Span(start, end, rate, fps), f".{suffix}", cluster_of(ray, None)
    if cluster is not None:
        with shown("data frames", True) as progress:
            found = curate_on_cluster(footage, out, span, curation, cluster, form, resume, progress)
    else:
        with Bar(TextColumn("{task.description}"), transient=True) as bar:
            task = bar.add_task("")

            def report(now: CurationProgress) -> None:
                if now.seen % 10 == 0:
                    bar.update(task, description=f"{now.seen} frames, {now.kept} kept")

            found = curate(footage, out, span, curation, form, resume, report)
    console.print(
        f"{found.seen} frames: kept {found.kept}, left out {found.duplicates} near-duplicates"
    )
    wrote(
        out / INDEX_FILE,
        then=options.command("adapt", model="RUN", source="SOURCE", target=out, out="ADAPTED"),
    )


@app.command()
def shard(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Names of the shards, with a number in them: shards-%04d.tar.",
            **options.WRITTEN,
        ),
    ],
    footage: Annotated[
        Path | None,
        typer.Option(
            "--footage", help="Footage, as the verb frames takes it; or --data.", **options.READ
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder of labelled images; their label maps become members KEY.seg.png.",
            **options.READ,
        ),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="Size of a shard at most, such as 500MB.")
    ] = "500MB",
    label_space: options.LabelSpaceName = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on behind the shards that are there.")
    ] = False,
) -> None:
    """Write frames, with their labels if there are any, as WebDataset shards."""
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn

    from edgeuda.data.folders import labelled_folder
    from edgeuda.data.shards import write_shards

    if (footage is None) is (data is None):
        msg = "Expected either --footage or --data"
        raise ConfigError(msg)
    limit = parse_bytes("--size", size)
    source = footage if data is None else labelled_folder(data, None, space_or_none(label_space))
    assert source is not None
    with Bar(TextColumn("{task.description}"), transient=True) as bar:
        task = bar.add_task("")

        def report(now: int) -> None:
            bar.update(task, description=f"{now} samples")

        samples, shards = write_shards(source, out, limit, resume, report)
    console.print(f"{samples} samples in {shards} shards")
    last = out.name % (shards - 1)
    wrote(out.with_name(out.name % 0), *[out.with_name(last)][: shards - 1])


@app.command(cls=options.Verb)
def check(
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="HTML page to write; JSON and Markdown go beside it.", **options.WRITTEN
        ),
    ],
    source: Annotated[
        Path | None, typer.Option(help="Folder of labelled source images.", **options.READ)
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Folder of target frames.", **options.READ)
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Folder of labelled images to score on.", **options.READ)
    ] = None,
    label_space: options.LabelSpaceName = None,
    limit: Annotated[
        int, typer.Option(min=2, help="Number of images of each data set that are looked at.")
    ] = 2000,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 3 if errors were found.")
    ] = False,
    ray: options.Ray = None,
) -> None:
    """Look for damage, wrong labels, rare classes, leakage, and how far two domains are apart."""
    if source is None and target is None and test is None:
        msg = "Expected at least one of --source, --target and --test"
        raise ConfigError(msg)
    require_html(out)
    for path in (out, out.with_suffix(".json"), out.with_suffix(".md")):
        require_absent(path)
    from edgeuda.cluster import discard, shards_folder
    from edgeuda.data.folders import labelled_folder
    from edgeuda.data.images import list_images
    from edgeuda.data_check import check as run
    from edgeuda.data_check import scale
    from engines.report.data import build_data_report

    stored = space_or_none(label_space)
    labelled = {
        name: labelled_folder(folder, None, stored, every=False)
        for name, folder in (("source", source), ("test", test))
        if folder is not None
    }
    frames = {} if target is None else {"target": (target, list_images(target))}
    with shown("data check", ray is not None) as progress:
        cluster = cluster_of(ray, None)
        result = run(labelled, frames, limit, cluster, shards_folder(out), progress)
    files = build_data_report(result, out)
    if ray is not None:
        discard(out)
    for found in result.findings:
        say(f"{found.severity}: {found.role}: {found.what}")
        if found.advice:
            say(f"    {found.advice}")
    if result.gap is not None:
        distance = f"{result.gap.frechet:.1f}, {scale(result.gap)}"
        text = f"distance of source and target in brightness and colour: {distance}"
        say(text)
    elif source is not None and target is not None:
        console.print("distance of source and target: not measured, it needs two images of each")
    wrote(*files)
    errors = [found for found in result.findings if found.severity == "error"]
    if strict and errors:
        msg = f"{len(errors)} errors in the data, see {out}"
        raise DataError(msg)


@app.command()
def render(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Folder of the data set; an interrupted one is continued.",
            **options.WRITTEN,
        ),
    ],
    domain: Annotated[
        str, typer.Option(help="Look of the streets: simulator, camera or randomised.")
    ] = "simulator",
    count: Annotated[int, typer.Option(min=1, help="Number of streets.")] = 500,
    size: Annotated[
        str, typer.Option("--size", help="Size of the images in pixels, HEIGHTxWIDTH.")
    ] = "256x512",
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the streets; two seeds have no image in common.")
    ] = 0,
    label_space: Annotated[
        str, typer.Option(help="Label space of the labels; what it lacks is ignored.")
    ] = "cityscapes-19",
    sequence: Annotated[
        int, typer.Option(min=1, help="Frames of a drive along each street; 1 is a still.")
    ] = 1,
    fps: Annotated[float, typer.Option(help="Frames per second of a drive.")] = 10.0,
    speed: Annotated[
        float, typer.Option(help="Speed of the camera in a drive in metres per second.")
    ] = 9.0,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes that render.")] = 1,
) -> None:
    """Render streets with labels, the same for the same seed."""
    from edgeuda.labels import label_space as by_name
    from edgeuda.street import Drive, write_dataset

    height, width = parse_size("--size", size)
    drive = Drive(sequence, fps, speed)
    space = by_name(label_space)
    write_dataset(out, domain, count, seed, height, width, space, workers, drive)
    wrote(
        out / "dataset.json",
        then=options.command("train", source=out, recipe="small", out="RUN"),
    )


@app.command()
def split(
    data: Annotated[
        Path, typer.Option("--data", help="Folder of labelled images to split.", **options.READ)
    ],
    out: options.Out,
    shares: Annotated[
        str, typer.Option(help="Shares of train, val and test, which are made to sum to 1.")
    ] = "0.8,0.1,0.1",
    gap: Annotated[
        int,
        typer.Option(min=0, help="Number of frames left out between the parts of one sequence."),
    ] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the order of the sequences.")] = 0,
    label_space: options.LabelSpaceName = None,
) -> None:
    """Split labelled images by sequence into lists that every verb takes."""
    require_absent(out)
    from edgeuda.data.folders import labelled_folder
    from edgeuda.data.splits import split_pairs, write_splits

    try:
        parts = [float(share) for share in shares.split(",")]
    except ValueError as err:
        msg = f"--shares: expected numbers between commas, found {shares!r}"
        raise ConfigError(msg) from err
    if len(parts) not in (2, 3) or min(parts) <= 0:
        msg = f"--shares: expected two or three positive shares, found {shares!r}"
        raise DataError(msg)
    folder = labelled_folder(data, None, space_or_none(label_space))
    found = split_pairs(folder, parts, gap, seed)
    files = write_splits(out, found)
    for file, pairs in zip(files, found.parts, strict=True):
        say(f"{file.stem}: {len(pairs)} images")
    console.print(f"{found.sequences} sequences, {found.how}; {found.left_out} images left out")
    wrote(
        *files,
        then=options.command(
            "train",
            source=files[0],
            label_space=label_space or folder.stored.name,
            recipe="small",
            out="RUN",
        ),
    )
