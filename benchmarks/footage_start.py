"""What footage costs before and beside the work: starting, listing, memory, pseudo-labels.

python benchmarks/footage_start.py --out benchmarks/results/footage-start.json

Frames are hard links of a few rendered ones. What a start takes is CPU seconds of a process of its
own, imports and model included, until the first range is collected; the machine's other work
disturbs it least. Memory is what a process grows by.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from edgeuda.data.frames import frame_folder
from edgeuda.data.images import write_image
from edgeuda.files import write_json
from edgeuda.labels import SPACES
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.street import write_dataset
from engines.machine.hardware import identity

HEIGHT, WIDTH = 1080, 1920
DIFFERENT = 32
"""Files behind the links: a file system allows some ten thousand links of each."""


class _BegunError(Exception):
    """Calibration has read its frames and begins to collect ranges."""


def linked(folder: Path, originals: list[Path], count: int) -> Path:
    """Make a folder of so many frames."""
    folder.mkdir()
    for index in range(count):
        os.link(originals[index % len(originals)], folder / f"drive_{index * 7919 % count:09d}.jpg")
    return folder


def start(model: Path, folder: Path, frames: int) -> None:
    """Calibrate in this process until ranges are collected."""
    import calibration

    def report(*_: object) -> None:
        raise _BegunError

    out = Path(tempfile.mkdtemp()) / "int8.onnx"
    try:
        calibration.calibrate(model, folder, out, frames=frames, report=report)
    except _BegunError:
        pass
    finally:
        shutil.rmtree(out.parent)


def listing(folder: Path) -> None:
    """List a folder, choose from it and tell it from others in this process."""
    before = peak()
    began = time.process_time()
    frames = frame_folder(folder)
    listed = time.process_time() - began
    frames.sample(8)
    for _ in frames.identity():
        pass
    told = time.process_time() - began - listed
    print(len(frames), listed, told, peak() - before, peak())


def peak() -> int:
    """Return the most memory of this process so far, KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def alone(*arguments: object) -> tuple[float, list[float]]:
    """Run this file in a process of its own; returns its CPU seconds and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = [sys.executable, __file__, *map(str, arguments)]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
    return seconds, [float(word) for word in printed.split()]


def pseudo_labels(
    folder: Path, turns: int, size: tuple[int, int], width: float
) -> dict[str, float]:
    """Time labelling a folder against reading and predicting it, in turns."""
    import torch

    from edgeuda.data.folders import ahead
    from edgeuda.data.images import read_image, resize_image
    from edgeuda.methods.selection import SelectorSettings
    from edgeuda.methods.teacher import Teacher
    from edgeuda.models.bisenet import BiSeNet
    from edgeuda.models.checkpoint import load_model, save_model
    from edgeuda.training.loader import to_unit
    from edgeuda.training.pseudo_labels import label_footage

    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = ModelSpec("bisenet", width, SPACES["camvid-11"], Preprocessing(*size))
    model = folder.parent / "model.safetensors"
    save_model(BiSeNet(11, width), spec, model)
    frames = frame_folder(folder)
    settings = SelectorSettings()

    def predict() -> None:
        teacher = Teacher(load_model(model)[0])
        images = ahead(lambda path: resize_image(read_image(path), *size), frames)
        for _ in range(0, len(frames), settings.batch):
            batch = np.stack([next(images) for _ in range(settings.batch)])
            unit = to_unit(torch.from_numpy(batch), torch.device("cpu"))
            teacher.predict(unit, spec.preprocessing)

    def label() -> None:
        shutil.rmtree(folder.parent / "labels", ignore_errors=True)
        label_footage(model, folder, folder.parent / "labels", settings)

    ways: dict[str, Callable[[], None]] = {"predict": predict, "label": label}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            if turn:  # the first warms up
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {
        f"{name}_{what}_seconds": statistics.median(one[place] for one in found)
        for name, found in times.items()
        for place, what in enumerate(("cpu", "wall"))
    }
    ratios = [
        [b[place] / a[place] for a, b in zip(times["predict"], times["label"], strict=True)]
        for place in range(2)
    ]
    return {
        "frames": len(frames), "turns": turns, **medians,
        "ratio_cpu": statistics.median(ratios[0]), "ratio_wall": statistics.median(ratios[1]),
    }  # fmt: skip


def main() -> None:
    """Make the folders, measure, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--start", nargs=2)
    parser.add_argument("--listing")
    options = parser.parse_args()
    if options.start:
        start(Path(options.start[0]), Path(options.start[1]), options.frames)
        return
    if options.listing:
        listing(Path(options.listing))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_dataset(root / "street", "camera", DIFFERENT, 0, 270, 480, SPACES["camvid-11"])
        originals = []
        for path in sorted((root / "street/images").iterdir()):
            image = cv2.resize(cv2.imread(str(path))[:, :, ::-1], (WIDTH, HEIGHT))
            originals.append(root / "originals" / f"{path.stem}.jpg")
            write_image(originals[-1], np.ascontiguousarray(image, np.uint8))
        labelled = pseudo_labels(
            linked(root / "some", originals, 32), options.turns, (512, 1024), 1.0
        )
        print(labelled)
        model = export(root)
        counts = [count for count in (1000, 10_000, 100_000, 1_000_000) if count <= options.most]
        folders = {count: linked(root / f"{count}", originals, count) for count in counts}
        starts: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(options.turns):
            for count, folder in folders.items():
                starts[count].append(alone("--frames", options.frames, "--start", model, folder)[0])
        rows = []
        for count, folder in folders.items():
            _, (files, listed, told, memory, peak) = alone("--listing", folder)
            assert files == count
            rows.append(
                {
                    "frames": count,
                    "calibrate_starts_cpu_seconds": statistics.median(starts[count]),
                    "list_cpu_seconds": listed,
                    "identity_cpu_seconds": told,
                    "grown_kib": int(memory),
                    "peak_kib": int(peak),
                }
            )
            print(rows[-1])
    record = {
        "schema": "edgeuda.benchmark/1",
        "size": [HEIGHT, WIDTH],
        "calibration_frames": options.frames,
        "turns": options.turns,
        "footage": rows,
        "start_100000_to_1000": rows[2]["calibrate_starts_cpu_seconds"]
        / rows[0]["calibrate_starts_cpu_seconds"]
        if len(rows) > 2
        else None,
        "pseudo_label": labelled,
        "machine": identity(),
    }
    if options.out:
        write_json(options.out, record)


def export(root: Path) -> Path:
    """Write a small network as ONNX."""
    import torch

    from edgeuda.models.bisenet import BiSeNet
    from engines.onnx_export import export_onnx

    torch.manual_seed(0)
    spec = ModelSpec("bisenet", 0.25, SPACES["camvid-11"], Preprocessing(256, 512))
    frames = [np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8)]
    export_onnx(BiSeNet(11, 0.25), spec, root / "model.onnx", head="labels", frames=frames)
    return root / "model.onnx"


if __name__ == "__main__":
    main()
