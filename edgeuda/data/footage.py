"""Frames of her vehicle, one after the other: folders, videos, recordings, lists, a camera.

Nothing is held but a few frames: names of a folder are sorted on disk, images are read ahead in a
thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from edgeuda.data.images import IMAGE_SUFFIXES, Image, read_image
from edgeuda.data.lists import is_list, read_list
from edgeuda.data.recordings import (
    RECORDING_SUFFIXES,
    Recording,
    read_recording,
    recorded_rate,
    recording_of,
)
from edgeuda.data.walk import sorted_names
from edgeuda.errors import DataError
from edgeuda.files import short_name

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}
)
AHEAD = 4
"""Frames that are read before they are asked for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """One frame of footage.

    Attributes:
        origin: The image file, or the video.
        name: Unique within the footage, fit for a file name: ``drive_000012``.
        index: Place in its video, or among the images.
        seconds: Since the beginning of its video, as its container says; for images ``index`` over
            the frame rate.
        image: ``[H, W, 3]`` uint8 RGB.
    """

    origin: Path
    name: str
    index: int
    seconds: float
    image: Image


@dataclass(frozen=True)
class Span:
    """Which frames of footage are wanted.

    Attributes:
        start: Seconds from the beginning of each video, or of the images.
        end: Likewise, exclusive; None for all.
        rate: Frames per second to keep at most; None for all.
        fps: Frame rate of images, whose files do not tell.
    """

    start: float = 0.0
    end: float | None = None
    rate: float | None = None
    fps: float = 30.0

    def __post_init__(self) -> None:
        positive = [("fps", self.fps)] + ([("rate", self.rate)] if self.rate is not None else [])
        wrong = [f"{name} {value:g}" for name, value in positive if not value > 0]
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            wrong.append(f"start {self.start:g} and end {self.end}")
        if wrong:
            msg = f"Expected a span of positive seconds and rates, found {', '.join(wrong)}"
            raise DataError(msg)

    def wants(self, seconds: float, last: float | None) -> bool:
        """Whether a frame is wanted, ``last`` being the time of the last one that was."""
        if seconds < self.start or (self.end is not None and seconds >= self.end):
            return False
        # Half a thousandth of a second: timestamps of videos are rounded.
        return self.rate is None or last is None or seconds - last >= 1 / self.rate - 5e-4


def footage(source: Path, span: Span | None = None, skip: int = 0) -> Iterator[Frame]:
    """Read footage frame by frame, ahead in a thread.

    Args:
        source: A folder of images, an image, a video, a recording with or without a topic (see
            `edgeuda.data.recordings`), or a list (``.txt``, ``.csv``) of any.
        span: Which frames; all by default.
        skip: Wanted frames to leave out from the beginning, without decoding images.

    Yields:
        Frames; images that cannot be read are left out with a warning.

    Raises:
        DataError: If there is no such footage, or nothing in it can be read.
    """
    return read_ahead(_frames(source, span or Span(), skip), AHEAD)


def _frames(source: Path, span: Span, skip: int) -> Iterator[Frame]:
    number, taken, readable, videos = 0, 0, 0, 0
    last: float | None = None
    for path in _files(source):
        if is_moving(path):
            videos += 1
            recording = recording_of(path)
            moving = read_video(path, span) if recording is None else _recorded(recording, span)
            for frame in moving:
                taken += 1
                readable += 1
                if taken > skip:  # videos of two folders may share a name
                    single = path == source
                    yield frame if single else replace(frame, name=f"{videos:04d}_{frame.name}")
            continue
        seconds = number / span.fps
        index, number = number, number + 1
        if not span.wants(seconds, last):
            continue
        last = seconds
        taken += 1
        if taken <= skip:
            readable += 1
            continue
        try:
            image = read_image(path)
        except DataError as err:
            logger.warning("Skipped: %s", err)
            continue
        readable += 1
        yield Frame(path, f"{short_name(path.stem)}_{index:07d}", index, seconds, image)
    if not readable:
        msg = f"{source}: expected frames that can be read within {span}, found none"
        raise DataError(msg)


def is_moving(path: Path) -> bool:
    """Whether a path is a video or a recording."""
    return path.suffix.lower() in VIDEO_SUFFIXES or recording_of(path) is not None


def _recorded(recording: Recording, span: Span) -> Iterator[Frame]:
    last: float | None = None

    def wanted(seconds: float) -> bool:
        nonlocal last
        if not span.wants(seconds, last):
            return False
        last = seconds
        return True

    origin = Path(str(recording))
    for shot in read_recording(recording, wanted):
        yield Frame(origin, shot.name, shot.index, shot.seconds, shot.image)


def _files(source: Path) -> Iterator[Path]:
    if recording_of(source) is not None:
        yield source
    elif is_list(source):
        for (entry,) in read_list(source, columns=1):
            yield from _files(Path(entry))
    elif source.is_dir():
        found = False
        for name in sorted_names(source, IMAGE_SUFFIXES | VIDEO_SUFFIXES | RECORDING_SUFFIXES):
            found = True
            yield source / name
        if not found:
            known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES | RECORDING_SUFFIXES))
            msg = f"{source}: expected images, videos or recordings ({known}), found none"
            raise DataError(msg)
    elif source.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        yield source
    else:
        msg = (
            f"{source}: expected a folder, a video, a recording, an image or a list of them, found "
            "none of these"
        )
        raise DataError(msg)


def read_video(path: Path, span: Span | None = None) -> Iterator[Frame]:
    """Read a video's wanted frames; a broken tail ends it with a warning.

    Raises:
        DataError: If it cannot be opened, or holds no frame that can be decoded.
    """
    span = span or Span()
    if not path.is_file():
        msg = f"{path}: expected a video, found no file"
        raise DataError(msg)
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            msg = f"{path}: expected a video that OpenCV can open; it may be cut off or of a codec "
            msg += "that is missing. Re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"
            raise DataError(msg)
        fps = _positive(capture.get(cv2.CAP_PROP_FPS)) or span.fps
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        index, last, seconds, longest = 0, None, 0.0, 1 / fps
        while capture.grab():
            if index:
                seconds, before = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, seconds
                if seconds <= before:  # a container without times
                    seconds = before + 1 / fps
                longest = max(longest, seconds - before)
            if span.end is not None and seconds >= span.end:
                return
            if span.wants(seconds, last):
                done, pixels = capture.retrieve()
                if not done:
                    break
                last = seconds
                rgb = np.ascontiguousarray(pixels[:, :, ::-1], np.uint8)
                yield Frame(path, f"{short_name(path.stem)}_{index:07d}", index, seconds, rgb)
            index += 1
    finally:
        capture.release()
    if index == 0:
        msg = f"{path}: expected a video, found no frame that can be decoded"
        raise DataError(msg)
    # Where frames come at no fixed rate, their promised number is a guess; the length is not.
    if index < promised and seconds + 2 * longest < promised / fps:
        logger.warning(
            "%s: ends after %d frames, at %.1f of %.1f seconds; the rest cannot be decoded",
            path, index, seconds, promised / fps,
        )  # fmt: skip


def frame_rate(path: Path) -> float | None:
    """Return the frames per second of a video or recording; None if it is none, or unknown."""
    recording = recording_of(path)
    if recording is not None:
        return recorded_rate(recording)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return None
    capture = cv2.VideoCapture(str(path))
    try:
        return _positive(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()


def _positive(value: float) -> float | None:
    """Return what OpenCV says of a video, None where it says 0 or -1 for not knowing."""
    return float(value) if value > 0 else None


def camera(source: int | str) -> Iterator[Frame]:
    """Read a camera, by number or address (``rtsp://...``), until it ends or is closed.

    Raises:
        DataError: If there is no such camera.
    """
    capture = cv2.VideoCapture(source)
    name = f"camera{source}" if isinstance(source, int) else "camera"
    try:
        if not capture.isOpened():
            msg = f"Camera {source}: cannot be opened. Is it connected, and free?"
            raise DataError(msg)
        index = 0
        while True:
            done, pixels = capture.read()
            if not done:
                return
            rgb = np.ascontiguousarray(pixels[:, :, ::-1], np.uint8)
            yield Frame(Path(name), f"{name}_{index:07d}", index, 0.0, rgb)
            index += 1
    finally:
        capture.release()


def read_ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """Iterate over items that a thread produces, at most ``count`` ahead.

    Errors of the thread are raised here. Closing the iterator ends the thread.
    """
    full: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(count)
    stop = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                full.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    break
            put("end", None)
        except BaseException as err:
            put("error", err)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = full.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
