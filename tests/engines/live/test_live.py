"""Frames as they come: what is dropped, what is kept, what is written, what survives."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.data.footage import Frame
from edgeuda.data.images import paint, read_label
from edgeuda.errors import BundleError, DataError, DependencyError, DeviceError
from edgeuda.records.live import SinkCounts
from edgeuda.records.watch import Alarm
from engines.bundle import write_bundle
from engines.bundle_model import model_file
from engines.live import capture, ros2, sinks
from engines.live.capture import Capture
from engines.live.histogram import LatencyHistogram
from engines.live.loop import Clock, Course, StopAt, run
from engines.live.queue import LatestQueue
from engines.live.sinks import LabelMaps, OverlayVideo, Result, SinkThread, Window, overlay
from engines.live.watch import WatchState
from engines.onnx.metadata import precision_of, read_metadata, runtime_of
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import Signals, segment
from live_results import FakeRunner
from tiny_models import SPEC, exported, random_frames, write_frames

COLORS = SPEC.label_space.colors()

# --- the queue ---


def test_a_full_queue_drops_its_oldest():
    queue = LatestQueue(2)
    for item in range(5):
        assert queue.put(item)
    assert (queue.get(0), queue.get(0), queue.get(0), queue.dropped) == (3, 4, None, 3)


def test_a_lossless_queue_waits_for_room():
    queue = LatestQueue(2, lossless=True)
    done = []
    thread = threading.Thread(target=lambda: done.extend(queue.put(item) for item in range(6)))
    thread.start()
    got = []
    while len(got) < 6:
        item = queue.get(5)
        assert item is not None
        got.append(item)
    thread.join(5)
    assert (got, done, queue.dropped) == (list(range(6)), [True] * 6, 0)


def test_a_closed_queue_gives_what_it_holds_and_lets_everyone_go():
    queue = LatestQueue(1, lossless=True)
    queue.put(1)
    refused = []
    thread = threading.Thread(target=lambda: refused.append(queue.put(2)))
    thread.start()
    queue.close()
    thread.join(5)
    assert refused == [False]
    assert not queue.finished
    assert queue.get(0) == 1
    assert queue.finished
    assert queue.get(60) is None  # at once


# --- the source ---


def frames(count, pause=0.0, start=0):
    for index in range(start, start + count):
        if pause:
            time.sleep(pause)
        image = np.full((48, 96, 3), index % 250, np.uint8)
        yield Frame(Path("camera0"), f"camera0_{index:07d}", index, index / 30, image)


def drain(source):
    got = []
    while not source.queue.finished:
        if (item := source.queue.get(5)) is not None:
            got.append(item)
    return got


def test_of_a_recording_no_frame_is_lost():
    with Capture(lambda: frames(50), live=False) as source:
        got = drain(source)
    assert [item.frame.index for item in got] == list(range(50))
    assert (source.received, source.queue.dropped, source.reconnects) == (50, 0, 0)
    source.raise_error()


def test_a_camera_is_never_held_up():
    with Capture(lambda: frames(200), live=True) as source:
        while source.received < 200:
            time.sleep(0.005)
        first = source.queue.get(1)
    assert source.queue.dropped == 200 - capture.QUEUE
    assert first.frame.index == 200 - capture.QUEUE  # the newest are kept


def test_a_recording_can_be_played_as_a_camera():
    start = time.perf_counter()
    with Capture(lambda: frames(10), live=False, fps=50) as source:
        while source.received < 10:
            time.sleep(0.002)
    assert time.perf_counter() - start >= 9 / 50
    assert source.queue.dropped == 10 - capture.QUEUE


def test_a_lost_camera_is_opened_again(monkeypatch, caplog):
    monkeypatch.setattr(capture, "RETRY", (0.001, 0.004))
    opened = []

    def flaky():
        opened.append(time.perf_counter())
        number = len(opened)
        if number in (2, 3):  # unplugged
            msg = "Camera 0: cannot be opened"
            raise DataError(msg)
        yield from frames(3, 0.01, start=10 * number)

    seen = []
    with Capture(flaky, live=True) as source:
        while len(opened) < 5:
            if (item := source.queue.get(0.01)) is not None:
                seen.append(item.frame)
            time.sleep(0.001)
    assert len({frame.name for frame in seen}) == len(seen)  # label maps are named after them
    assert [frame.index for frame in seen] == sorted({frame.index for frame in seen})
    assert source.reconnects >= 4
    assert source.received >= 6
    assert "The camera is lost" in caplog.text
    source.raise_error()


def test_a_camera_that_never_worked_is_an_error():
    def absent():
        msg = "Camera 7: cannot be opened"
        raise DataError(msg)
        yield

    with Capture(absent, live=True) as source:
        drain(source)
    with pytest.raises(DataError, match="Camera 7"):
        source.raise_error()


def test_a_broken_recording_is_an_error():
    def broken():
        yield from frames(2)
        msg = "x.mp4: cut off"
        raise DataError(msg)

    with Capture(broken, live=False) as source:
        assert len(drain(source)) == 2
    with pytest.raises(DataError, match="cut off"):
        source.raise_error()


# --- the sinks ---


def result(index=0, seconds=None, height=48, width=96):
    image = random_frames(1, height, width, seed=index)[0]
    labels = np.full((height, width), index % len(SPEC.label_space), np.uint8)
    return Result(Frame(Path("f"), f"f_{index}", index, 0.0, image), seconds, labels, "30 frames/s")


def read_video(path):
    video = cv2.VideoCapture(str(path))
    found = []
    while (read := video.read())[0]:
        found.append(read[1][:, :, ::-1])
    return found


def test_an_overlay_video_of_a_recording_has_its_frames(tmp_path):
    sink = OverlayVideo(tmp_path / "new" / "o.mkv", 25, COLORS)
    shown = [result(index, height=96, width=160) for index in range(5)]
    for one in shown:
        sink.write(one)
    sink.close()
    found = read_video(tmp_path / "new" / "o.mkv")
    assert len(found) == 5
    for one, picture in zip(shown, found, strict=True):
        expected = paint(one.frame.image, one.labels, COLORS)
        lower = slice(48, None)  # the status is above
        assert np.abs(picture[lower].astype(int) - expected[lower]).mean() < 12
        assert np.abs(picture[:40].astype(int) - expected[:40]).mean() > 3


def test_an_overlay_is_dark_where_the_model_is_unsure():
    """Of a drive that asks, results carry it; of one that does not, they do not."""
    for asked in (True, False):
        taken = []
        sink = SimpleNamespace(name="list", write=taken.append, close=lambda: None)
        with temporary_model(confidence=asked) as runner:
            source = Capture(lambda: frames(3), live=False)
            run(runner, source, [sink], lossless=True, confidence=asked)
        assert len(taken) == 3
        for one in taken:
            picture = overlay(one, COLORS)
            if not asked:
                assert one.confidence is None
                continue
            assert one.confidence.shape == (8, 16)
            bright = overlay(replace(one, confidence=np.full((8, 16), 255, np.uint8)), COLORS)
            assert picture.mean() < bright.mean() - 10


@contextmanager
def temporary_model(confidence):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(exported("labels", confidence=True))
        with OnnxRunner(path, 1, confidence=confidence) as runner:
            yield runner


def test_an_overlay_video_of_a_camera_plays_at_true_speed(tmp_path):
    sink = OverlayVideo(tmp_path / "o.mkv", 10, COLORS)
    for seconds in (0.0, 0.1, 0.5, 0.52, 1.0):
        sink.write(result(seconds=seconds))
    sink.write(result(seconds=100))  # the camera was away: that is not filled
    sink.write(result(seconds=100.1, height=30, width=60))  # and came back with another size
    sink.close()
    found = read_video(tmp_path / "o.mkv")
    assert len(found) == 11 + 2
    assert {picture.shape for picture in found} == {(48, 96, 3)}


def test_a_video_cut_off_can_be_played(tmp_path):
    path = tmp_path / "o.mkv"
    sink = OverlayVideo(path, 25, COLORS)
    for index in range(60):
        sink.write(result(index, height=240, width=320))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes())  # as after a power cut
    sink.close()
    assert len(read_video(path)) == 60
    assert len(read_video(cut)) > 10


def test_a_killed_recording_keeps_all_but_its_end(tmp_path):
    """What the encoder holds, about a quarter of a megabyte, is lost; no more."""
    code = f"""
import os, cv2, numpy as np
from engines.live.sinks import OverlayVideo, Result
from edgeuda.data.footage import Frame
from pathlib import Path
sink = OverlayVideo(Path({str(tmp_path / "o.mkv")!r}), 25, np.zeros((256, 3), np.uint8))
rng = np.random.default_rng(0)
for i in range(400):
    image = cv2.resize(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), (320, 240))
    frame = Frame(Path("f"), "f", i, 0.0, image)
    sink.write(Result(frame, None, np.zeros((240, 320), np.uint8), ""))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    whole = (tmp_path / "o.mkv").stat().st_size
    found = len(read_video(tmp_path / "o.mkv"))
    assert found > 200
    assert (400 - found) * whole / found < 400_000


def test_a_recording_plays_at_its_own_times(tmp_path):
    """Frames at 10 per second, a burst of three, a pause; then the next recording."""
    clock = Clock()
    times = [clock.at(seconds) for seconds in (0.0, 0.1, 0.11, 0.12, 0.5, 0.0, 0.1)]
    assert times == pytest.approx([0.0, 0.1, 0.11, 0.12, 0.5, 0.88, 0.98])
    sink = OverlayVideo(tmp_path / "o.mkv", 10, COLORS, every=True)
    for index, seconds in enumerate(times):
        sink.write(result(index, seconds=seconds))
    sink.close()
    assert len(read_video(tmp_path / "o.mkv")) == 11  # each at least once, up to 0.98 s


def test_a_video_that_cannot_be_written_is_named(tmp_path):
    sink = OverlayVideo(tmp_path / "o.nothing", 25, COLORS)
    with pytest.raises(DataError, match=r"o\.nothing.*\.mkv"):
        sink.write(result())
    sink.close()


def test_label_maps_are_named_after_their_frames(tmp_path):
    sink = LabelMaps(tmp_path)
    sink.write(result(3))
    sink.close()
    assert (read_label(tmp_path / "f_3.png") == 3).all()


def test_a_window_needs_a_screen(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(DeviceError, match="`window` needs a screen"):
        Window(COLORS, lambda: None)


def test_a_window_shows_overlays_and_ends_on_a_key(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    shown, quits, keys = [], [], iter([255, ord("q"), 27])
    fake = {
        "imshow": lambda _, picture: shown.append(picture), "waitKey": lambda _: next(keys),
        "destroyAllWindows": lambda: shown.append("closed"),
    }  # fmt: skip
    for name, function in fake.items():
        monkeypatch.setattr(sinks.cv2, name, function)
    window = Window(COLORS, lambda: quits.append(1))
    for _ in range(3):
        window.write(result())
    window.close()
    assert (len(shown), shown[-1], len(quits)) == (4, "closed", 2)

    def headless(*_):
        raise cv2.error("not implemented")

    monkeypatch.setattr(sinks.cv2, "imshow", headless)
    with pytest.raises(DeviceError, match="headless"):
        window.write(result())


class Slow:
    """A sink that takes its time."""

    name = "slow"

    def __init__(self, gate=None, fail_at=None):
        self.gate, self.fail_at, self.seen, self.closed = gate, fail_at, [], False

    def write(self, one):
        if self.gate is not None:
            assert self.gate.wait(10)
        if one.frame.index == self.fail_at:
            msg = "the disk is full"
            raise DataError(msg)
        self.seen.append(one.frame.index)

    def close(self):
        self.closed = True


def test_a_slow_sink_drops_results_and_holds_nothing_up():
    gate = threading.Event()
    sink = Slow(gate)
    thread = SinkThread(sink, lossless=False)
    for index in range(50):
        thread.offer(result(index))  # would never return if it waited
    gate.set()
    thread.close()
    assert thread.written + thread.queue.dropped == 50
    assert thread.queue.dropped >= 50 - sinks.QUEUE - 1
    assert sink.seen[-1] == 49
    assert sink.closed


def test_a_sink_that_fails_is_heard_of():
    sink = Slow(fail_at=2)
    thread = SinkThread(sink, lossless=True)
    for index in range(100):
        thread.offer(result(index))
    thread.close()
    assert str(thread.error) == "the disk is full"
    assert thread.written == 2
    assert 90 < thread.refused < 98  # some were in the queue
    assert sink.closed


# --- all of it ---


def test_a_recording_from_beginning_to_end(tmp_path):
    (tmp_path / "m.onnx").write_bytes(exported("labels"))
    written = [OverlayVideo(tmp_path / "o.mkv", 30, COLORS), LabelMaps(tmp_path / "labels")]
    said = []
    with OnnxRunner(tmp_path / "m.onnx", 1) as runner:
        record = run(
            runner, Capture(lambda: frames(40), live=False), written, lossless=True,
            status=said.append,
        )  # fmt: skip
        label = runner(cv2.resize(next(frames(1)).image, (128, 64))[None])[0]
    counted = record.frames
    assert (counted.received, counted.segmented, counted.dropped) == (40, 40, 0)
    assert record.sinks == {
        "overlay video": SinkCounts(40, 0, None), "label maps": SinkCounts(40, 0, None),
    }  # fmt: skip
    assert len(read_video(tmp_path / "o.mkv")) == 40
    found = read_label(tmp_path / "labels" / "camera0_0000000.png")
    assert found.shape == (48, 96)
    np.testing.assert_array_equal(
        found, cv2.resize(label, (96, 48), interpolation=cv2.INTER_NEAREST_EXACT)
    )
    latency = record.latency_ms
    assert set(latency.percentiles) == {"50"}
    assert latency.percentiles["50"] <= latency.max
    assert latency.since == "the decoded frame"


def test_a_slow_network_sees_the_newest_frames_of_a_camera():
    seen = []
    sink = Slow()
    record = run(
        FakeRunner(0.02), Capture(lambda: frames(100, 0.002), live=False, fps=500), [sink],
        lossless=False, status=seen.append,
    )  # fmt: skip
    counted = record.frames
    assert counted.received == 100
    assert counted.segmented + counted.dropped == 100
    assert counted.dropped > 50
    assert sink.seen == sorted(sink.seen)
    # two frames wait at most: none is older than three inferences
    assert record.latency_ms.max < 1000
    assert record.latency_ms.since == "the frame's arrival"


@pytest.mark.parametrize("limits", [StopAt(frames=5), StopAt(seconds=0.2)])
def test_limits_end_a_camera(limits):
    endless = (frame for _ in iter(int, 1) for frame in frames(10, 0.005))
    record = run(
        FakeRunner(), Capture(lambda: endless, live=True), [], lossless=False, limits=limits
    )
    if limits.frames:
        assert record.frames.segmented == 5
    else:
        assert record.seconds >= 0.2


def test_a_stop_from_elsewhere_finishes_what_was_written(tmp_path):
    stop = threading.Event()
    endless = (frame for _ in iter(int, 1) for frame in frames(10, 0.005))
    sink = OverlayVideo(tmp_path / "o.mkv", 30, COLORS)
    threading.Timer(0.3, stop.set).start()
    record = run(
        FakeRunner(), Capture(lambda: endless, live=True), [sink], lossless=False, stop=stop
    )
    assert record.frames.segmented > 3
    assert len(read_video(tmp_path / "o.mkv")) > 3


def test_what_fails_on_the_way_is_recorded_with_what_was_done():
    source = Capture(lambda: frames(50), live=False)
    record = run(FakeRunner(), source, [Slow(fail_at=3)], lossless=True)
    assert (record.error, record.frames.segmented) == (None, 50)  # the network goes on
    slow = record.sinks["slow"]
    assert (slow.written, slow.error) == (3, "the disk is full")
    assert slow.dropped > 40

    def broken(count):
        yield from frames(count)
        msg = "x.mp4: cut off"
        raise DataError(msg)

    sink = Slow()
    record = run(FakeRunner(), Capture(lambda: broken(2), live=False), [sink], lossless=True)
    assert (record.error, record.frames.segmented) == ("x.mp4: cut off", 2)
    assert (sink.seen, sink.closed) == ([0, 1], True)  # what came before is written
    with pytest.raises(DataError, match="cut off"):
        run(FakeRunner(), Capture(lambda: broken(0), live=False), [], lossless=True)


def test_results_say_what_became_of_frames_and_sinks():
    class Keeps(Slow):
        def write(self, one):
            self.seen.append(one)

    sink, failing = Keeps(), Slow(fail_at=1)
    run(FakeRunner(0.002), Capture(lambda: frames(30), live=False), [failing, sink], lossless=True)
    assert [one.tally.segmented for one in sink.seen] == list(range(1, 31))
    assert all(one.tally.received >= one.tally.segmented for one in sink.seen)
    assert (sink.seen[0].failures, sink.seen[-1].failures) == ((), ("slow: the disk is full",))
    assert abs(sink.seen[0].time_ns / 1e9 - time.time()) < 60
    times = [(one.time_ns - sink.seen[0].time_ns) / 1e9 for one in sink.seen]
    assert times == pytest.approx([n / 30 for n in range(30)], abs=1e-6)
    assert all(one.stages["inference"] >= 2 for one in sink.seen)
    assert all(set(one.stages) == {"resize", "inference", "upsample", "total"} for one in sink.seen)
    live = Keeps()
    run(FakeRunner(0.002), Capture(lambda: frames(30), live=False, fps=100), [live], lossless=False)
    for one in live.seen:
        parts = sum(ms for name, ms in one.stages.items() if name != "total")
        assert one.stages["waiting"] >= 0
        assert parts <= one.stages["total"] + 0.01


def test_the_status_is_legible():
    """A black edge around white letters, whatever the font's widths."""
    from dataclasses import replace

    grey = np.full((900, 1600, 3), 128, np.uint8)
    one = result(height=900, width=1600)
    one = replace(one, frame=replace(one.frame, image=grey), labels=np.zeros((900, 1600), np.uint8))
    colors = np.full((256, 3), 128, np.uint8)
    found = sinks.overlay(one, colors)[:60, :600].astype(int).mean(-1)
    near = cv2.dilate((found > 200).astype(np.uint8), np.ones((9, 9)))
    assert (found > 200).sum() > 300
    assert (found < 60).sum() > 300
    assert ((found < 60) & (near == 0)).sum() == 0  # no black that is no edge


def test_memory_stays_as_it_is(tmp_path):
    """Frames of 2.8 MB each, ten times as many as would fit into the allowed growth."""
    (tmp_path / "m.onnx").write_bytes(exported("labels"))

    def large(count=400):
        for index in range(count):
            image = np.full((720, 1280, 3), index % 250, np.uint8)
            yield Frame(Path("c"), f"c_{index}", index, index / 30, image)

    memory = []
    gate = threading.Event()
    gate.set()

    class Watching(Slow):
        def write(self, one):
            super().write(one)
            if one.frame.index in (100, 399):
                memory.append(resident_mb())

    from engines.live.loop import resident_mb

    with OnnxRunner(tmp_path / "m.onnx", 1) as runner:
        run(runner, Capture(large, live=False), [Watching(gate)], lossless=True)
    assert len(memory) == 2
    assert memory[1] - memory[0] < 80  # 300 frames are 830 MB


def test_the_histogram_of_latencies_is_right_to_a_percent():
    rng = np.random.default_rng(0)
    values = rng.lognormal(3, 0.5, 7000)
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    ordered = np.sort(values)
    found = histogram.percentiles()
    assert list(found) == ["50", "90", "95", "99", "99.9"]
    for name, value in found.items():
        true = ordered[int(np.ceil(float(name) / 100 * 7000 - 1e-9)) - 1]
        assert true * 0.999999 <= value <= true * 1.0101
    histogram.add(1e9)  # beyond the last bin
    histogram.add(0.0)
    assert histogram.max == 1e9
    assert LatencyHistogram().percentiles() == {}


def test_the_course_is_bounded():
    course = Course(every=1.0)
    for second in range(20_000):
        course.note(float(second), second, 0)
    assert len(course.entries) <= 2000
    assert course.every > 1
    times = [entry[0] for entry in course.entries]
    assert times == sorted(times)
    assert (times[0], times[-1] > 19_900) == (0, True)


# --- bundles ---


@pytest.fixture
def bundle(tmp_path):
    """A bundle with an FP32 network, and INT8 forms for two runtimes."""
    from calibration.options import Options
    from calibration.quantize import calibrate
    from tiny_models import write_frames

    fp32 = tmp_path / "fp32.onnx"
    fp32.write_bytes(exported("labels"))
    footage = write_frames(tmp_path / "frames", random_frames(2, 64, 128))
    files = [fp32]
    for target in ("ort-x86", "tensorrt"):
        files.append(tmp_path / f"{target}.onnx")
        calibrate(fp32, footage, files[-1], Options(target, threads=1))
    members = []
    for path in files:
        metadata = read_metadata(path)
        about = {"precision": precision_of(metadata), "for": runtime_of(metadata)}
        members.append(("model", path, about))
    write_bundle(tmp_path / "v.edgeuda", members, {}, None)
    return tmp_path / "v.edgeuda"


@pytest.mark.parametrize(
    ("device", "member", "name"),
    [
        ("cpu", None, "ort-x86.onnx"), ("cuda", None, "fp32.onnx"),
        ("tensorrt", None, "tensorrt.onnx"), ("cpu", "fp32", "fp32.onnx"),
        ("cpu", "models/tensorrt.onnx", "tensorrt.onnx"),
    ],
)  # fmt: skip
def test_a_bundle_gives_the_model_for_the_device(bundle, device, member, name):
    with model_file(bundle, device, member) as file:
        assert file.name == name
        assert file.read_bytes() == (bundle.parent / name).read_bytes()
    assert not file.exists()


def test_a_bundle_without_such_a_model_says_what_it_has(bundle):
    with (
        pytest.raises(BundleError, match=r"no model 'x', only models/fp32\.onnx"),
        model_file(bundle, "cpu", "x"),
    ):
        pass
    plain = bundle.parent / "fp32.onnx"
    with model_file(plain, "cpu") as file:
        assert file == plain


# --- ROS 2 ---


def message(image, encoding, padding=0):
    rows = image.reshape(image.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    return SimpleNamespace(
        encoding=encoding, height=image.shape[0], width=image.shape[1], step=padded.shape[1],
        data=padded.tobytes(), header=SimpleNamespace(stamp="now", frame_id="camera"),
    )  # fmt: skip


@pytest.mark.parametrize("padding", [0, 5])
def test_images_of_every_encoding(padding):
    rgb = random_frames(1, 8, 12)[0]
    alpha = np.full((8, 12, 1), 7, np.uint8)
    forms = {
        "rgb8": rgb, "bgr8": rgb[:, :, ::-1], "rgba8": np.dstack([rgb, alpha]),
        "bgra8": np.dstack([rgb[:, :, ::-1], alpha]),
    }  # fmt: skip
    for encoding, pixels in forms.items():
        found = ros2.image_of(message(np.ascontiguousarray(pixels), encoding, padding))
        np.testing.assert_array_equal(found, rgb)
    grey = ros2.image_of(message(rgb[:, :, 0].copy(), "mono8", padding))
    np.testing.assert_array_equal(grey, np.dstack([rgb[:, :, 0]] * 3))


def test_images_that_cannot_be_read_are_named():
    with pytest.raises(DataError, match="'16UC1': expected one of rgb8"):
        ros2.image_of(message(np.zeros((2, 2, 3), np.uint8), "16UC1"))
    short = message(np.zeros((4, 4, 3), np.uint8), "rgb8")
    short.data = short.data[:-1]
    with pytest.raises(DataError, match="4 rows of at least 12 bytes, found 47"):
        ros2.image_of(short)


def test_ros_that_is_not_there_is_named():
    with pytest.raises(DependencyError, match=r"source /opt/ros"):
        ros2.spin(FakeRunner(), "/image", "/labels")


def plain_messages():
    return SimpleNamespace, lambda one: one


def real_messages():
    """Return ROS's own message class, made empty as rclpy makes it, and a way to it.

    What goes in went over the wire before: it was serialised and read back.
    """
    typesys = pytest.importorskip("rosbags.typesys")
    store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    kind, header, time = (
        store.types[name]
        for name in ("sensor_msgs/msg/Image", "std_msgs/msg/Header", "builtin_interfaces/msg/Time")
    )

    class Image(kind):
        def __init__(self):
            super().__init__(header(time(0, 0), ""), 0, 0, "", 0, 0, np.zeros(0, np.uint8))

    def received(one):
        stamp = header(time(12, 34), "camera")
        data = np.frombuffer(one.data, np.uint8)
        sent = kind(stamp, one.height, one.width, one.encoding, 0, one.step, data)
        return sent_over(sent)

    def sent_over(one):
        name = "sensor_msgs/msg/Image"
        one.data = np.asarray(one.data)
        return store.deserialize_cdr(store.serialize_cdr(one, name), name)

    Image.sent_over = sent_over
    return Image, received


def node_of(monkeypatch, kind_of, received):
    """Modules that look like rclpy's, whose node receives messages: there is no ROS at hand.

    Returns:
        What the node was asked for, and what it published by topic.
    """
    made = {"errors": [], "warnings": []}
    published = {}

    class Node:
        def create_publisher(self, kind, topic, depth):
            made[topic] = kind, depth
            return SimpleNamespace(publish=published.setdefault(topic, []).append)

        def create_subscription(self, kind, topic, callback, profile):
            made["subscription"] = kind, topic, profile
            made["callback"] = callback

        def get_logger(self):
            return SimpleNamespace(
                error=lambda text, throttle_duration_sec: made["errors"].append(text),
                warning=made["warnings"].append,
            )

        def get_clock(self):
            return SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: "now"))

        def destroy_node(self):
            made["destroyed"] = True

    def spin(node):
        for one in received:
            made["callback"](one)
        raise KeyboardInterrupt

    made["profile"] = SimpleNamespace(depth=5, reliability="best effort")
    rclpy = SimpleNamespace(
        init=lambda: None, create_node=lambda name: Node(), spin=spin,
        try_shutdown=lambda: made.setdefault("down", True),
    )  # fmt: skip
    qos = SimpleNamespace(qos_profile_sensor_data=made["profile"])
    monkeypatch.setitem(sys.modules, "rclpy", rclpy)
    monkeypatch.setitem(sys.modules, "rclpy.qos", qos)
    monkeypatch.setitem(sys.modules, "sensor_msgs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sensor_msgs.msg", SimpleNamespace(Image=kind_of))
    return made, published


@pytest.mark.parametrize("messages", [plain_messages, real_messages])
def test_the_node_answers_images_with_labels(monkeypatch, messages):
    kind_of, as_received = messages()
    received = [
        message(random_frames(1, 48, 96)[0], "bgr8"),
        message(np.zeros((2, 2, 3), np.uint8), "16UC1"),
        message(random_frames(1, 30, 60)[0], "rgb8", 4),
    ]
    received = [as_received(one) for one in received]
    made, published = node_of(monkeypatch, kind_of, received)
    assert ros2.spin(FakeRunner(), "/image", "/labels") == 2
    assert made["/labels"] == (kind_of, 1)
    kind, topic, profile = made["subscription"]
    assert (kind, topic, profile.depth, profile.reliability) == (
        kind_of, "/image", 1, "best effort",
    )  # fmt: skip
    assert made["profile"].depth == 5  # ROS's own profile is left alone
    assert made["destroyed"]
    assert made["down"]
    assert ["16UC1" in text for text in made["errors"]] == [True]
    assert published.keys() == {"/labels"}
    for one, sent in zip((received[0], received[2]), published["/labels"], strict=True):
        assert sent.header is one.header
        assert (sent.encoding, sent.height, sent.width) == ("mono8", one.height, one.width)
        assert len(sent.data) == sent.step * sent.height == one.height * one.width
        if messages is real_messages:
            arrived = kind_of.sent_over(sent)
            assert arrived.header == one.header
            labels = segment(FakeRunner(), ros2.image_of(one))
            np.testing.assert_array_equal(arrived.data.reshape(labels.shape), labels)


class Unsure(FakeRunner):
    """Says how sure it is."""

    def signals(self, images):
        shape = (len(images), 64, 128)
        return Signals(np.zeros(shape, np.uint8), np.full(shape, 90, np.uint8), None)


class Worried:
    """A watch that gives an alarm at the third image."""

    state, seen = None, 0

    def due(self, seconds):
        return True

    def add(self, seconds, said):
        assert said.values[0] == pytest.approx(90 / 255)
        self.seen += 1
        found = Alarm(seconds, None, "light", {"brightness": -9.1}) if self.seen == 3 else None
        if self.seen > 1:
            self.state = WatchState(seconds, 1.5, "brightness", found)
        return found


def test_the_node_says_what_the_watch_finds(monkeypatch):
    """As ``diagnostic_msgs`` with its real fields; rclpy makes a byte of bytes."""
    kind_of, as_received = plain_messages()
    received = [message(random_frames(1, 48, 96)[0], "rgb8")] * 4
    made, published = node_of(monkeypatch, kind_of, [as_received(one) for one in received])
    array = partial(SimpleNamespace, header=SimpleNamespace(stamp=None), status=[])
    kinds = SimpleNamespace(
        DiagnosticArray=array, DiagnosticStatus=SimpleNamespace, KeyValue=SimpleNamespace
    )
    monkeypatch.setitem(sys.modules, "diagnostic_msgs", SimpleNamespace(msg=kinds))
    said = []
    assert ros2.spin(Unsure(), "/image", "/labels", watch=Worried(), status=said.append) == 4
    assert made["/diagnostics"] == (array, 10)
    first, second = published["/diagnostics"]  # the first image, and the alarm at once
    assert (first.header.stamp, first.status[0].level) == ("now", b"\x03")
    assert "no window was tested" in first.status[0].message
    (warned,) = second.status
    assert (warned.level, warned.name) == (b"\x01", "edgeuda: watch")
    assert warned.hardware_id == "imaginary 1.0"
    assert "light: brightness -9.1" in warned.message
    values = {one.key: one.value for one in warned.values}
    assert values == {
        "ratio": "1.500", "column": "brightness", "kind": "light", "apart/brightness": "-9.10",
    }  # fmt: skip
    assert made["warnings"] == [warned.message]
    assert warned.message in said


def test_frames_that_a_camera_would_have_delivered_are_missed():
    """A recording that is read at 20 frames per second, played as a camera of 100."""

    def slow():
        for frame in frames(10):
            time.sleep(0.05)
            yield frame

    source = Capture(slow, live=False, fps=100)
    record = run(FakeRunner(), source, [], lossless=False)
    counted = record.frames
    assert counted.received == 10
    assert 25 <= counted.missed <= 400  # 4 for each, more on a busy machine
    quick = Capture(lambda: frames(10), live=False, fps=20)
    assert run(FakeRunner(), quick, [], lossless=False).frames.missed <= 2


def test_a_drive_that_is_stopped_is_written_and_nothing_of_it_stays(tmp_path, monkeypatch):
    """A process that runs one drive after another can be stopped between them."""

    class Stopped(FakeRunner):
        calls = 0

        def __call__(self, images):
            self.calls += 1
            if self.calls == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(images)

    monkeypatch.setattr("engines.opening.open_runner", lambda *_, **__: Stopped())
    (tmp_path / "m.onnx").write_bytes(exported("labels"))
    write_frames(tmp_path / "frames", random_frames(40, 48, 96))
    given = ["run", "--model", tmp_path / "m.onnx", "--target", tmp_path / "frames"]
    done = CliRunner().invoke(app, [str(one) for one in [*given, "--out", tmp_path / "out"]])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert 3 <= record["frames"]["segmented"] < 40
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
