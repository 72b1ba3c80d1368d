"""Test-time views of a network: scales, mirror image, sliding window, native resolution."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeuda.data.images import resize_image
from edgeuda.errors import ConfigError
from edgeuda.evaluation import DEPLOYED
from edgeuda.labels import SPACES
from edgeuda.models.checkpoint import build
from edgeuda.models.network import Logits
from edgeuda.models.predictor import ScorePredictor, TestTime, normalise, to_tensor, windows
from edgeuda.spec import ModelSpec, Preprocessing

SPEC = ModelSpec("bisenet", 0.125, SPACES["carla-3"], Preprocessing(64, 96))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(SPEC).eval()


def frame(height=150, width=210):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (height, width, 3), dtype=np.uint8)


class Pointwise(nn.Module):
    """Scores that depend on a pixel alone: every view of it must agree."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 0, 5]]))

    def forward(self, x):
        return Logits(torch.einsum("kc,nchw->nkhw", self.weight, x))


def test_scores_at_native_resolution(model):
    image = frame()
    found = ScorePredictor(model, SPEC, TestTime(native=True))(image)
    x = normalise(to_tensor(resize_image(image, 64, 96))[None], SPEC.preprocessing)
    with torch.inference_mode():
        scores = F.interpolate(model(x).main.softmax(1), (150, 210), mode="bilinear")
    assert np.array_equal(found, scores.argmax(1)[0].numpy())


def test_scales_and_mirror_are_averaged(model):
    image = frame()
    found = ScorePredictor(model, SPEC, TestTime((0.5, 1.0), flip=True))(image)
    total = 0
    with torch.inference_mode():
        for size in ((32, 64), (64, 96)):  # 48 is rounded to a multiple of 32
            x = normalise(to_tensor(resize_image(image, *size))[None], SPEC.preprocessing)
            scores = model(x).main.softmax(1) + model(x.flip(3)).main.softmax(1).flip(3)
            total = total + F.interpolate(scores, (150, 210), mode="bilinear")
    assert np.array_equal(found, total.argmax(1)[0].numpy())


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 96), (150, 210), (1024, 2048)])
def test_windows_cover_every_pixel_and_stay_inside(height, width):
    seen = np.zeros((height, width), bool)
    places = list(windows(height, width, 64, 96))
    for top, left in places:
        assert 0 <= top <= height - 64
        assert 0 <= left <= width - 96
        seen[top : top + 64, left : left + 96] = True
    assert seen.all()
    assert len(set(places)) == len(places)


def test_a_window_sees_native_pixels():
    """A frame of multiples of 32 is not resized: single pixels decide."""
    image = frame(160, 224)
    found = ScorePredictor(Pointwise(), SPEC, TestTime(window=True, flip=True))(image)
    x = normalise(to_tensor(image)[None], SPEC.preprocessing)
    with torch.inference_mode():
        assert np.array_equal(found, Pointwise()(x).main.argmax(1)[0].numpy())


def test_a_frame_smaller_than_the_window_is_enlarged():
    found = ScorePredictor(Pointwise(), SPEC, TestTime(window=True))(frame(40, 50))
    assert found.shape == (40, 50)


def test_protocols_in_words():
    assert TestTime().protocol == DEPLOYED
    assert TestTime(native=True).protocol == "scores at native resolution"
    assert TestTime((0.5, 1), flip=True).protocol == "scales 0.5 1, flip"
    assert TestTime(window=True).protocol == "sliding window"
    with pytest.raises(ConfigError, match="numbers from"):
        TestTime((0.0,))
