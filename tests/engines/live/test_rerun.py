"""A file for the viewer Rerun, read back with its own reader."""

import sys

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.errors import (
    ConfigError,
    DependencyError,
    DeviceError,
    OutputError,
    OutputExistsError,
)
from engines.live import rerun_sink
from engines.live.rerun_sink import RerunLog
from engines.live.sinks import SinkThread
from live_results import BEGAN, STAGES, WATCHED, result, smooth
from tiny_models import SPEC, exported, random_frames, write_frames

rerun = pytest.importorskip("rerun", reason="rerun-sdk is not installed")
reader = pytest.importorskip("rerun.chunk", reason="this rerun-sdk has no reader of files")

CLASSES = SPEC.label_space


def columns(path, entity):
    """Columns of an entity as lists, over all its chunks; times in nanoseconds."""
    found = {}
    for chunk in reader.RrdReader(str(path)).stream():
        if chunk.entity_path == entity:
            batch = chunk.to_record_batch()
            for name in batch.schema.names:
                column = batch.column(name)
                if name in ("capture", "log_time"):
                    column = column.cast("int64")
                found.setdefault(name, []).extend(column.to_pylist())
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rerun") / "new" / "o.rrd"
    sink = RerunLog(str(path), CLASSES)
    for number, state in enumerate(WATCHED):
        sink.write(result(number, watch=state))
    sink.close()
    return path


def test_frames_and_label_maps_come_back(file):
    images, labels = columns(file, "/camera/image"), columns(file, "/camera/labels")
    assert images["number"] == labels["number"] == list(range(1, 7))
    assert images["capture"] == [BEGAN + n * 100_000_000 for n in range(6)]
    (blobs,) = (values for name, values in images.items() if name.endswith("blob"))
    for number, blob in enumerate(blobs):
        encoded = np.asarray(blob, np.uint8).reshape(-1)
        found = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)
        assert np.abs(found - smooth(number)).mean() < 3
    (buffers,) = (values for name, values in labels.items() if name.endswith("buffer"))
    for number, buffer in enumerate(buffers):
        found = np.asarray(buffer, np.uint8).reshape(48, 96)
        np.testing.assert_array_equal(found, result(number).labels)


def test_names_and_colours_are_said_once(file):
    (context,) = (v for k, v in columns(file, "/camera").items() if k.endswith("context"))
    ((classes,),) = context
    known = {one["class_id"]: one["class_description"]["info"] for one in classes}
    assert [known[n]["label"] for n in range(len(CLASSES))] == list(CLASSES.classes)
    for number, (red, green, blue) in enumerate(CLASSES.palette):
        assert known[number]["color"] == red << 24 | green << 16 | blue << 8 | 255


def test_latencies_and_counts_are_series(file):
    for stage in STAGES:
        (values,) = (
            v for k, v in columns(file, f"/latency/{stage}").items() if k.endswith("scalars")
        )
        expected = [11.8 + n if stage == "total" else STAGES[stage] for n in range(6)]
        assert [one for (one,) in values] == pytest.approx(expected)
    (values,) = (v for k, v in columns(file, "/frames/dropped").items() if k.endswith("scalars"))
    assert values == [[2.0]] * 6


def test_what_a_watch_finds_is_a_series_and_each_alarm_a_line(file):
    ratios = columns(file, "/watch/ratio")
    assert ratios["number"] == [2, 4, 5, 6]
    (values,) = (v for k, v in ratios.items() if k.endswith("scalars"))
    assert [one for (one,) in values] == pytest.approx([0.4, 1.5, 1.2, 0.3])
    alarms = columns(file, "/watch/alarm")
    assert alarms["number"] == [4]
    (texts,) = (v for k, v in alarms.items() if k.endswith("text"))
    assert "light: brightness -9.1" in texts[0][0]


def test_a_full_disk_ends_the_file_only(tmp_path, monkeypatch):
    full = []
    monkeypatch.setattr(rerun_sink, "is_full", lambda _: bool(full))
    monkeypatch.setattr(rerun_sink, "LOOKS", 2)
    thread = SinkThread(RerunLog(str(tmp_path / "o.rrd"), CLASSES), lossless=True)
    for number in range(3):
        thread.offer(result(number))
    while thread.written < 3:
        assert thread.error is None
    full.append(True)
    for number in range(3, 40):
        thread.offer(result(number))
    thread.close()
    assert isinstance(thread.error, OutputError)
    assert "the disk is full" in str(thread.error)
    assert columns(tmp_path / "o.rrd", "/latency/total")["number"][:3] == [1, 2, 3]


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"`rerun`: expected a file \.rrd, 'viewer'"):
        RerunLog("o.mcap", CLASSES)
    (tmp_path / "o.rrd").write_text("mine")
    with pytest.raises(OutputExistsError):
        RerunLog(str(tmp_path / "o.rrd"), CLASSES)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(DeviceError, match="needs a screen"):
        RerunLog("viewer", CLASSES)


@pytest.mark.parametrize(
    ("where", "call"),
    [("viewer", "spawn"), ("rerun+http://192.0.2.1:9876/proxy", "connect_grpc")],
)
def test_viewers_are_opened_and_reached(monkeypatch, where, call):
    """Without one: that would be a window."""
    called = []

    class Stream:
        def __init__(self, name):
            called.append(name)

        def __getattr__(self, name):
            return lambda *given, **named: called.append((name, given, named))

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(rerun, "RecordingStream", Stream)
    sink = RerunLog(where, CLASSES)
    sink.write(result())
    sink.close()
    names = [one if isinstance(one, str) else one[0] for one in called]
    assert names[:3] == ["edgeuda", call, "log"]
    assert names[-2:] == ["flush", "disconnect"]
    expected = ((), {"memory_limit": "1GB"}) if call == "spawn" else ((where,), {})
    assert called[1][1:] == expected


def test_an_extra_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(DependencyError, match=r"edgeuda\[rerun\]"):
        RerunLog("o.rrd", CLASSES)


def test_the_verb_writes_it(tmp_path):
    (tmp_path / "m.onnx").write_bytes(exported("labels"))
    write_frames(tmp_path / "frames", random_frames(4, 48, 96))
    words = ["run", "--model", tmp_path / "m.onnx", "--target", tmp_path / "frames"]
    words += ["--out", tmp_path / "out", "--rerun", tmp_path / "drive.rrd", "--threads", "1"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "drive.rrd" in done.output
    assert columns(tmp_path / "drive.rrd", "/latency/total")["number"] == [1, 2, 3, 4]
    ros = ["run", "--model", "m", "--ros2", "/camera", "--rerun", "viewer", "--out", "o"]
    refused = CliRunner().invoke(app, ros)
    assert isinstance(refused.exception, ConfigError)
    assert "--ros2 and --rerun contradict each other" in str(refused.exception)
