"""How many frames of a long drive each piece of work decodes: what it uses, and no others."""

import json
from collections import Counter

import numpy as np
import pytest

import calibration
import engines
from calibration.options import Options
from cli.verbs.diff import diff
from cli.verbs.predict import predict
from edgeuda.data import images as module
from edgeuda.data.images import write_image
from edgeuda.models.checkpoint import save_model
from tiny_models import SPEC, exported, random_frames, random_network

DRIVE = 300


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    pictures = random_frames(12, 64, 128)
    for index in range(DRIVE):
        write_image(folder / f"drive/{index:03d}.png", np.roll(pictures[index % 12], index, 1))
    (folder / "drive/000.png").write_bytes(b"broken")
    (folder / "model.onnx").write_bytes(exported("labels"))
    save_model(random_network(), SPEC, folder / "model.safetensors")
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """How often each file was opened to be decoded."""
    found = Counter()
    real = module.intact_bytes

    def read(path):
        found[path.name] += 1
        return real(path)

    monkeypatch.setattr(module, "intact_bytes", read)
    return found


def test_calibration(root, decoded, tmp_path):
    record = calibration.calibrate(
        root / "model.onnx", root / "drive", tmp_path / "int8.onnx", frames=4
    )
    assert len(decoded) == 5  # four, and one that is broken
    assert record.skipped == [str(root / "drive/000.png")]
    written = json.loads((tmp_path / "int8.onnx.calibration.json").read_text())
    assert written["skipped"] == [str(root / "drive/000.png")]
    assert [frame.name for frame in record.frames] == ["001.png", "075.png", "150.png", "225.png"]


@pytest.mark.parametrize("choose", ["diverse", "classes"])
def test_a_choice_looks_at_eight_frames_for_each(root, decoded, tmp_path, choose):
    calibration.calibrate(
        root / "model.onnx", root / "drive", tmp_path / "int8.onnx", frames=4, choose=choose,
        options=Options("ort-x86"),
    )  # fmt: skip
    assert 32 <= len(decoded) <= 33 + 4


def test_export_and_half(root, decoded, tmp_path):
    engines.export(root / "model.safetensors", root / "drive", tmp_path / "m.onnx", frames=3)
    assert len(decoded) == 4
    decoded.clear()
    calibration.half(root / "model.onnx", root / "drive", tmp_path / "half.onnx",
                     frames=3, min_agreement=0)  # fmt: skip
    assert len(decoded) == 4


def test_a_benchmark(root, decoded):
    record = engines.benchmark(root / "model.onnx", root / "drive", samples=33, repeats=1)
    assert len(decoded) == 33  # 32 are timed
    assert any("000.png" in line for line in record.warnings)


def test_differences(root, decoded, tmp_path):
    diff(root / "model.onnx", root / "model.onnx", root / "drive", tmp_path / "d.json", frames=5)
    assert len(decoded) == 6
    assert json.loads((tmp_path / "d.json").read_text())["skipped"]


def test_predictions_read_each_frame_once(root, decoded, tmp_path):
    predict(root / "model.onnx", root / "drive", tmp_path / "some", frames=10)
    assert len(decoded) == 11
    assert set(decoded.values()) == {1}
    record = json.loads((tmp_path / "some/predictions.json").read_text())
    assert len(record["frames"]) == 10
    assert record["skipped"] == [str(root / "drive/000.png")]


def test_a_sweep(root, decoded, tmp_path):
    record = calibration.sweep(
        [root / "model.safetensors"], root / "drive", tmp_path / "sweep", frames=8,
        samples=33, repeats=1, precisions=["fp32"],
    )  # fmt: skip
    assert len(decoded) <= 4 + 8 + 32 + 1
    assert record.skipped == [str(root / "drive/000.png")]
