"""The acceptance test of a GPU, on stubs: it passes, and whatever is wrong makes it fail.

Devices are data/cudart_stub.c, engines are run by ONNX Runtime, and so are its GPU providers.
"""

import sys
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

import tensorrt_modules
from calibration.forms import ARITHMETICS, write_forms
from cli.app import run
from edgeuda.errors import DataError, DependencyError, DeviceError, ModelError
from edgeuda.files import read_json
from engines import gpu_check as checks
from engines import onnxruntime_runner
from engines.cuda.check import check_device, kernel_in_a_fresh_process
from engines.cuda.driver import cuda_devices
from engines.gpu_check import gpu_check, require_passed
from engines.tensorrt.library import Library
from onnxruntime_stub import CPU, CUDA, TENSORRT, Pretended
from tiny_models import exported, random_frames, write_frames

VERSION = "10.3.0"
SKIP = ["tensorrt_rtx*", "trtexec"]


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """A model, frames, and the model in every form."""
    folder = tmp_path_factory.mktemp("forms")
    model = folder / "model.onnx"
    model.write_bytes(exported("labels"))
    frames = write_frames(folder / "frames", random_frames(3, 64, 128))
    return model, frames, write_forms(model, frames, folder / "forms", threads=1, least_agreement=0)


@pytest.fixture
def machine(gpu, monkeypatch):
    """A machine with everything; the test may break a part of it."""
    module = tensorrt_modules.running(VERSION, gpu)
    module.seen.layers = [
        {"Name": f"conv{i}", "ParameterType": "Convolution", "Inputs": [{"Format": "Int8 NCHW"}]}
        for i in range(99)
    ] + [{"Name": "to int8", "LayerType": "Reformat"}]
    trt = Library("tensorrt", module, tuple(map(int, VERSION.split("."))))

    def load(name="tensorrt", **_):
        if name != "tensorrt":
            msg = f"{name} cannot be imported"
            raise DependencyError(msg)
        return trt

    for place in ("gpu_check", "tensorrt.runner"):
        monkeypatch.setattr(f"engines.{place}.load_tensorrt", load)
    monkeypatch.setattr("engines.tensorrt.cache.gpu_title", lambda: "Stub (8.7)")
    monkeypatch.setattr(checks, "gpu_title", lambda: "Stub (8.7)")
    monkeypatch.setattr(checks, "cuda_devices", lambda: 1)
    monkeypatch.setattr(checks, "driver_version", lambda: (12, 6))
    monkeypatch.setattr(checks, "kernel_in_a_fresh_process", lambda: 1.0)
    monkeypatch.setattr(checks, "RUNS", 11)
    monkeypatch.setattr("engines.cuda.cuda_python.LabelsKernel", Kernel(gpu))
    pretend_providers(monkeypatch)
    return SimpleNamespace(gpu=gpu, module=module, patch=monkeypatch, library=trt)


def pretend_providers(monkeypatch):
    """ONNX Runtime with providers of GPUs, which are the CPU, and say what they were asked for."""
    import onnxruntime as ort

    class Honest(Pretended):
        def __init__(self, model, options=None, providers=(), **how):
            super().__init__(model, options, providers, **how)
            self.says = [one if isinstance(one, str) else one[0] for one in providers]

    def placed(opened, feeds):
        session = opened(None)
        return session, {session.get_providers()[0]: 40}

    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", Honest)
    monkeypatch.setattr(onnxruntime_runner, "placed_session", placed)


def Kernel(gpu):  # noqa: N802
    """A kernel on the stub's memory, by the host's arithmetic."""
    from engines.onnx.heads import upsample_argmax

    class Loaded:
        def launch(self, scores, labels, shape, height, width, stream):
            def work():
                values = gpu.view(scores, shape, np.float32)
                found = np.stack([upsample_argmax(one, height, width) for one in values])
                gpu.view(labels, found.shape, np.uint8)[:] = found

            gpu.enqueue(stream, work)

        def close(self):
            pass

    return Loaded


def checked(forms, tmp_path, skip=SKIP):
    _, frames, files = forms
    return gpu_check(files, frames, tmp_path / "engines", skip=skip, seconds=0)


def of(record, status):
    return {row.name: row.found for row in record.rows if row.status == status}


def test_a_machine_with_everything_passes(machine, forms, tmp_path):
    record = checked(forms, tmp_path)
    assert of(record, "failed") == {}
    assert of(record, "not installed") == {}
    passed = of(record, "passed")
    assert {"machine", "kernel", "soak", "tensorrt two batch sizes", "tensorrt int8 layers"} <= set(
        passed
    )
    assert {f"device {name}" for name in ("cuda-python", "libcudart", "pycuda")} <= set(passed)
    heads = ("labels", "scores", "labels_low")
    assert {f"tensorrt {h} {a}" for h in heads for a in ARITHMETICS} <= set(passed)
    assert {f"onnxruntime {d} {a}" for d in ("cuda", "tensorrt") for a in ("fp32", "int8")} <= set(
        passed
    )
    require_passed(record)
    rows = {row.name: row.figures for row in record.rows}
    assert rows["tensorrt scores int8"]["execution"]["labels"] == "kernel"
    assert rows["tensorrt labels fp16"]["build"]["precision"] == "fp16"
    assert rows["tensorrt int8 layers"]["reformats"] == ["to int8"]
    assert rows["onnxruntime cuda int8"]["execution"]["nodes"] == f"40 on {CUDA}"
    assert record.counted["passed"] == len(passed)


def dead_replay(machine):
    machine.gpu.set(dead_replay=1)
    return {"device cuda-python": "replayed on a changed input", "tensorrt labels fp32": "agree on"}


def dead_mapping(machine):
    machine.patch.setattr(
        "engines.cuda.libcudart.CudaRuntimeDevice.mapped",
        lambda self, _: self.alloc(1 << 16),
    )
    return {"device libcudart": "mapped memory: "}


def wrong_labels(machine):
    execute = machine.module.seen.wrong
    execute.append(1)
    return {"tensorrt labels int8": "expected at least 97.0%", "tensorrt two batch sizes": "agree"}


def cpu_fallback(machine):
    machine.patch.setattr("onnxruntime.InferenceSession", Pretended)
    machine.patch.setattr(Pretended, "says", (CPU,))
    return {
        "onnxruntime cuda fp32": "it chose CPU", "onnxruntime tensorrt int8": "would not use",
    }  # fmt: skip


def refused_kernel(machine):
    def refuse():
        msg = "CUDA error 209"
        raise DeviceError(msg)

    machine.patch.setattr(checks, "kernel_in_a_fresh_process", refuse)
    machine.patch.setattr("engines.cuda.cuda_python.LabelsKernel", refuse)
    return {"kernel": "CUDA error 209", "tensorrt scores fp32": "the host makes labels of scores"}


def wrong_kernel(machine):
    machine.patch.setattr(checks, "kernel_in_a_fresh_process", lambda: 0.5)
    return {"kernel": "kernel and host agree on 50.000%"}


def old_driver(machine):
    machine.gpu.set(runtime=13000)
    return {"device cuda-python": "CUDA error 35", "device libcudart": "CUDA error 35"}


def failed_capture(machine):
    machine.gpu.set(fail_capture=1)
    return {
        "device libcudart": "Invalidated", "tensorrt labels fp32": "no CUDA graphs",
        "tensorrt two batch sizes": "no CUDA graphs", "soak": "no engine that agrees",
    }  # fmt: skip


def float_convolutions(machine):
    machine.module.seen.layers = [{"Name": "conv", "ParameterType": "Convolution", "Inputs": []}]
    return {"tensorrt int8 layers": "0 of 1 convolutions are INT8"}


def unshared_profile(machine):
    machine.module.seen.contexts = 1
    return {"tensorrt two batch sizes": "no context for a batch of 1"}


def throttling(machine):
    vitals = SimpleNamespace(throttled=True, to_record=dict)

    class Monitor:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return vitals

        def __exit__(self, *exc):
            pass

    machine.patch.setattr(checks, "Monitor", Monitor)
    return {"soak": "clocks were throttled"}


@pytest.mark.parametrize(
    "injected",
    [
        dead_replay, dead_mapping, wrong_labels, cpu_fallback, refused_kernel, wrong_kernel,
        old_driver, failed_capture, float_convolutions, unshared_profile, throttling,
    ],
)  # fmt: skip
def test_what_is_wrong_fails(machine, forms, tmp_path, injected):
    expected = injected(machine)
    record = checked(forms, tmp_path)
    failed = of(record, "failed")
    for name, words in expected.items():
        assert words in failed.get(name, f"{name} did not fail: {failed}")
    with pytest.raises(DeviceError, match=f"Failed: .*{next(iter(expected))}"):
        require_passed(record)


def test_no_driver_ends_it(machine, forms, tmp_path):
    def absent():
        msg = "No NVIDIA driver here"
        raise DeviceError(msg)

    machine.patch.setattr(checks, "cuda_devices", absent)
    record = checked(forms, tmp_path)
    assert of(record, "failed") == {"machine": "No NVIDIA driver here"}
    assert len(record.rows) == 1


def test_not_installed_is_another_word_and_another_exit_code(machine, forms, tmp_path):
    machine.patch.setitem(sys.modules, "pycuda", None)
    machine.patch.setitem(sys.modules, "pycuda.driver", None)

    def absent():
        msg = "NVRTC is not installed"
        raise DependencyError(msg)

    machine.patch.setattr(checks, "kernel_in_a_fresh_process", absent)
    record = checked(forms, tmp_path, skip=["trtexec"])
    assert of(record, "failed") == {}
    assert set(of(record, "not installed")) == {"device pycuda", "kernel", "tensorrt_rtx"}
    with pytest.raises(DependencyError, match=r"device pycuda, kernel, tensorrt_rtx\..*`skip`"):
        require_passed(record)
    record = checked(forms, tmp_path, skip=[*SKIP, "*pycuda", "kernel"])
    require_passed(record)
    assert of(record, "skipped")["kernel"] == "as asked"


def test_the_accelerator_is_tried_where_there_is_one(machine, forms, tmp_path):
    record = checked(forms, tmp_path)
    assert "no deep learning accelerator" in of(record, "skipped")["tensorrt dla"]
    machine.module.seen.dla_cores = 2
    record = checked(forms, tmp_path / "again")
    (row,) = [row for row in record.rows if row.name == "tensorrt dla"]
    assert row.status == "passed"
    assert row.figures["build"]["dla_layers"]["layers"] == 1


@pytest.mark.parametrize(("theirs", "fails"), [(2.0, False), (0.5, True)])
def test_trtexec_is_the_measure(machine, forms, tmp_path, theirs, fails):
    """The stub's events are a millisecond apart, so a replay takes one."""
    said = f"Latency: min = 1 ms, max = 9 ms, mean = 2 ms, median = {theirs} ms"
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "trtexec"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    machine.patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    record = checked(forms, tmp_path, skip=SKIP[:1])
    assert ("trtexec" in of(record, "failed")) is fails
    assert ("trtexec" in of(record, "passed")) is not fails


@pytest.mark.parametrize(("injected", "code"), [(None, 0), (dead_replay, 10), ("absent", 7)])
def test_the_verb_has_an_exit_code(machine, forms, tmp_path, capsys, injected, code):
    model, frames, files = forms
    machine.patch.setattr("calibration.forms.write_forms", lambda *_, **__: files)
    if callable(injected):
        injected(machine)
    skip = SKIP if injected != "absent" else SKIP[1:]
    out = tmp_path / "gpu.json"
    command = ["gpu-check", "--model", model, "--target", frames[0].parent, "--out", out]
    options = [word for name in skip for word in ("--skip", name)]
    machine.patch.setattr(sys, "argv", ["edgeuda", *map(str, command), *options, "--seconds", "0"])
    assert run() == code
    record = read_json(out, "edgeuda.gpu-check/2")  # kept, whatever came of it
    text = capsys.readouterr().out
    assert f"{record['counted']['passed']} passed, {record['counted']['failed']} failed" in text
    assert ("failed        device cuda-python: a graph" in text) is (code == 10)


def test_one_frame_is_too_few(machine, forms, tmp_path):
    _, frames, files = forms
    with pytest.raises(DataError, match="at least two frames, found 1"):
        gpu_check(files, frames[:1], tmp_path)


def test_forms_are_made_of_a_float_model(forms, tmp_path):
    _, frames, files = forms
    with pytest.raises(ModelError, match="expected an FP32 model with head labels or logits"):
        write_forms(files["labels", "int8"], frames, tmp_path / "a")
    with pytest.raises(ModelError, match="with scores"):
        write_forms(files["scores", "fp32"], frames, tmp_path / "b")


def test_the_kernel_in_a_process_of_its_own_without_a_driver():
    """Its answer comes back as the error it is."""
    with suppress(DeviceError):
        cuda_devices()
        pytest.skip("this machine has a device")
    with pytest.raises(DeviceError, match=r"No NVIDIA driver|CUDA cannot be used|device"):
        kernel_in_a_fresh_process()


def test_check_device_gives_back_what_it_took(machine):
    from engines.cuda.device import open_device

    for name in ("cuda-python", "libcudart", "pycuda"):
        check_device(open_device(name))
    assert machine.gpu.held() == {}
