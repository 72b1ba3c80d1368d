"""Where segmented frames go: overlay video, label maps, a window; each in a thread of its own."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.data.footage import Frame
from edgeuda.data.images import Image, LabelMap, dimmed, paint, write_label
from edgeuda.errors import DataError, DeviceError, OutputError
from edgeuda.files import is_full, unwritable
from engines.live.capture import Tally
from engines.live.queue import LatestQueue
from engines.live.watch import WatchState
from engines.signals import FrameStatistics

logger = logging.getLogger(__name__)

QUEUE = 4
"""Results that wait for a sink."""
LONGEST_GAP = 10.0
"""Seconds of standing picture at most, where frames are missing."""
LOOKS = 30
"""Results between two looks at the room on the disk."""


@dataclass(frozen=True, eq=False)
class Result:
    """A segmented frame.

    Attributes:
        frame: The frame.
        seconds: When it came, since the beginning; in a recording of which every frame is shown,
            its time there.
        labels: ``[H, W]`` uint8 class ids.
        status: Frame rate and latency in words.
        time_ns: When it was captured, in nanoseconds since 1970: when the first frame came by the
            wall clock, and ``seconds``.
        stages: Milliseconds by stage, see `engines.runner.segment`, and ``total``.
        tally: What had become of frames by then.
        failures: Sinks that had failed by then, and why.
        confidence: ``[h, w]`` uint8, how sure the model is; None if it was not asked.
        watch: What the newest test of a watch found; None before the first, or without a watch.
        said: What the frame says without labels; None where nobody asked.
    """

    frame: Frame
    seconds: float | None
    labels: LabelMap
    status: str
    time_ns: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    failures: tuple[str, ...] = ()
    confidence: npt.NDArray[np.uint8] | None = None
    watch: WatchState | None = None
    said: FrameStatistics | None = None


class Sink(Protocol):
    """Takes results, in order, in one thread."""

    name: str

    def write(self, result: Result) -> None:
        """Take a result."""

    def close(self) -> None:
        """Finish what was written."""


class SinkThread:
    """Feeds a sink from a queue, so that it cannot hold up what produces results.

    A sink that fails takes nothing more; what it does not take is counted.

    Args:
        sink: The sink; opened, used and closed in the thread.
        lossless: Whether `offer` waits for a slow sink instead of dropping the oldest result.
    """

    def __init__(self, sink: Sink, *, lossless: bool) -> None:
        self.sink = sink
        self.queue: LatestQueue[Result] = LatestQueue(QUEUE, lossless=lossless)
        self.written = 0
        self.refused = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def offer(self, result: Result) -> None:
        """Hand a result over."""
        self.refused += not self.queue.put(result)

    def close(self) -> None:
        """Wait until everything handed over is written."""
        self.queue.close()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self.queue.finished:
                result = self.queue.get(0.5)
                if result is not None:
                    self.sink.write(result)
                    self.written += 1
        except BaseException as err:
            self.error = err
            self.queue.close()
            logger.warning("%s: failed and takes nothing more: %s", self.sink.name, err)
        finally:
            try:
                self.sink.close()
            except Exception as err:
                self.error = self.error or err


def overlay(result: Result, colors: npt.NDArray[np.uint8]) -> Image:
    """Return a frame with its classes painted over it and its status in a corner.

    It is dark where the model is unsure, if it was asked.
    """
    picture = paint(result.frame.image, result.labels, colors)
    if result.confidence is not None:
        picture = dimmed(picture, result.confidence)
    scale = max(0.4, picture.shape[0] / 900)
    place = (round(12 * scale), round(30 * scale))
    edge = max(1, round(1.5 * scale))
    around = [(x, y) for x in (-edge, 0, edge) for y in (-edge, 0, edge) if x or y]
    for x, y in (*around, (0, 0)):  # a thicker letter would be wider, too, with OpenCV 5
        cv2.putText(
            picture, result.status, (place[0] + x, place[1] + y), cv2.FONT_HERSHEY_SIMPLEX, scale,
            (0, 0, 0) if x or y else (255, 255, 255), max(1, round(scale)), cv2.LINE_AA,
        )  # fmt: skip
    return picture


class OverlayVideo:
    """Writes overlays as a video that plays at the speed of what it shows.

    Where frames were dropped the picture stands. The Matroska container can be read up to where
    it was written, also after a power cut, but for what the encoder still held: about a quarter of
    a megabyte.

    Args:
        path: The video, ``.mkv``.
        fps: Its frame rate.
        colors: ``[256, 3]`` uint8 RGB by class id.
        every: Whether each result is shown, also where several come within a frame's time.
    """

    name = "overlay video"

    def __init__(
        self, path: Path, fps: float, colors: npt.NDArray[np.uint8], every: bool = False
    ) -> None:
        self._path, self._fps, self._colors, self._every = path, fps, colors, every
        self._writer: Any = None
        self._size = (0, 0)
        self._frames, self._results = 0, 0

    def write(self, result: Result) -> None:
        """See `Sink`."""
        picture = cv2.cvtColor(overlay(result, self._colors), cv2.COLOR_RGB2BGR)
        self._results += 1
        if self._results % LOOKS == 1 and is_full(self._path.parent):  # OpenCV does not say
            raise OutputError(unwritable(self._path, OSError(errno.ENOSPC, "full")))
        if self._writer is None:
            self._open(picture.shape[1], picture.shape[0])
        if picture.shape[1::-1] != self._size:  # a video has one size
            picture = cv2.resize(picture, self._size)
        if result.seconds is None:
            self._writer.write(picture)
            return
        due = round(result.seconds * self._fps)
        if due - self._frames > LONGEST_GAP * self._fps:
            self._frames = due
        if self._every:
            due = max(due, self._frames)
        while self._frames <= due:
            self._writer.write(picture)
            self._frames += 1

    def _open(self, width: int, height: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._size = (width, height)
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._path), codec, self._fps, self._size)
        if not self._writer.isOpened():
            msg = f"{self._path}: OpenCV cannot write this video; end its name in .mkv"
            raise DataError(msg)

    def close(self) -> None:
        """See `Sink`."""
        if self._writer is not None:
            self._writer.release()


class LabelMaps:
    """Writes label maps as PNG, named after their frames.

    Args:
        folder: Where to.
    """

    name = "label maps"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, result: Result) -> None:
        """See `Sink`."""
        path = self._folder / f"{result.frame.name}.png"
        write_label(path, result.labels, durable=False)  # a slow card would drop frames

    def close(self) -> None:
        """See `Sink`."""


class Window:
    """Shows overlays on the screen.

    Args:
        colors: ``[256, 3]`` uint8 RGB by class id.
        quit_: Called when the user presses Q or Escape.

    Raises:
        DeviceError: If there is no screen.
    """

    name = "window"

    def __init__(self, colors: npt.NDArray[np.uint8], quit_: Callable[[], object]) -> None:
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            msg = "No display: `window` needs a screen (DISPLAY is not set). Leave it out"
            raise DeviceError(msg)
        self._colors, self._quit = colors, quit_

    def write(self, result: Result) -> None:
        """See `Sink`."""
        try:
            cv2.imshow("edgeuda", cv2.cvtColor(overlay(result, self._colors), cv2.COLOR_RGB2BGR))
            if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
                self._quit()
        except cv2.error as err:
            msg = f"OpenCV cannot open a window ({err.err}). Is opencv-python-headless installed?"
            raise DeviceError(msg) from err

    def close(self) -> None:
        """See `Sink`."""
        cv2.destroyAllWindows()
