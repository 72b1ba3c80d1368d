"""The TensorRT runner against every version's names.

Engines are run by ONNX Runtime in host memory: what is asked of TensorRT and of the device, in
which order, and what becomes of the pixels is tested here; TensorRT's arithmetic is not.
"""

import hashlib
import json

import numpy as np
import onnx
import pytest

import tensorrt_modules
from edgeuda.errors import ConfigError, DataError, DependencyError, DeviceError, ModelError
from edgeuda.files import write_json
from engines.bench.frame_path import FramePath
from engines.cuda.cuda_python import CudaPythonDevice
from engines.cuda.driver import cuda_devices
from engines.cuda.pycuda_device import PycudaDevice
from engines.onnx.heads import with_head
from engines.onnxruntime_runner import OnnxRunner
from engines.opening import open_runner
from engines.runner import segment
from engines.tensorrt.cache import record_path
from engines.tensorrt.library import Library
from engines.tensorrt.runner import TensorRTRunner
from runner_contract import RunnerContract
from tensorrt_modules import engine
from tiny_models import SPEC, exported, random_frames

VERSIONS = list(tensorrt_modules.API)


def opened(path, version, device=None, **how):
    device = device or tensorrt_modules.HostDevice()
    module = tensorrt_modules.running(version, device)
    numbers = tuple(int(n) for n in version.split(".")[:3])
    return TensorRTRunner(path, Library("tensorrt", module, numbers), device, **how), device


class TestContract(RunnerContract):
    @pytest.fixture(params=VERSIONS, autouse=True)
    def version(self, request):
        self.chosen = request.param

    def open(self, path, confidence=False):
        if not path.exists():
            msg = f"{path}: found no such file"
            raise ModelError(msg)
        try:
            return opened(engine(path), self.chosen, confidence=confidence)[0]
        except Exception as err:
            if isinstance(err, ModelError):
                raise
            msg = f"{path}: expected an engine ({err})"
            raise ModelError(msg) from err


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("labels"))
    return engine(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_sequences_are_captured_once_and_replayed(path, version):
    images = np.stack(random_frames(3, 64, 128))
    runner, device = opened(path, version)
    with runner:
        plain = [runner(images[i : i + 1]) for i in range(3)]
        assert device.launches == 2  # the first run is a run
        np.testing.assert_array_equal(runner(images), np.concatenate(plain))
        np.testing.assert_array_equal(runner(images[:1]), plain[0])  # its own graph, still valid
        assert len(device.memory) == 4
    assert device.memory == {}
    assert device.streams == set()
    assert device.arrays == []


def test_without_graphs_nothing_is_captured(path):
    images = np.stack(random_frames(1, 64, 128))
    runner, device = opened(path, "10.3.0", graphs=False)
    with runner:
        runner(images)
        runner(images)
    assert device.launches == 0


@pytest.mark.parametrize("graphs", [True, False])
def test_events_tell_the_devices_time(path, graphs):
    """The test's device lets a millisecond pass from event to event."""
    images = np.stack(random_frames(1, 64, 128))
    runner, device = opened(path, "10.3.0", graphs=graphs)
    with runner:
        runner(images)
        first = dict(runner.parts)
        runner(images)
        second = dict(runner.parts)
        assert len(device.events) == 4
    assert device.events == []
    split = {"gpu_upload": 1e6, "gpu_execute": 1e6, "gpu_download": 1e6, "gpu": 3e6}
    host = {"copy_in", "inference", "upsample", "copy_out"}
    assert {k: v for k, v in first.items() if k not in host} == split
    # a captured sequence is launched as one
    assert {k: v for k, v in second.items() if k not in host} == ({"gpu": 1e6} if graphs else split)
    assert all(first[key] >= 0 for key in host)


def test_frames_may_be_written_in_place(path):
    images = np.stack(random_frames(1, 64, 128, seed=2))
    runner, _ = opened(path, "11.4.0.106")
    with runner:
        expected = runner(images)
        buffer = runner.buffer()
        buffer[:] = 0
        other = runner(buffer)
        buffer[:] = images
        np.testing.assert_array_equal(runner(buffer), expected)
        assert not np.array_equal(other, expected)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("compatible", [False, True])
def test_an_engine_that_holds_its_own_runtime_is_allowed_to(path, version, compatible):
    """A version-compatible engine is refused by a runtime that was not told."""
    record = json.loads(record_path(path).read_text())
    write_json(record_path(path), {**record, "options": {"version_compatible": compatible}})
    device = tensorrt_modules.HostDevice()
    module = tensorrt_modules.running(version, device, hosted=compatible)
    with TensorRTRunner(path, Library("tensorrt", module, (9,)), device):
        assert module.seen.runtime.get("engine_host_code_allowed", False) == compatible


@pytest.mark.parametrize("version", VERSIONS)
def test_an_engine_of_the_accelerator_is_loaded_for_its_core(path, version):
    record = json.loads(record_path(path).read_text())
    write_json(record_path(path), {**record, "options": {"dla_core": 1}})
    device = tensorrt_modules.HostDevice()
    module = tensorrt_modules.running(version, device)
    with TensorRTRunner(path, Library("tensorrt", module, (9,)), device):
        assert module.seen.runtime == {"DLA_core": 1}


def test_a_context_that_is_not_given_is_an_error_that_says_what_to_do(path):
    """TensorRT 8.6, for an engine whose profile is not shared."""
    device = tensorrt_modules.HostDevice()
    module = tensorrt_modules.running("8.6.1", device, contexts=1)
    with TensorRTRunner(path, Library("tensorrt", module, (8, 6, 1)), device) as runner:
        runner(np.zeros((1, 64, 128, 3), np.uint8))
        with pytest.raises(ModelError, match=r"no context for a batch of 2 .*\[1\].*Build .* anew"):
            runner(np.zeros((2, 64, 128, 3), np.uint8))


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({}, "fp32"),
        ({"options": {"half": True}}, "fp16"),  # as earlier versions wrote it
        ({"options": {"half": True}, "graph": "int8"}, "int8"),
        ({"graph": "fp16", "options": {"half": False}}, "fp16"),
        ({"precision": "int8", "options": {"half": True}}, "int8"),  # by a calibrator
    ],
)
def test_an_engine_is_of_the_precision_it_was_built_in(path, changes, precision):
    record = json.loads(record_path(path).read_text())
    del record["precision"]
    write_json(record_path(path), {**record, **changes})
    with opened(path, "10.3.0")[0] as runner:
        assert runner.precision == precision


@pytest.mark.parametrize("error", [DeviceError("no binary"), DependencyError("no NVRTC")])
def test_without_a_kernel_the_host_makes_labels_and_it_is_said(
    tmp_path, monkeypatch, caplog, error
):
    def refuse(_):
        raise error

    full = tmp_path / "full.onnx"
    full.write_bytes(exported("labels"))
    small = tmp_path / "small.onnx"
    onnx.save(with_head(onnx.load(full), "scores"), small)
    images = np.stack(random_frames(2, 64, 128, seed=3))
    monkeypatch.setattr(tensorrt_modules.HostDevice, "load_kernel", refuse)
    with opened(engine(small, "scores"), "10.3.0")[0] as runner, OnnxRunner(full, 1) as reference:
        assert (runner(images) == reference(images)).mean() > 0.999
        assert runner.execution["labels"] == "host"
        (said,) = runner.fallbacks
    assert f"the host makes labels of scores: no kernel on the device ({error})" == said
    assert said in caplog.text


def test_frames_are_resized_into_pinned_memory(path, monkeypatch):
    """Whoever segments a frame writes it where the device reads it."""
    runner, _ = opened(path, "10.3.0")
    (frame,) = random_frames(1, 90, 250)
    with runner, OnnxRunner(path.with_suffix(".onnx"), 1) as reference:
        expected = segment(reference, frame)
        _, (other,) = FramePath(reference).labels([frame])

        def refuse(*_):
            pytest.fail("the frame was copied")

        monkeypatch.setattr("engines.tensorrt.runner.np.copyto", refuse)
        np.testing.assert_array_equal(segment(runner, frame), expected)
        _, found = FramePath(runner).labels([frame, frame])
        for one in found:
            np.testing.assert_array_equal(one, other)
        monkeypatch.undo()
        exact = random_frames(1, 64, 128, seed=5)[0]  # of the network's size already
        np.testing.assert_array_equal(segment(runner, exact), reference(exact[None])[0])


def test_batches_beyond_the_profile_are_refused(path):
    runner, _ = opened(path, "10.3.0")
    with runner, pytest.raises(DataError, match="built for a batch of 1 to 4, found 5"):
        runner(np.zeros((5, 64, 128, 3), np.uint8))


@pytest.mark.parametrize(
    ("head", "fused"), [("scores", True), ("scores", False), ("labels_low", True)]
)
def test_small_heads(tmp_path, head, fused):
    full = tmp_path / "full.onnx"
    full.write_bytes(exported("labels"))
    model = onnx.load(full)
    small = with_head(model, head)
    path = tmp_path / "small.onnx"
    onnx.save(small, path)
    images = np.stack(random_frames(2, 64, 128, seed=3))
    runner, device = opened(engine(path, head), "10.16.1.11", fused=fused)
    with runner, OnnxRunner(full, 1) as reference:
        equal = (runner(images) == reference(images)).mean()
        assert len(device.memory) == (3 if head == "scores" and fused else 2)
    assert device.memory == {}
    assert equal > (0.999 if head == "scores" else 0.7)
    assert runner.spec == SPEC


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_confidence_beside_a_small_head(tmp_path, fused, graphs):
    """Whether the device or the host makes the labels; not asked, nothing more is downloaded."""
    path = tmp_path / "sure.onnx"
    path.write_bytes(exported("scores", confidence=True))
    images = np.stack(random_frames(2, 64, 128, seed=3))
    with OnnxRunner(path, 1, confidence=True) as reference:
        expected = reference.signals(images)
    runner, device = opened(engine(path), "10.16.1.11", fused=fused, graphs=graphs, confidence=True)
    with runner:
        for _ in range(2):
            found = runner.signals(images)
        assert len(device.arrays) == 4
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (device.memory, device.arrays, device.events) == ({}, [], [])
    runner, device = opened(engine(path), "10.16.1.11", fused=fused, graphs=graphs)
    with runner:
        np.testing.assert_array_equal(runner(images), expected.labels)
        assert len(device.arrays) == 2
    assert (device.memory, device.arrays) == ({}, [])


def test_changed_engines_never_reach_tensorrt(path):
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(ModelError, match="is not the engine of its record"):
        opened(path, "10.3.0")


def test_an_engine_that_tensorrt_refuses(tmp_path):
    content = b"engine of another GPU"
    path = tmp_path / "x.engine"
    path.write_bytes(content)
    good = tmp_path / "model.onnx"
    good.write_bytes(exported("labels"))
    record = record_path(engine(good)).read_text()
    digest = hashlib.sha256(exported("labels")).hexdigest()
    record_path(path).write_text(record.replace(digest, hashlib.sha256(content).hexdigest()))
    with pytest.raises(ModelError, match=r"cannot load it.*build it here"):
        opened(path, "8.6.1")


def test_pycuda_captures_nothing():
    """It says so by `graphs`, and refuses if asked all the same."""
    assert PycudaDevice.graphs is False
    with pytest.raises(DeviceError, match="Install cuda-python"):
        PycudaDevice.capture(object.__new__(PycudaDevice), 1, lambda: None)


def test_a_file_asks_for_its_runner(path, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "engines.tensorrt.runner.TensorRTRunner",
        lambda path, *, graphs, confidence: seen.append((path, graphs, confidence)),
    )
    open_runner(path)
    open_runner(path, graphs=False, confidence=True)
    assert seen == [(path, True, False), (path, False, True)]
    with pytest.raises(ConfigError, match="is an engine already"):
        open_runner(path, device="tensorrt")
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(exported("labels"))
    with open_runner(plain, 1) as runner:
        assert runner.backend.endswith(" cpu")
    for device in ("cuda", "tensorrt"):
        with pytest.raises(DependencyError, match=rf"no provider for device '{device}' here"):
            open_runner(plain, device=device)


def test_cuda_python_is_called_as_it_is():
    """Its functions exist and take these arguments; without a driver each says so."""
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    try:
        cuda_devices()
    except DeviceError:
        pass
    else:
        pytest.skip("this machine has a device")
    device = CudaPythonDevice()
    array = np.zeros(4, np.uint8)
    for call in (
        lambda: device.alloc(4),
        lambda: device.free(16),
        lambda: device.upload(16, array),
        device.stream,
        lambda: device.close_stream(16),
        lambda: device.synchronize(16),
        lambda: device.pinned((2, 2), np.float32),
        lambda: device.upload_async(16, array, 0),
        lambda: device.download_async(array, 16, 0),
        lambda: device.capture(0, lambda: None),
        lambda: device.launch(0, 0),
        lambda: device.close_graph(0),
        device.event,
        lambda: device.record(0, 0),
        lambda: device.elapsed_ns(0, 0),
        lambda: device.close_event(0),
    ):
        with pytest.raises(DeviceError, match="CUDA error 35"):
            call()
