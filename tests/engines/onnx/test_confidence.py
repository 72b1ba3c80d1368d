"""What is beside the labels: its values in every form, and that nobody pays who does not ask."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import engines.onnx_export
from calibration.half_precision import to_half
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.errors import ModelError, ParityError
from edgeuda.models.checkpoint import save_model
from edgeuda.models.network import Logits
from edgeuda.records.labelling import ConfidenceFigures, ReliabilityRecord
from engines.onnx.confidence import (
    BESIDE,
    CONFIDENCE_KEY,
    as_asked,
    confidence_of,
    with_confidence,
)
from engines.onnx.metadata import read_metadata
from engines.onnx.opset import lower_opset
from engines.onnx.session import open_session
from engines.onnx_export import export_onnx, exporter
from engines.onnxruntime_runner import OnnxRunner
from tiny_models import SPEC, exported, random_frames, random_network, torch_signals, write_frames

SIZE = SPEC.preprocessing
FRAMES = random_frames(4, SIZE.height, SIZE.width, seed=8)
IMAGES = np.stack(FRAMES)
HEADS = ["labels", "logits", "scores", "labels_low"]
TAIL = {"Exp", "ReduceMax", "ReduceSum"}
"""Operators that nothing else in our graphs has."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The network in every form, without and with confidence."""
    folder = tmp_path_factory.mktemp("models")
    frames = write_frames(folder / "frames", FRAMES)
    found = {}
    for sure in (False, True):
        fp32 = folder / f"fp32-{sure}.onnx"
        fp32.write_bytes(exported("labels", confidence=sure))
        found["fp32", sure] = fp32
        for runtime in ("ort-x86", "tensorrt"):
            found[runtime, sure] = folder / f"{runtime}-{sure}.onnx"
            calibrate(fp32, frames, found[runtime, sure], Options(runtime, threads=1))
        for name, source in (("fp16", "fp32"), ("int8-fp16", "tensorrt")):
            found[name, sure] = folder / f"{name}-{sure}.onnx"
            onnx.save(to_half(onnx.load(found[source, sure])), found[name, sure])
    return found


FORMS = ["fp32", "ort-x86", "tensorrt", "fp16", "int8-fp16"]


def nodes_run(content, names):
    """The operators that ONNX Runtime ran, as its profile has them."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(content, threads=1, profile=Path(folder) / "profile")
        session.run(names, {"image": IMAGES[:1]})
        events = json.loads(Path(session.end_profiling()).read_text())
    return [e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time")]


@pytest.mark.parametrize("form", FORMS)
def test_who_does_not_ask_runs_what_was_never_there(files, form):
    """Node for node, and ONNX Runtime itself says that it ran nothing else."""
    lean, plain = as_asked(files[form, True], False), files[form, False].read_bytes()
    one, two = onnx.load_from_string(lean), onnx.load_from_string(plain)
    onnx.checker.check_model(one, full_check=True)
    assert [n.SerializeToString() for n in one.graph.node] == [
        n.SerializeToString() for n in two.graph.node
    ]
    assert one.graph.output == two.graph.output
    ran = nodes_run(lean, None)
    assert ran == nodes_run(plain, None)
    assert not TAIL & set(ran)
    assert set(nodes_run(files[form, True], None)) >= TAIL
    np.testing.assert_array_equal(
        OnnxRunner(files[form, True], 1)(IMAGES), OnnxRunner(files[form, False], 1)(IMAGES)
    )


def test_onnx_runtime_computes_what_nobody_asks_for(files):
    """The reason why it is cut off; if this fails it has learned not to."""
    assert set(nodes_run(files["fp32", True], ["labels"])) >= TAIL


@pytest.mark.parametrize("form", FORMS)
def test_confidence_is_the_softmax_of_the_forms_own_scores(files, form):
    """By numpy, from the scores of the same graph."""
    model = onnx.load(files[form, True])
    (first,) = [n for n in model.graph.node if n.output[0] == "confidence_scores"]
    kind = onnx.TensorProto.FLOAT16 if "fp16" in form else onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info(first.input[0], kind, None))
    optimize = "int8-" not in form
    session = open_session(model.SerializeToString(), threads=1, optimize=optimize)
    confidence, features, scores = session.run(None, {"image": IMAGES})[1:]
    scores = scores.astype(np.float64)
    expected = 255 * np.exp(scores - scores.max(1, keepdims=True))
    expected = (expected / expected.sum(1, keepdims=True)).max(1) * 255
    # ONNX Runtime on a CPU computes half precision in single, and may leave its rounding out.
    assert np.abs(confidence - expected).max() < (1.01 if "fp16" in form else 0.51)
    assert confidence.shape == (4, 8, 16)
    theirs = torch_signals(random_network(), IMAGES)[1]
    assert features.shape == (4, 64)
    assert np.corrcoef(features.ravel(), theirs.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_it(tmp_path, head):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported(head, confidence=True))
    with OnnxRunner(path, 1, confidence=True) as runner:
        found = runner.signals(IMAGES)
    levels, _ = torch_signals(random_network(), IMAGES)
    assert np.abs(found.confidence - levels).max() < 0.51
    assert found.labels.shape == (4, 64, 128)


def test_the_file_says_what_it_is(files):
    for form in FORMS:
        note = confidence_of(read_metadata(files[form, True]), "x")
        assert note.of == "largest softmax probability times 255, rounded"
        assert (note.rows, note.columns, note.temperature) == (8, 16, 1.0)
        assert note.fitted_temperature is None
        assert (note.frames, note.within_one) == (2, 1.0)
        assert note.difference <= 1
        assert note.features.channels == 64
        assert note.features.difference < 1e-5
        assert confidence_of(read_metadata(files[form, False]), "x") is None
    for text in ("{", "[]", '{"schema": "edgeuda.confidence/2"}'):
        with pytest.raises(ModelError, match=r"m\.onnx: its metadata 'edgeuda.confidence' is dam"):
            confidence_of({CONFIDENCE_KEY: text}, "m.onnx")


def test_a_fitted_temperature_is_named_and_not_applied(tmp_path):
    figures = ConfidenceFigures(0.1, 0.9, 0.8, [], {})
    save_model(random_network(), SPEC, tmp_path / "model.safetensors")
    assert exporter(tmp_path).temperature is None
    ReliabilityRecord(0.87, figures, figures).write(tmp_path / ReliabilityRecord.FILE)
    stored = exporter(tmp_path)
    export_onnx(
        stored.network, stored.spec, tmp_path / "m.onnx", frames=FRAMES[:1], confidence=True,
        fitted_temperature=stored.temperature,
    )  # fmt: skip
    note = confidence_of(read_metadata(tmp_path / "m.onnx"), "x")
    assert (note.temperature, note.fitted_temperature) == (1.0, 0.87)


class PerPixel(nn.Module):
    """A network that scores every pixel, and is none of ours."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, len(SPEC.label_space), 1)

    def forward(self, x):
        return Logits(self.conv(x))


def test_a_network_that_has_no_pooled_features_gives_none(tmp_path):
    path = tmp_path / "m.onnx"
    export_onnx(PerPixel(), SPEC, path, frames=FRAMES[:1], confidence=True)
    with OnnxRunner(path, 1, confidence=True) as runner:
        found = runner.signals(IMAGES)
    assert found.features is None
    assert found.confidence.shape == (4, 64, 128)
    assert confidence_of(read_metadata(path), "x").features is None


def test_confidence_that_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(engines.onnx_export, "LEVELS", 200)  # of what it is compared with
    with pytest.raises(ParityError, match=r"agree, up to one level, on the confidence of .* Noth"):
        export_onnx(PerPixel(), SPEC, tmp_path / "m.onnx", frames=FRAMES[:1], confidence=True)
    assert not list(tmp_path.iterdir())


def test_pooled_features_that_are_not_there():
    plain = onnx.load_from_string(exported("labels"))
    with pytest.raises(ModelError, match=r"weight 'nothing'.*global mean, found none"):
        with_confidence(plain, "nothing")
    weight = next(n.input[1] for n in plain.graph.node if n.op_type == "Conv")
    with pytest.raises(ModelError, match="reads a global mean"):
        with_confidence(plain, weight)


def test_earlier_operator_sets_say_the_same():
    today = onnx.load_from_string(exported("labels", confidence=True))
    one, two = (open_session(m.SerializeToString(), threads=1) for m in (today, lower_opset(today)))
    names = ["labels", *BESIDE]
    for a, b in zip(*(s.run(names, {"image": IMAGES}) for s in (one, two)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 7, 1000, -1, -1000])
def test_files_that_are_no_graphs_are_left_to_the_runtime(tmp_path, cut):
    whole = exported("labels", confidence=True)
    path = tmp_path / "broken.onnx"
    path.write_bytes(whole[:cut] + b"\xff\xff\xff" + CONFIDENCE_KEY.encode())
    as_asked(path, False)
    with pytest.raises(ModelError, match=r"broken\.onnx: expected"):
        OnnxRunner(path, 1)
    assert as_asked(tmp_path / "absent.onnx", False) == tmp_path / "absent.onnx"


def test_the_runtime_opens_what_was_cut_without_onnx(files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    expected = onnxruntime.InferenceSession(files["fp32", False]).run(None, {"image": IMAGES})[0]
    np.testing.assert_array_equal(OnnxRunner(files["fp32", True], 1)(IMAGES), expected)
