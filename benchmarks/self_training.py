"""What pseudo-labels cost: selection, ranking, pasting, and the whole pass.

    python benchmarks/self_training.py --out JSON

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeuda.files import write_json
from edgeuda.labels import SPACES
from edgeuda.methods.lse import class_confidence
from edgeuda.methods.selection import (
    InstanceAdaptive,
    SelectorSettings,
    confidence_histogram,
    select,
)
from edgeuda.methods.teacher import Teacher
from edgeuda.models.bisenet import BiSeNet
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.street import write_dataset
from edgeuda.training.loader import Images, to_unit
from edgeuda.training.pseudo_labels import generate
from edgeuda.training.trainer import in_half, keep_freed_memory
from edgeuda.views.hard_paste import HardPaste
from engines.machine.hardware import git_commit, identity

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


def turns(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Time two things in turns; ``ratio`` is second over first."""
    times = []
    for number in range(repeats + 1):
        pair = []
        for call in (first, second):
            began = time.perf_counter()
            call()
            pair.append(time.perf_counter() - began)
        if number:  # the first pair warms up
            times.append(pair)
    seconds = np.array(times)
    ratios = seconds[:, 1] / seconds[:, 0]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {
        "first_ms": round(1000 * float(np.median(seconds[:, 0])), 2),
        "second_ms": round(1000 * float(np.median(seconds[:, 1])), 2),
        "ratio": round(float(middle), 3),
        "quartiles": [round(float(low), 3), round(float(high), 3)],
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512))
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--width", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    rng = np.random.default_rng(0)
    theta = torch.full((CLASSES,), 0.9, dtype=torch.float64)
    batch = prediction(rng)
    a, b = ours(theta, *batch), released(theta, *batch)
    selection = turns(lambda: ours(theta, *batch), lambda: released(theta, *batch), 10)
    selection |= {
        "threshold_difference": float((a[0] - b[0]).abs().max()),
        "labels_that_differ": int((a[1] != b[1]).sum()),
    }

    height, width = arguments.size
    spec = ModelSpec("bisenet", arguments.width, SPACES["camvid-11"], Preprocessing(height, width))
    torch.manual_seed(0)
    teacher = Teacher(BiSeNet(11, arguments.width), half=in_half("auto"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root / "data", "camera", arguments.frames, 0, height, width, spec.label_space)
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

        whole = turns(predict, label, 9)
        ranking = turns(predict, rank, 9)

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
    record = {
        "schema": "edgeuda.benchmark/1",
        "threads": arguments.threads,
        "selection": selection,
        "pass": whole
        | {"frames": arguments.frames, "size": [height, width], "width": arguments.width},
        "ranking": ranking | {"ms_per_image": round(ranking["second_ms"] / arguments.frames, 2)},
        "pasting_ms": round(1000 * float(np.median(times)), 1),
        "commit": git_commit(Path(__file__).resolve().parents[1]),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "machine": identity(),
    }
    write_json(arguments.out, record)
    print({key: record[key] for key in ("selection", "pass", "ranking", "pasting_ms")})


if __name__ == "__main__":
    main()
