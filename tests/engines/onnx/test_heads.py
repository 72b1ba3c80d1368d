"""Smaller heads say what the large ones do."""

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.accuracy.evaluation import agreement
from edgeuda.errors import ModelError
from edgeuda.labels import SPACES
from edgeuda.models.checkpoint import ARCHITECTURES, build
from edgeuda.spec import ModelSpec, Preprocessing
from engines.onnx.heads import labels_of, upsample_argmax, with_head
from engines.onnx.metadata import read_export
from engines.onnx_export import export_onnx
from engines.onnxruntime_runner import OnnxRunner
from tiny_models import (
    SPEC,
    exported,
    quick_first,
    random_frames,
    random_network,
    torch_logits,
    write_frames,
)

SIZE = SPEC.preprocessing
FRAMES = random_frames(3, SIZE.height, SIZE.width, seed=11)


@pytest.mark.parametrize("shape", [(11, 8, 16), (3, 20, 28), (19, 5, 7), (1, 4, 4)])
def test_argmax_of_enlarged_scores(shape):
    """Against torch: enlarge everything, then take the likeliest."""
    scores = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    height, width = 8 * shape[1], 8 * shape[2]
    full = functional.interpolate(
        torch.from_numpy(scores)[None], (height, width), mode="bilinear", align_corners=False
    )[0]
    found = upsample_argmax(scores, height, width)
    assert found.dtype == np.uint8
    assert found.shape == (height, width)
    wrong = found != full.argmax(0).numpy()
    assert wrong.mean() < 1e-3
    first, second = full.topk(min(2, len(full)), 0).values[[0, -1]].numpy()
    assert (first - second)[wrong].max(initial=0) < 1e-5  # ties, broken by rounding


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_regions_are_enlarged_as_noise_is(factor):
    """Cells whose corners agree are filled; the result is that of enlarging everything."""
    rng = np.random.default_rng(1)
    coarse = rng.standard_normal((3, 4, 5)).astype(np.float32)
    scores = np.stack([cv2.resize(one, (32, 16)) for one in coarse])
    size = (factor * 16, factor * 32)
    full = functional.interpolate(
        torch.from_numpy(scores)[None], size, mode="bilinear", align_corners=False
    )[0]
    found = upsample_argmax(scores, *size)
    wrong = found != full.argmax(0).numpy()
    first, second = full.topk(2, 0).values.numpy()
    assert (first - second)[wrong].max(initial=0) < 1e-5
    assert set(np.unique(found)) == {0, 1, 2}


def test_a_class_may_win_between_corners_that_it_does_not_win():
    scores = np.float32([[[10, 0]], [[9, 9]], [[0, 10]]])
    assert upsample_argmax(scores, 8, 16)[0].tolist() == [0] * 5 + [1] * 6 + [2] * 5


def test_every_head_of_one_output():
    scores = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    full = np.repeat(np.repeat(scores, 8, 1), 8, 2)
    labels = full.argmax(0).astype(np.uint8)
    np.testing.assert_array_equal(labels_of("labels", labels, 16, 24), labels)
    np.testing.assert_array_equal(labels_of("logits", full, 16, 24), labels)
    low = scores.argmax(0).astype(np.uint8)
    np.testing.assert_array_equal(labels_of("labels_low", low, 16, 24), labels)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    paths = {}
    for head in ("labels", "scores", "labels_low"):
        paths[head] = folder / f"{head}.onnx"
        export_onnx(random_network(), SPEC, paths[head], head=head, frames=FRAMES[:2])
    return paths


def test_runners_give_the_same_labels(files):
    images = np.stack(FRAMES)
    with OnnxRunner(files["labels"], 1) as full, OnnxRunner(files["scores"], 1) as small:
        assert small.head == "scores"
        assert agreement(full(images), small(images)) > 0.9999
    low_logits = torch_logits(random_network(), images)
    with OnnxRunner(files["labels_low"], 1) as low:
        found = low(images)
    assert found.shape == images.shape[:3]
    # constant over each block of 8 x 8, and mostly right
    blocks = found.reshape(3, SIZE.height // 8, 8, SIZE.width // 8, 8)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert 0.7 < agreement(found, low_logits.argmax(1).astype(np.uint8)) < 1


def test_the_file_says_its_head(files):
    model = onnx.load(files["scores"])
    onnx.checker.check_model(model, full_check=True)
    assert read_export(files["scores"]).head == "scores"
    (output,) = model.graph.output
    dims = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
    assert dims == ["batch", 11, SIZE.height // 8, SIZE.width // 8]
    assert not [n for n in model.graph.node if n.op_type == "ArgMax"]
    low = onnx.load(files["labels_low"]).graph.output[0].type.tensor_type
    assert low.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in low.shape.dim][1:] == [SIZE.height // 8, SIZE.width // 8]


def test_small_heads_are_quantized_too(files, tmp_path):
    frames = write_frames(tmp_path, FRAMES)
    both = {}
    for head in ("labels", "scores"):
        out = tmp_path / f"{head}.onnx"
        both[head] = calibrate(files[head], frames, out, Options("ort-x86", threads=1))
    assert both["labels"].ranges == both["scores"].ranges
    assert both["labels"].agreement == pytest.approx(both["scores"].agreement, abs=1e-3)


@pytest.mark.parametrize("architecture", quick_first(ARCHITECTURES, ["bisenet", "fcn8s-vgg16"]))
def test_every_network_has_them(architecture, tmp_path):
    torch.manual_seed(0)
    spec = ModelSpec(architecture, 0.125, SPACES["camvid-11"], Preprocessing(64, 96))
    for head in ("scores", "labels_low"):
        path = tmp_path / f"{head}.onnx"
        record = export_onnx(
            build(spec).eval(), spec, path, head=head, frames=random_frames(1, 64, 96)
        )
        assert record.pixels_equal > 0.999


def test_graphs_without_a_final_resize_are_refused():
    model = onnx.load_from_string(exported("labels"))
    small = with_head(model, "scores")
    with pytest.raises(ModelError, match="no smaller head"):
        with_head(small, "labels_low")
    resize = [n for n in model.graph.node if n.op_type == "Resize"][-1]
    next(a for a in resize.attribute if a.name == "mode").s = b"cubic"
    with pytest.raises(ModelError, match="only bilinear is known"):
        with_head(model, "scores")
