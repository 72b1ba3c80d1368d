"""What a network saw and said as an MCAP file, for Foxglove and whatever else reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image as Pillow

from edgeuda.data.images import LabelMap, encode_jpeg
from edgeuda.data.recordings import EXTRA, MCAP
from edgeuda.errors import ConfigError, OutputError, require
from edgeuda.files import require_absent, unwritable
from edgeuda.labels import LabelSpace
from engines.live import diagnostic
from engines.live.sinks import Result
from engines.live.watch import WatchState

CHUNK = 1 << 20
"""Bytes of messages in a chunk at most, but for one message that is larger."""
HELD = 1.0
"""Seconds for which messages are held back at most, while more come."""
QUALITY = 90
"""Of the frames as JPEG."""
CAMERA, LABELS, COLORS, LATENCY = "/camera", "/labels", "/labels/color", "/edgeuda/latency"
ROS_LABELS = "/labels/ros2"
"""Topics."""
ROS_IMAGE = "sensor_msgs/msg/Image"
METADATA = "edgeuda"
"""Name of the record that says what the ids mean and what ran."""
COUNTS = ("received", "segmented", "dropped", "missed", "reconnects")


def libraries() -> SimpleNamespace:
    """Return what writes MCAP files.

    Raises:
        DependencyError: If the extra ``recordings`` is not installed.
    """
    writer = require("mcap.writer", EXTRA)
    schema = require("mcap_protobuf.schema", EXTRA)
    typesys = require("rosbags.typesys", EXTRA)
    package = "foxglove_schemas_protobuf"
    return SimpleNamespace(
        ros=typesys.get_typestore(typesys.Stores.ROS2_HUMBLE),
        Writer=writer.Writer,
        register_schema=schema.register_schema,
        CompressedImage=require(f"{package}.CompressedImage_pb2", EXTRA).CompressedImage,
        RawImage=require(f"{package}.RawImage_pb2", EXTRA).RawImage,
    )


class McapFile:
    """Writes frames, label maps and latencies as topics of an MCAP file.

    Frames are JPEG on ``/camera``, label maps ids on ``/labels`` and colours on ``/labels/color``,
    ids also on ``/labels/ros2`` as ROS 2's own ``sensor_msgs/msg/Image`` for ``ros2 bag``,
    milliseconds by stage and counts of frames JSON on ``/edgeuda/latency``; what a watch finds is
    ROS 2's ``diagnostic_msgs/msg/DiagnosticArray`` on ``/diagnostics``; the metadata
    ``edgeuda`` has the label space. Messages carry the time of their frame's capture.

    Chunks go to the file whole, each second or as they are full: after a kill it can be read up to
    the last one. Where the disk has no room for a chunk, the file ends before it.

    Args:
        path: The file, ``.mcap``.
        space: What the ids mean.
        about: What else the metadata say: the runtime, the precision.

    Raises:
        ConfigError: If the name ends otherwise.
        DependencyError: See `libraries`.
        OutputExistsError: If it exists.
    """

    name = "mcap file"

    def __init__(self, path: Path, space: LabelSpace, about: dict[str, str] | None = None) -> None:
        require_suffix(path)
        require_absent(path)
        self._path, self._space, self._about = path, space, about or {}
        self._colors = space.colors()
        self._library = libraries()
        self._stream: _Stream | None = None
        self._writer: Any = None
        self._channels: dict[str, int] = {}
        self._flushed = 0.0
        self._watched: WatchState | None = None

    def write(self, result: Result) -> None:
        """See `Sink`."""
        self._guarded(lambda: self._write(result))

    def close(self) -> None:
        """See `Sink`."""
        if self._stream is None:
            return
        try:
            if not self._stream.broken:
                self._guarded(self._writer.finish)
        finally:
            self._stream.close()

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as err:
            raise OutputError(unwritable(self._path, err)) from err

    def _write(self, result: Result) -> None:
        if self._writer is None:
            self._open(result)
        images, at = self._library, result.time_ns
        labels = np.ascontiguousarray(result.labels)
        height, width = labels.shape
        frame = images.CompressedImage(
            frame_id="camera", format="jpeg", data=encode_jpeg(result.frame.image, QUALITY)
        )
        ids = images.RawImage(
            frame_id="camera", width=width, height=height, encoding="mono8", step=width,
            data=labels.tobytes(),
        )  # fmt: skip
        colors = images.CompressedImage(
            frame_id="camera", format="png", data=_png(labels, self._colors.tobytes())
        )
        for topic, message in ((CAMERA, frame), (LABELS, ids), (COLORS, colors)):
            message.timestamp.FromNanoseconds(at)
            self._add(topic, at, message.SerializeToString())
        self._add(ROS_LABELS, at, self._as_ros(labels, at))
        latency = {
            "timestamp": {"sec": at // 10**9, "nsec": at % 10**9},
            "frame": result.frame.name,
            "milliseconds": {name: round(ms, 4) for name, ms in result.stages.items()},
            **asdict(result.tally),
        }
        self._add(LATENCY, at, json.dumps(latency).encode())
        if result.watch is not None and result.watch != self._watched:
            self._watched = result.watch
            if diagnostic.TOPIC not in self._channels:
                self._channels[diagnostic.TOPIC] = self._writer.register_channel(
                    diagnostic.TOPIC, "cdr", self._register_ros(diagnostic.ARRAY)
                )
            self._add(diagnostic.TOPIC, at, self._diagnosed(result.watch, at))
        if perf_counter() - self._flushed >= HELD:
            self._writer.flush()
            self._flushed = perf_counter()

    def _as_ros(self, labels: LabelMap, at: int) -> bytes:
        store, (height, width) = self._library.ros, labels.shape
        message = store.types[ROS_IMAGE](
            self._header(at, "camera"), height, width, "mono8", 0, width, labels.reshape(-1)
        )
        return bytes(store.serialize_cdr(message, ROS_IMAGE))

    def _diagnosed(self, state: WatchState, at: int) -> bytes:
        store = self._library.ros
        types = (store.types[name] for name in (diagnostic.STATUS, diagnostic.KEY_VALUE))
        said = diagnostic.status(state, self._about.get("backend", ""), *types)
        message = store.types[diagnostic.ARRAY](self._header(at, ""), [said])
        return bytes(store.serialize_cdr(message, diagnostic.ARRAY))

    def _header(self, at: int, frame: str) -> Any:
        types = self._library.ros.types
        time, header = types["builtin_interfaces/msg/Time"], types["std_msgs/msg/Header"]
        return header(time(at // 10**9, at % 10**9), frame)

    def _add(self, topic: str, at: int, data: bytes) -> None:
        self._writer.add_message(self._channels[topic], at, data, at)

    def _open(self, first: Result) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream, self._flushed = _Stream(self._path), perf_counter()
        library = self._library
        self._writer = library.Writer(self._stream, chunk_size=CHUNK, enable_data_crcs=True)
        self._writer.start(profile="", library="edgeuda")
        space = json.dumps(self._space.to_record())
        self._writer.add_metadata(METADATA, {**self._about, "label_space": space})
        compressed = library.register_schema(self._writer, library.CompressedImage)
        raw = library.register_schema(self._writer, library.RawImage)
        schema = json.dumps(latency_schema(list(first.stages))).encode()
        latency = self._writer.register_schema("edgeuda.Latency", "jsonschema", schema)
        ros = self._register_ros(ROS_IMAGE)
        for topic, encoding, kind in (
            (CAMERA, "protobuf", compressed), (LABELS, "protobuf", raw),
            (COLORS, "protobuf", compressed), (ROS_LABELS, "cdr", ros), (LATENCY, "json", latency),
        ):  # fmt: skip
            about = {"label_space": space} if topic in (LABELS, ROS_LABELS) else {}
            self._channels[topic] = self._writer.register_channel(topic, encoding, kind, about)

    def _register_ros(self, name: str) -> int:
        definition, _ = self._library.ros.generate_msgdef(name, ros_version=2)
        return int(self._writer.register_schema(name, "ros2msg", definition.encode()))


def require_suffix(path: Path) -> None:
    """Refuse a file that nothing would take for an MCAP file.

    Raises:
        ConfigError: If its name does not end in ``.mcap``.
    """
    if path.suffix.lower() != MCAP:
        msg = f"{path}: expected a name that ends in {MCAP} for `mcap`"
        raise ConfigError(msg)


def latency_schema(stages: list[str]) -> dict[str, Any]:
    """Return the JSON schema of messages on ``/edgeuda/latency``."""
    whole, number = {"type": "integer"}, {"type": "number"}
    return {
        "type": "object",
        "title": "edgeuda.Latency",
        "properties": {
            "timestamp": {
                "type": "object",
                "title": "time",
                "properties": {"sec": whole, "nsec": whole},
            },
            "frame": {"type": "string"},
            "milliseconds": {"type": "object", "properties": dict.fromkeys(stages, number)},
            **dict.fromkeys(COUNTS, whole),
        },
    }


class _Stream:
    """A file that the system has each piece of when `write` returns, or nothing of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self.broken = False

    def write(self, data: bytes) -> int:
        place, rest = self._file.tell(), memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self.broken = True
            self._file.truncate(place)
            raise
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        self._file.close()


def _png(labels: Any, palette: bytes) -> bytes:
    """Return colours by id as a PNG with a palette, a third of the values to compress."""
    picture = Pillow.fromarray(labels)
    picture.putpalette(palette)
    written = io.BytesIO()
    picture.save(written, "PNG", compress_level=1)
    return written.getvalue()
