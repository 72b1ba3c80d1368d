"""Frames of her vehicle, one after the other: folders, videos, recordings, lists, a camera.

Nothing is held but a few frames: names of a folder are sorted on disk, images are read ahead in a
thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from array import array
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
from edgeuda.data.stores import local, located
from edgeuda.data.walk import Files, sorted_names
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import short_name
from edgeuda.records.frames import Span

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
        taken: Wanted frames up to this one, those that cannot be read included: what ``skip`` of
            `footage` counts.
    """

    origin: Path
    name: str
    index: int
    seconds: float
    image: Image
    taken: int = 0


def footage(source: Path, span: Span | None = None, skip: int = 0) -> Iterator[Frame]:
    """Read footage frame by frame, ahead in a thread.

    Args:
        source: A folder of images, an image, a video, a recording with or without a topic (see
            `edgeuda.data.recordings`), shards, or a list (``.txt``, ``.csv``) of any; on disk or in
            a store, see `edgeuda.data.stores`.
        span: Which frames; all by default.
        skip: Wanted frames to leave out from the beginning, without decoding images.

    Yields:
        Frames; images that cannot be read are left out with a warning.

    Raises:
        DataError: If there is no such footage, or nothing in it can be read.
    """
    return read_ahead(_frames(located(source), span or Span(), skip), AHEAD)


def _frames(source: Path, span: Span, skip: int) -> Iterator[Frame]:
    taken, readable, videos = 0, 0, 0
    wanted = _WantedImages(span)
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
                    name = frame.name if single else f"{videos:04d}_{frame.name}"
                    yield replace(frame, name=name, taken=taken)
            continue
        index = wanted.place()
        if index is None:
            continue
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
        seconds = index / span.fps
        yield Frame(path, name_of(path, index), index, seconds, image, taken)
    if not readable:
        raise DataError(nothing_readable(source, span))


class _WantedImages:
    """Which images of footage are wanted."""

    def __init__(self, span: Span) -> None:
        self._span, self._number = span, 0
        self._last: float | None = None

    def place(self) -> int | None:
        """Return the place of the next image among all images, None if it is not wanted."""
        index, self._number = self._number, self._number + 1
        seconds = index / self._span.fps
        if not self._span.wants(seconds, self._last):
            return None
        self._last = seconds
        return index


def name_of(path: Path, index: int) -> str:
    """Return what the frame of an image file is called, see `Frame`."""
    return f"{short_name(path.stem)}_{index:07d}"


def nothing_readable(source: Path, span: Span) -> str:
    """Return the words for footage in which nothing can be read."""
    return f"{source}: expected frames that can be read within {span}, found none"


@dataclass(frozen=True)
class Stills:
    """The wanted images of footage that is nothing but images, listed and not read.

    Attributes:
        files: The images.
        places: Of each, its place among all images.
    """

    files: Files
    places: array[int]

    @classmethod
    def of(cls, source: Path, span: Span) -> Stills:
        """List them.

        Args:
            source: See `footage`.
            span: Which images.

        Raises:
            ConfigError: If a video or recording is among them.
            DataError: See `footage`.
        """
        source, wanted, places = located(source), _WantedImages(span), array("Q")
        inside = source.is_dir() and recording_of(source) is None

        def names() -> Iterator[str]:
            for path in _files(source):
                if is_moving(path):
                    msg = (
                        f"{path}: expected images to divide among workers, found a video or "
                        "recording, which is one stream. Extract it without `ray`"
                    )
                    raise ConfigError(msg)
                index = wanted.place()
                if index is not None:
                    places.append(index)
                    yield path.relative_to(source).as_posix() if inside else str(path)

        return cls(Files(source if inside else Path(), names()), places)

    def __len__(self) -> int:
        return len(self.files)


def is_moving(path: Path) -> bool:
    """Whether a path is a video or a recording."""
    return path.suffix.lower() in VIDEO_SUFFIXES or recording_of(path) is not None


def require_still(target: Path) -> None:
    """Check that footage can be divided among workers.

    Raises:
        ConfigError: If it is a camera, a video or a recording: one stream.
    """
    if str(target).isdecimal() or is_moving(target):
        msg = (
            f"{target}: expected a folder or list of frames to divide among workers, found a video "
            "or camera. Take its frames first with `edgeuda data frames`"
        )
        raise ConfigError(msg)


def _recorded(recording: Recording, span: Span) -> Iterator[Frame]:
    last: float | None = None

    def wanted(seconds: float) -> bool:
        nonlocal last
        if not span.wants(seconds, last):
            return False
        last = seconds
        return True

    origin = located(str(recording))
    for shot in read_recording(recording, wanted):
        yield Frame(origin, shot.name, shot.index, shot.seconds, shot.image)


def _files(source: Path) -> Iterator[Path]:
    if recording_of(source) is not None:
        yield source
    elif is_list(source):
        for (entry,) in read_list(source, columns=1):
            yield from _files(entry)
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
    capture = cv2.VideoCapture(str(local(path)))
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
    path = located(path)
    recording = recording_of(path)
    if recording is not None:
        return recorded_rate(recording)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return None
    capture = cv2.VideoCapture(str(local(path)))
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
