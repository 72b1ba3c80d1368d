"""Share of training that waits for images: JPEG frames and PNG labels that do not fit in memory.

A stage trains as `edgeuda adapt` does, with processes that load images; `waiting` is its log's
share of the time since the first step that the loop spent waiting for a batch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.networks import network, smooth_images, spec_of
from benchmarks.turns import say
from edgeuda.data.folders import labelled_folder
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import write_image, write_label
from edgeuda.methods.mixing import related_classes
from edgeuda.methods.tufl import Tufl, TuflSettings
from edgeuda.training import loader
from edgeuda.training.loader import Images, StepData, Views
from edgeuda.training.trainer import TrainingRun, fit, keep_freed_memory, make_fabric, read_log

NEEDS = "extra train"
QUICK = {"size": [128, 256], "crop": [64, 128], "width": 0.125, "steps": 3, "images": 4}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 2048], help="of the files")
    parser.add_argument("--crop", type=int, nargs=2, default=[512, 1024], help="that is learned")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--images", type=int, default=16, help="of each domain")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--threads", type=int, default=2, help="of the training itself")


def measure(given: argparse.Namespace) -> dict:
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    spec = spec_of(*given.crop, given.width)
    classes = len(spec.label_space)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        rng = np.random.default_rng(0)
        for number, smooth in enumerate(smooth_images(given.images, *given.size)):
            noise = rng.integers(-20, 20, smooth.shape, np.int16)  # as much to decode as a photo's
            image = np.clip(smooth + noise, 0, 255).astype(np.uint8)
            label = rng.integers(0, classes, (32, 64), np.uint8)
            label = label.repeat(given.size[0] // 32, 0).repeat(given.size[1] // 64, 1)
            write_image(root / "source" / "images" / f"{number}.jpg", image)
            write_label(root / "source" / "labels" / f"{number}.png", label)
            write_image(root / "target" / f"{number}.jpg", image)
        folder = labelled_folder(root / "source", spec.label_space, spec.label_space)
        loader.CACHE_BYTES = 0  # as if there were more images than fit
        size = (given.size[0], given.size[1])
        both = Images(folder, size), Images(frame_folder(root / "target"), size)
        views = Views((given.crop[0], given.crop[1]), (0.75, 1.0, 1.25), 0.5)
        settings = TuflSettings(steps=given.steps, batch=given.batch, lr=1e-6, log_every=1)
        for workers in given.workers:
            related = related_classes(spec.label_space.classes)
            method = Tufl(settings, torch.ones(classes), related)
            data = StepData(*both, given.batch, views, 0, given.steps)
            start = time.perf_counter()
            for item in range(2):
                data[item]
            one = (time.perf_counter() - start) / 2
            run = TrainingRun(root / f"run-{workers}", f"{workers} workers", "", workers)
            run.folder.mkdir()
            fit(network(spec), spec, method, data, settings, run, make_fabric("auto"))
            log = read_log(run.folder)
            first, last = log[0], log[-1]
            waited = last["waiting"] * last["seconds"] - first["waiting"] * first["seconds"]
            seconds = last["seconds"] - first["seconds"]
            rows.append(
                {
                    "workers": workers,
                    "step_seconds": round(seconds / (given.steps - 1), 3),
                    "loading_a_batch_seconds": round(one, 3),
                    "waiting": round(waited / seconds, 4),
                    "waiting_from_the_start": last["waiting"],
                }
            )
            say(rows[-1])
    return {
        "schema": "edgeuda.benchmark.loader/1",
        "files": given.size,
        "crop": given.crop,
        "width": given.width,
        "batch": given.batch,
        "steps": given.steps,
        "threads": given.threads,
        "rows": rows,
    }
