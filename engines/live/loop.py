"""Segmenting frames as they come, for hours: counts, latencies and memory in bounded space."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from edgeuda.data.treatment import as_shown, noted
from edgeuda.errors import EdgeudaError
from edgeuda.files import now_utc
from edgeuda.records.live import (
    CourseTable,
    FrameCounts,
    LiveLatency,
    LiveRecord,
    ResidentMemory,
    SinkCounts,
)
from engines.live.capture import Capture
from engines.live.histogram import LatencyHistogram
from engines.live.keep import Keeper
from engines.live.sinks import Result, Sink, SinkThread
from engines.live.watch import Watch
from engines.runner import Runner, segment, signals_of
from engines.signals import statistics

logger = logging.getLogger(__name__)

RECENT = 30
"""Frames over which the frame rate and latency on the screen are taken."""
MINUTES = 2000
"""Entries of the course that are kept; then every other one goes and they become rarer."""


@dataclass
class Course:
    """Once in a while: when, frames so far, resident memory. Bounded.

    Attributes:
        every: Seconds between entries.
        entries: Seconds, frames segmented, frames dropped, megabytes.
    """

    every: float = 10.0
    entries: list[tuple[float, int, int, float | None]] = field(default_factory=list)

    def note(self, seconds: float, frames: int, dropped: int) -> None:
        """Add an entry if it is time."""
        if self.entries and seconds - self.entries[-1][0] < self.every:
            return
        self.entries.append((round(seconds, 1), frames, dropped, resident_mb()))
        if len(self.entries) > MINUTES:
            del self.entries[1::2]
            self.every *= 2


class Clock:
    """Time along recordings that are played one after the other, each of which begins at 0."""

    def __init__(self) -> None:
        self._begin, self._last, self._step = 0.0, 0.0, 0.0

    def at(self, seconds: float) -> float:
        """Return the time since the first recording began, of a frame's time in its own."""
        now = self._begin + seconds
        if now < self._last:  # the next recording
            self._begin = self._last + self._step - seconds
            now = self._begin + seconds
        self._step, self._last = now - self._last, now
        return now


@dataclass(frozen=True)
class StopAt:
    """When to end; None never.

    Attributes:
        frames: Frames segmented.
        seconds: Since the beginning.
    """

    frames: int | None = None
    seconds: float | None = None


def run(
    runner: Runner,
    capture: Capture,
    sinks: Sequence[Sink],
    *,
    lossless: bool,
    limits: StopAt | None = None,
    stop: threading.Event | None = None,
    status: Callable[[str], None] = lambda _: None,
    confidence: bool = False,
    watch: Watch | None = None,
    keep: Keeper | None = None,
) -> LiveRecord:
    """Segment frames until the source ends, a limit is reached or ``stop`` is set.

    The source is read in its own thread, and each sink writes in its own: with a camera neither a
    slow network nor a slow disk holds up the frames; the oldest are dropped, and counted.

    Raw frames are undistorted and cropped as the model's spec says, which counts as latency; label
    maps and what sinks are given are of that part of the frame.

    Args:
        runner: The model.
        capture: The source, not yet entered.
        sinks: Where results go.
        lossless: Whether sinks may hold up the network, so that no result is dropped.
        limits: When to end.
        stop: Set from elsewhere to end.
        status: Told frame rate, latency and drops about once a second.
        confidence: Whether results say how sure the model is, which was opened with it.
        watch: Holds the frames against what is normal; the model was opened with ``confidence``.
        keep: Brings frames home; likewise. It is handed those that it says are due.

    Returns:
        The record: frames, drops, latencies, memory. If the source failed on the way, its ``error``
        says how; what was segmented before is counted and written. A sink that fails is dropped,
        and the others and the network go on; its entry says why.

    Raises:
        EdgeudaError: If not even one frame was segmented.
    """
    limits, stop = limits or StopAt(), stop or threading.Event()
    threads = [SinkThread(sink, lossless=lossless) for sink in sinks]
    keeping = None if keep is None else SinkThread(keep, lossless=lossless)
    writers = [*threads, *([] if keeping is None else [keeping])]
    latencies, course = LatencyHistogram(), Course()
    recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
    begin_memory, begin, created = resident_mb(), time.perf_counter(), now_utc()
    first_ns, began_ns = 0, 0
    clock = Clock()
    frames, applied, said = 0, 0, 0.0
    geometry, classes = runner.spec.preprocessing.geometry, len(runner.spec.label_space)
    error: EdgeudaError | None = None

    def elapsed() -> float:
        return time.perf_counter() - begin

    with capture:
        try:
            while not stop.is_set() and not _over(limits, frames, elapsed()):
                arrived = capture.queue.get(0.1)
                if arrived is None:
                    if capture.queue.finished:
                        break
                    continue
                if not frames:  # one reading of the wall clock, which may be set on the way
                    first_ns = arrived.at_ns
                    began_ns = time.time_ns() - (perf_counter_ns() - first_ns)
                # A recording that is read ahead waits for no one's sake: its queue is no delay.
                start = perf_counter_ns() if lossless else arrived.at_ns
                stages = {} if lossless else {"waiting": (perf_counter_ns() - start) / 1e6}
                frame = arrived.frame
                before = perf_counter_ns()
                shown = as_shown(frame.image, frame.origin, geometry)
                if shown is not frame.image:
                    applied += 1
                    frame = replace(frame, image=shown)
                    stages["geometry"] = (perf_counter_ns() - before) / 1e6
                sure = None
                seconds = (
                    clock.at(arrived.frame.seconds)
                    if lossless
                    else (arrived.at_ns - first_ns) / 1e9
                )
                seen, due = None, watch is not None and watch.due(seconds)
                weighed = keep is not None and keep.due(seconds)
                if confidence or due or weighed:
                    seen = signals_of(runner, frame.image, stages)
                    labels, sure = seen.labels, seen.confidence if confidence else None
                else:
                    labels = segment(runner, frame.image, stages)
                measured = None
                if seen is not None and (due or weighed):
                    before = perf_counter_ns()
                    measured = statistics(seen, classes)
                    alarm = watch.add(seconds, measured) if watch is not None and due else None
                    stages["watch" if due else "keep"] = (perf_counter_ns() - before) / 1e6
                    if alarm is not None:
                        logger.warning("%s", alarm)
                done = perf_counter_ns()
                stages["total"] = (done - start) / 1e6
                frames += 1
                latencies.add((done - start) / 1e6)
                recent.append((done, (done - start) / 1e6))
                words = _status(recent)
                if watch is not None and watch.alarm is not None:
                    words += f", ALARM: {watch.alarm.kind}"
                result = Result(
                    frame, seconds, labels, words, confidence=sure,
                    watch=None if watch is None else watch.state,
                    time_ns=began_ns + round(1e9 * seconds), stages=stages,
                    tally=capture.tally(frames),
                    failures=tuple(f"{t.sink.name}: {t.error}" for t in writers if t.error),
                    said=measured,
                )  # fmt: skip
                for thread in threads:
                    thread.offer(result)
                if keeping is not None and weighed:
                    keeping.offer(result)
                course.note(elapsed(), frames, capture.queue.dropped)
                if elapsed() - said >= 1:
                    said = elapsed()
                    status(f"{words}, {frames} frames, {capture.queue.dropped} dropped")
            capture.raise_error()
        except EdgeudaError as err:
            error = err
        finally:
            for thread in writers:
                thread.close()
    for thread in writers:
        if thread.error is not None and not isinstance(thread.error, (EdgeudaError, OSError)):
            raise thread.error
    if error is not None and not frames:
        raise error
    took = elapsed()
    return LiveRecord(
        created=created,
        backend=runner.backend,
        precision=runner.precision,
        execution=dict(runner.execution),
        fallbacks=list(runner.fallbacks),
        seconds=round(took, 3),
        frames=FrameCounts(
            capture.received, frames, capture.queue.dropped, capture.missed, round(frames / took, 3)
        ),
        **noted(geometry, applied, frames - applied),
        reconnects=capture.reconnects,
        error=None if error is None else str(error),
        latency_ms=LiveLatency(
            since="the decoded frame" if lossless else "the frame's arrival",
            to="its label map",
            percentiles=latencies.percentiles(),
            resolution="1 %",
            max=latencies.max,
        ),
        sinks={
            one.sink.name: SinkCounts(
                one.written,
                one.queue.dropped + one.refused,
                None if one.error is None else str(one.error),
            )
            for one in writers
        },
        resident_mb=ResidentMemory(begin_memory, resident_mb()),
        course=CourseTable(
            ["seconds", "frames", "dropped", "resident_mb"],
            [list(entry) for entry in course.entries],
        ),
        watch=None if watch is None else watch.record(),
        keep=(
            None
            if keep is None or keeping is None
            else keep.counts(keeping.queue.dropped + keeping.refused)
        ),
    )


def resident_mb() -> float | None:
    """Return this process's resident memory in megabytes; None where it cannot be read."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _over(limits: StopAt, frames: int, seconds: float) -> bool:
    return (limits.frames is not None and frames >= limits.frames) or (
        limits.seconds is not None and seconds >= limits.seconds
    )


def _status(recent: Sequence[tuple[int, float]]) -> str:
    latency = float(np.median([ms for _, ms in recent]))
    span = (recent[-1][0] - recent[0][0]) / 1e9
    rate = f"{(len(recent) - 1) / span:.1f} frames/s, " if span > 0 else ""
    return f"{rate}{latency:.1f} ms"
