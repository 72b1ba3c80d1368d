"""Write label maps and overlays."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from cli import options
from cli.verbs.shared import wrote
from edgeuda.files import require_absent, sha256, short_name, write_json
from edgeuda.records import schemas

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeuda.data.camera import CameraGeometry
    from edgeuda.data.footage import Frame


def predict(
    model: options.DeployedModel,
    target: options.Footage,
    out: options.Out,
    name: options.Name = None,
    frames: options.Frames = 1_000_000,
    threads: options.Threads = None,
    device: options.RunDevice = "cpu",
    graphs: options.Graphs = True,
) -> None:
    """Segment frames with an exported model: label maps, overlays, and an index of both."""
    require_absent(out)
    from edgeuda.data.images import IMAGE_SUFFIXES, paint, write_image, write_label
    from edgeuda.data.treatment import as_shown, noted
    from engines.opening import open_runner
    from engines.runner import segment

    entries = []
    applied = 0
    opened = open_runner(model, threads, device, graphs=graphs)
    with opened as runner, suppress(KeyboardInterrupt):  # a camera has no end
        space, geometry = runner.spec.label_space, runner.spec.preprocessing.geometry
        colors = space.colors()
        for index, frame in enumerate(_frames(target, frames, geometry)):
            image, path = as_shown(frame.image, frame.origin, geometry), frame.origin
            applied += image is not frame.image
            labels = segment(runner, image)
            # Frames of several folders may share a stem.
            file = f"{index:06d}_{short_name(frame.name)}.png"
            raw = {}
            if image is not frame.image or path.suffix.lower() not in IMAGE_SUFFIXES:
                if path.suffix.lower() in IMAGE_SUFFIXES:  # other models' labels are of it, too
                    raw = {"raw": os.path.relpath(path.resolve(), out.resolve())}
                path = out / "frames" / file  # the report shows frames beside labels
                write_image(path, image)
            write_label(out / "labels" / file, labels)
            write_image(out / "overlays" / file, paint(image, labels, colors))
            shown = os.path.relpath(path.resolve(), out.resolve())
            entries.append({"frame": shown, **raw, "labels": f"labels/{file}"})
    record = out / "predictions.json"
    write_json(
        record,
        {
            "schema": schemas.PREDICTIONS,
            "name": name or model.stem,
            "model": {"file": str(model), "sha256": sha256(model)},
            "label_space": space.to_record(),
            **noted(geometry, applied, len(entries) - applied),
            "frames": entries,
        },
    )
    wrote(record, then=f"edgeuda report {options.typed(record)} --out report.html")


def _frames(target: Path, count: int, geometry: CameraGeometry | None) -> Iterator[Frame]:
    """Yield the frames as they are; those of a folder by the names of their files."""
    from edgeuda.data.folders import readable_frames, spread
    from edgeuda.data.footage import VIDEO_SUFFIXES, Frame, camera, footage
    from edgeuda.data.images import read_image

    live = str(target).isdecimal() and not target.exists()
    if live or target.suffix.lower() in VIDEO_SUFFIXES:
        moving = camera(int(str(target))) if live else footage(target)
        yield from islice(track(moving, "predict"), count)
        return
    chosen = spread(readable_frames(target, geometry), count)
    for index, path in enumerate(track(chosen, "predict")):
        yield Frame(path, path.stem, index, 0.0, read_image(path))
