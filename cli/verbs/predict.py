"""Write label maps and overlays."""

from __future__ import annotations

from functools import partial

from rich.progress import track

from cli import options
from cli.verbs.shared import wrote
from edgeuda.files import require_absent


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
    from edgeuda.records.predictions import PredictionsRecord
    from engines.prediction import predict as run

    run(
        model, target, out, name=name, frames=frames, threads=threads, device=device,
        graphs=graphs, track=partial(track, description="predict"),
    )  # fmt: skip
    record = out / PredictionsRecord.FILE
    wrote(record, then=f"edgeuda report {options.typed(record)} --out report.html")
