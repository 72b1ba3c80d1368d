"""A GPU that is asked for and not used is an error, never a number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from calibration.half_precision import to_half
from cli.app import run
from edgeuda.errors import DeviceError, ModelError
from engines import onnxruntime_runner
from engines.onnx.metadata import HALF_KEY, QUANTIZATION_KEY
from engines.onnx.placement import nodes_by_provider
from engines.onnx.session import open_session
from engines.onnxruntime_runner import OnnxRunner
from onnxruntime_stub import CPU, CUDA, TENSORRT, Pretended
from places import ROOT
from tiny_models import exported

ort = pytest.importorskip("onnxruntime")
FIRST = {"cuda": CUDA, "tensorrt": TENSORRT}


@pytest.fixture
def pretended(monkeypatch):
    offered = [TENSORRT, CUDA, CPU]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    monkeypatch.setattr(ort, "InferenceSession", Pretended)
    monkeypatch.setattr(Pretended, "asked", [])
    return monkeypatch


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("labels"))
    return path


@pytest.mark.parametrize("device", FIRST)
def test_a_session_that_chose_the_cpu_is_refused(pretended, model, device):
    for content in (model, model.read_bytes()):
        with pytest.raises(DeviceError, match=rf"would not use device '{device}' \(it chose CPU"):
            open_session(content, device=device)
    with pytest.raises(DeviceError, match="would not use device"):
        OnnxRunner(model, 1, device)


def test_tensorrts_provider_that_fell_back_to_cuda_is_refused(pretended, model):
    pretended.setattr(Pretended, "says", (CUDA, CPU))
    with pytest.raises(DeviceError, match=r"'tensorrt'.*it chose CUDAExecutionProvider"):
        open_session(model, device="tensorrt")
    assert open_session(model, device="cuda").get_providers() == [CUDA, CPU]


def test_onnxruntimes_own_second_try_on_the_cpu_is_off(pretended, model):
    pretended.setattr(Pretended, "fails", "Please install TensorRT libraries")
    with pytest.raises(DeviceError, match=r"install TensorRT libraries.*`device` cpu"):
        open_session(model, device="tensorrt")
    assert [how for _, how in Pretended.asked] == [{"enable_fallback": 0}]
    model.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"model\.onnx: expected an ONNX model"):
        open_session(model, device="cuda")


@pytest.mark.parametrize("verb", ["bench", "predict", "evaluate", "run"])
def test_every_verb_ends_with_10(pretended, model, verb, tmp_path, monkeypatch, capsys):
    from tiny_models import random_frames, write_frames

    frames = write_frames(tmp_path / "frames", random_frames(2, 64, 128))
    where = "--data" if verb == "evaluate" else "--target"
    out = tmp_path / ("out.json" if verb in ("bench", "evaluate") else "out")
    command = ["edgeuda", verb, "--model", model, where, frames[0].parent, "--out", out]
    monkeypatch.setattr(sys, "argv", [str(part) for part in [*command, "--device", "cuda"]])
    assert run() == 10
    assert "would not use device 'cuda'" in capsys.readouterr().err
    assert not out.exists()


def test_nodes_are_counted_by_provider(model, tmp_path):
    session = open_session(model, threads=1, profile=tmp_path / "profile")
    import numpy as np

    session.run(None, {"image": np.zeros((1, 64, 128, 3), np.uint8)})
    (provider, count), *others = nodes_by_provider(Path(session.end_profiling())).items()
    assert (provider, others) == (CPU, [])
    assert count > 10


def test_a_provider_on_which_no_node_runs_is_refused(pretended, model):
    """It was registered, and left the whole graph to the CPU."""
    pretended.setattr(Pretended, "says", (CUDA, CPU))
    with pytest.raises(DeviceError, match=rf"none of its nodes runs on {CUDA}: \d+ on {CPU}"):
        OnnxRunner(model, 1, "cuda")


def test_nodes_elsewhere_are_said_and_recorded(pretended, model, caplog):
    pretended.setattr(Pretended, "says", (CUDA, CPU))
    pretended.setattr(
        onnxruntime_runner, "placed_session", lambda opened, _: (opened(None), {CUDA: 40, CPU: 2})
    )
    with OnnxRunner(model, 1, "cuda") as runner:
        assert runner.execution["nodes"] == f"40 on {CUDA}, 2 on {CPU}"
        assert runner.execution["cuda_runtime"] == "not available"  # of a package for the CPU
        assert runner.fallbacks == [f"not all nodes run on {CUDA}: 40 on {CUDA}, 2 on {CPU}"]
    assert runner.fallbacks[0] in caplog.text
    pretended.setattr(
        onnxruntime_runner, "placed_session", lambda opened, _: (opened(None), {CUDA: 42})
    )
    with OnnxRunner(model, 1, "cuda") as runner:
        assert runner.fallbacks == []


def test_tensorrts_provider_is_told_of_the_graphs_types(pretended, model, tmp_path):
    """Without, a Q/DQ model fails to build; engines of two models must not be mistaken."""
    pretended.setattr(Pretended, "says", (TENSORRT, CUDA, CPU))
    pretended.setattr(
        onnxruntime_runner, "placed_session", lambda opened, _: (opened(None), {TENSORRT: 1})
    )
    seen = {}
    for name, key in (("fp32", None), ("int8", QUANTIZATION_KEY), ("fp16", HALF_KEY)):
        proto = onnx.load(model)
        if key is not None:
            proto = to_half(proto) if name == "fp16" else proto
            onnx.helper.set_model_props(
                proto, {**{e.key: e.value for e in proto.metadata_props}, key: '{"policy": "x"}'}
            )
        path = tmp_path / f"{name}.onnx"
        onnx.save(proto, path)
        OnnxRunner(path, 1, "tensorrt")
        (first, *others), _ = Pretended.asked[-1]
        assert others == [CUDA, CPU]
        seen[name] = first[1]
    told = {name: (one["trt_int8_enable"], one["trt_fp16_enable"]) for name, one in seen.items()}
    assert told == {"fp32": (False, False), "int8": (True, False), "fp16": (False, True)}
    folders = {one["trt_engine_cache_path"] for one in seen.values()}
    assert len(folders) == 3
    assert all(
        Path(folder).stat().st_mode & 0o077 == 0 for folder in {Path(f).parent for f in folders}
    )
    OnnxRunner(tmp_path / "int8.onnx", 1, "tensorrt")  # opened again: the engine is still there
    assert Pretended.asked[-1][0][0][1] == seen["int8"]


GPU_WHEEL = "EDGEUDA_ONNXRUNTIME_GPU_PYTHON"
"""Names a Python with `onnxruntime-gpu` and what this project's CPU extra needs, where CUDA's
libraries are absent."""
SCRIPT = """
import json, sys
from pathlib import Path
from edgeuda.errors import EdgeudaError
from engines.doctor import examine
from engines.onnxruntime_runner import OnnxRunner

found = {}
for device in ("cuda", "tensorrt"):
    try:
        OnnxRunner(Path(sys.argv[1]), 1, device)
    except EdgeudaError as err:
        found[device] = [err.exit_code, str(err)]
with OnnxRunner(Path(sys.argv[1]), 1) as runner:
    found["cpu"] = runner.backend
found["doctor"] = {c.name: c.status for c in examine() if c.name.startswith("onnxruntime")}
print(json.dumps(found))
"""


def test_the_real_wheel_without_cudas_libraries(model):
    python = os.environ.get(GPU_WHEEL)
    if python is None:
        pytest.skip(f"{GPU_WHEEL} names no Python with onnxruntime-gpu")
    root = str(ROOT)
    done = subprocess.run(
        [python, "-c", SCRIPT, str(model)], capture_output=True, text=True, check=False, cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for device in ("cuda", "tensorrt"):
        code, text = found[device]
        assert code == 10
        assert "cannot open shared object file" in text  # which library it lacks
    assert found["cpu"].endswith(" cpu")
    assert found["doctor"] == {
        "onnxruntime": "ok", "onnxruntime cuda": "broken", "onnxruntime tensorrt": "broken",
    }  # fmt: skip
