"""OpenVINO under the runners' contract, and against ONNX Runtime on the same graphs."""

import numpy as np
import pytest
from typer.testing import CliRunner

from calibration import calibrate
from cli.app import app
from edgeuda.errors import ConfigError, DependencyError
from edgeuda.files import read_json
from engines.onnxruntime_runner import OnnxRunner
from engines.opening import open_runner
from engines.packing import pack
from runner_contract import RunnerContract
from tiny_models import exported, random_frames, write_frames

pytest.importorskip("openvino")


class TestOpenVinoRunner(RunnerContract):
    def open(self, path, confidence=False):
        return open_runner(path, 1, "openvino", confidence=confidence)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    frames = write_frames(folder / "frames", random_frames(3, 64, 128))
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    fp32.write_bytes(exported("labels"))
    calibrate(fp32, frames[0].parent, int8)
    return frames, fp32, int8


def test_it_computes_what_onnx_runtime_computes(models):
    _, *paths = models
    images = np.stack(random_frames(4, 64, 128, seed=9))
    for path, least in zip(paths, (0.999, 0.95), strict=True):
        with OnnxRunner(path, 1) as ours, open_runner(path, 1, "openvino") as theirs:
            assert theirs.precision == ours.precision
            assert theirs.identity == ours.identity
            assert np.mean(ours(images) == theirs(images)) >= least


def test_a_precision_means_what_it_says(models):
    """Else FP32 is computed in bfloat16 on the processors that have it."""
    with open_runner(models[1], 2, "openvino") as runner:
        assert runner.execution["precision_hint"] == "f32"
        assert runner.execution["threads"] == "2"
        assert runner.backend.startswith("openvino 20")


def test_every_batch_is_compiled_once(models, monkeypatch):
    with open_runner(models[1], 1, "openvino") as runner:
        compiled = []
        real = runner._core.compile_model
        runner._core = type("Core", (), {
            "compile_model": lambda _, *how: compiled.append(1) or real(*how),
        })()  # fmt: skip
        for batch in (1, 2, 2, 1):
            runner(np.stack(random_frames(batch, 64, 128)))
    assert compiled == [1]


def test_a_model_out_of_a_bundle_takes_every_batch(models, tmp_path):
    """Its file is gone by the second one."""
    pack([models[1]], tmp_path / "model.edgeuda")
    images = np.stack(random_frames(2, 64, 128))
    with (
        open_runner(tmp_path / "model.edgeuda", 1, "openvino") as packed,
        open_runner(models[1], 1, "openvino") as plain,
    ):
        assert np.array_equal(packed(images), plain(images))


def test_an_engine_is_not_for_it(tmp_path):
    with pytest.raises(ConfigError, match="is an engine already"):
        open_runner(tmp_path / "a.engine", device="openvino", trusted=True)


def test_without_the_package_the_extra_is_named(models, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(DependencyError, match=r"edgeuda\[openvino\]"):
        open_runner(models[1], 1, "openvino")


def test_verbs_take_it(models, tmp_path):
    frames, fp32, int8 = models
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(app, [
        "bench", "--model", str(fp32), "--model", str(int8), "--device", "openvino",
        "--target", str(frames[0].parent), "--samples", "30", "--repeats", "1", "--threads", "1",
        "--out", str(out),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    record = read_json(out)
    assert {model["backend"].split()[0] for model in record["models"]} == {"openvino"}
    assert all(model["execution"]["streams"] for model in record["models"])
