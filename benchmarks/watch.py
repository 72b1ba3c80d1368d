"""What `run --watch` notices and when, on drives it does not know, as they are and changed.

--normal is a folder of the frames that the reference is made of. --held and --other are a folder
for each drive: what should be no alarm, and what should. Held drives are also played darker,
blurred, through a dirty lens, in rain and with another white balance; the change is there from the
first frame, so the time of the first alarm is the time to detection.

Beside the watch stand two baselines: fixed thresholds for the mean confidence of a window and,
where the model's head is `scores`, for its mean entropy. They are the lowest confidence and the
highest entropy of the normal and the held drives as they are: they have seen what the watch has
not, and are as strict as they can be without a false alarm on any of these.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort

from benchmarks.turns import say
from calibration.reference import write_reference
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import Image, read_image
from edgeuda.records.watch import WatchRecord
from engines.live.watch import Watch, WatchSettings
from engines.onnx.confidence import LEVELS
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import FrameSignals, signals_of
from engines.signals import statistics

NEEDS = "extras train, quantize and cpu, an exported network and drives"
QUICK = {"fps": 1.0}
ALL = 1_000_000
"""Frames of the reference at most."""
Change = Callable[[Image], Image]
Row = tuple[float, float, float]
"""Seconds, mean confidence 0 to 1, mean entropy in nats."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="Exported with confidence.")
    parser.add_argument("--normal", type=Path, required=True)
    parser.add_argument("--held", type=Path, nargs="+", required=True)
    parser.add_argument("--other", type=Path, nargs="*", default=[])
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--per-hour", type=float, default=0.1)
    parser.add_argument("--window", type=float, default=10.0)


def changes() -> dict[str, Change]:
    """What is done to frames, by name."""
    rng = np.random.default_rng(0)

    def blurred(sigma: float) -> Change:
        return lambda image: cv2.GaussianBlur(image, (0, 0), sigma)

    def dirty(image: Image) -> Image:
        rows, columns = image.shape[:2]
        drops = (np.random.default_rng(1).random((rows, columns)) > 0.985).astype(np.float32)
        spots = cv2.GaussianBlur(drops, (0, 0), rows / 20)
        share = np.clip(3 * spots / spots.max(), 0, 1)[..., None]
        smeared = 0.7 * cv2.GaussianBlur(image, (0, 0), rows / 10) + 25
        return np.clip(image * (1 - share) + smeared * share, 0, 255).astype(np.uint8)

    def rainy(image: Image) -> Image:
        drops = (rng.random(image.shape[:2]) > 0.97).astype(np.float32)
        streaks = np.clip(cv2.filter2D(drops, -1, np.eye(7, dtype=np.float32)), 0, 1)
        return np.clip(0.8 * image + 30 + 60 * streaks[..., None], 0, 255).astype(np.uint8)

    def tinted(image: Image) -> Image:
        return np.clip(image * np.array([1.25, 1, 0.8]), 0, 255).astype(np.uint8)

    return {
        "as it is": _same,
        "darker, x0.6": lambda image: (0.6 * image).astype(np.uint8),
        "blurred, sigma 1": blurred(1),
        "blurred, sigma 2": blurred(2),
        "dirty lens": dirty,
        "rain": rainy,
        "white balance, red x1.25, blue x0.8": tinted,
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    settings = WatchSettings(given.per_hour, given.window)
    reference = write_reference(given.model, frame_folder(given.normal), ALL, threads=1)
    rows, said = [], changes()
    unsure: list[tuple[list[Row], bool]] = []
    entropy = _Entropy(given.model)
    with OnnxRunner(given.model, 1, confidence=True) as runner:
        for folder in [given.normal, *given.held, *given.other]:
            for name, change in said.items():
                if name != "as it is" and folder not in given.held:
                    continue
                watch, told = Watch(reference, settings), []
                for seconds, seen in _play(runner, folder, change, given.fps):
                    watch.add(seconds, statistics(seen, len(runner.spec.label_space)))
                    told.append((seconds, float(seen.confidence.mean()) / LEVELS, entropy(seen)))
                usual = name == "as it is" and folder not in given.other
                unsure.append((_windows(told, settings), usual))
                rows.append(
                    {"drive": folder.name, "change": name, "held": folder in given.held}
                    | {"watch": _told(watch.record())}
                )
                say(f"{rows[-1]}")
    normal = [one for windows, usual in unsure if usual for one in windows]
    least, most = min(one[1] for one in normal), max(one[2] for one in normal)
    for row, (windows, _) in zip(rows, unsure, strict=True):
        row["confidence"] = next((when for when, sure, _ in windows if sure < least), None)
        row["entropy"] = next((when for when, _, found in windows if found > most), None)
    limits = [vars(one) for one in Watch(reference, settings).record().limits]
    return {
        "schema": "edgeuda.benchmark.watch/1",
        "network": reference.network,
        "per_hour": given.per_hour,
        "window": given.window,
        "fps": given.fps,
        "confidence_threshold": least,
        "entropy_threshold": None if math.isnan(most) else most,
        "frames": reference.frames,
        "limits": limits,
        "results": rows,
    }


class _Entropy:
    """Mean entropy of a frame in nats, by the graph's scores; not a number where it gives none."""

    def __init__(self, model: Path) -> None:
        given = ort.SessionOptions()
        given.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(model), given, ["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._known = "scores" in {one.name for one in self._session.get_outputs()}

    def __call__(self, seen: FrameSignals) -> float:
        if not self._known:
            return math.nan
        (scores,) = self._session.run(["scores"], {self._input: seen.fed[None]})
        scores = scores[0].astype(np.float64)
        scores -= scores.max(0)
        total = np.exp(scores).sum(0)
        return float((np.log(total) - (np.exp(scores) * scores).sum(0) / total).mean())


def _windows(values: list[Row], settings: WatchSettings) -> list[Row]:
    """Return means of windows, at the times at which a watch tests."""
    found, now = [], settings.window
    while values and now <= values[-1][0]:
        taken = np.array([one for one in values if now - settings.window <= one[0] < now])
        if len(taken):
            found.append((now, float(taken[:, 1].mean()), float(taken[:, 2].mean())))
        now += settings.hop
    return found


def _same(image: Image) -> Image:
    return image


def _play(
    runner: OnnxRunner, folder: Path, change: Change, fps: float
) -> Iterator[tuple[float, FrameSignals]]:
    for index, path in enumerate(frame_folder(folder)):
        yield index / fps, signals_of(runner, change(read_image(path)))


def _told(record: WatchRecord) -> dict[str, Any]:
    first = record.alarms[0] if record.alarms else None
    return {
        "alarms": len(record.alarms),
        "first_seconds": None if first is None else first.at,
        "kind": None if first is None else first.kind,
        "columns": [] if first is None else sorted(first.apart),
        "highest_ratio": max((one.ratio for one in record.timeline), default=None),
        "windows": record.tested,
    }
