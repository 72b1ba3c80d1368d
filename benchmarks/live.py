"""`edgeuda run` for hours, and whether writing overlays slows it.

A recording is played as a camera, over and over. In the soak the camera is lost now and then. The
effect of the overlay video is measured in turns of some seconds with and without it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeuda.data.footage import Frame, footage
from edgeuda.errors import DataError
from edgeuda.records.percentiles import percentile_interval
from engines.live.capture import Capture
from engines.live.loop import StopAt, run
from engines.live.sinks import LabelMaps, OverlayVideo, Sink
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import Runner

NEEDS = "extra cpu, an exported model and a recording"
QUICK = {"turns": 1, "seconds": 1.0, "soak": 3.0}
LOST_EVERY = 5000
"""Frames after which the camera is lost."""


class Camera:
    """A recording as a camera without end; with ``lost``, one that fails now and then."""

    def __init__(self, video: Path, lost: bool) -> None:
        self.video, self.lost, self.count, self.opened = video, lost, 0, 0

    def __call__(self) -> Iterator[Frame]:
        """Open it."""
        self.opened += 1
        if self.lost and self.opened % 3 == 0:
            msg = "The camera is unplugged"
            raise DataError(msg)
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        for _ in itertools.count():
            for frame in footage(self.video):
                self.count += 1
                yield replace(frame, index=self.count, name=f"{self.count:09d}")
                if self.lost and self.count % LOST_EVERY == 0:
                    return


def overlay_effect(runner: Runner, video: Path, fps: float, turns: int, seconds: float) -> dict:
    colors = runner.spec.label_space.colors()
    medians: dict[str, list[float]] = {"without": [], "with": []}
    dropped: dict[str, int] = {"without": 0, "with": 0}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(turns):
            for key in ("without", "with") if turn % 2 else ("with", "without"):
                folder = Path(name) / f"{turn}-{key}"
                sinks: list[Sink] = []
                if key == "with":
                    sinks = [
                        OverlayVideo(folder / "o.mkv", fps, colors), LabelMaps(folder / "labels"),
                    ]  # fmt: skip
                camera = Capture(Camera(video, lost=False), live=True, fps=fps)
                limits = StopAt(seconds=seconds)
                record = run(runner, camera, sinks, lossless=False, limits=limits)
                medians[key].append(record.latency_ms.percentiles["50"])
                dropped[key] += record.frames.dropped
    ratios = [a / b for a, b in zip(medians["with"], medians["without"], strict=True)]
    return {
        "turns": turns, "seconds_each": seconds, "fps": fps,
        "median_ms": medians, "dropped": dropped,
        "with_to_without": {
            "median": float(np.median(ratios)), "interval": percentile_interval(ratios, 50),
        },
    }  # fmt: skip


def soak(runner: Runner, video: Path, fps: float, seconds: float) -> dict:
    colors = runner.spec.label_space.colors()
    with tempfile.TemporaryDirectory() as name:
        sinks = [OverlayVideo(Path(name) / "o.mkv", fps, colors)]
        camera = Capture(Camera(video, lost=True), live=True, fps=fps)
        drive = run(runner, camera, sinks, lossless=False, limits=StopAt(seconds=seconds),
                    status=lambda _: None)  # fmt: skip
        record = drive.to_record()
        record["video_bytes"] = (Path(name) / "o.mkv").stat().st_size
    rows = record["course"]["rows"]
    settled = [row for row in rows if row[0] >= 60] or rows
    record["resident_mb"] |= {"after_a_minute": settled[0][3], "max": max(r[3] for r in rows)}
    return record


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--fps", type=float, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    parser.add_argument("--soak", type=float, default=600, help="seconds")


def measure(given: argparse.Namespace) -> dict:
    with OnnxRunner(given.model, given.threads) as runner:
        size = runner.spec.preprocessing
        record = {
            "schema": "edgeuda.benchmark.live/1",
            "model": {"precision": runner.precision, "width": runner.spec.width,
                      "input": [size.height, size.width], "threads": given.threads},
        }  # fmt: skip
        if given.turns:
            record["overlay"] = overlay_effect(
                runner, given.video, given.fps, given.turns, given.seconds
            )
        record["soak"] = soak(runner, given.video, given.fps, given.soak)
    return record
