"""Engines that ONNX Runtime's TensorRT builds: once per vehicle and network, never a wall."""

import stat
from pathlib import Path

import onnxruntime as ort
import pytest

from edgeuda.errors import BundleError, DeviceError
from edgeuda.files import sha256
from edgeuda.records.installation import Demands
from engines import installation, kept_engines, onnxruntime_runner
from engines.bundle_model import CURRENT
from engines.installation import install
from engines.machine.hardware import identity
from engines.opening import open_runner
from engines.packing import pack
from onnxruntime_stub import CPU, CUDA, TENSORRT, Pretended
from processes import signing_keys
from tiny_models import exported, random_frames, write_frames

DAMAGED = b"half an engine"


class Builds(Pretended):
    """Keeps an engine where it is told to, and fails on one that it cannot read."""

    says = (TENSORRT, CUDA, CPU)
    built = 0

    def __init__(self, model, options=None, providers=(), **how):
        if not isinstance(providers[0], str):
            engine = Path(providers[0][1]["trt_engine_cache_path"]) / "subgraph_sm87.engine"
            if not engine.exists():
                Builds.built += 1
                engine.write_bytes(b"engine")
            elif engine.read_bytes() == DAMAGED:
                raise RuntimeError("could not deserialize engine from cache")
        super().__init__(model, options, providers, **how)


@pytest.fixture
def vehicle(tmp_path, monkeypatch):
    """A folder for networks on a machine whose ONNX Runtime has TensorRT; three bundles."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", Builds)
    monkeypatch.setattr(Builds, "built", 0)
    monkeypatch.setattr(
        onnxruntime_runner, "placed_session", lambda opened, _: (opened(None), {TENSORRT: 1})
    )
    monkeypatch.setattr(installation, "TIMED", 2)
    write_frames(tmp_path / "frames", random_frames(2, 90, 200))
    for seed in range(3):
        (tmp_path / f"{seed}.onnx").write_bytes(exported(seed=seed))
        pack([tmp_path / f"{seed}.onnx"], tmp_path / f"{seed}.edgeuda",
             acceptance=tmp_path / "frames")  # fmt: skip
    return tmp_path / "vehicle"


def engines(into):
    return sorted((into / "engines").rglob("*.engine"))


def open_current(into):
    with open_runner(into / CURRENT, 1, "tensorrt"):
        pass


def test_install_builds_and_later_processes_find_them(vehicle, tmp_path):
    install(tmp_path / "0.edgeuda", vehicle, device="tensorrt")
    assert Builds.built == 1
    (kept,) = engines(vehicle)
    assert stat.S_IMODE(kept.parents[1].stat().st_mode) == 0o700
    assert kept.parents[1].name.startswith(sha256(tmp_path / "0.edgeuda"))
    open_current(vehicle)
    assert Builds.built == 1
    with open_runner(tmp_path / "0.edgeuda", 1, "tensorrt"):  # no vehicle's
        assert engines(vehicle) == [kept]


def test_they_go_with_their_networks(vehicle, tmp_path):
    for seed in range(3):
        install(tmp_path / f"{seed}.edgeuda", vehicle, device="tensorrt")
    wanted = {sha256(tmp_path / f"{seed}.edgeuda") for seed in (1, 2)}
    assert {path.parents[1].name[:64] for path in engines(vehicle)} == wanted
    with pytest.raises(BundleError, match="the budget is 0 ms"):
        install(tmp_path / "0.edgeuda", vehicle, device="tensorrt", demands=Demands(0.0))
    assert {path.parents[1].name[:64] for path in engines(vehicle)} == wanted


def test_what_cannot_be_used_is_built_again(vehicle, tmp_path, caplog):
    install(tmp_path / "0.edgeuda", vehicle, device="tensorrt")
    (kept,) = engines(vehicle)
    kept.write_bytes(DAMAGED)
    open_current(vehicle)
    assert kept.read_bytes() == b"engine"
    assert "are built again (could not deserialize" in caplog.text


def test_another_driver_has_others(vehicle, tmp_path, monkeypatch):
    install(tmp_path / "0.edgeuda", vehicle, device="tensorrt")
    machine = {**identity(), "gpu_driver": "600.1"}
    monkeypatch.setattr(kept_engines, "identity", lambda: machine)
    open_current(vehicle)
    assert Builds.built == 2
    assert len(engines(vehicle)) == 2


def test_a_fault_of_the_device_is_said_once(vehicle, tmp_path, monkeypatch):
    install(tmp_path / "0.edgeuda", vehicle, device="tensorrt")
    monkeypatch.setattr(Builds, "fails", "out of memory")
    with pytest.raises(DeviceError, match=r"would not use device 'tensorrt'.*out of memory"):
        open_current(vehicle)


def test_nothing_is_kept_that_a_demanded_signature_does_not_cover(vehicle, tmp_path):
    private, public = signing_keys(tmp_path)
    pack([tmp_path / "0.onnx"], tmp_path / "signed.edgeuda", private_key=private)
    install(tmp_path / "signed.edgeuda", vehicle, device="tensorrt", public_key=public)
    assert not (vehicle / "engines").exists()


def test_the_cpu_has_none(vehicle, tmp_path):
    install(tmp_path / "0.edgeuda", vehicle)
    assert not (vehicle / "engines").exists()
