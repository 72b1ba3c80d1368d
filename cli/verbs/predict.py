"""Write label maps and overlays."""

from __future__ import annotations

from functools import partial

from rich.progress import track

from cli import options
from cli.verbs.shared import cluster_of, shown, wrote
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
    confidence: options.Confidence = False,
    ray: options.Ray = None,
) -> None:
    """Segment frames with an exported model: label maps, overlays, and an index of both."""
    from edgeuda.cluster import shards_folder

    if ray is None or not shards_folder(out).exists():
        require_absent(out)
    from edgeuda.records.predictions import PredictionsRecord
    from engines.prediction import predict as run

    with shown("predict", ray is not None) as progress:
        run(
            model, target, out, name=name, frames=frames, threads=threads, device=device,
            graphs=graphs, confidence=confidence, track=partial(track, description="predict"),
            cluster=cluster_of(ray, threads, model, device), progress=progress,
        )  # fmt: skip
    record = out / PredictionsRecord.FILE
    wrote(record, then=f"edgeuda report {options.typed(record)} --out report.html")
