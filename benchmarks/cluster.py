"""Scoring a graph with one worker of a Ray cluster against two, and what a worker's frame costs.

The same images of 1024x2048, as JPEG, go through the map over shards with one worker and with two,
in turns. Each shard's seconds and processor seconds are taken in its worker. The start of Ray is
left out: time runs from the first shard that is done to the last. Two workers can only be twice as
fast where two cores are idle, so the load of the machine, in the envelope, belongs to that ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.networks import network, smooth_images, spec_of
from benchmarks.turns import in_turns, say
from edgeuda.accuracy.evaluation import confusion
from edgeuda.cluster import Cluster, Results, Task, map_shards
from edgeuda.data.folders import LabelledFolder, labelled_folder
from edgeuda.data.images import read_image, read_label, resize_image, write_image, write_label

NEEDS = "extras train, cpu and ray"
QUICK = {"images": 4, "rounds": 1, "size": [64, 128], "width": 0.25, "file_size": [128, 256]}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file-size", type=int, nargs=2, default=[1024, 2048])
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024], help="of the network")
    parser.add_argument("--width", type=float, default=1.0)


@dataclass(frozen=True)
class Timed:
    """A worker's work with the seconds and processor seconds of each shard added."""

    work: Callable[[], Any]

    @contextmanager
    def __call__(self) -> Iterator[Callable[[Any], dict[str, np.ndarray]]]:
        """Open the work."""
        with self.work() as call:

            def timed(item: Any) -> dict[str, np.ndarray]:
                began = time.perf_counter(), time.process_time()
                found = call(item)
                spent = time.perf_counter() - began[0], time.process_time() - began[1]
                return {**found, "spent": np.array(spent)}

            yield timed


def once(task: Task, workers: int, folder: Path) -> tuple[Results, float]:
    """Run the map; returns its results, and seconds per frame after the first shard."""
    done: list[tuple[float, int]] = []
    results = map_shards(
        task, Cluster(workers=workers), folder,
        progress=lambda frames, _: done.append((time.perf_counter(), frames)),
    )  # fmt: skip
    (first, before), (last, after) = done[0], done[-1]
    return results, (last - first) / (after - before)


def parts(folder: LabelledFolder) -> dict[str, float]:
    """Return the processor's milliseconds of an image for what is done beside the network."""
    image, label = read_image(folder.pairs[0].image), read_label(folder.pairs[0].label)
    calls = {
        "read the JPEG": lambda: read_image(folder.pairs[0].image),
        "read the label map": lambda: read_label(folder.pairs[0].label),
        "resize the frame to 512x1024": lambda: resize_image(image, 512, 1024),
        "count": lambda: confusion(label, label, len(folder.space)),
    }
    return {name: round(ms, 2) for name, ms in in_turns(calls, 10).ms("cpu").items()}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    from engines import scoring
    from engines.onnx_export import export_onnx

    spec = spec_of(*given.size, given.width)
    wall: dict[int, list[float]] = {1: [], 2: []}
    cpu: dict[int, list[float]] = {1: [], 2: []}
    totals = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = smooth_images(given.images, *given.file_size)
        for number, image in enumerate(images):
            labels = np.full(image.shape[:2], number % 19, np.uint8)
            write_image(folder / "data/images" / f"{number:03d}.jpg", image)
            write_label(folder / "data/labels" / f"{number:03d}.png", labels)
        model = folder / "model.onnx"
        export_onnx(network(spec), spec, model, head="labels", frames=images[:1])
        data = labelled_folder(folder / "data", spec.label_space, spec.label_space)
        beside = parts(data)
        size = data.pairs[0].image.stat().st_size
        whole = scoring.scoring_task(model, data, threads=1)
        task = replace(whole, open=Timed(whole.open))
        for turn in range(given.rounds):
            for workers in (1, 2) if turn % 2 else (2, 1):
                say(f"round {turn + 1} of {given.rounds}, {workers} workers")
                results, seconds = once(task, workers, folder / f"{turn}-{workers}")
                spent = np.array([arrays["spent"] for arrays in results])
                wall[workers].append(seconds)
                cpu[workers].append(float(spent[1:, 1].mean()) / task.shard)
                totals.append(sum(arrays["total"] for arrays in results))
    assert all((total == totals[0]).all() for total in totals)

    def ms(found: dict[int, list[float]]) -> dict[str, float]:
        return {str(count): round(1e3 * median(values), 2) for count, values in found.items()}

    return {
        "schema": "edgeuda.benchmark.cluster/1",
        "images": given.images,
        "rounds": given.rounds,
        "file_size": given.file_size,
        "size": given.size,
        "width": given.width,
        "jpeg_bytes": size,
        "beside_the_network_cpu_ms": beside,
        "same_counts": True,
        "wall_ms_per_frame": ms(wall),
        "cpu_ms_per_frame": ms(cpu),
        "wall_two_to_one": round(median(wall[2]) / median(wall[1]), 3),
        "cpu_two_to_one": round(median(cpu[2]) / median(cpu[1]), 3),
    }
