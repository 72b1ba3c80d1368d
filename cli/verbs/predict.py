"""Write label maps and overlays."""

from __future__ import annotations

import os

from rich.progress import track

from cli import options
from cli.verbs.shared import wrote
from edgeuda.files import require_absent, sha256, write_json


def predict(
    model: options.OnnxModel,
    target: options.Target,
    out: options.Out,
    name: options.Name = None,
    frames: options.Frames = 1_000_000,
    threads: options.Threads = None,
) -> None:
    """Segment frames with an ONNX model: label maps, overlays, and an index of both."""
    require_absent(out)
    from edgeuda.data.folders import readable_frames, spread
    from edgeuda.data.images import paint, read_image, write_image, write_label
    from engines.onnxruntime_runner import OnnxRunner
    from engines.runner import segment

    entries = []
    with OnnxRunner(model, threads) as runner:
        space = runner.spec.label_space
        colors = space.colors()
        for index, path in enumerate(track(spread(readable_frames(target), frames), "predict")):
            image = read_image(path)
            labels = segment(runner, image)
            # Frames of several folders may share a stem.
            file = f"{index:06d}_{path.stem}.png"
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
    wrote(record, then=f"edgeuda report {record} --out report.html")
