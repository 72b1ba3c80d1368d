"""Frames from a camera or a recording, read in a thread that nothing downstream can hold up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from time import perf_counter_ns

from edgeuda.data.footage import Frame
from edgeuda.errors import DataError
from engines.live.queue import LatestQueue

logger = logging.getLogger(__name__)

QUEUE = 2
"""Frames that wait for the network: one in hand while the next comes."""
RETRY = (0.5, 5.0)
"""Seconds before a lost camera is opened again: at first, and at most."""


@dataclass(frozen=True)
class Arrived:
    """A frame and when it came, by ``perf_counter_ns``."""

    frame: Frame
    at_ns: int


@dataclass(frozen=True)
class Tally:
    """What became of frames so far.

    Attributes:
        received: Frames read.
        segmented: Frames with a label map.
        dropped: Frames that a newer one replaced before their turn.
        missed: See `Capture`.
        reconnects: See `Capture`.
    """

    received: int = 0
    segmented: int = 0
    dropped: int = 0
    missed: int = 0
    reconnects: int = 0


class Capture:
    """Reads frames in a thread, from entering to leaving the context.

    Args:
        frames: Opens the source; called again when a live one is lost.
        live: Whether the source is a camera: it is never held up, old frames are dropped, and it
            is opened again when it ends. Else no frame is lost and the end is the end.
        fps: Rate at which a recording is played as if it were a camera; None as fast as it goes.

    Attributes:
        received: Frames read.
        reconnects: How often a camera was opened again.
        missed: Frames that a camera of rate ``fps`` would have delivered while the recording could
            not be read as fast.
    """

    def __init__(
        self, frames: Callable[[], Iterator[Frame]], *, live: bool, fps: float | None = None
    ) -> None:
        self.queue: LatestQueue[Arrived] = LatestQueue(QUEUE, lossless=not live and fps is None)
        self.received = 0
        self.reconnects = 0
        self.missed = 0
        self._frames, self._live, self._fps = frames, live, fps
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self.queue.close()
        self._thread.join(timeout=10)  # a driver that hangs must not keep the program from ending

    def raise_error(self) -> None:
        """Raise what ended the thread, if it was an error."""
        if self._error is not None:
            raise self._error

    def tally(self, segmented: int) -> Tally:
        """Return what became of frames so far; may be called from any thread."""
        return Tally(self.received, segmented, self.queue.dropped, self.missed, self.reconnects)

    def _work(self) -> None:
        try:
            wait = RETRY[0]
            while not self._stop.is_set():
                before = self.received
                try:
                    self._read()
                except DataError as err:
                    if not self._live or not self.received:
                        raise  # a camera that never worked is a mistake, not a loss
                    logger.warning("%s", err)
                if not self._live or self._stop.is_set():
                    return
                wait = RETRY[0] if self.received > before else min(2 * wait, RETRY[1])
                self.reconnects += 1
                logger.warning("The camera is lost; trying again in %.1f s", wait)
                self._stop.wait(wait)
        except BaseException as err:
            self._error = err
        finally:
            self.queue.close()

    def _read(self) -> None:
        begin, place = time.perf_counter(), -1
        with closing(self._frames()) as frames:  # type: ignore[type-var]
            for frame in frames:
                if self._fps is not None:
                    now = time.perf_counter() - begin
                    late = max(0, int(now * self._fps) - (place + 1))
                    place += 1 + late
                    self.missed += late
                    self._stop.wait(max(0.0, place / self._fps - now))
                if self._stop.is_set():
                    return
                if self._live:  # a camera that is opened again counts from 0
                    name = f"camera_{self.received:09d}"
                    frame = replace(frame, index=self.received, name=name)
                self.received += 1
                if not self.queue.put(Arrived(frame, perf_counter_ns())):
                    return
