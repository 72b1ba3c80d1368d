"""What footage costs before and beside the work: starting, listing, memory, pseudo-labels.

python benchmarks/footage_start.py --out benchmarks/results/footage-start.json

Frames are hard links of a few rendered ones. What a start takes is CPU seconds of a process of its
own, imports and model included, until the first range is collected; the machine's other work
disturbs it least. Memory is what a process grows by.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.networks import spec_of
from benchmarks.turns import alone, in_turns, peak_kib, say
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import write_image
from edgeuda.labels import SPACES
from edgeuda.street import write_dataset

NEEDS = "extras train, quantize and cpu; a million frames take 100 MB of names on disk"
QUICK = {
    "most": 1000, "turns": 1, "frames": 2, "size": [64, 128], "width": 0.25, "labelled": 2,
    "different": 2,
}  # fmt: skip
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


def start(model: str, folder: str, frames: int) -> None:
    """Calibrate in this process until ranges are collected."""
    import calibration

    def report(*_: object) -> None:
        raise _BegunError

    out = Path(tempfile.mkdtemp()) / "int8.onnx"
    try:
        calibration.calibrate(Path(model), Path(folder), out, frames=frames, report=report)
    except _BegunError:
        pass
    finally:
        shutil.rmtree(out.parent)


def listing(folder: str) -> dict[str, float]:
    """List a folder, choose from it and tell it from others in this process."""
    before = peak_kib()
    began = time.process_time()
    frames = frame_folder(Path(folder))
    listed = time.process_time() - began
    frames.sample(8)
    for _ in frames.identity():
        pass
    told = time.process_time() - began - listed
    return {
        "frames": len(frames),
        "list_cpu_seconds": listed,
        "identity_cpu_seconds": told,
        "grown_kib": peak_kib() - before,
        "peak_kib": peak_kib(),
    }


def pseudo_labels(folder: Path, turns: int, size: tuple[int, int], width: float) -> dict:
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
    spec = spec_of(*size, width, "camvid-11")
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

    found = in_turns({"predict": predict, "label": label}, turns, warm_up=1)
    return {
        "frames": len(frames),
        "turns": turns,
        **{
            f"{name}_{clock}_seconds": ms / 1e3
            for clock in ("cpu", "wall")
            for name, ms in found.ms(clock).items()
        },
        "ratio_cpu": found.ratio("label", "predict", "cpu")["median"],
        "ratio_wall": found.ratio("label", "predict")["median"],
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024])
    parser.add_argument("--width", type=float, default=1.0)
    parser.set_defaults(labelled=32, different=DIFFERENT)


def measure(given: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_dataset(root / "street", "camera", given.different, 0, 270, 480, SPACES["camvid-11"])
        originals = []
        for path in sorted((root / "street/images").iterdir()):
            image = cv2.resize(cv2.imread(str(path))[:, :, ::-1], (WIDTH, HEIGHT))
            originals.append(root / "originals" / f"{path.stem}.jpg")
            write_image(originals[-1], np.ascontiguousarray(image, np.uint8))
        labelled = pseudo_labels(
            linked(root / "some", originals, given.labelled), given.turns, given.size, given.width
        )
        say(labelled)
        model = export(root)
        counts = [count for count in (1000, 10_000, 100_000, 1_000_000) if count <= given.most]
        folders = {count: linked(root / f"{count}", originals, count) for count in counts}
        starts: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(given.turns):
            for count, folder in folders.items():
                starts[count].append(alone(start, model, folder, given.frames).cpu)
        rows = []
        for count, folder in folders.items():
            row = alone(listing, folder).value
            assert row["frames"] == count
            rows.append(row | {"calibrate_starts_cpu_seconds": statistics.median(starts[count])})
            say(rows[-1])
    begins = {row["frames"]: row["calibrate_starts_cpu_seconds"] for row in rows}
    return {
        "schema": "edgeuda.benchmark.footage-start/1",
        "size": [HEIGHT, WIDTH],
        "calibration_frames": given.frames,
        "turns": given.turns,
        "footage": rows,
        "start_100000_to_1000": begins[100_000] / begins[1000] if 100_000 in begins else None,
        "pseudo_label": labelled,
    }


def export(root: Path) -> Path:
    """Write a small network as ONNX."""
    import torch

    from edgeuda.models.bisenet import BiSeNet
    from engines.onnx_export import export_onnx

    torch.manual_seed(0)
    spec = spec_of(256, 512, 0.25, "camvid-11")
    frames = [np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8)]
    export_onnx(BiSeNet(11, 0.25), spec, root / "model.onnx", head="labels", frames=frames)
    return root / "model.onnx"
