"""Engines are built once, and never loaded unchecked."""

import json

import pytest

import tensorrt_modules
from edgeuda.errors import DataError, ModelError
from edgeuda.records.build import BuildOptions
from engines.cuda import driver as cuda_driver
from engines.tensorrt import cache as engine_cache
from engines.tensorrt.cache import cached_engine, engine_key, load_plan, record_path
from engines.tensorrt.library import Library, load_tensorrt
from tiny_models import exported


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("labels"))
    return path


@pytest.fixture
def trt(monkeypatch):
    monkeypatch.setattr(engine_cache, "gpu_title", lambda: "Orin (8.7)")
    return Library("tensorrt", tensorrt_modules.module("10.3.0"), (10, 3, 0))


def test_an_engine_is_built_once(trt, model, tmp_path):
    folder = tmp_path / "engines"
    first = cached_engine(trt, model, BuildOptions(), folder)
    again = cached_engine(trt, model, BuildOptions(), folder)
    assert (first.reused, again.reused) == (False, True)
    assert again.path == first.path
    assert again.record == first.record
    assert again.record.options == BuildOptions()
    assert load_plan(first.path) == b"plan"
    assert [layer["Name"] for layer in first.record.engine_layers] == ["conv + relu", "reformat"]
    assert load_plan(first.path, first.record.model_sha256) == b"plan"


def test_whatever_it_depends_on_makes_another(trt, model, tmp_path, monkeypatch):
    keys = {engine_key(trt, model, BuildOptions())}
    keys.add(engine_key(trt, model, BuildOptions(half=True)))
    keys.add(engine_key(trt, model, BuildOptions(batch=(1, 1, 2))))
    other = Library("tensorrt", tensorrt_modules.module("10.16.1.11"), (10, 16, 1))
    keys.add(engine_key(other, model, BuildOptions()))
    monkeypatch.setattr(engine_cache, "gpu_title", lambda: "Thor (11.0)")
    keys.add(engine_key(trt, model, BuildOptions()))
    model.write_bytes(exported("logits"))
    keys.add(engine_key(trt, model, BuildOptions()))
    assert len(keys) == 6
    # where the timings are kept changes no engine
    assert engine_key(trt, model, BuildOptions(timing_cache=tmp_path / "t")) in keys


@pytest.mark.parametrize("damage", ["plan", "record", "half record", "no record", "key"])
def test_damaged_engines_are_built_again(trt, model, tmp_path, damage):
    first = cached_engine(trt, model, BuildOptions(), tmp_path / "engines")
    record = record_path(first.path)
    if damage == "plan":
        first.path.write_bytes(b"evil")
        with pytest.raises(ModelError, match="is not the engine of its record"):
            load_plan(first.path)
    elif damage == "record":
        record.write_text(record.read_text().replace("edgeuda.build/1", "other/1"))
    elif damage == "half record":
        record.write_text(record.read_text()[:50])
    elif damage == "no record":
        record.unlink()
        with pytest.raises(DataError, match="no such file"):
            load_plan(first.path)
    else:
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, "key": "0" * 64}))
    again = cached_engine(trt, model, BuildOptions(), tmp_path / "engines")
    assert not again.reused
    assert load_plan(again.path) == b"plan"


def test_an_engine_of_another_model_is_refused(trt, model, tmp_path):
    engine = cached_engine(trt, model, BuildOptions(), tmp_path / "engines")
    with pytest.raises(ModelError, match="built from another model"):
        load_plan(engine.path, "0" * 64)
    with pytest.raises(ModelError, match=r"absent\.onnx: .*no such file"):
        cached_engine(trt, tmp_path / "absent.onnx", BuildOptions(), tmp_path)
    engine.path.unlink()
    with pytest.raises(ModelError, match="found no such file"):
        load_plan(engine.path)


def test_ahead_of_time_without_a_gpu(model, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    rtx = load_tensorrt("tensorrt_rtx", device=False)
    options = BuildOptions(compute_capabilities=("SM86",))
    first = cached_engine(rtx, model, options, tmp_path)
    assert cached_engine(rtx, model, options, tmp_path).reused
    assert len(load_plan(first.path)) == first.record.plan_bytes


class Driver:
    def cuInit(self, _):  # noqa: N802
        return 0

    def cuDeviceGetCount(self, pointer):  # noqa: N802
        pointer._obj.value = 1

    def cuDeviceGetName(self, buffer, _size, _device):  # noqa: N802
        buffer.value = b"Orin"

    def cuDeviceGetAttribute(self, pointer, attribute, _device):  # noqa: N802
        pointer._obj.value = {75: 8, 76: 7}[attribute.value]


def test_the_gpu_has_a_name(monkeypatch):
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda _: Driver())
    assert cuda_driver.gpu_title() == "Orin (8.7)"
