import subprocess
import sys
from time import perf_counter_ns

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch

import edgeuda.errors
from edgeuda.errors import DependencyError, ModelError
from edgeuda.models.predictor import Predictor
from engines.onnx.confidence import beside, confidence_of
from engines.onnx.metadata import export_of, read_export, read_metadata, read_spec
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import Signals, check_images, not_asked
from runner_contract import RunnerContract
from tiny_models import SPEC, exported, random_frames, random_network, torch_signals


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("labels"))
    return path


@pytest.fixture
def foreign(tmp_path):
    """A valid ONNX model that another tool wrote."""
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = oh.make_graph([oh.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "foreign.onnx"
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture
def hide(monkeypatch):
    """Make packages look as if they were not installed."""

    def hide(*hidden):
        real = edgeuda.errors.importlib.import_module

        def import_module(name):
            if name in hidden:
                raise ModuleNotFoundError(name=name)
            return real(name)

        monkeypatch.setattr(edgeuda.errors.importlib, "import_module", import_module)

    return hide


class TestOnnxRunner(RunnerContract):
    def open(self, path, confidence=False):
        return OnnxRunner(path, threads=1, confidence=confidence)


class TorchRunner:
    """The network itself under the runners' contract: what training scores is what is deployed."""

    precision, backend = "fp32", f"torch {torch.__version__} cpu"

    def __init__(self, path, confidence):
        metadata = read_metadata(path)
        outputs = ["confidence"] if confidence_of(metadata, str(path)) else ["labels"]
        self.asked = confidence and beside(outputs, str(path))
        self.spec, self.head = read_spec(path), read_export(path).head
        self.predict = Predictor(random_network().eval(), self.spec)
        self.execution, self.fallbacks = {}, []

    def buffer(self, _batch=1):
        return None

    def __call__(self, images):
        check_images(images, self.spec)
        start = perf_counter_ns()
        labels = np.stack([self.predict(np.ascontiguousarray(image)) for image in images])
        self.parts = {"inference": perf_counter_ns() - start, "upsample": 0}
        return labels

    def signals(self, images):
        if not self.asked:
            raise not_asked()
        levels, features = torch_signals(self.predict.model, images)
        return Signals(self(images), np.rint(levels).astype(np.uint8), features)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


class TestTorch(RunnerContract):
    def open(self, path, confidence=False):
        return TorchRunner(path, confidence)


def test_foreign_model_is_refused_by_name(foreign):
    with pytest.raises(ModelError, match=r"foreign\.onnx: .*edgeuda\.spec.*no metadata"):
        OnnxRunner(foreign)
    with pytest.raises(ModelError, match=r"foreign\.onnx: .*edgeuda\.spec"):
        read_spec(foreign)


def test_quantized_model_is_int8(model):
    proto = onnx.load(model)
    proto.metadata_props.add(key="edgeuda.quantization", value="{}")
    onnx.save(proto, model)
    assert OnnxRunner(model, threads=1).precision == "int8"


def test_missing_runtime_names_the_extra(model, hide):
    hide("onnxruntime")
    with pytest.raises(DependencyError, match=r"edgeuda\[cpu\]"):
        OnnxRunner(model)


def test_metadata_is_the_same_by_either_package(model, hide):
    by_runtime, spec = read_metadata(model), read_spec(model)
    hide("onnxruntime")
    assert read_metadata(model) == by_runtime
    assert read_spec(model) == spec == SPEC
    assert read_export(model).head == "labels"


def test_metadata_needs_one_of_the_packages(model, hide):
    hide("onnxruntime", "onnx")
    with pytest.raises(DependencyError, match=r"edgeuda\[cpu\]"):
        read_spec(model)


def test_broken_file_without_runtime(tmp_path, hide):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model" * 9)
    hide("onnxruntime")
    with pytest.raises(ModelError, match=r"broken\.onnx: expected an ONNX model"):
        read_spec(path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": "edgeuda.export/2"}', '{"schema": "edgeuda.export/1"}']
)
def test_damaged_export_record(text):
    with pytest.raises(ModelError, match=r"m\.onnx: its 'edgeuda.export/1' record is damaged"):
        export_of({"edgeuda.export": text}, "m.onnx")


def test_vehicle_side_runs_without_torch_and_quietly(model, tmp_path):
    """In a process of its own: torch and onnx are absent, and nothing is printed but the result."""
    image = tmp_path / "frame.npy"
    np.save(image, random_frames(1, 70, 140)[0])
    code = f"""
import sys
sys.modules["torch"] = sys.modules["onnx"] = None  # importing them now fails
import numpy as np
from pathlib import Path
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import segment
import engines.bench.measure
with OnnxRunner(Path({str(model)!r}), threads=1) as runner:
    print(segment(runner, np.load({str(image)!r})).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("(70, 140)\n", "", 0)
