"""The contracts of devices and runners on a GPU: whatever this machine has.

What is not installed is skipped by name. What is installed and does not work fails.
"""

import ctypes

import pytest

from device_contract import DeviceContract
from edgeuda.errors import DependencyError
from edgeuda.records.build import BuildOptions
from engines.cuda.device import DEVICES, open_device
from engines.cuda.driver import cuda_devices
from engines.onnxruntime_runner import OnnxRunner
from engines.tensorrt.cache import cached_engine
from engines.tensorrt.library import load_tensorrt
from engines.tensorrt.runner import TensorRTRunner
from runner_contract import RunnerContract

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def gpu():
    """Without a driver there is nothing to test; one that does not work is a failure."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("there is no NVIDIA driver")
    assert cuda_devices() >= 1


def or_skip(open_it):
    """Skip by name what this machine lacks; what it has must work."""
    try:
        return open_it()
    except DependencyError as err:
        pytest.skip(str(err))


@pytest.mark.parametrize("package", list(DEVICES), scope="class")
class TestDevice(DeviceContract):
    @pytest.fixture
    def device(self, package):
        return or_skip(lambda: open_device(package))


class OnnxRuntimeContract(RunnerContract):
    device: str

    def open(self, path, confidence=False):
        return or_skip(lambda: OnnxRunner(path, device=self.device, confidence=confidence))


class TestCuda(OnnxRuntimeContract):
    device = "cuda"


class TestTensorrtProvider(OnnxRuntimeContract):
    device = "tensorrt"


class EngineContract(RunnerContract):
    library: str

    @pytest.fixture(params=list(DEVICES), autouse=True)
    def package(self, request):
        self.chosen = request.param

    def open(self, path, confidence=False):
        library = or_skip(lambda: load_tensorrt(self.library))
        device = or_skip(lambda: open_device(self.chosen))
        options = BuildOptions(batch=(1, 1, 4))
        engine = cached_engine(library, path, options, path.parent / "engines")
        return TensorRTRunner(engine.path, library, device, confidence=confidence)


class TestTensorrt(EngineContract):
    library = "tensorrt"


class TestTensorrtRtx(EngineContract):
    library = "tensorrt_rtx"
