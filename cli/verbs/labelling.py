"""Choose frames to label, hand them to an annotation tool, take the labels back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import cluster_of, console, require_inputs, say, shown, space_or_none, wrote
from edgeuda.errors import ConfigError, require
from edgeuda.files import require_absent, sha256, write_text
from edgeuda.records.names import AnnotationTool


def select(
    model: options.SourceOfDoubt,
    target: options.Target,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="List to write, a name per line, the most telling frame first (selected.txt); a "
            "JSON record with scores and reasons goes beside it.",
            **options.WRITTEN,
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of frames to choose.")] = 50,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            min=1,
            help="Number of frames to look at, spread evenly over the footage; by default all.",
        ),
    ] = None,
    threads: options.Threads = None,
    ray: options.Ray = None,
) -> None:
    """Rank frames for labelling by what a network does not know, spread over the drive."""
    record = out.with_suffix(".json")
    for path in (out, record):
        require_absent(path)
    require_inputs(data=[target])
    from edgeuda.cluster import discard, shards_folder
    from edgeuda.data.footage import require_still
    from edgeuda.data.frames import frame_folder
    from edgeuda.frame_selection import Asked, Division, select_frames
    from edgeuda.records.identity import model_file
    from edgeuda.records.predictions import ModelFile

    probabilities_of: Callable[[Path, int | None], Asked]
    if model.suffix in (".onnx", ".engine", ".edgeuda"):
        from calibration.observe import probabilities_of

        file, device = model, "cpu"
    else:
        file = model_file(model)
        require("torch", "train")
        from edgeuda.models.subject import probabilities_of, usual_device

        device = usual_device().type
    asked = probabilities_of(model, threads)
    division = None
    if (cluster := cluster_of(ray, threads, device=device)) is not None:
        require_still(target)
        opened = partial(probabilities_of, model.absolute(), cluster.threads)
        division = Division(cluster, opened, shards_folder(out))
    footage = frame_folder(target, asked.spec.preprocessing.geometry)
    with shown("select", wanted=True) as progress:
        found = select_frames(
            asked, ModelFile(str(file), sha256(file)), footage, count, among=frames,
            division=division, progress=progress,
        )  # fmt: skip
    write_text(out, "".join(f"{frame.frame}\n" for frame in found.ranked))
    found.write(record)
    discard(out)
    first = found.ranked[0]
    say(
        f"{len(found.ranked)} of {found.looked_at} frames; the first is {first.frame}: "
        + "; ".join(first.reasons)
    )  # fmt: skip
    wrote(
        out,
        record,
        then=options.command("data export-labels", data="PSEUDO", frames=out, out="TO_LABEL"),
    )


def export_labels(
    data: Annotated[
        Path,
        typer.Option("--data", help="Labelled images to hand over: what pseudo-label wrote, say."),
    ],
    out: options.Out,
    tool: Annotated[
        AnnotationTool,
        typer.Option(
            "--format",
            help="Form to write: that of CVAT (Segmentation mask 1.1), of Label Studio (tasks "
            "with brush labels), or of COCO (run lengths).",
        ),
    ] = "cvat",
    frames: Annotated[
        Path | None,
        typer.Option(
            "--frames",
            help="Names of the frames to hand over: the list that data select wrote, the JSON of "
            "diff (its worst frames), or the .images.csv of evaluate --csv (least mIoU first); by "
            "default all.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of these that are handed over, at most.")
    ] = None,
    label_space: options.LabelSpaceName = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="What stands before the names of images in Label Studio's tasks, where they are "
            "not served from its local storage: s3://BUCKET/."
        ),
    ] = None,
) -> None:
    """Write images and labels as an annotation tool takes them, to be corrected there."""
    require_absent(out)
    from edgeuda.annotation.exchange import export_labels as run

    address = {} if prefix is None else {"prefix": prefix}
    count = run(
        data, out, tool, frames=frames, limit=limit, stored=space_or_none(label_space), **address
    )
    console.print(f"{count} frames")
    corrected = options.command(
        "data import-labels", labels="CORRECTED", target=data, out="LABELLED"
    )
    wrote(out, then=corrected)


def import_labels(
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            help="What the tool exported: ZIP or folder of CVAT's Segmentation mask 1.1, or of any "
            "PNGs with a labelmap.txt; JSON of COCO (instances or panoptic) or of Label Studio.",
        ),
    ],
    target: Annotated[
        Path,
        typer.Option(
            "--target",
            help="Footage that the annotated frames are from, or the labelled folder that was "
            "exported; frames are found by name.",
            **options.READ,
        ),
    ],
    out: options.Out,
    label_space: Annotated[
        str | None,
        typer.Option(
            "--label-space",
            help="Label space to label in; by default that of --target, if it is a labelled "
            "folder.",
        ),
    ] = None,
    map_class: Annotated[
        list[str] | None,
        typer.Option(
            "--map-class",
            help="What a class of the tool becomes, THEIRS=OURS, or THEIRS= to ignore it "
            "(repeatable); others are matched by name.",
        ),
    ] = None,
) -> None:
    """Make a labelled folder of labels that were drawn or corrected in an annotation tool."""
    require_absent(out)
    from edgeuda.annotation.exchange import import_labels as run

    mapped = {}
    for text in map_class or ():
        theirs, sign, ours = text.partition("=")
        if not sign or not theirs:
            msg = f"--map-class: expected THEIRS=OURS, or THEIRS= to ignore it, found {text!r}"
            raise ConfigError(msg)
        mapped[theirs] = ours or None
    found = run(labels, target, out, space=space_or_none(label_space), map_class=mapped)
    for text in found.said():
        say(text)
    wrote(
        out,
        out / found.FILE,
        then=options.command(
            "adapt",
            model="RUN",
            source="SOURCE",
            target="FRAMES",
            recipe="ass-gta5-to-cityscapes",
            target_labels=out,
            out="ADAPTED",
        ),
    )
