"""CUDA devices by all three packages, on a stub whose device memory is the host's."""

import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import cuda_stub
import tensorrt_modules
from device_contract import DeviceContract
from edgeuda.errors import DependencyError, DeviceError, ModelError
from engines.cuda.device import DEVICES, open_device
from engines.cuda.extra import cuda_extra
from engines.cuda.libcudart import CudaRuntimeDevice
from engines.onnxruntime_runner import OnnxRunner
from engines.tensorrt.library import Library
from engines.tensorrt.runner import TensorRTRunner
from places import ROOT
from runner_contract import RunnerContract
from tensorrt_modules import engine
from tiny_models import exported, random_frames


@pytest.fixture
def clean(gpu):
    """All that a test takes of the device it gives back."""
    yield
    assert gpu.held() == {}


@pytest.mark.usefixtures("clean")
class StubContract(DeviceContract):
    package: str

    def open(self):
        return open_device(self.package)


class TestCudaPython(StubContract):
    package = "cuda-python"


class TestLibcudart(StubContract):
    package = "libcudart"


class TestPycuda(StubContract):
    package = "pycuda"


def opened(path, gpu, package, version="10.3.0", **how):
    module = tensorrt_modules.running(version, gpu)
    numbers = tuple(int(n) for n in version.split(".")[:3])
    return TensorRTRunner(path, Library("tensorrt", module, numbers), open_device(package), **how)


@pytest.mark.usefixtures("clean")
class TestRunner(RunnerContract):
    """The runner on every package, with graphs and without, with copies and without."""

    @pytest.fixture(params=list(DEVICES), autouse=True)
    def package(self, request, gpu):
        self.gpu, self.chosen = gpu, request.param

    @pytest.fixture(params=[False, True], ids=["copied", "mapped"], autouse=True)
    def memory(self, request, package):
        self.gpu.set(integrated=request.param)

    def open(self, path, confidence=False):
        if not path.exists():
            msg = f"{path}: found no such file"
            raise ModelError(msg)
        try:
            return opened(engine(path), self.gpu, self.chosen, confidence=confidence)
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


@pytest.mark.parametrize("package", ["cuda-python", "libcudart"])
def test_replays_see_the_frame_that_came(gpu, path, package, clean):
    images = np.stack(random_frames(4, 64, 128))
    with (
        OnnxRunner(path.with_suffix(".onnx"), 1) as reference,
        opened(path, gpu, package) as runner,
    ):
        expected = reference(images)
        for image, labels in zip(images, expected, strict=True):
            np.testing.assert_array_equal(runner(image[None])[0], labels)
        assert runner.execution["cuda_graphs"] == "replayed"
        assert runner.fallbacks == []
        gpu.set(dead_replay=1)  # the check of this test itself
        assert not np.array_equal(runner(images[:1])[0], expected[0])


@pytest.mark.parametrize("package", ["cuda-python", "libcudart"])
def test_a_capture_that_fails_is_said_and_launched_plainly(gpu, path, package, caplog, clean):
    images = np.stack(random_frames(3, 64, 128))
    gpu.set(fail_capture=1)
    with (
        OnnxRunner(path.with_suffix(".onnx"), 1) as reference,
        opened(path, gpu, package) as runner,
    ):
        expected = reference(images)
        for image, labels in zip(images, expected, strict=True):
            np.testing.assert_array_equal(runner(image[None])[0], labels)
        (said,) = runner.fallbacks
        assert "no CUDA graphs" in said
        assert "CaptureInvalidated" in said
        assert said in caplog.text
        assert runner.execution["cuda_graphs"] == "no"
        assert "gpu_execute" in runner.parts  # which a replay could not tell


def test_pycuda_says_that_it_captures_nothing(gpu, path):
    with opened(path, gpu, "pycuda") as runner:
        assert runner.fallbacks == ["pycuda captures no CUDA graphs: launched one by one"]
    with opened(path, gpu, "pycuda", graphs=False) as runner:
        assert runner.fallbacks == []  # as asked


def test_a_gpu_that_shares_memory_is_not_copied_to(gpu, path, monkeypatch, clean):
    def refuse(*_):
        pytest.fail("a copy was made")

    gpu.set(integrated=1)
    images = np.stack(random_frames(2, 64, 128))
    with OnnxRunner(path.with_suffix(".onnx"), 1) as reference:
        expected = reference(images)
    for name in ("upload_async", "download_async"):
        monkeypatch.setattr(CudaRuntimeDevice, name, refuse)
    with opened(path, gpu, "libcudart") as runner:
        for image, labels in zip(images, expected, strict=True):
            np.testing.assert_array_equal(runner(image[None])[0], labels)
        assert runner.execution["memory"] == "mapped, no copies"
        assert "memory" not in gpu.held()


def test_a_package_that_the_driver_cannot_serve_is_passed_over_and_named(gpu, monkeypatch, caplog):
    """cuda-python of CUDA 13 on JetPack 6's driver; its libcudart works."""

    error = cuda_stub.Error.cudaErrorInsufficientDriver
    runtime = sys.modules["cuda.bindings.runtime"]
    monkeypatch.setattr(runtime, "cudaMalloc", lambda _: (error, None))
    assert open_device().name == "libcudart"
    assert "cuda-python cannot be used (CUDA error 35, cudaErrorInsufficientDriver)" in caplog.text
    assert "libcudart is used instead" in caplog.text
    with pytest.raises(DeviceError, match=r"cuda-python: CUDA error 35.*CUDA 12\.6.*edgeuda\["):
        open_device("cuda-python")


def test_where_none_can_be_used_each_says_why(gpu, monkeypatch):
    gpu.set(runtime=13000)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(DeviceError) as caught:
        open_device()
    text = str(caught.value)
    assert "cuda-python: CUDA error 35, cudaErrorInsufficientDriver" in text
    assert "libcudart" in text
    assert text.count("error 35") == 2
    assert "pycuda: not installed" in text
    assert "The driver serves CUDA 12.6: pip install 'edgeuda[tensorrt-cu12]'" in text


def test_a_later_libcudart_than_the_drivers_is_passed_over(gpu, cudart, tmp_path, monkeypatch):
    newer = tmp_path / "libcudart.so.13"
    newer.write_bytes(cudart.read_bytes())
    cuda_stub.Gpu(newer).set(runtime=13000)
    names = "engines.cuda.libcudart.NAMES"
    monkeypatch.setattr(names, (str(newer), str(cudart)))
    assert open_device("libcudart").runtime_version() == "12.6"
    monkeypatch.setattr(names, (str(newer),))
    with pytest.raises(DeviceError, match=r"libcudart\.so\.13: CUDA error 35"):
        open_device("libcudart")
    monkeypatch.setattr(names, ("libcudart.so.0",))
    with pytest.raises(DependencyError, match=r"none of libcudart\.so\.0 can be loaded"):
        open_device("libcudart")


def test_cuda_python_of_cuda_13_on_a_driver_of_cuda_12(tmp_path):
    """The real package on a stub of JetPack 6's driver: what a Jetson's owner would read."""
    if int(version("cuda-python").split(".")[0]) < 13:
        pytest.skip("cuda-python of CUDA 13 is not installed")
    root = str(ROOT)
    code = (
        "from edgeuda.errors import EdgeudaError\nfrom engines.cuda.device import open_device\n"
        "try: open_device('cuda-python')\nexcept EdgeudaError as err: print(err.exit_code, err)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root,
        env={
            **os.environ, "PYTHONPATH": root, "STUB_DRIVER": "12060",
            "LD_LIBRARY_PATH": str(cuda_stub.driver_in(tmp_path)),
        },
    )  # fmt: skip
    assert done.stdout.startswith("10 No package can use the device (cuda-python: CUDA error 35")
    assert "The driver serves CUDA 12.6: pip install 'edgeuda[tensorrt-cu12]'" in done.stdout


@pytest.mark.parametrize(
    ("release", "driver", "extra"),
    [
        (None, (12, 6), "tensorrt-cu12"), (None, (13, 0), "tensorrt-cu13"),
        (None, (11, 8), "pycuda"), (None, None, "tensorrt-cu13"),
        ("# R36 (release), REVISION: 4.3", (12, 6), "jetpack6"),
        ("# R38 (release), REVISION: 2.0", (13, 0), "jetpack7"),
        ("# R39 (release), REVISION: 2.0", (13, 0), "jetpack7"),
        ("# R35 (release), REVISION: 3.1", (11, 4), "pycuda"),
    ],
)  # fmt: skip
def test_the_extra_is_the_machines(tmp_path, release, driver, extra):
    if release is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "nv_tegra_release").write_text(release)
    assert cuda_extra(driver, tmp_path) == extra


def test_a_kernel_is_unloaded_by_the_last_who_uses_it(gpu, monkeypatch):
    closed = []

    class Kernel:
        def close(self):
            closed.append(self)

    monkeypatch.setattr("engines.cuda.cuda_python.LabelsKernel", Kernel)
    device = open_device("cuda-python")
    device.load_kernel()
    device.load_kernel()
    device.unload_kernel()
    assert closed == []
    device.unload_kernel()
    assert len(closed) == 1
    for package in ("libcudart", "pycuda"):
        with pytest.raises(DependencyError, match="only cuda-python launches kernels"):
            open_device(package).load_kernel()


def test_pycudas_own_errors_become_ours(gpu, monkeypatch):
    gpu.set(runtime=13000)
    with pytest.raises(DeviceError, match="cudaMalloc failed: cudaErrorInsufficientDriver"):
        open_device("pycuda")


def test_the_stand_in_has_the_real_packages_names(gpu):
    """What it offers exists in cuda-python; tensorrt/test_runner.py calls the real one."""
    script = "from cuda.bindings import runtime; print(*dir(runtime))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("cuda-python is not installed")
    assert set(vars(cuda_stub.cuda_python(gpu))) <= set(done.stdout.split())
