"""Confidence maps beside label maps."""

import numpy as np
import pytest
from typer.testing import CliRunner

import engines
from cli.app import app
from edgeuda.data.images import DARKEST, dimmed, paint, read_image, read_label
from edgeuda.errors import ModelError
from edgeuda.records.predictions import PredictionsRecord
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import signals_of
from tiny_models import SPEC, exported, random_frames, write_frames


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    (folder / "sure.onnx").write_bytes(exported("labels", confidence=True))
    (folder / "plain.onnx").write_bytes(exported("labels"))
    write_frames(folder / "frames", random_frames(2, 90, 200, seed=3))
    return folder


def test_maps_are_the_networks_own(work, tmp_path):
    found = engines.predict(
        work / "sure.onnx", work / "frames", tmp_path / "p", threads=1, confidence=True
    )
    assert PredictionsRecord.read(tmp_path / "p" / PredictionsRecord.FILE) == found
    with OnnxRunner(work / "sure.onnx", 1, confidence=True) as runner:
        for number, entry in enumerate(found.frames):
            image = read_image(work / "frames" / f"{number:03d}.png")
            seen = signals_of(runner, image)
            np.testing.assert_array_equal(
                read_label(tmp_path / "p" / entry.confidence), seen.confidence
            )
            np.testing.assert_array_equal(read_label(tmp_path / "p" / entry.labels), seen.labels)
            picture = dimmed(paint(image, seen.labels, SPEC.label_space.colors()), seen.confidence)
            overlay = tmp_path / "p/overlays" / entry.labels.rpartition("/")[2]
            np.testing.assert_array_equal(read_image(overlay), picture)


def test_who_does_not_ask_gets_none(work, tmp_path):
    found = engines.predict(work / "sure.onnx", work / "frames", tmp_path / "p", threads=1)
    assert [one.confidence for one in found.frames] == [None, None]
    assert not (tmp_path / "p/confidence").exists()
    assert "confidence" not in (tmp_path / "p" / PredictionsRecord.FILE).read_text()


def test_a_model_that_has_none_is_named(work, tmp_path):
    with pytest.raises(ModelError, match=r"plain\.onnx: expected an output 'confidence'"):
        engines.predict(work / "plain.onnx", work / "frames", tmp_path / "p", confidence=True)
    done = CliRunner().invoke(app, [
        "predict", "--model", str(work / "sure.onnx"), "--target", str(work / "frames"),
        "--out", str(tmp_path / "q"), "--threads", "1", "--confidence",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "q/confidence").iterdir())) == 2


def test_a_place_is_dark_where_the_network_is_unsure():
    image = np.full((32, 64, 3), 200, np.uint8)
    confidence = np.zeros((4, 8), np.uint8)
    confidence[:, 4:] = 255
    picture = dimmed(image, confidence)
    assert (picture[:, -24:] == 200).all()
    assert np.abs(picture[:, :24].astype(float) - 200 * DARKEST).max() <= 1
    assert (np.diff(picture[0, :, 0].astype(int)) >= 0).all()  # enlarged without steps
