"""Recordings: real files of several writers, every encoding, and what is cut off or wrong."""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.camera import Lens
from edgeuda.data import recordings
from edgeuda.data.curation import FROM_RECORDING, curate
from edgeuda.data.footage import footage, frame_rate
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import read_image
from edgeuda.data.recordings import Recording, recording_of
from edgeuda.errors import DataError, DependencyError
from edgeuda.files import read_json
from edgeuda.records.frames import Curation, Span

rosbags = pytest.importorskip("rosbags.typesys")
writer = pytest.importorskip("mcap.writer")

HEIGHT, WIDTH, RATE, COUNT = 24, 36, 10, 6
START = 1_700_000_000_000_000_000
MATRIX = (30.0, 0, 18, 0, 30, 12, 0, 0, 1)


def picture(number):
    """A gradient that moves, smooth enough for what compresses it."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack(
        [rows * 8 + number * 3, columns * 6, np.full_like(rows, 60 + 20 * number)], -1
    ).astype(np.uint8)


def time_of(number):
    """Every third image comes late: no fixed rate."""
    return START + int(1e9 * (number / RATE + 0.02 * (number % 3 == 2)))


class Ros:
    """Messages of one distribution."""

    def __init__(self, store):
        self.store = rosbags.get_typestore(store)
        self.one = store == rosbags.Stores.ROS1_NOETIC

    def type(self, name):
        return self.store.types[name]

    def header(self, ns):
        stamp = self.type("builtin_interfaces/msg/Time")(ns // 10**9, ns % 10**9)
        more = {"seq": 0} if self.one else {}
        return self.type("std_msgs/msg/Header")(**more, stamp=stamp, frame_id="camera")

    def image(self, number, encoding="rgb8", data=None, step=None, **how):
        data = picture(number) if data is None else data
        return self.type("sensor_msgs/msg/Image")(
            self.header(time_of(number)), how.get("height", HEIGHT), how.get("width", WIDTH),
            encoding, how.get("big", 0), step or data.nbytes // HEIGHT, data.ravel().view(np.uint8),
        )  # fmt: skip

    def compressed(self, number, form="jpeg", suffix=".jpg"):
        data = cv2.imencode(suffix, cv2.cvtColor(picture(number), cv2.COLOR_RGB2BGR))[1]
        return self.type("sensor_msgs/msg/CompressedImage")(
            self.header(time_of(number)), form, data
        )

    def info(self, model="plumb_bob", distortion=(0.1, 0, 0, 0, 0), matrix=MATRIX):
        cls = self.type("sensor_msgs/msg/CameraInfo")
        roi = self.type("sensor_msgs/msg/RegionOfInterest")(0, 0, 0, 0, False)
        d, k, r, p = (np.array(v, float) for v in (distortion, matrix, np.eye(3).ravel(),
                                                   np.zeros(12)))  # fmt: skip
        names = ("D", "K", "R", "P") if self.one else ("d", "k", "r", "p")
        return cls(
            header=self.header(START), height=HEIGHT, width=WIDTH, distortion_model=model,
            **dict(zip(names, (d, k, r, p), strict=True)), binning_x=0, binning_y=0, roi=roi,
        )  # fmt: skip

    def serialize(self, message):
        kind = message.__msgtype__
        return (
            self.store.serialize_ros1(message, kind)
            if self.one
            else self.store.serialize_cdr(message, kind)
        )


ONE, TWO = Ros(rosbags.Stores.ROS1_NOETIC), Ros(rosbags.Stores.ROS2_HUMBLE)
OLD = Ros(rosbags.Stores.ROS2_FOXY)


def written(path, ros, topics):
    """Write a bag with rosbags; ``topics`` are lists of messages with their times."""
    if ros.one:
        from rosbags.rosbag1 import Writer

        bag = Writer(path)
    else:
        from rosbags.rosbag2 import StoragePlugin, Writer

        how = StoragePlugin.MCAP if path.name.endswith("mcap") else StoragePlugin.SQLITE3
        bag = Writer(path, version=8 if ros is OLD else 9, storage_plugin=how)
    with bag:
        for topic, messages in topics.items():
            kind = messages[0][1].__msgtype__
            connection = bag.add_connection(topic, kind, typestore=ros.store)
            for ns, message in messages:
                bag.write(connection, ns, bytes(ros.serialize(message)))
    return path


def series(make, count=COUNT):
    """Messages that are logged half a second after their capture."""
    return [(time_of(n) + 500_000_000, make(n)) for n in range(count)]


def camera(ros, **info):
    return {
        "/camera/front/image_raw": series(ros.image),
        "/camera/front/camera_info": [(START, ros.info(**info))],
        "/imu": [(START, ros.header(START))] if not ros.one else [(START, ros.info())],
    }


def written_by_mcap(path, topics, profile="ros2", encoding="ros2msg", **how):
    """Write an MCAP file with Foxglove's library and the definitions of rosbags."""
    with path.open("wb") as stream:
        out = writer.Writer(stream, chunk_size=4096, **how)
        out.start(profile)
        for topic, (ros, messages) in topics.items():
            kind = messages[0][1].__msgtype__
            text, _ = ros.store.generate_msgdef(kind, ros_version=1 if ros.one else 2)
            name = kind.replace("/msg/", "/") if ros.one else kind
            schema = out.register_schema(name, encoding, text.encode())
            channel = out.register_channel(topic, "ros1" if ros.one else "cdr", schema)
            for ns, message in messages:
                out.add_message(channel, ns, bytes(ros.serialize(message)), ns)
        out.finish()
    return path


FILES = {
    "ROS 1 bag": lambda folder: written(folder / "drive.bag", ONE, camera(ONE)),
    "ROS 2 bag": lambda folder: written(folder / "drive", TWO, camera(TWO)),
    "ROS 2 bag in MCAP": lambda folder: written(folder / "drive-mcap", TWO, camera(TWO)),
    "ROS 2 bag without definitions": lambda folder: written(folder / "drive", OLD, camera(OLD)),
    "MCAP of ROS 2": lambda folder: written_by_mcap(
        folder / "drive.mcap", {k: (TWO, v) for k, v in camera(TWO).items()}
    ),
    "MCAP of ROS 1": lambda folder: written_by_mcap(
        folder / "drive.mcap", {k: (ONE, v) for k, v in camera(ONE).items()}, "ros1", "ros1msg"
    ),
}


@pytest.fixture(params=FILES)
def recording(request, tmp_path):
    return FILES[request.param](tmp_path)


def test_frames_of_every_file_come_with_the_times_of_their_capture(recording):
    frames = list(footage(recording))
    assert len(frames) == COUNT
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, picture(number))
        assert frame.index == number
        assert frame.seconds == pytest.approx((time_of(number) - START) / 1e9, abs=1e-6)
    assert len({frame.name for frame in frames}) == COUNT
    named = Path(f"{recording}:/camera/front/image_raw")
    assert [f.name for f in footage(named)] == [f.name for f in frames]
    assert frame_rate(recording) == pytest.approx(RATE, rel=0.3)


def test_its_camera_is_written_beside_the_frames_and_undistorts_them(recording, tmp_path):
    plain, straight = tmp_path / "plain", tmp_path / "straight"
    curate(recording, plain, Span(), Curation(distinct=0), ".png")
    assert Lens.read(plain / "camera.yaml") == Lens(
        MATRIX, (0.1, 0, 0, 0, 0), (WIDTH, HEIGHT), fisheye=False
    )
    curate(recording, straight, Span(), Curation(FROM_RECORDING, distinct=0), ".png")
    by_hand = tmp_path / "by-hand"
    curate(recording, by_hand, Span(), Curation(str(plain / "camera.yaml"), distinct=0), ".png")
    files = [sorted((folder / "images").iterdir()) for folder in (plain, straight, by_hand)]
    for before, after, hand in zip(*map(list, files), strict=True):
        np.testing.assert_array_equal(read_image(after), read_image(hand))
        assert not np.array_equal(read_image(before), read_image(after))


@pytest.mark.parametrize(
    ("info", "fisheye"),
    [
        ({"model": "equidistant", "distortion": (0.1, 0, 0, 0)}, True),
        ({"model": "rational_polynomial", "distortion": (0.1,) * 8}, False),
    ],
)
def test_calibrations_of_other_models(tmp_path, info, fisheye):
    lens = recordings.lens_of(Recording(written(tmp_path / "b", TWO, camera(TWO, **info))))
    assert (lens.fisheye, lens.distortion) == (fisheye, tuple(info["distortion"]))


def test_a_calibration_that_was_never_made_is_none(tmp_path):
    path = written(tmp_path / "b", TWO, camera(TWO, matrix=(0,) * 9))
    assert recordings.lens_of(Recording(path)) is None
    with pytest.raises(DataError, match="expected a recording with a calibration"):
        curate(path, tmp_path / "out", Span(), Curation(FROM_RECORDING))
    odd = written(tmp_path / "c", TWO, camera(TWO, model="odd"))
    with pytest.raises(DataError, match="found 'odd'"):
        recordings.lens_of(Recording(odd))


def planes(number):
    yuv = cv2.cvtColor(picture(number), cv2.COLOR_RGB2YUV_I420)
    luma, chroma = yuv[:HEIGHT], yuv[HEIGHT:].reshape(2, -1)
    return np.concatenate([luma.ravel(), chroma.T.ravel()])


def packed(number, order):
    yuv = cv2.cvtColor(picture(number), cv2.COLOR_RGB2YUV_I420)
    out = np.empty((HEIGHT, WIDTH, 2), np.uint8)
    luma, chroma = (0, 1) if order == "yuyv" else (1, 0)
    out[..., luma] = yuv[:HEIGHT]
    for place, plane in enumerate(yuv[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)):
        out[:, place::2, chroma] = np.repeat(plane, 2, 0)
    return out


def mosaic(number):
    rgb = picture(number)
    raw = rgb[..., 1].copy()
    raw[0::2, 0::2], raw[1::2, 1::2] = rgb[0::2, 0::2, 0], rgb[1::2, 1::2, 2]
    return raw


GREY = cv2.cvtColor(picture(1), cv2.COLOR_RGB2GRAY)
ENCODINGS = {
    "rgb8": (picture(1), 0), "bgr8": (picture(1)[..., ::-1], 0),
    "rgba8": (np.dstack([picture(1), GREY]), 0),
    "bgra8": (np.dstack([picture(1)[..., ::-1], GREY]), 0),
    "bayer_rggb8": (mosaic(1), 12), "yuv422": (packed(1, "uyvy"), 8),
    "yuv422_yuy2": (packed(1, "yuyv"), 8), "nv12": (planes(1), 8),
    "rgb16": (picture(1).astype("<u2") * 257, 0),
    "bayer_rggb16": (mosaic(1).astype("<u2") * 257, 12),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_looks_as_it_did(encoding):
    data, allowed = ENCODINGS[encoding]
    step = WIDTH if encoding == "nv12" else None
    found = recordings.decode_pixels(
        TWO.image(1, encoding, np.ascontiguousarray(data), step), "drive.mcap"
    )
    inner = (slice(2, -2), slice(2, -2))  # colours of a mosaic's border are guesses
    away = np.abs(found.astype(int) - picture(1))[inner]
    assert np.percentile(away, 95) <= allowed


def test_grey_rows_with_padding_and_the_other_order_of_bytes():
    padded = np.pad(GREY, ((0, 0), (0, 4)))
    found = recordings.decode_pixels(TWO.image(1, "mono8", padded, WIDTH + 4), "d")
    np.testing.assert_array_equal(found, np.dstack([GREY] * 3))
    deep = GREY.astype(">u2") * 257
    found = recordings.decode_pixels(TWO.image(1, "mono16", deep, big=1), "d")
    np.testing.assert_array_equal(found, np.dstack([GREY] * 3))


def test_fewer_bits_than_16_are_asked_for(monkeypatch):
    twelve = TWO.image(1, "mono16", GREY.astype("<u2") * 16)
    with pytest.raises(DataError, match="EDGEUDA_FRAME_BITS=12"):
        recordings.decode_pixels(twelve, "drive.mcap")
    monkeypatch.setenv("EDGEUDA_FRAME_BITS", "12")
    found = recordings.decode_pixels(twelve, "drive.mcap")
    np.testing.assert_array_equal(found, np.dstack([GREY] * 3))


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (TWO.image(1, "32FC1", GREY.astype(np.float32)), "found '32FC1'"),
        (TWO.image(1, height=HEIGHT + 1), "expected 25 rows of 108 bytes"),
        (TWO.image(1, step=20), "in rows of 20"),
    ],
)
def test_what_is_no_image_is_refused_by_name(message, error):
    with pytest.raises(DataError, match=rf"drive\.mcap: .*{error}"):
        recordings.decode_pixels(message, "drive.mcap")


def test_compressed_images(tmp_path):
    path = written(tmp_path / "b", TWO, {
        "/jpeg/compressed": series(TWO.compressed),
        "/png/compressed": series(lambda n: TWO.compressed(n, "rgb8; png compressed bgr8", ".png")),
        "/depth": series(lambda n: TWO.compressed(n, "16UC1; compressedDepth", ".png")),
    })  # fmt: skip
    exact = list(footage(Path(f"{path}:/png/compressed")))
    np.testing.assert_array_equal(exact[2].image, picture(2))
    near = list(footage(Path(f"{path}:/jpeg/compressed")))
    assert np.abs(near[2].image.astype(int) - picture(2)).mean() < 4
    with pytest.raises(DataError, match="expected images, found distances"):
        list(footage(Path(f"{path}:/depth")))
    with pytest.raises(DataError, match=r"one topic with images, found: /depth.*/jpeg/comp"):
        list(footage(path))
    with pytest.raises(DataError, match="did you mean '/png/compressed'"):
        list(footage(Path(f"{path}:/png/compresed")))


def encoded_video(codec="libx264"):
    """A packet for each picture, none of which waits for a later one."""
    av = pytest.importorskip("av")
    made = av.CodecContext.create(codec, "w")
    made.width, made.height, made.pix_fmt = 64, 48, "yuv420p"
    made.framerate = made.time_base = 10
    made.options = {"tune": "zerolatency", "preset": "ultrafast", "x264-params": "annexb=1"}
    packets = []
    for number in range(COUNT):
        image = np.full((48, 64, 3), 40 * number, np.uint8)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        packets += [bytes(packet) for packet in made.encode(frame)]
    return packets


def test_foxgloves_own_messages(tmp_path):
    """Protobuf, as Foxglove's agents write it: images, compressed images, video."""
    from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
    from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo
    from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
    from mcap_protobuf.writer import Writer

    path, packets = tmp_path / "agent.mcap", encoded_video()
    with path.open("wb") as stream, Writer(stream) as out:
        for number in range(COUNT):
            ns = time_of(number)
            raw = RawImage(width=WIDTH, height=HEIGHT, encoding="rgb8", step=3 * WIDTH,
                           data=picture(number).tobytes())  # fmt: skip
            png = CompressedImage(format="png", data=bytes(TWO.compressed(number, "", ".png").data))
            video = CompressedVideo(format="h264", data=packets[number])
            for topic, message in (("/raw", raw), ("/png", png), ("/video", video)):
                message.timestamp.FromNanoseconds(ns)
                out.write_message(topic, message, ns, ns)
    for topic in ("/raw", "/png"):
        frames = list(footage(Path(f"{path}:{topic}")))
        np.testing.assert_array_equal(frames[3].image, picture(3))
        assert frames[2].seconds == pytest.approx(0.22)
    video = list(footage(Path(f"{path}:/video"), Span(start=0.1)))
    assert [frame.index for frame in video] == [1, 2, 3, 4, 5]
    means = [frame.image.mean() for frame in video]
    np.testing.assert_allclose(means, [40, 80, 120, 160, 200], atol=6)


def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path, caplog):
    whole = FILES["MCAP of ROS 2"](tmp_path).read_bytes()
    path = tmp_path / "cut.mcap"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    frames = list(footage(Path(f"{path}:/camera/front/image_raw")))
    assert 0 < len(frames) < COUNT
    np.testing.assert_array_equal(frames[0].image, picture(0))
    assert "cut.mcap: ends after" in caplog.text
    for content in (b"", b"no recording", whole[:40]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.mcap: expected"):
            list(footage(path))


@pytest.mark.parametrize("name", ["drive.bag", "drive.db3", "drive"])
def test_what_is_no_bag_is_refused(tmp_path, name):
    path = tmp_path / name
    if path.suffix:
        path.write_bytes(b"no bag")
    else:
        path.mkdir()
        (path / "metadata.yaml").write_text("nothing: here")
    with pytest.raises(DataError, match=f"{name}: expected"):
        list(footage(path))
    with pytest.raises(DataError, match="found no file"):
        list(footage(tmp_path / "absent.mcap"))


def test_an_image_that_cannot_be_decoded_is_left_out(tmp_path, caplog):
    messages = series(TWO.compressed)
    messages[2][1].data[:] = 0
    path = written(tmp_path / "b", TWO, {"/camera": messages})
    assert [frame.index for frame in footage(path)] == [0, 1, 3, 4, 5]
    assert "message 2" in caplog.text


def test_spans_and_rates_go_by_the_times_of_capture(tmp_path):
    path = FILES["ROS 2 bag"](tmp_path)
    assert [f.index for f in footage(path, Span(start=0.15, end=0.45))] == [2, 3, 4]
    assert [f.index for f in footage(path, Span(rate=5))] == [0, 2, 5]


def test_the_same_word_means_a_topic_and_not_a_drive():
    assert recording_of(Path("a.mcap:/x/y")) == Recording(Path("a.mcap"), "/x/y")
    assert recording_of(Path("a:/x.mcap")) == Recording(Path("a:/x.mcap"))
    assert recording_of(Path("a.png")) is None
    assert recording_of(Path("frames:/x")) is None


def test_whoever_reads_in_any_order_finds_the_frames_in_the_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("EDGEUDA_CACHE", str(tmp_path / "cache"))
    path = FILES["ROS 1 bag"](tmp_path)
    found = frame_folder(path)
    assert len(found) == COUNT
    assert "are written to" in caplog.text
    times = {p: p.stat().st_mtime_ns for p in found}
    again = frame_folder(Path(f"{path}:/camera/front/image_raw"))
    assert len(again) == COUNT
    assert {p: p.stat().st_mtime_ns for p in frame_folder(path)} == times
    index = next((tmp_path / "cache/frames").glob("drive-*/frames.json"))
    assert read_json(index)["kept"] == COUNT


def test_verbs_take_recordings(tmp_path):
    path = FILES["MCAP of ROS 2"](tmp_path)
    done = CliRunner().invoke(app, [
        "data", "frames", "--footage", str(path), "--distinct", "0", "--calibration", "recording",
        "--out", str(tmp_path / "out"),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"{COUNT} frames: kept {COUNT}" in done.output
    assert (tmp_path / "out/camera.yaml").is_file()


def test_without_the_libraries_the_extra_is_named(tmp_path, monkeypatch):
    path = FILES["MCAP of ROS 2"](tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "mcap.reader", None)
    with pytest.raises(DependencyError, match=r"edgeuda\[recordings\]"):
        list(footage(path))


def test_json_is_read_too(tmp_path):
    import base64
    import json

    stream = BytesIO()
    out = writer.Writer(stream)
    out.start()
    schema = out.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
    channel = out.register_channel("/camera", "json", schema)
    data = base64.b64encode(bytes(TWO.compressed(1, "", ".png").data)).decode()
    message = {"timestamp": {"sec": 5, "nsec": 0}, "format": "png", "data": data}
    out.add_message(channel, 1, json.dumps(message).encode(), 1)
    out.finish()
    path = tmp_path / "j.mcap"
    path.write_bytes(stream.getvalue())
    (frame,) = footage(path)
    np.testing.assert_array_equal(frame.image, picture(1))


@pytest.mark.parametrize("name", ["MCAP of ROS 2", "ROS 1 bag", "ROS 2 bag"])
def test_recordings_in_a_store(tmp_path, monkeypatch, name):
    fsspec = pytest.importorskip("fsspec", reason="needs the extra s3")
    monkeypatch.setenv("EDGEUDA_CACHE", str(tmp_path / "cache"))
    path = FILES[name](tmp_path)
    store = fsspec.filesystem("memory")
    store.put(str(path), f"/bucket/{path.name}", recursive=True)
    for topic in ("", ":/camera/front/image_raw"):
        there = Path(f"memory://bucket/{path.name}{topic}")
        found = list(footage(there))
        assert [(f.name, f.seconds) for f in found] == [(f.name, f.seconds) for f in footage(path)]
        assert str(found[0].origin) == f"memory://bucket/{path.name}{topic}"
    assert frame_rate(there) == frame_rate(path)
    assert len(frame_folder(there)) == COUNT
    store.rm("/bucket", recursive=True)
