"""Frames and label maps as an MCAP file: read back by two readers, cut off, on a full disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.data.footage import Frame
from edgeuda.data.recordings import Recording, read_recording, recorded_rate
from edgeuda.errors import ConfigError, DependencyError, OutputError, OutputExistsError
from edgeuda.labels import LabelSpace
from edgeuda.records.live import SinkCounts
from engines.live import mcap_sink
from engines.live.capture import Capture
from engines.live.loop import run
from engines.live.mcap_sink import McapFile
from engines.live.ros2 import image_of
from engines.live.sinks import SinkThread
from engines.onnxruntime_runner import OnnxRunner
from live_results import BEGAN, WATCHED, noisy, result, smooth
from tiny_models import SPEC, exported, random_frames, write_frames

reader = pytest.importorskip("mcap.reader")
decoder = pytest.importorskip("mcap_protobuf.decoder")
EndOfFile = pytest.importorskip("mcap.exceptions").EndOfFile
pytest.importorskip("foxglove_schemas_protobuf")

TOPICS = ["/camera", "/labels", "/labels/color", "/labels/ros2", "/edgeuda/latency"]
COLORS = SPEC.label_space.colors()


def written(path, results, **how):
    sink = McapFile(path, SPEC.label_space, {"backend": "imaginary 1.0"}, **how)
    for one in results:
        sink.write(one)
    sink.close()
    return path


def messages(path, topic, whole=True):
    """Messages of a topic by the library's own reader, which compares every checksum.

    Args:
        whole: Whether the file has its end; else what comes before it ends is returned.
    """
    kind = reader.SeekingReader if whole else reader.NonSeekingReader
    found = []
    with path.open("rb") as stream:
        opened = kind(stream, validate_crcs=True, decoder_factories=[decoder.DecoderFactory()])
        try:
            if topic == "/edgeuda/latency":
                for _, _, message in opened.iter_messages([topic], log_time_order=whole):
                    found += [(message.log_time, json.loads(message.data))]
            else:
                for one in opened.iter_decoded_messages([topic], log_time_order=whole):
                    found += [(one.message.log_time, one.decoded_message)]
        except EndOfFile:
            assert not whole
    return found


def pixels(message):
    decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    return decoded[:, :, ::-1]


def test_what_was_written_is_footage(tmp_path):
    path = written(tmp_path / "new" / "o.mcap", map(result, range(12)))
    recording = Recording(path, "/camera")
    shots = list(read_recording(recording))
    assert [shot.index for shot in shots] == list(range(12))
    assert [shot.seconds for shot in shots] == pytest.approx([n / 10 for n in range(12)])
    assert recorded_rate(recording) == pytest.approx(10)
    for number, shot in enumerate(shots):
        assert np.abs(shot.image.astype(int) - smooth(number)).mean() < 3


def test_labels_are_exact_and_in_colour(tmp_path):
    path = written(tmp_path / "o.mcap", map(result, range(5)))
    ids, colored = messages(path, "/labels"), messages(path, "/labels/color")
    assert len(ids) == len(colored) == 5
    for number, ((at, one), (_, color)) in enumerate(zip(ids, colored, strict=True)):
        assert at == BEGAN + number * 100_000_000
        assert one.timestamp.ToNanoseconds() == color.timestamp.ToNanoseconds() == at
        assert (one.encoding, one.height, one.width, one.step) == ("mono8", 48, 96, 96)
        found = np.frombuffer(one.data, np.uint8).reshape(48, 96)
        np.testing.assert_array_equal(found, result(number).labels)
        np.testing.assert_array_equal(pixels(color), COLORS[found])
    labels = list(read_recording(Recording(path, "/labels")))
    np.testing.assert_array_equal(labels[2].image[:, :, 0], result(2).labels)


def test_labels_are_a_topic_of_ros_2(tmp_path):
    """By two readers: that of MCAP's own ROS 2 support, and rosbags with ROS's message classes."""
    path = written(tmp_path / "o.mcap", map(result, range(3)))
    ros2 = pytest.importorskip("mcap_ros2.decoder")
    with path.open("rb") as stream:
        opened = reader.make_reader(stream, decoder_factories=[ros2.DecoderFactory()])
        found = [
            (one.schema.name, one.message.log_time, one.decoded_message)
            for one in opened.iter_decoded_messages(["/labels/ros2"])
        ]
    store = mcap_sink.libraries().ros
    raw = [data for _, data in raw_messages(path, "/labels/ros2")]
    for number, ((name, at, message), data) in enumerate(zip(found, raw, strict=True)):
        real = store.deserialize_cdr(data, "sensor_msgs/msg/Image")
        assert name == "sensor_msgs/msg/Image"
        for image in (message, real):
            stamp = image.header.stamp
            assert at == stamp.sec * 10**9 + stamp.nanosec == BEGAN + number * 100_000_000
            assert (image.encoding, image.height, image.width, image.step) == ("mono8", 48, 96, 96)
            rgb = image_of(image)  # as our own node reads it
            np.testing.assert_array_equal(rgb[:, :, 0], result(number).labels)
    recording = list(read_recording(Recording(path, "/labels/ros2")))
    np.testing.assert_array_equal(recording[2].image[:, :, 0], result(2).labels)


def test_what_a_watch_finds_is_a_diagnostic_of_ros_2(tmp_path):
    """Each finding once, read by MCAP's own ROS 2 support and as ROS's message class."""
    ros2 = pytest.importorskip("mcap_ros2.decoder")
    shown = [result(number, watch=state) for number, state in enumerate(WATCHED)]
    path = written(tmp_path / "o.mcap", shown)
    with path.open("rb") as stream:
        opened = reader.make_reader(stream, decoder_factories=[ros2.DecoderFactory()])
        found = list(opened.iter_decoded_messages(["/diagnostics"]))
    assert [one.message.log_time for one in found] == [shown[n].time_ns for n in (1, 3, 4, 5)]
    assert {one.schema.name for one in found} == {"diagnostic_msgs/msg/DiagnosticArray"}
    states = [one.decoded_message.status[0] for one in found]
    assert [one.level for one in states] == [0, 1, 1, 0]
    assert "brightness -9.1 deviations from normal" in states[1].message
    assert {(one.name, one.hardware_id) for one in states} == {("edgeuda: watch", "imaginary 1.0")}
    assert ("ratio", "0.400") in [(one.key, one.value) for one in states[0].values]
    store = mcap_sink.libraries().ros
    _, data = raw_messages(path, "/diagnostics")[1]
    real = store.deserialize_cdr(data, "diagnostic_msgs/msg/DiagnosticArray")
    assert ("kind", "light") in [(one.key, one.value) for one in real.status[0].values]
    assert real.header.stamp.sec == shown[3].time_ns // 10**9
    plain = written(tmp_path / "plain.mcap", [result()])
    with plain.open("rb") as stream:
        channels = reader.make_reader(stream).get_summary().channels.values()
    assert sorted(one.topic for one in channels) == sorted(TOPICS)


def raw_messages(path, topic):
    with path.open("rb") as stream:
        return [
            (message.log_time, message.data)
            for _, _, message in reader.make_reader(stream).iter_messages([topic])
        ]


def test_latencies_and_drops_are_a_series_with_a_schema(tmp_path):
    path = written(tmp_path / "o.mcap", map(result, range(5)))
    series = [message for _, message in messages(path, "/edgeuda/latency")]
    assert [one["milliseconds"]["total"] for one in series] == pytest.approx(
        [11.8 + n for n in range(5)]
    )
    assert [one["segmented"] for one in series] == [1, 2, 3, 4, 5]
    assert {one["dropped"] for one in series} == {2}
    with path.open("rb") as stream:
        summary = reader.make_reader(stream).get_summary()
    by_topic = {channel.topic: channel for channel in summary.channels.values()}
    assert list(by_topic) == TOPICS
    schema = summary.schemas[by_topic["/edgeuda/latency"].schema_id]
    assert schema.encoding == "jsonschema"
    told = json.loads(schema.data)["properties"]
    assert set(told) == set(series[0])
    assert set(told["milliseconds"]["properties"]) == set(series[0]["milliseconds"])
    names = [summary.schemas[by_topic[topic].schema_id].name for topic in TOPICS[:3]]
    assert names == ["foxglove.CompressedImage", "foxglove.RawImage", "foxglove.CompressedImage"]


def test_what_the_ids_mean_is_in_the_file(tmp_path):
    path = written(tmp_path / "o.mcap", [result()])
    with path.open("rb") as stream:
        opened = reader.make_reader(stream, validate_crcs=True)
        (one,) = opened.iter_metadata()
        channels = opened.get_summary().channels.values()
    assert (one.name, one.metadata["backend"]) == ("edgeuda", "imaginary 1.0")
    texts = [one.metadata["label_space"]]
    texts += [c.metadata["label_space"] for c in channels if c.topic == "/labels"]
    texts += [c.metadata["label_space"] for c in channels if c.topic == "/labels/ros2"]
    assert len(texts) == 3
    for text in texts:
        assert LabelSpace.from_record(json.loads(text)) == SPEC.label_space


def test_chunks_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(mcap_sink, "HELD", 1e9)
    large = [result(n, image=noisy(n, 240, 320)) for n in range(60)]
    path = written(tmp_path / "o.mcap", large)
    with path.open("rb") as stream:
        chunks = reader.make_reader(stream).get_summary().chunk_indexes
    one = len(large[0].frame.image.tobytes())  # more than any message
    assert len(chunks) > 3
    assert max(chunk.uncompressed_size for chunk in chunks) < mcap_sink.CHUNK + one


def test_chunks_are_not_held_back_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(mcap_sink, "HELD", 0.0)
    sink = McapFile(tmp_path / "o.mcap", SPEC.label_space)
    for number in range(4):
        sink.write(result(number))
        assert len(messages(tmp_path / "o.mcap", "/labels", whole=False)) == number + 1
    sink.close()


def test_a_killed_run_leaves_what_was_written(tmp_path):
    code = f"""
import os
from pathlib import Path
from engines.live.mcap_sink import McapFile
from engines.live.ros2 import image_of
from live_results import noisy, result
from tiny_models import SPEC
sink = McapFile(Path({str(tmp_path / "o.mcap")!r}), SPEC.label_space)
for n in range(100):
    sink.write(result(n, image=noisy(n, 240, 320)))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False, env=support(), timeout=300)
    path = tmp_path / "o.mcap"
    found = messages(path, "/labels", whole=False)
    shots = list(read_recording(Recording(path, "/camera")))
    assert len(found) > 50
    assert len(shots) - len(found) in (0, 1)  # a chunk may end between a frame and its labels
    lost = (100 - len(found)) * path.stat().st_size / len(found)
    assert lost < 2 * mcap_sink.CHUNK


def support():
    """The environment in which modules beside the tests are found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))}


def test_a_file_that_may_not_grow_ends_before_the_chunk_that_did_not_fit(tmp_path):
    """The system's limit on a file's size stands for a full disk: a write stops half way."""
    code = f"""
import resource
from pathlib import Path
from engines.live.capture import Capture
from engines.live.loop import run
from engines.live.mcap_sink import McapFile
from engines.live.ros2 import image_of
from live_results import FakeRunner, noisy, result
from tiny_models import SPEC
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
sink = McapFile(Path({str(tmp_path / "o.mcap")!r}), SPEC.label_space)
frames = (result(n, image=noisy(n, 240, 320)).frame for n in range(100))
record = run(FakeRunner(), Capture(lambda: frames, live=False), [sink], lossless=True)
print(record.frames.segmented, record.sinks["mcap file"].written > 10)
print(record.sinks["mcap file"].error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=support(), timeout=300, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    first, why = done.stdout.strip().splitlines()
    assert first == "100 True"  # the network went on
    assert "o.mcap: cannot be written" in why
    path = tmp_path / "o.mcap"
    assert path.stat().st_size < 1_000_000
    ids = messages(path, "/labels", whole=False)
    assert 5 < len(ids) < 100
    shots = list(read_recording(Recording(path, "/camera")))
    assert len(shots) - len(ids) in (0, 1)  # a chunk may end between a frame and its labels


def test_a_disk_that_fails_is_an_error_of_the_disk(tmp_path, monkeypatch):
    thread = SinkThread(McapFile(tmp_path / "folder" / "o.mcap", SPEC.label_space), lossless=True)
    (tmp_path / "folder").write_text("in the way")
    thread.offer(result())
    thread.close()
    assert isinstance(thread.error, (OutputError, OSError))


def test_a_name_and_what_is_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"o\.bag: expected a name that ends in \.mcap"):
        McapFile(tmp_path / "o.bag", SPEC.label_space)
    (tmp_path / "o.mcap").write_text("mine")
    with pytest.raises(OutputExistsError):
        McapFile(tmp_path / "o.mcap", SPEC.label_space)


@pytest.mark.parametrize("module", ["mcap", "mcap_protobuf", "foxglove_schemas_protobuf"])
def test_an_extra_that_is_not_there_is_named(tmp_path, monkeypatch, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        def find_spec(self, name, *_):
            if name.split(".")[0] == module:
                raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(DependencyError, match=r"edgeuda\[recordings\]"):
        McapFile(tmp_path / "o.mcap", SPEC.label_space)


def test_stages_of_real_frames_add_up(tmp_path):
    (tmp_path / "m.onnx").write_bytes(exported("labels"))
    images = random_frames(6, 48, 96)
    frames = (Frame(Path("c"), f"c_{n}", n, n / 5, image) for n, image in enumerate(images))
    sink = McapFile(tmp_path / "o.mcap", SPEC.label_space)
    with OnnxRunner(tmp_path / "m.onnx", 1) as runner:
        record = run(runner, Capture(lambda: frames, live=False), [sink], lossless=True)
    assert record.sinks == {"mcap file": SinkCounts(6, 0, None)}
    series = messages(tmp_path / "o.mcap", "/edgeuda/latency")
    for _, one in series:
        stages = one["milliseconds"]
        assert set(stages) == {"resize", "inference", "upsample", "total"}
        assert sum(stages.values()) - stages["total"] <= stages["total"] + 0.01
        assert min(stages.values()) >= 0
    times = np.diff([at for at, _ in series]) / 1e9
    assert times == pytest.approx([0.2] * 5)
    assert [one["frame"] for _, one in series] == [f"c_{n}" for n in range(6)]


def test_the_verb_writes_it(tmp_path):
    (tmp_path / "m.onnx").write_bytes(exported("labels"))
    write_frames(tmp_path / "frames", random_frames(4, 48, 96))
    footage = tmp_path / "frames"
    words = ["run", "--model", tmp_path / "m.onnx", "--target", footage]
    words += ["--out", tmp_path / "out", "--mcap", tmp_path / "drive.mcap", "--threads", "1"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "drive.mcap" in done.output
    assert len(messages(tmp_path / "drive.mcap", "/labels")) == 4
    counted = json.loads((tmp_path / "out" / "run.json").read_text())["sinks"]
    assert counted["mcap file"]["written"] == 4
    again = CliRunner().invoke(app, [str(w) for w in [*words[:6], tmp_path / "2", *words[7:]]])
    assert isinstance(again.exception, OutputExistsError)
    ros = ["run", "--model", "m", "--ros2", "/camera", "--mcap", "x.mcap", "--out", "o"]
    refused = CliRunner().invoke(app, ros)
    assert isinstance(refused.exception, ConfigError)
    assert "--ros2 and --mcap contradict each other" in str(refused.exception)
