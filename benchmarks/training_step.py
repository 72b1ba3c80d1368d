"""Cost of an adaptation step against forward and backward of the same images; prints JSON.

Both take turns in one process. The bare pass is supervised cross-entropy on all three heads for as
many images as go through the network in the step: 3 N in stage 1, 4 N in stage 2. The frozen
network's pass on N images and all views, warps and losses are the step's own.

    python benchmarks/training_step.py --width 0.5 --size 160 320 --batch 4 --threads 1
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from edgeuda.methods.base import Batch
from edgeuda.methods.losses import cross_entropy_map
from edgeuda.methods.mixing import related_classes
from edgeuda.methods.teacher import Teacher
from edgeuda.methods.tufl import Tufl, TuflSettings
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.network import upsample
from edgeuda.spec import Preprocessing
from edgeuda.training.loader import position_generator
from edgeuda.training.trainer import make_fabric
from engines.machine.hardware import identity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 320))
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    fabric = make_fabric("auto")
    raw = BiSeNet(arguments.classes, arguments.width).eval()
    raw.to(device=fabric.device, memory_format=torch.channels_last)
    model = fabric.setup_module(raw)
    n, (height, width), classes = arguments.batch, arguments.size, arguments.classes
    preprocessing = Preprocessing(height, width)
    # Smooth images: noise alone would leave no pixel confident.
    coarse = torch.rand(2 * n, 3, 8, 16)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    labels = torch.nn.functional.interpolate(
        torch.randint(classes, (n, 1, 8, 16)).float(), (height, width)
    )[:, 0].long()
    images, labels = images.to(fabric.device), labels.to(fabric.device)
    batch = Batch(
        step=0,
        source=images[:n],
        source_label=labels,
        target=images[n:],
        pseudo_label=None,
        pseudo_confidence=None,
        generators=[position_generator(0, place) for place in range(n)],
        names=(),
    )

    def backward(loss: Tensor) -> None:
        raw.zero_grad()
        fabric.backward(loss)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    def bare(times: int) -> Callable[[], None]:
        x = images[:n].repeat(times, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        y = labels.repeat(times, 1, 1)

        def run() -> None:
            heads = model(x, aux=True, upsample=False).heads()
            full = [upsample(head.float().contiguous(), (height, width)) for head in heads]
            backward(torch.stack([cross_entropy_map(head, y).mean() for head in full]).sum())

        return run

    def step(method: Tufl) -> Callable[[], None]:
        return lambda: backward(method.step(model, batch, preprocessing).total())

    weights, related = torch.ones(classes), related_classes([str(c) for c in range(classes)])
    settings = TuflSettings(steps=1, batch=1, lr=1e-3)
    found = {}
    for name, times, method in (
        ("stage 1", 3, Tufl(settings, weights, related)),
        ("stage 2", 4, Tufl(settings, weights, related, Teacher(raw))),
    ):
        ours, theirs = step(method), bare(times)
        samples: list[tuple[float, float]] = []
        for number in range(arguments.runs + 3):
            seconds = []
            for run in (ours, theirs):
                began = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - began)
            if number >= 3:
                samples.append((seconds[0], seconds[1]))
        ratios = sorted(a / b for a, b in samples)
        found[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "ratio_quartiles": [round(ratios[len(ratios) * q // 4], 3) for q in (1, 3)],
            "step_ms": round(1e3 * statistics.median(a for a, _ in samples), 1),
            "bare_ms": round(1e3 * statistics.median(b for _, b in samples), 1),
            "images_per_s": round(2 * n / statistics.median(a for a, _ in samples), 1),
        }
    cuda = fabric.device.type == "cuda"
    record = {
        "schema": "edgeuda.training-step/1",
        "settings": vars(arguments),
        "steps": found,
        "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20)
        if cuda
        else round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "machine": identity(),
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
