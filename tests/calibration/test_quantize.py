import json

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from calibration.options import Options
from calibration.ort_kernels import Compiled, compiled
from calibration.quantize import calibrate
from edgeuda.data.images import read_image, resize_image
from edgeuda.errors import ConfigError, DataError, ModelError, OutputExistsError
from edgeuda.files import sha256
from edgeuda.records.calibration import CalibrationRecord, record_path
from engines.onnx.metadata import read_export, read_metadata, read_spec
from engines.onnxruntime_runner import OnnxRunner
from tiny_models import exported, random_frames, write_frames


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(exported("labels"))
    return path


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("frames"), random_frames(3, 90, 200, seed=3))


@pytest.fixture(scope="module", params=["ort-x86", "tensorrt"])
def calibrated(request, model, frames, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "int8.onnx"
    return out, calibrate(model, frames, out, Options(request.param, threads=1))


def test_file_says_what_it_is(calibrated, model):
    out, record = calibrated
    onnx.checker.check_model(str(out), full_check=True)
    assert read_spec(out) == read_spec(model)
    assert read_export(out) == read_export(model)
    note = json.loads(read_metadata(out)["edgeuda.quantization"])
    assert note == {
        "schema": "edgeuda.quantization/2",
        "runtime": record.runtime,
        "rule": "percentile",
        "percentile": 99.99,
        "calibration_sha256": sha256(record_path(out)),
        "model_sha256": sha256(model),
        "int8_convs": 30,
        "convs": 35,
    }


def test_record_says_how_it_was_made(calibrated, model, frames):
    out, record = calibrated
    assert CalibrationRecord.read(record_path(out)) == record
    assert record.model_sha256 == sha256(model)
    assert [frame.sha256 for frame in record.frames] == [sha256(path) for path in frames]
    assert record.preprocessing == read_spec(model).preprocessing
    assert str(model.parent) not in record_path(out).read_text()
    in_float = {layer.weight for layer in record.layers if not layer.int8}
    assert in_float == {
        "network.context.arm16.gate.0.weight",
        "network.context.arm32.gate.0.weight",
        "network.context.context.0.weight",
        "network.fusion.gate.0.weight",
        "network.main.classifier.weight",
    }


def test_agreement_is_that_of_the_files(calibrated, model, frames):
    out, record = calibrated
    size = read_spec(model).preprocessing
    images = np.stack([resize_image(read_image(p), size.height, size.width) for p in frames])
    with OnnxRunner(model, 1) as fp32, OnnxRunner(out, 1) as int8:
        assert int8.precision == "int8"
        equal = np.mean([fp32(i[None]) == int8(i[None]) for i in images])
    assert record.agreement == pytest.approx(equal)
    assert 0.95 < record.agreement < 1


def test_onnxruntime_compiles_every_placed_conv_to_integers(model, frames, tmp_path):
    out = tmp_path / "int8.onnx"
    record = calibrate(model, frames, out, Options("ort-x86", rule="max", threads=1))
    found = compiled(out)
    assert (found.integer, found.total) == (30, 35) == (record.int8_convs, record.convs)
    assert all(layer.compiled == layer.int8 for layer in record.layers)
    assert compiled(model) == Compiled(frozenset(), 0, 35)
    assert sum(layer.int8 for layer in record.layers) == record.int8_convs
    assert record.percentile is None
    assert out.stat().st_size < 0.4 * model.stat().st_size


def test_percentile_is_no_wider_than_max(model, frames, tmp_path):
    wide, narrow = (
        calibrate(
            model,
            frames,
            tmp_path / f"{rule}.onnx",
            Options("ort-x86", rule=rule, percentile=99.0, threads=1),
        ).ranges
        for rule in ("max", "percentile")
    )
    assert all(wide[n].low <= narrow[n].low < narrow[n].high <= wide[n].high for n in wide)
    assert any(narrow[n].high < 0.9 * wide[n].high for n in wide)


def test_nothing_is_overwritten(model, frames, tmp_path):
    out = tmp_path / "int8.onnx"
    for existing in (out, record_path(out)):
        existing.write_text("precious")
        with pytest.raises(OutputExistsError, match=existing.name):
            calibrate(model, frames, out, Options("ort-x86"))
        assert existing.read_text() == "precious"
        existing.unlink()
    assert not list(tmp_path.iterdir())


def test_a_record_without_its_model_is_of_a_killed_call(calibrated, model, frames, tmp_path):
    out = tmp_path / "int8.onnx"
    record_path(out).write_bytes(record_path(calibrated[0]).read_bytes())
    calibrate(model, frames, out, Options("tensorrt", rule="mse", threads=1))
    assert CalibrationRecord.read(record_path(out)).rule == "mse"


def test_what_cannot_be_quantized_is_refused(calibrated, model, frames, tmp_path):
    out = tmp_path / "out.onnx"
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = oh.make_graph([oh.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    foreign, text = tmp_path / "foreign.onnx", tmp_path / "text.onnx"
    onnx.save(oh.make_model(graph), foreign)
    text.write_text("not a model")
    for path, reason in (
        (calibrated[0], "found a quantized one"),
        (foreign, "edgeuda.spec"),
        (text, "expected an ONNX model"),
        (tmp_path / "missing.onnx", "expected an ONNX model"),
    ):
        with pytest.raises(ModelError, match=f"{path.name}: .*{reason}"):
            calibrate(path, frames, out, Options("ort-x86"))
    with pytest.raises(DataError, match="at least one frame"):
        calibrate(model, [], out, Options("ort-x86"))
    with pytest.raises(DataError, match=r"absent\.png"):
        calibrate(model, [tmp_path / "absent.png"], out, Options("ort-x86"))
    with pytest.raises(ConfigError, match="Expected a runtime of ort-x86, tensorrt, found"):
        Options("tpu")
    assert not out.exists()
    assert not record_path(out).exists()


def test_damaged_record_is_refused(calibrated, tmp_path):
    record = json.loads(record_path(calibrated[0]).read_text())
    del record["agreement"]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="damaged"):
        CalibrationRecord.read(path)
