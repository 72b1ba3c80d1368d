"""Frames in robot recordings: MCAP files, and bags of ROS 1 and ROS 2.

``drive.mcap:/camera/front/image_raw`` is one topic of a recording; without a topic it is the only
one that holds images. Reading and decoding of the files is left to ``mcap``, ``rosbags`` and, for
compressed video, PyAV (extra ``recordings``); what the pixels mean is said here.

Sources: sensor_msgs/Image, sensor_msgs/image_encodings.hpp and sensor_msgs/CameraInfo of ROS 2;
foxglove.CompressedImage, CompressedVideo and RawImage of Foxglove's schemas.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.camera import Lens
from edgeuda.data.images import IMAGE_SUFFIXES, Image, decode_image, upper_eight
from edgeuda.data.stores import local, located
from edgeuda.errors import ConfigError, DataError, did_you_mean, require
from edgeuda.files import short_name

logger = logging.getLogger(__name__)

EXTRA = "recordings"
MCAP, BAG = ".mcap", ".bag"
RECORDING_SUFFIXES = frozenset({MCAP, BAG, ".db3"})
RATED = 30
"""Images whose times tell the rate of a recording."""
METADATA = "metadata.yaml"
"""In the folder that is a bag of ROS 2."""

Kind = Literal["image", "compressed", "video"]
_NAMES: dict[str, Kind] = {
    "Image": "image", "RawImage": "image", "CompressedImage": "compressed",
    "CompressedVideo": "video",
}  # fmt: skip
_CALIBRATIONS = ("CameraInfo", "CameraCalibration")
_SCHEMA = re.compile(r"(?:sensor_msgs|foxglove_msgs|foxglove)[./](?:msg/)?(\w+)")

_PLAIN: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None), "bgr8": (3, cv2.COLOR_BGR2RGB), "8UC3": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB), "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "8UC4": (4, cv2.COLOR_BGRA2RGB), "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": (1, cv2.COLOR_BayerRGGB2RGB), "bayer_bggr8": (1, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGBRG2RGB), "bayer_grbg8": (1, cv2.COLOR_BayerGRBG2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY), "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUYV), "yuyv": (2, cv2.COLOR_YUV2RGB_YUYV),
}  # fmt: skip
"""Values of 8 bits per pixel, and OpenCV's conversion to RGB."""
_DEEP = {
    "rgb16": "rgb8", "bgr16": "bgr8", "rgba16": "rgba8", "bgra16": "bgra8", "mono16": "mono8",
    "16UC1": "mono8", "16UC3": "bgr8",
    **{f"bayer_{order}16": f"bayer_{order}8" for order in ("rggb", "bggr", "gbrg", "grbg")},
}  # fmt: skip
"""Encodings of 16 bits, and what their upper 8 are."""
_PLANES = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
_CODECS = {"h264": "h264", "h265": "hevc", "vp9": "vp9", "av1": "av1"}


@dataclass(frozen=True)
class Recording:
    """A recording, or one topic of it.

    Attributes:
        path: The file, or the folder of a bag of ROS 2.
        topic: Its name; None stands for the only one with images.
    """

    path: Path
    topic: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.topic is None else f"{self.path}:{self.topic}"


@dataclass(frozen=True)
class Topic:
    """A topic of a recording.

    Attributes:
        name: Its name.
        schema: Type of its messages, as the recording names it.
        count: Their number; None where the recording does not say.
    """

    name: str
    schema: str
    count: int | None

    @property
    def kind(self) -> Kind | None:
        """How its messages hold images; None if they do not."""
        found = _SCHEMA.fullmatch(self.schema)
        return None if found is None else _NAMES.get(found[1])


@dataclass(frozen=True)
class Shot:
    """One image of a recording.

    Attributes:
        name: Unique within the recording, fit for a file name.
        index: Place in its topic.
        seconds: Since the first image of the topic, by the time of its capture.
        image: ``[H, W, 3]`` uint8 RGB.
    """

    name: str
    index: int
    seconds: float
    image: Image


def recording_of(source: Path) -> Recording | None:
    """Return the recording that a path is, with the topic behind a colon; None if it is none."""
    source = located(source)
    if source.suffix.lower() in IMAGE_SUFFIXES:
        return None  # many are asked for
    if _is_recording(source):
        return Recording(source)
    text = str(source)
    for found in re.finditer(":/", text):
        path = located(text[: found.start()])
        if path.suffix.lower() in RECORDING_SUFFIXES or (path / METADATA).is_file():
            return Recording(path, text[found.start() + 1 :])
    return None


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() in RECORDING_SUFFIXES or (path / METADATA).is_file()


def read_recording(
    recording: Recording, wanted: Callable[[float], bool] = lambda _: True
) -> Iterator[Shot]:
    """Read the images of a topic in the order of their recording, as far as the file goes.

    Images that cannot be decoded are left out with a warning, and a file that is cut off ends
    there with one.

    Args:
        recording: Which topic of which recording.
        wanted: Asked for each image by its seconds since the first one; one that is not wanted is
            not decoded, where the format allows it.

    Raises:
        DataError: If there is no such file or topic, several topics hold images and none was
            named, or the pixels are of a kind that is not read.
        DependencyError: If the extra ``recordings`` is not installed.
    """
    with closing(_opened(recording.path)) as opened:
        topic = chosen_topic(recording, opened.topics())
        decode = _decoder(topic, recording)
        first: int | None = None
        index = -1
        for index, (logged, message) in enumerate(opened.messages(topic.name)):
            ns = _captured(message) or logged
            first = ns if first is None else first
            seconds = (ns - first) / 1e9
            asked = wanted(seconds)
            if not asked and topic.kind != "video":
                continue
            try:
                images = decode(message)
            except (cv2.error, DataError) as err:
                if isinstance(err, DataError) and index == 0:
                    raise
                logger.warning("Skipped: %s, message %d: %s", recording, index, err)
                continue
            stem = short_name(recording.path.stem)
            for image in images if asked else ():
                yield Shot(f"{stem}_{index:07d}", index, seconds, image)
        if index < 0:
            msg = f"{recording}: expected images, found no message that can be read"
            raise DataError(msg)


def recorded_rate(recording: Recording) -> float | None:
    """Return the images per second at the beginning of a recording; None if it has one image.

    Raises:
        DataError: See `read_recording`.
    """
    with closing(_opened(recording.path)) as opened:
        topic = chosen_topic(recording, opened.topics())
        times = [
            _captured(message) or logged
            for logged, message in islice(opened.messages(topic.name), RATED)
        ]
    gaps = np.diff(times)
    middle = float(np.median(gaps)) if len(gaps) else 0.0
    return 1e9 / middle if middle > 0 else None


def chosen_topic(recording: Recording, topics: Sequence[Topic]) -> Topic:
    """Return the topic that is meant.

    Raises:
        DataError: If there is none such, or several could be meant.
    """
    images = [topic for topic in topics if topic.kind is not None]
    listed = ", ".join(f"{t.name} ({t.schema})" for t in images) or "none"
    if recording.topic is not None:
        for topic in topics:
            if topic.name == recording.topic and topic.kind is not None:
                return topic
        near = did_you_mean(recording.topic, [topic.name for topic in images])
        msg = f"{recording}: expected a topic with images{near}, found as such: {listed}"
        raise DataError(msg)
    if len(images) != 1:
        example = f"{recording.path}:{images[0].name}" if images else "a recording of a camera"
        msg = f"{recording.path}: expected one topic with images, found: {listed}. Give {example}"
        raise DataError(msg)
    return images[0]


def lens_of(recording: Recording) -> Lens | None:
    """Return the calibration that a recording holds for its images' camera; None if it has none.

    It is the one in the topic beside the images, ``/camera/camera_info`` for ``/camera/image_raw``,
    or the only one there is. One without a focal length was never made, and counts as none.

    Raises:
        DataError: See `read_recording`; if the calibration is of a model that OpenCV lacks.
    """
    with closing(_opened(recording.path)) as opened:
        topics = opened.topics()
        images = chosen_topic(recording, topics)
        found = [t for t in topics if (s := _SCHEMA.fullmatch(t.schema)) and s[1] in _CALIBRATIONS]
        camera = images.name.removesuffix("/compressed").rsplit("/", 1)[0]
        beside = [t for t in found if t.name.rsplit("/", 1)[0] == camera]
        for topic in beside or (found if len(found) == 1 else []):
            for _, message in opened.messages(topic.name):
                return _lens(message, recording)
    return None


def _lens(message: Any, recording: Recording) -> Lens | None:
    matrix = [float(v) for v in _field(message, "k", "K")]
    distortion = [float(v) for v in _field(message, "d", "D")]
    model = str(_field(message, "distortion_model"))
    if not matrix or matrix[0] <= 0:
        return None
    known = {"plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4, "fisheye": 4, "": 5}
    if model not in known:
        msg = (
            f"{recording}: expected a calibration of the model plumb_bob, rational_polynomial or "
            f"equidistant, found {model!r}"
        )
        raise DataError(msg)
    distortion = (distortion + [0.0] * known[model])[: known[model]]
    size = int(_field(message, "width")), int(_field(message, "height"))
    try:
        return Lens(
            tuple(matrix), tuple(distortion), size if min(size) > 0 else None,
            model in ("equidistant", "fisheye"),
        )  # fmt: skip
    except ConfigError as err:
        msg = f"{recording}: {err}"
        raise DataError(msg) from err


# --- pixels ---


def _decoder(topic: Topic, recording: Recording) -> Callable[[Any], list[Image]]:
    """Return what turns a message into images: one, but for video, whose first may hold none."""
    if topic.kind == "image":
        return lambda message: [decode_pixels(message, str(recording))]
    if topic.kind == "compressed":
        return lambda message: [_decompressed(message, str(recording))]
    return _Video(str(recording))


def decode_pixels(message: Any, origin: str) -> Image:
    """Return the pixels of a ``sensor_msgs/Image``, ``[H, W, 3]`` uint8 RGB.

    Raises:
        DataError: If they are fewer than the message says, of an encoding without a look, as
            distances are, or of 16 bits of which it is not known how many the camera fills.
    """
    encoding = str(message.encoding)
    rows, columns = int(message.height), int(message.width)
    data = np.frombuffer(bytes(message.data), np.uint8)
    step = int(message.step)
    deep = encoding in _DEEP
    plain = _DEEP.get(encoding, encoding)
    if encoding in _PLANES:
        rows, channels, conversion = rows * 3 // 2, 1, _PLANES[encoding]
    elif plain in _PLAIN:
        channels, code = _PLAIN[plain]
        conversion = -1 if code is None else code
    else:
        known = ", ".join([*_PLAIN, *_DEEP, *_PLANES])
        msg = f"{origin}: expected images encoded as one of {known}, found {encoding!r}"
        raise DataError(msg)
    used = columns * channels * (2 if deep else 1)
    step = step or used
    if step < used or len(data) < step * (rows - 1) + used or min(rows, columns) < 1:
        msg = (
            f"{origin}: expected {rows} rows of {used} bytes for {columns} columns of {encoding}, "
            f"found {len(data)} bytes in rows of {step}"
        )
        raise DataError(msg)
    padded = np.zeros(rows * step, np.uint8)
    padded[: min(len(data), len(padded))] = data[: len(padded)]
    pixels: npt.NDArray[Any] = np.ascontiguousarray(padded.reshape(rows, step)[:, :used])
    if deep:
        pixels = pixels.view(">u2" if message.is_bigendian else "<u2")
        pixels = upper_eight(pixels, f"{origin}: images")
    shaped = pixels.reshape((rows, columns) if channels == 1 else (rows, columns, channels))
    if conversion == -1:
        return np.asarray(shaped, np.uint8)
    return np.asarray(cv2.cvtColor(shaped, conversion), np.uint8)


def _decompressed(message: Any, origin: str) -> Image:
    form = str(message.format)
    if "compressedDepth" in form:
        msg = f"{origin}: expected images, found distances ({form})"
        raise DataError(msg)
    return decode_image(np.frombuffer(bytes(message.data), np.uint8), Path(origin))


class _Video:
    """Decodes a topic's video, message by message; what comes before a key frame is no image."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._codec: Any = None

    def __call__(self, message: Any) -> list[Image]:
        av = require("av", EXTRA)
        if self._codec is None:
            form = str(message.format)
            if form not in _CODECS:
                msg = f"{self._origin}: expected video as {', '.join(_CODECS)}, found {form!r}"
                raise DataError(msg)
            self._codec = av.CodecContext.create(_CODECS[form], "r")
            self._codec.flags |= av.codec.context.Flags.low_delay
            self._codec.thread_count = 1  # threads would hold frames back
        try:
            frames = self._codec.decode(av.Packet(bytes(message.data)))
        except av.error.FFmpegError as err:
            logger.warning("Skipped: %s: a piece of video that cannot be decoded", self._origin)
            logger.debug("%s", err)
            return []
        return [frame.to_ndarray(format="rgb24") for frame in frames]


# --- files ---


class _McapFile:
    """An MCAP file of any encoding that ROS and Foxglove write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        require("mcap.reader", EXTRA)
        self._file = path.open("rb")

    def close(self) -> None:
        self._file.close()

    def _reader(self, *, whole: bool) -> Any:
        reader = require("mcap.reader", EXTRA)
        self._file.seek(0)
        kind = reader.SeekingReader if whole else reader.NonSeekingReader
        return kind(self._file, decoder_factories=_factories())

    def _summary(self) -> Any:
        """Return what the end of the file says of it; None if it is cut off."""
        exceptions = require("mcap.exceptions", EXTRA)
        try:
            return self._reader(whole=True).get_summary()
        except exceptions.InvalidMagic as err:
            self._file.seek(0)
            if self._file.read(8) != b"\x89MCAP0\r\n":
                msg = f"{self._path}: expected an MCAP file, found something else"
                raise DataError(msg) from err
            return None
        except Exception:  # whatever a damaged index makes of the library
            return None

    def topics(self) -> list[Topic]:
        summary = self._summary()
        if summary is not None and summary.channels:
            counts = {} if summary.statistics is None else summary.statistics.channel_message_counts
            return [
                Topic(
                    channel.topic,
                    getattr(summary.schemas.get(channel.schema_id), "name", ""),
                    counts.get(channel.id) if counts else None,
                )
                for channel in summary.channels.values()
            ]
        found: dict[str, Topic] = {}
        for schema, channel, _ in self._until_damage(
            self._reader(whole=False).iter_messages(log_time_order=False), say=False
        ):
            name = "" if schema is None else schema.name
            before = found.get(channel.topic)
            count = 1 if before is None else (before.count or 0) + 1
            found[channel.topic] = Topic(channel.topic, name, count)
        return list(found.values())

    def messages(self, topic: str) -> Iterator[tuple[int, Any]]:
        """Yield the time of recording in nanoseconds and the message, decoded."""
        whole = self._summary() is not None
        reader = self._reader(whole=whole)
        decoded = reader.iter_decoded_messages([topic], log_time_order=whole)
        for one in self._until_damage(decoded):
            yield one.message.log_time, one.decoded_message

    def _until_damage(self, items: Iterator[Any], *, say: bool = True) -> Iterator[Any]:
        count = 0
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as err:  # of mcap, lz4, zstandard and the decoders
                if say:
                    why = str(err) or type(err).__name__
                    logger.warning("%s: ends after %d messages: %s", self._path, count, why)
                return
            count += 1
            yield item


class _Bag:
    """A bag of ROS 1, or the folder of one of ROS 2."""

    def __init__(self, path: Path) -> None:
        highlevel = require("rosbags.highlevel", EXTRA)
        typesys = require("rosbags.typesys", EXTRA)
        self._path, self._stack = path, ExitStack()
        # A lone file is read by way of the folder that describes it.
        folder = path if path.is_dir() or path.suffix.lower() == BAG else path.parent
        if folder != path and not (folder / METADATA).is_file():
            msg = f"{path}: expected {METADATA} beside it, as ROS 2 writes it, found none"
            raise DataError(msg)
        # For bags that do not hold the definitions of their messages, as old ones of ROS 2 do not.
        usual = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
        try:
            reader = highlevel.AnyReader([local(folder)], default_typestore=usual)
            self._reader = self._stack.enter_context(reader)
        except Exception as err:  # of rosbags, its databases and parsers
            msg = f"{path}: expected a bag of ROS that can be read, found: {err}"
            msg += ". rosbag reindex mends one that was not closed"
            raise DataError(msg) from err

    def close(self) -> None:
        self._stack.close()

    def topics(self) -> list[Topic]:
        return [
            Topic(name, info.msgtype or "", info.msgcount)
            for name, info in self._reader.topics.items()
        ]

    def messages(self, topic: str) -> Iterator[tuple[int, Any]]:
        """Yield the time of recording in nanoseconds and the message, decoded."""
        connections = [one for one in self._reader.connections if one.topic == topic]
        items = self._reader.messages(connections)
        count = 0
        while True:
            try:
                connection, time, raw = next(items)
                message = self._reader.deserialize(raw, connection.msgtype)
            except StopIteration:
                return
            except Exception as err:  # of rosbags and of what compresses its chunks
                logger.warning("%s: ends after %d messages: %s", self._path, count, err)
                return
            count += 1
            yield time, message


def _opened(path: Path) -> _McapFile | _Bag:
    if not path.exists():
        msg = f"{path}: expected a recording, found no file"
        raise DataError(msg)
    return _McapFile(path) if path.suffix.lower() == MCAP else _Bag(path)


def _factories() -> list[Any]:
    """Return what decodes the messages of MCAP files."""
    return [
        require("mcap_ros1.decoder", EXTRA).DecoderFactory(),
        require("mcap_ros2.decoder", EXTRA).DecoderFactory(),
        require("mcap_protobuf.decoder", EXTRA).DecoderFactory(),
        _Json(),
    ]


class _Json:
    """Decodes messages in JSON, in which Foxglove writes bytes in base 64."""

    def decoder_for(self, message_encoding: str, _: Any) -> Callable[[bytes], Any] | None:
        """Return the decoder of a channel's messages; None if they are not in JSON."""
        return _from_json if message_encoding == "json" else None


def _from_json(data: bytes) -> Any:
    message = json.loads(data, object_hook=lambda fields: SimpleNamespace(**fields))
    if isinstance(getattr(message, "data", None), str):
        message.data = base64.b64decode(message.data)
    return message


def _captured(message: Any) -> int | None:
    """Return when an image was taken, in nanoseconds; None where the message does not say."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    stamp = stamp if stamp is not None else getattr(message, "timestamp", None)
    if stamp is None:
        return None
    whole = _field(stamp, "sec", "secs", "seconds")
    parts = _field(stamp, "nanosec", "nsecs", "nsec", "nanos")
    return int(whole) * 10**9 + int(parts) or None


def _field(message: Any, *names: str) -> Any:
    """Return the first of some fields that a message has; writers name them differently."""
    for name in names:
        if hasattr(message, name):
            return getattr(message, name)
    return 0
