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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeuda.data.images import Image


def predict(
    model: options.DeployedModel,
    target: options.Footage,
    out: options.Out,
    name: options.Name = None,
    frames: options.Frames = 1_000_000,
    threads: options.Threads = None,
    device: options.RunDevice = options.DeviceName.cpu,
    graphs: options.Graphs = True,
) -> None:
    """Segment frames with an exported model: label maps, overlays, and an index of both."""
    require_absent(out)
    from edgeuda.data.images import paint, write_image, write_label
    from engines.opening import open_runner
    from engines.runner import segment

    entries = []
    opened = open_runner(model, threads, device.value, graphs=graphs)
    with opened as runner, suppress(KeyboardInterrupt):  # a camera has no end
        space = runner.spec.label_space
        colors = space.colors()
        for index, (stem, path, image) in enumerate(_frames(target, frames)):
            labels = segment(runner, image)
            # Frames of several folders may share a stem.
            file = f"{index:06d}_{short_name(stem)}.png"
            if path is None:  # the report shows frames beside labels
                path = out / "frames" / file
                write_image(path, image)
            write_label(out / "labels" / file, labels)
            write_image(out / "overlays" / file, paint(image, labels, colors))
            frame = os.path.relpath(path.resolve(), out.resolve())
            entries.append({"frame": frame, "labels": f"labels/{file}"})
    record = out / "predictions.json"
    write_json(
        record,
        {
            "schema": "edgeuda.predictions/1",
            "name": name or model.stem,
            "model": {"file": str(model), "sha256": sha256(model)},
            "label_space": space.to_record(),
            "frames": entries,
        },
    )
    wrote(record, then=f"edgeuda report {options.typed(record)} --out report.html")


def _frames(target: Path, count: int) -> Iterator[tuple[str, Path | None, Image]]:
    """Yield name, file if it is an image, and pixels of each frame."""
    from edgeuda.data.folders import readable_frames, spread
    from edgeuda.data.footage import VIDEO_SUFFIXES, camera, footage
    from edgeuda.data.images import read_image

    live = str(target).isdecimal() and not target.exists()
    if live or target.suffix.lower() in VIDEO_SUFFIXES:
        moving = camera(int(str(target))) if live else footage(target)
        for frame in islice(track(moving, "predict"), count):
            yield frame.name, None, frame.image
        return
    for path in track(spread(readable_frames(target), count), "predict"):
        yield path.stem, path, read_image(path)
