"""What pseudo-labels cost: selection, ranking, pasting, and the whole pass.

Pairs take turns in one process; medians and ratios of neighbours are recorded.

- ``selection``: instance-adaptive thresholds and labels of a batch of two 1024x2048 images with 19
  classes, against the released arithmetic: one ``numpy.quantile`` and one selection per class.
- ``pass``: a pseudo-label pass over frames (prediction, selection, statistics, PNG files, index)
  against prediction alone.
- ``ranking``: LSE's scores of the same frames against prediction alone.
- ``pasting``: hard-aware pasting on a 1024x2048 image, milliseconds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.networks import spec_of
from benchmarks.turns import in_turns
from edgeuda.methods.lse import class_confidence
from edgeuda.methods.selection import (
    InstanceAdaptive,
    SelectorSettings,
    confidence_histogram,
    select,
)
from edgeuda.methods.teacher import Teacher
from edgeuda.models.bisenet import BiSeNet
from edgeuda.street import write_dataset
from edgeuda.training.loader import Images, to_unit
from edgeuda.training.pseudo_labels import generate
from edgeuda.training.trainer import in_half, keep_freed_memory
from edgeuda.views.hard_paste import HardPaste

NEEDS = "extra train"
QUICK = {"size": [64, 128], "frames": 2, "width": 0.25, "repeats": 1}
CLASSES = 19
RULE = InstanceAdaptive()


def prediction(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Make confidences and blocky labels of two images."""
    coarse = rng.integers(0, CLASSES, (2, 32, 64))
    label = coarse.repeat(32, 1).repeat(32, 2)
    confidence = rng.beta(4, 1, label.shape).astype(np.float32)
    return torch.from_numpy(confidence), torch.from_numpy(label)


def ours(
    theta: torch.Tensor, confidence: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    label = label.int()  # as `generate` does: half the memory to read twice
    theta = RULE.update(theta, confidence_histogram(confidence, label, CLASSES))
    return theta, select(confidence, label, theta)


def released(
    theta: torch.Tensor, confidence: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    old, values, ids = theta.numpy(), confidence.numpy(), label.numpy()
    psi = np.ones(CLASSES, np.float32)
    for c in range(CLASSES):
        samples = np.concatenate([[old[c]], values[ids == c].astype(np.float16)])
        psi[c] = np.quantile(samples, 1 - RULE.keep * old[c] ** RULE.hardness)
    new = RULE.history * old + (1 - RULE.history) * psi
    new[new >= 1] = 0.999
    chosen = np.where(values >= new.astype(np.float32)[ids], ids, 255).astype(np.uint8)
    return torch.from_numpy(new), torch.from_numpy(chosen)


def pair(first: Any, second: Any, repeats: int) -> dict[str, Any]:
    """Time two things in turns; ``ratio`` is second over first."""
    turns = in_turns({"first": first, "second": second}, repeats, warm_up=1)
    ratio = turns.ratio("second", "first")
    return {
        **{f"{name}_ms": ms for name, ms in turns.ms().items()},
        "ratio": ratio["median"],
        "quartiles": ratio["quartiles"],
        "ratio_cpu": turns.ratio("second", "first", "cpu")["median"],
        "repeats": repeats,
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512))
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=10)


def measure(given: argparse.Namespace) -> dict:
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    rng = np.random.default_rng(0)
    theta = torch.full((CLASSES,), 0.9, dtype=torch.float64)
    batch = prediction(rng)
    a, b = ours(theta, *batch), released(theta, *batch)
    selection = pair(lambda: ours(theta, *batch), lambda: released(theta, *batch), given.repeats)
    selection |= {
        "threshold_difference": float((a[0] - b[0]).abs().max()),
        "labels_that_differ": int((a[1] != b[1]).sum()),
    }

    height, width = given.size
    spec = spec_of(height, width, given.width, "camvid-11")
    torch.manual_seed(0)
    teacher = Teacher(BiSeNet(11, given.width), half=in_half("auto"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root / "data", "camera", given.frames, 0, height, width, spec.label_space)
        frames = Images(sorted((root / "data" / "images").iterdir()), (height, width))

        def pairs() -> Any:
            for start in range(0, len(frames), 2):
                stack = np.stack([frames[i][0] for i in range(start, start + 2)])
                images = to_unit(torch.from_numpy(stack), torch.device("cpu"))
                yield teacher.predict(images, spec.preprocessing)

        def predict() -> None:
            for _ in pairs():
                pass

        def label() -> None:
            shutil.rmtree(root / "pseudo", ignore_errors=True)
            generate(
                teacher, spec, frames, SelectorSettings(initial=0.2), root / "pseudo",
                model_sha256="", seed=0, device=torch.device("cpu"),
            )  # fmt: skip

        def rank() -> None:
            for confidence, winner in pairs():
                for one, its in zip(confidence, winner, strict=True):
                    class_confidence(one, its, 11)

        whole = pair(predict, label, given.repeats)
        ranking = pair(predict, rank, given.repeats)

    images = rng.integers(0, 255, (4, 1024, 2048, 3), dtype=np.uint8)
    labels = batch[1].repeat(2, 1, 1).numpy().astype(np.uint8)
    counts = np.stack([np.bincount(x.ravel(), minlength=CLASSES) for x in labels])
    confidence = rng.random(CLASSES).tolist()
    paste = HardPaste.of(lambda i: (images[i], labels[i]), confidence, counts, 0.74)
    times = []
    for number in range(20):
        began = time.perf_counter()
        paste(images[0], labels[0], np.random.default_rng(number))
        times.append(time.perf_counter() - began)
    return {
        "schema": "edgeuda.benchmark.self-training/1",
        "threads": given.threads,
        "selection": selection,
        "pass": whole | {"frames": given.frames, "size": [height, width], "width": given.width},
        "ranking": ranking | {"ms_per_image": round(ranking["second_ms"] / given.frames, 2)},
        "pasting_ms": round(1000 * float(np.median(times)), 1),
    }
