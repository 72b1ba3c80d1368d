"""What the doctor says of machines, made up from files and packages."""

import importlib.metadata
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from edgeuda.errors import DependencyError, DeviceError
from edgeuda.records.doctor import Part
from engines import doctor
from engines.doctor import abilities, examine, record_of


def found(checks, name):
    return [check for check in checks if check.name == name]


@pytest.mark.parametrize(
    ("release", "says"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1", "Jetson Linux 36.4.3 (JetPack 6)"),
        ("# R35 (release), REVISION: 3.1, GCID: 1", "Jetson Linux 35.3.1 (JetPack 5)"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "Jetson Linux 39.2.0 (JetPack 7)"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "Jetson Linux 99.1.0 (unknown JetPack)"),
    ],
)
def test_jetson_releases(tmp_path, release, says):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text(release)
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc" / "device-tree" / "model").write_bytes(b"NVIDIA Jetson AGX Orin\0")
    checks = examine(tmp_path)
    assert found(checks, "release") == [Part("release", "note", says)]
    assert found(checks, "board")[0].found == "NVIDIA Jetson AGX Orin"


def test_drive_os_and_governor(tmp_path):
    folder = tmp_path / "etc" / "nvidia"
    folder.mkdir(parents=True)
    (folder / "version-ubuntu-rootfs.txt").write_text("6.0.9.1-35\nmore\n")
    cpu = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    cpu.mkdir(parents=True)
    (cpu / "scaling_governor").write_text("schedutil\n")
    checks = examine(tmp_path)
    assert found(checks, "release")[0].found == "DRIVE OS 6.0.9.1-35"
    (governor,) = found(checks, "CPU governor")
    assert (governor.found, governor.fix != "") == ("schedutil", True)


def test_a_bare_machine_has_no_release(tmp_path):
    checks = examine(tmp_path)
    assert not found(checks, "release")
    assert not found(checks, "board")


def test_two_onnxruntimes_are_a_defect(monkeypatch):
    versions = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    (check,) = found(examine(), "onnxruntime")
    assert check.status == "broken"
    assert "uninstall -y onnxruntime onnxruntime-gpu" in check.fix


def test_a_driver_and_its_absence(monkeypatch):
    monkeypatch.setattr(doctor, "gpu_title", lambda: "Orin (8.7)")
    monkeypatch.setattr(doctor, "driver_version", lambda: (12, 6))
    (check,) = found(examine(), "driver")
    assert check == Part("driver", "ok", "CUDA device: Orin (8.7), serves CUDA 12.6")

    def absent():
        msg = "No NVIDIA driver here"
        raise DeviceError(msg)

    monkeypatch.setattr(doctor, "gpu_title", absent)
    (check,) = found(examine(), "driver")
    assert (check.status, check.found) == ("absent", "No NVIDIA driver here")
    assert check.fix


def test_tensorrt_without_a_driver_is_named_and_not_touched(monkeypatch):
    """Its module is imported, nothing of it constructed."""
    fake = SimpleNamespace(__version__="10.3.0.30")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)

    def absent():
        msg = "CUDA cannot be used: error 35"
        raise DeviceError(msg)

    monkeypatch.setattr("engines.tensorrt.library.cuda_devices", absent)
    (check,) = found(examine(), "tensorrt")
    assert (check.status, "error 35" in check.found) == ("broken", True)
    monkeypatch.setattr("engines.tensorrt.library.cuda_devices", lambda: 1)
    assert found(examine(), "tensorrt") == [Part("tensorrt", "ok", "tensorrt 10.3.0")]


def test_absent_packages_say_how_to_get_them(monkeypatch):
    def none(_name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(doctor.importlib.metadata, "version", none)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    checks = examine()
    for check in checks:
        assert check.status != "absent" or check.fix, check.name
    lacks = abilities(checks)
    assert lacks["run on the CPU"] == ["onnxruntime"]
    assert "tensorrt" in lacks["build TensorRT engines"]
    assert record_of(checks).lacks == lacks


def test_programs_that_hang_or_fail_are_left_out(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")

    def hang(*_args, **_kwargs):
        raise doctor.subprocess.TimeoutExpired("x", 20)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    checks = examine()
    assert not found(checks, "GPU clocks")
    assert found(checks, "trtexec")[0].status == "ok"


def test_a_package_for_device_memory_is_tried_and_not_believed(monkeypatch, tmp_path):
    """cuda-python is installed, and the driver cannot serve it."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3")

    def opened(name):
        if name == "libcudart":
            return SimpleNamespace(runtime_version=lambda: "12.6")
        msg = "CUDA error 35"
        raise (DeviceError if name == "cuda-python" else DependencyError)(msg)

    monkeypatch.setattr(doctor, "cuda_devices", lambda: 1)
    monkeypatch.setattr(doctor, "open_device", opened)
    monkeypatch.setattr(doctor, "_version", {"cuda-python": "13.4.4"}.get)
    checks = examine(tmp_path)
    (check,) = found(checks, "cuda-python")
    assert (check.status, check.found) == ("broken", "13.4.4 CUDA error 35")
    assert check.fix == "pip install 'edgeuda[jetpack6]'"  # no TensorRT: the image has it
    assert found(checks, "libcudart") == [Part("libcudart", "ok", "CUDA 12.6")]
    assert found(checks, "pycuda")[0].status == "absent"
    assert found(checks, "device memory") == [Part("device memory", "ok", "by libcudart")]


def test_packages_without_a_driver_are_not_called_good(monkeypatch):
    def absent():
        msg = "No NVIDIA driver here"
        raise DeviceError(msg)

    monkeypatch.setattr(doctor, "cuda_devices", absent)
    monkeypatch.setattr(doctor, "_version", {"cuda-python": "13.4.4"}.get)
    checks = examine()
    (check,) = found(checks, "cuda-python")
    assert (check.status, check.found) == ("note", "13.4.4, not tried without a driver")
    assert "device memory" in abilities(checks)["run TensorRT engines"]


def test_an_offered_provider_that_does_not_work_is_broken(monkeypatch):
    """Of onnxruntime-gpu without CUDA's libraries, by a session that chose the CPU."""
    ort = pytest.importorskip("onnxruntime")
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    chosen = ["CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    monkeypatch.setattr(
        ort, "InferenceSession",
        lambda *_, **__: SimpleNamespace(get_providers=lambda: chosen),
    )  # fmt: skip
    checks = examine()
    (check,) = found(checks, "onnxruntime cuda")
    assert check.status == "broken"
    assert "it chose CPUExecutionProvider" in check.found
    assert "onnxruntime cuda" in abilities(checks)["run on the GPU with ONNX Runtime"]
    assert not found(checks, "onnxruntime tensorrt")  # not offered
    chosen[:] = offered
    assert found(examine(), "onnxruntime cuda")[0].status == "ok"


def test_the_smallest_model_is_one():
    pytest.importorskip("onnxruntime")
    (output,) = doctor.open_session(doctor._IDENTITY, threads=1).run(
        None, {"x": np.ones(1, np.float32)}
    )
    assert output.tolist() == [1.0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("avx2 avx512_vnni", "multiplies INT8 in 32 bits"),
        ("avx2", "there is no VNNI"),
        ("none of interest", "there is no VNNI"),
    ],
)
def test_what_int8_gains_is_said_of_the_processor(flags, said):
    machine = {"cpu": "A", "cores_usable": "2", "cpu_flags": flags, "architecture": "x86_64"}
    assert said in doctor._processor(machine).found
    assert said not in doctor._processor(machine | {"architecture": "aarch64"}).found
