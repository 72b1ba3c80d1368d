"""TensorRT's cache format, its calibrator, and the way from a vehicle's cache to a Q/DQ model."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

import tensorrt_modules
from calibration.calibrated_engine import calibrated_engine
from calibration.options import Options
from calibration.pipeline import Cache
from calibration.quantize import calibrate
from calibration.range_file import RangeOrigin
from calibration.source import origin_of
from calibration.tensorrt_cache import (
    CalibrationCache,
    export_cache,
    identity_path,
    read_cache,
    write_cache,
)
from calibration.tensorrt_calibrator import tensorrt_calibrator
from cli.app import run
from edgeuda.errors import (
    ConfigError,
    DataError,
    DependencyError,
    DeviceError,
    ModelError,
    OutputExistsError,
)
from edgeuda.files import sha256
from edgeuda.records.build import BuildOptions
from edgeuda.records.calibration import Range
from engines.cuda import driver as cuda_driver
from engines.cuda.device import open_device
from engines.onnx.float_input import float_input
from engines.onnx.session import open_session
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import segment
from engines.tensorrt.library import Library
from engines.tensorrt.runner import TensorRTRunner
from tiny_models import SPEC, exported, random_frames, write_frames

SIZE = SPEC.preprocessing
FRAMES = [frame[None] for frame in random_frames(5, SIZE.height, SIZE.width, seed=9)]
ORIGIN = RangeOrigin("a" * 64, tuple("bcdef"), SIZE.height, SIZE.width)

MNIST = b"""TRT-7000-EntropyCalibration2
data: 3c008912
conv1: 3c88edfc
(Unnamed Layer* 3) [Shuffle]_output: 3ddc858b
prob: 3c010a14
"""
"""The table of NVIDIA's sample, whose softmax reaches 1: its scale is 1 / 127."""


def test_the_format_is_that_of_nvidias_sample():
    cache = CalibrationCache.parse(MNIST, "cache")
    assert (cache.version, cache.algorithm) == (7000, "EntropyCalibration2")
    assert cache.scales["prob"] == pytest.approx(1 / 127, rel=1e-3)
    assert cache.scales["(Unnamed Layer* 3) [Shuffle]_output"] == pytest.approx(0.107677, rel=1e-4)
    assert cache.to_bytes() == MNIST


def test_ranges_and_back():
    ranges = {"a": Range(-1.0, 3.0), "b": Range(-2.54, 0.0), "dead": Range(0.0, 0.0)}
    cache = CalibrationCache.from_ranges(ranges, 100300)
    again = CalibrationCache.parse(cache.to_bytes(), "cache").ranges(list(ranges), "cache")
    assert cache.to_bytes().startswith(b"TRT-100300-EntropyCalibration2\n")
    assert again["a"] == pytest.approx((-3.0, 3.0))
    assert again["b"] == pytest.approx((-2.54, 2.54))
    assert again["dead"] == (0.0, 0.0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "found an empty file"),
        (b"hello\n", "begins with 'TRT-"),
        (b"\x89PNG\r\n", "begins with 'TRT-"),
        (b"TRT-8601-EntropyCalibration2\nname 3c008912\n", "line 2"),
        (b"TRT-8601-EntropyCalibration2\na: 3c008912\nb: 7fc00000\n", "line 3"),  # NaN
        (b"TRT-8601-EntropyCalibration2\na: bc008912\n", "line 2"),  # negative
        (b"TRT-8601-EntropyCalibration2\na: 3c0089\n", "line 2"),
    ],
)
def test_what_is_no_cache_is_refused(content, says):
    with pytest.raises(DataError, match=f"table.cache.*{says}"):
        CalibrationCache.parse(content, "table.cache")


def test_a_cache_of_something_else_is_refused(tmp_path):
    path = tmp_path / "table.cache"
    with pytest.raises(DataError, match="no such file"):
        read_cache(path, ORIGIN, same_frames=True)
    write_cache(path, MNIST, ORIGIN)
    assert read_cache(path, ORIGIN, same_frames=True) == MNIST
    other_frames = RangeOrigin("a" * 64, ("b",), SIZE.height, SIZE.width)
    assert read_cache(path, other_frames, same_frames=False) == MNIST
    for origin, says in (
        (other_frames, "set of frames"),
        (RangeOrigin("0" * 64, ORIGIN.frames, SIZE.height, SIZE.width), "model"),
        (RangeOrigin("a" * 64, ORIGIN.frames, SIZE.height, 32), "input size"),
    ):
        with pytest.raises(DataError, match=rf"table\.cache: was made from another {says}"):
            read_cache(path, origin, same_frames=True)
    path.write_bytes(MNIST.replace(b"3c", b"3d"))
    with pytest.raises(DataError, match="was changed"):
        read_cache(path, ORIGIN, same_frames=True)
    identity_path(path).unlink()
    with pytest.raises(DataError, match="does not say which model"):
        read_cache(path, ORIGIN, same_frames=True)
    assert read_cache(path, ORIGIN, same_frames=True, unchecked=True)


class Memory:
    """A device whose memory is a dictionary."""

    def __init__(self):
        self.held, self.uploads = {}, []

    def alloc(self, size):
        self.held[4096 + len(self.held)] = size
        return max(self.held)

    def free(self, address):
        del self.held[address]

    def upload(self, address, array):
        assert array.flags.c_contiguous
        assert self.held[address] == array.nbytes
        self.uploads.append(array.copy())


class Base:
    """NVIDIA's class, as far as a subclass sees it: it must be initialised."""

    def __init__(self):
        self.initialised = True


TRT = SimpleNamespace(
    __version__="8.6.1",
    IInt8EntropyCalibrator2=type("IInt8EntropyCalibrator2", (Base,), {}),
    IInt8MinMaxCalibrator=type("IInt8MinMaxCalibrator", (Base,), {}),
)


def drive(calibrator):
    """Call as TensorRT does while it builds."""
    assert calibrator.initialised
    if calibrator.read_calibration_cache() is not None:
        return 0
    batches = 0
    while calibrator.get_batch(["image"]) is not None:
        batches += 1
    calibrator.write_calibration_cache(memoryview(MNIST))
    return batches


@pytest.mark.parametrize(("batch", "batches"), [(1, 5), (2, 2)])
def test_frames_reach_the_device_and_the_cache_the_disk(tmp_path, batch, batches):
    memory, path = Memory(), tmp_path / "table.cache"
    calibrator = tensorrt_calibrator(TRT, FRAMES, path, ORIGIN, memory, batch=batch)
    assert isinstance(calibrator, TRT.IInt8EntropyCalibrator2)
    assert calibrator.get_batch_size() == batch
    assert drive(calibrator) == batches
    assert calibrator.error is None
    assert memory.held == {}
    assert len(memory.uploads) == batches
    assert memory.uploads[0].dtype == np.float32
    np.testing.assert_array_equal(
        np.concatenate(memory.uploads), np.concatenate(FRAMES[: batch * batches])
    )
    assert path.read_bytes() == MNIST
    # the second build reads it; one of other frames is refused
    again = tensorrt_calibrator(TRT, FRAMES, path, ORIGIN, memory, algorithm="minmax")
    assert isinstance(again, TRT.IInt8MinMaxCalibrator)
    assert drive(again) == 0
    assert again.read_calibration_cache() == MNIST
    with pytest.raises(DataError, match="another set of frames"):
        tensorrt_calibrator(
            TRT, FRAMES, path, RangeOrigin("a" * 64, ("x",), SIZE.height, SIZE.width), memory
        )


def test_errors_of_callbacks_are_kept(tmp_path):
    class Broken(list):
        def __getitem__(self, index):
            if index == 2:
                msg = "frame 2 is damaged"
                raise DataError(msg)
            return super().__getitem__(index)

    memory = Memory()
    calibrator = tensorrt_calibrator(TRT, Broken(FRAMES), tmp_path / "c", ORIGIN, memory)
    assert drive(calibrator) == 2
    assert "frame 2 is damaged" in str(calibrator.error)
    assert memory.held == {}


def test_what_tensorrt_cannot_do_is_said(tmp_path):
    with pytest.raises(DependencyError, match=r"TensorRT 11\.4 has no IInt8Entropy.*Q/DQ"):
        tensorrt_calibrator(
            SimpleNamespace(__version__="11.4"), FRAMES, tmp_path / "c", ORIGIN, Memory()
        )
    with pytest.raises(DataError, match="batch of 8 frames to calibrate on, found 5"):
        tensorrt_calibrator(TRT, FRAMES, tmp_path / "c", ORIGIN, Memory(), batch=8)


def test_float_input_is_the_same_function():
    model = onnx.load_from_string(exported("logits"))
    changed = float_input(model)
    onnx.checker.check_model(changed, full_check=True)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8

    def run(proto, image):
        session = open_session(proto.SerializeToString(), threads=1)
        return session.run(None, {"image": image})[0]

    np.testing.assert_array_equal(run(changed, FRAMES[0].astype(np.float32)), run(model, FRAMES[0]))


@pytest.fixture
def vehicle(monkeypatch):
    """TensorRT 10.3 and a device, both on the host."""
    device = tensorrt_modules.HostDevice()
    trt = Library("tensorrt", tensorrt_modules.running("10.3.0", device), (10, 3, 0))
    monkeypatch.setattr("engines.tensorrt.library.load_tensorrt", lambda *_, **__: trt)
    monkeypatch.setattr("calibration.calibrated_engine.open_device", lambda: device)
    monkeypatch.setattr("engines.tensorrt.cache.gpu_title", lambda: "Orin (8.7)")
    return trt, device


def test_an_engine_that_tensorrt_calibrates_itself(files, vehicle, tmp_path):
    (model, frames, _), (trt, device), folder = files, vehicle, tmp_path / "engines"
    options = BuildOptions(batch=(1, 2, 4))
    engine = calibrated_engine(trt, model, frames, options, folder)
    seen = trt.module.seen
    assert seen.calibrated
    assert device.memory == {}  # the calibrator's
    assert seen.calibration_profile is seen.profiles[-1]
    assert seen.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert engine.record.precision == "int8"
    assert engine.record.model_sha256 == sha256(model)
    images = np.concatenate(FRAMES[:3])
    with (
        TensorRTRunner(engine.path, trt, device) as runner,
        OnnxRunner(model, 1) as reference,
    ):
        assert runner.precision == "int8"
        assert runner.buffer() is None  # it takes float32
        for batch in (images, images[:1], images[1:2]):
            np.testing.assert_array_equal(runner(batch), reference(batch))
        np.testing.assert_array_equal(segment(runner, images[0]), segment(reference, images[0]))
    assert device.memory == {}
    assert calibrated_engine(trt, model, frames, options, folder).reused
    assert not calibrated_engine(trt, model, frames[:4], options, folder).reused
    assert trt.module.seen.calibrated
    # the same frames for other options: TensorRT's cache is read, no frame is
    other = calibrated_engine(trt, model, frames, BuildOptions(batch=(2, 2, 2)), folder)
    assert (other.reused, trt.module.seen.calibrated) == (False, False)
    with pytest.raises(DataError, match="batch of 8 frames to calibrate on, found 5"):
        calibrated_engine(trt, model, frames, BuildOptions(batch=(8, 8, 8)), folder)


def test_a_quantized_model_is_not_calibrated_again(files, vehicle, tmp_path):
    model, frames, out = files
    calibrate(model, frames, out, Options("tensorrt", threads=1))
    with pytest.raises(ModelError, match="is quantized already"):
        calibrated_engine(vehicle[0], out, frames, BuildOptions(), tmp_path)


def test_build_calibrates_for_the_accelerator(files, vehicle, tmp_path, monkeypatch, capsys):
    model, frames, _ = files
    command = ["edgeuda", "build", "--model", model, "--out", tmp_path / "engines"]

    def run_with(*more):
        monkeypatch.setattr(sys, "argv", [str(part) for part in (*command, *more)])
        code = run()
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    code, text = run_with("--dla-core", "0")
    assert code == 4
    assert "has no FP32: all would run on the GPU" in text
    code, text = run_with("--dla-core", "0", "--calibrate", frames[0].parent)
    assert code == 0, text
    assert "tensorrt 10.3.0, int8" in text
    assert "deep learning accelerator: 1 of 2 layers, the rest on the GPU" in text
    assert len(list((tmp_path / "engines").glob("*.calibration"))) == 1


@pytest.fixture
def files(tmp_path):
    (tmp_path / "model.onnx").write_bytes(exported("labels"))
    frames = write_frames(tmp_path, [frame[0] for frame in FRAMES])
    return tmp_path / "model.onnx", frames, tmp_path / "int8.onnx"


def test_a_vehicles_cache_becomes_a_qdq_model(files, tmp_path):
    """From ranges to a cache and from it to the same graph; nothing is collected."""
    model, frames, out = files
    record = calibrate(model, frames, out, Options("tensorrt", threads=1))
    origin = origin_of(onnx.load(model), [f.sha256 for f in record.frames], SIZE)
    cache = tmp_path / "vehicle.cache"
    export_cache(cache, record.ranges, origin, 100300)
    again = tmp_path / "again.onnx"
    second = calibrate(model, frames[:2], again, Options("tensorrt", threads=1), cache=Cache(cache))
    assert second.rule == "tensorrt-cache"
    assert not (tmp_path / "again.onnx.ranges.npz").exists()
    scales = [
        {t.name: to_array(t) for t in onnx.load(p).graph.initializer if t.name.endswith("_scale")}
        for p in (out, again)
    ]
    assert scales[0].keys() == scales[1].keys()
    for name, scale in scales[0].items():
        np.testing.assert_allclose(scale, scales[1][name], rtol=1e-6)
    with pytest.raises(OutputExistsError):
        export_cache(cache, record.ranges, origin, 8601)
    text = cache.read_bytes().splitlines()
    cache.write_bytes(b"\n".join(text[:-1]) + b"\n")
    identity = json.loads(identity_path(cache).read_text())
    identity_path(cache).unlink()
    with pytest.raises(DataError, match="lacks the scales of 1 of"):
        calibrate(model, frames, tmp_path / "c.onnx", Options("tensorrt"), cache=Cache(cache, True))
    with pytest.raises(ConfigError, match="exported network"):
        calibrate(
            model, frames, tmp_path / "c.onnx", Options("tensorrt", equalize=True),
            cache=Cache(cache, True),
        )  # fmt: skip
    assert identity["origin"]["frames"] == [f.sha256 for f in record.frames]


class Driver:
    def __init__(self, code, count):
        self.code, self.count = code, count

    def cuInit(self, _):  # noqa: N802
        return self.code

    def cuDeviceGetCount(self, pointer):  # noqa: N802
        pointer._obj.value = self.count


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        (None, "No NVIDIA driver"),
        (Driver(35, 0), "error 35, the driver is missing or too old"),
        (Driver(100, 0), "error 100, there is no device"),
        (Driver(0, 0), "there is no device"),
    ],
)
def test_no_device_is_an_error_that_says_why(monkeypatch, driver, says):
    def load(_name):
        if driver is None:
            raise OSError
        return driver

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", load)
    with pytest.raises(DeviceError, match=says):
        open_device()
