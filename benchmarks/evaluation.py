"""Time to score: label maps against cityscapesScripts, and a model's evaluation against inference.

The same label files of 1024x2048 go through both scorers, in turns in one process. A whole
evaluation (reading, resizing, inference, counting) takes turns with the same number of bare
inferences of the same graph.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.networks import network, smooth_images, spec_of
from benchmarks.turns import in_turns, say
from edgeuda.accuracy.boundary import BoundaryCounts
from edgeuda.accuracy.evaluation import confusion, miou_of
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import read_image, read_label, resize_image, write_image, write_label
from edgeuda.data.layouts import CITYSCAPES_IDS

NEEDS = "extras train and cpu, and cityscapesscripts"
QUICK = {"images": 1, "rounds": 1, "size": [64, 128], "width": 0.25, "file_size": [128, 256]}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--file-size", type=int, nargs=2, default=[1024, 2048])
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024], help="of the network")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)


def blocks(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a label map of 19 classes, some of it ignored, and one that differs along edges."""
    coarse = np.random.default_rng(seed).integers(0, 20, (32, 64), dtype=np.uint8)
    truth = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_NEAREST)
    prediction = np.roll(truth, 5, 1) % 19
    truth[truth == 19] = 255
    return truth, prediction


def scorers(given: argparse.Namespace, folder: Path) -> dict:
    """Time both scorers on the same files."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813

    back = np.zeros(256, np.uint8)
    for number, index in enumerate(CITYSCAPES_IDS):
        if index != 255:
            back[index] = number
    truths, predictions = (
        [folder / f"{what}{seed}_gtFine_labelIds.png" for seed in range(given.images)]
        for what in ("gt", "pred")
    )
    for seed in range(given.images):
        for paths, ids in zip((truths, predictions), blocks(seed, *given.file_size), strict=True):
            write_label(paths[seed], back[ids])
    how = official.args
    how.evalInstLevelScore = how.JSONOutput = False
    how.quiet = True
    scores = {}

    def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
        both = zip(truths, predictions, strict=True)
        return [(CITYSCAPES_IDS[read_label(t)], CITYSCAPES_IDS[read_label(p)]) for t, p in both]

    def ours() -> None:
        total = sum(confusion(truth, prediction, 19) for truth, prediction in pairs())
        scores["ours"] = miou_of(total)

    def theirs() -> None:
        lists = ([str(path) for path in paths] for paths in (predictions, truths))
        found = official.evaluateImgLists(*lists, how)
        scores["cityscapesscripts"] = float(found["averageScoreClasses"])

    def outlines() -> None:
        counts = BoundaryCounts(19)
        for truth, prediction in pairs():
            counts.add(truth, prediction)

    turns = in_turns(
        {"cityscapesscripts": theirs, "ours": ours, "ours, boundary IoU": outlines,
         "reading the files": pairs}, given.rounds, warm_up=1,
    )  # fmt: skip
    assert abs(scores["ours"] - scores["cityscapesscripts"]) < 1e-9
    return {
        "ms_per_image": {k: round(ms / given.images, 2) for k, ms in turns.ms().items()},
        "cpu_ms_per_image": {k: round(ms / given.images, 2) for k, ms in turns.ms("cpu").items()},
        "ours_to_cityscapesscripts": turns.ratio("ours", "cityscapesscripts", "cpu"),
        "miou": scores,
    }


def whole(given: argparse.Namespace, folder: Path) -> list[dict]:
    """Time the evaluation of an exported network, in both precisions, against inference alone."""
    from calibration.options import Options
    from calibration.quantize import calibrate
    from engines.onnx_export import export_onnx
    from engines.onnxruntime_runner import OnnxRunner
    from engines.scoring import score_exported

    spec = spec_of(*given.size, given.width)
    data = folder / "data"
    for seed, image in enumerate(smooth_images(given.images, *given.file_size)):
        write_image(data / "images" / f"{seed}.png", image)
        write_label(data / "labels" / f"{seed}.png", blocks(seed, *given.file_size)[0])
    frames = sorted((data / "images").iterdir())
    images = [resize_image(read_image(path), *given.size)[None] for path in frames]
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export_onnx(network(spec), spec, fp32, head="scores", frames=[images[0][0]])
    calibrate(fp32, frames[:8], int8, Options("ort-x86"))
    labelled = labelled_folder(data, spec.label_space, spec.label_space)
    rows = []
    for path in (fp32, int8):
        runner = OnnxRunner(path, given.threads)

        def inference(runner: OnnxRunner = runner) -> None:
            for image in images:
                runner(image)

        def evaluation(path: Path = path) -> None:
            score_exported(path, labelled, "network", threads=given.threads)

        turns = in_turns({"inference": inference, "evaluate": evaluation}, given.rounds, 1)
        rows.append(
            {
                "precision": path.stem,
                **{
                    f"{clock}_ms_per_image": {
                        name: round(ms / given.images, 2) for name, ms in turns.ms(clock).items()
                    }
                    for clock in ("wall", "cpu", "thread")
                },
                "evaluate_to_inference": {
                    clock: turns.ratio("evaluate", "inference", clock)
                    for clock in ("wall", "cpu", "thread")
                },
            }
        )
        say(rows[-1])
    return rows


def measure(given: argparse.Namespace) -> dict:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        return {
            "schema": "edgeuda.benchmark.evaluation/2",
            "images": given.images,
            "file_size": given.file_size,
            "network": {"width": given.width, "input": given.size, "threads": given.threads},
            "scorers": scorers(given, Path(name)),
            "whole": whole(given, Path(name)),
        }
