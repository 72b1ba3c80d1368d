"""What a network saw and said for the viewer Rerun: as a file, or while it runs."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeuda.data.images import encode_jpeg
from edgeuda.errors import ConfigError, DeviceError, OutputError, require
from edgeuda.files import is_full, require_absent, unwritable
from edgeuda.labels import IGNORE, LabelSpace
from engines.live.sinks import LOOKS, Result
from engines.live.watch import WatchState

EXTRA = "rerun"
VIEWER = "viewer"
"""Stands for a viewer that is opened on this machine."""
RRD = ".rrd"
QUALITY = 90
"""Of the frames as JPEG."""
MEMORY = "1GB"
"""What an opened viewer keeps at most, and the oldest goes."""


def library(where: str) -> ModuleType:
    """Return Rerun, if what is logged can go there.

    Raises:
        ConfigError: If it is neither a viewer nor a file ``.rrd``.
        DependencyError: If the extra ``rerun`` is not installed.
        DeviceError: If a viewer is to be opened where there is no screen.
        OutputExistsError: If the file exists.
    """
    if where == VIEWER:
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            msg = (
                "No display: `rerun` viewer needs a screen (DISPLAY is not set). Give a file "
                f"{RRD}, or the address of a viewer elsewhere, rerun+http://HOST:9876/proxy"
            )
            raise DeviceError(msg)
    elif not is_address(where):
        if Path(where).suffix != RRD:
            msg = (
                f"`rerun`: expected a file {RRD}, {VIEWER!r}, or the address of a viewer, "
                f"rerun+http://HOST:9876/proxy, found {where!r}"
            )
            raise ConfigError(msg)
        require_absent(Path(where))
    return require("rerun", EXTRA)


def is_address(where: str) -> bool:
    """Whether it is the address of a viewer that runs already."""
    return where.startswith(("rerun://", "rerun+http://", "rerun+https://"))


class RerunLog:
    """Logs frames, label maps with names and colours, latencies and counts to Rerun.

    Frames are JPEG at ``camera/image``, label maps at ``camera/labels``, milliseconds by stage
    below ``latency``, counts below ``frames``, what a watch finds below ``watch``, on the timelines
    ``capture`` and ``number``.

    Args:
        where: A file ``.rrd``, ``"viewer"`` for one that is opened here, or a viewer's address.
        space: What the ids mean.

    Raises:
        EdgeudaError: See `library`.
    """

    name = "rerun"

    def __init__(self, where: str, space: LabelSpace) -> None:
        self._library: Any = library(where)
        self._where, self._space = where, space
        self._file = None if where == VIEWER or is_address(where) else Path(where)
        self._stream: Any = None
        self._results = 0
        self._watched: WatchState | None = None

    def write(self, result: Result) -> None:
        """See `Sink`."""
        if self._file is not None and self._results % LOOKS == 0:  # Rerun does not say
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if is_full(self._file.parent):
                raise OutputError(unwritable(self._file, OSError(errno.ENOSPC, "full")))
        self._results += 1
        if self._stream is None:
            self._open()
        rerun, stream = self._library, self._stream
        stream.set_time("capture", timestamp=np.datetime64(result.time_ns, "ns"))
        stream.set_time("number", sequence=result.tally.segmented)
        jpeg = encode_jpeg(result.frame.image, QUALITY)
        stream.log("camera/image", rerun.EncodedImage(contents=jpeg, media_type="image/jpeg"))
        stream.log("camera/labels", rerun.SegmentationImage(result.labels, opacity=0.5))
        for stage, milliseconds in result.stages.items():
            stream.log(f"latency/{stage}", rerun.Scalars(milliseconds))
        for name, count in asdict(result.tally).items():
            stream.log(f"frames/{name}", rerun.Scalars(count))
        if result.watch is not None and result.watch != self._watched:
            stream.log("watch/ratio", rerun.Scalars(result.watch.ratio))
            before = None if self._watched is None else self._watched.alarm
            if result.watch.alarm is not None and before is None:
                words = rerun.TextLog(str(result.watch.alarm), level=rerun.TextLogLevel.WARN)
                stream.log("watch/alarm", words)
            self._watched = result.watch

    def close(self) -> None:
        """See `Sink`."""
        if self._stream is not None:
            self._stream.flush()
            self._stream.disconnect()

    def _open(self) -> None:
        rerun = self._library
        stream = rerun.RecordingStream("edgeuda")
        if self._file is not None:
            stream.save(self._file)
        elif self._where == VIEWER:
            stream.spawn(memory_limit=MEMORY)
        else:
            stream.connect_grpc(self._where)
        classes = zip(self._space.classes, self._space.palette, strict=True)
        known = [(number, name, color) for number, (name, color) in enumerate(classes)]
        context = rerun.AnnotationContext([*known, (IGNORE, "ignored", (0, 0, 0))])
        stream.log("camera", context, static=True)
        self._stream = stream
