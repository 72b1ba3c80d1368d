"""Test-time views of a network: scales, mirror image, sliding window, native resolution."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeuda.accuracy.evaluation import DEPLOYED
from edgeuda.data.images import resize_image
from edgeuda.errors import ConfigError
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
    """Half of the input is 32x48: the network takes 32x64, the sides of which are the mean."""
    image = frame()
    predictor = ScorePredictor(model, SPEC, TestTime((0.5, 1.0), flip=True))
    found = predictor(image)
    total = 0
    with torch.inference_mode():
        for size, pad in (((32, 48), 8), ((64, 96), 0)):
            x = normalise(to_tensor(resize_image(image, *size))[None], SPEC.preprocessing)
            x = F.pad(x, (pad, pad))
            scores = model(x).main.softmax(1) + model(x.flip(3)).main.softmax(1).flip(3)
            scores = scores[..., pad : pad + size[1]]
            total = total + F.interpolate(scores, (150, 210), mode="bilinear")
    assert np.array_equal(found, total.argmax(1)[0].numpy())
    assert predictor.passes_record() == [
        {"frame": (150, 210), "scale": 0.5, "seen": (32, 48), "window": (32, 64), "windows": 1,
         "frames": 1},
        {"frame": (150, 210), "scale": 1.0, "seen": (64, 96), "window": (64, 96), "windows": 1,
         "frames": 1},
    ]  # fmt: skip


@pytest.mark.parametrize("stride", [0.5, 5 / 6, 1.0])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 96), (150, 210), (1024, 2048)])
def test_windows_cover_every_pixel_and_stay_inside(height, width, stride):
    seen = np.zeros((height, width), bool)
    places = list(windows(height, width, 64, 96, stride))
    for top, left in places:
        assert 0 <= top <= height - 64
        assert 0 <= left <= width - 96
        seen[top : top + 64, left : left + 96] = True
    assert seen.all()
    assert len(set(places)) == len(places)


def test_windows_of_tufl_on_cityscapes():
    """Released: windows of 1024, each 854 further, the last moved back to the frame's edge."""
    assert list(windows(1024, 2048, 1024, 1024, 5 / 6)) == [(0, 0), (0, 854), (0, 1024)]


class Recorder(Pointwise):
    """Keeps what the network is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, x):
        self.given.append(x)
        return super().forward(x)


@pytest.mark.parametrize("spec_input", [(64, 96), (64, 64)])
def test_scales_of_a_sliding_window_are_those_of_the_frame(spec_input):
    """No size is clamped to the network's input, and none loses the frame's aspect."""
    spec = ModelSpec("bisenet", 0.125, SPACES["carla-3"], Preprocessing(*spec_input))
    network, image = Recorder(), frame(100, 200)
    scales = (0.25, 0.5, 0.75, 1.0, 1.5)
    predictor = ScorePredictor(network, spec, TestTime(scales, window=True))
    predictor(image)
    done = {found.scale: found for found in predictor.passes}
    assert {scale: found.seen for scale, found in done.items()} == {
        0.25: (25, 50), 0.5: (50, 100), 0.75: (75, 150), 1.0: (100, 200), 1.5: (150, 300),
    }  # fmt: skip
    assert {found.window for found in done.values()} == {spec_input}
    assert sum(found.windows for found in done.values()) == len(network.given)
    small = normalise(to_tensor(resize_image(image, 25, 50))[None], spec.preprocessing)
    top, left = (64 - 25) // 2, (spec_input[1] - 50) // 2
    first = network.given[0]
    assert torch.equal(first[..., top : top + 25, left : left + 50], small)
    assert first.count_nonzero() == small.count_nonzero()  # all around is the mean colour


def test_overlapping_windows_are_averaged():
    """Against one pass per window and a count per pixel, on a frame of one and a half windows."""
    torch.manual_seed(1)
    network = build(SPEC).eval()
    image = frame(64, 144)
    how = TestTime((1.0,), window=True, window_size=(64, 96), stride=0.5)
    found = ScorePredictor(network, SPEC, how)(image)
    x = normalise(to_tensor(image)[None], SPEC.preprocessing)
    with torch.inference_mode():
        parts = [network(x[..., left : left + 96]).main.softmax(1)[0] for left in (0, 48)]
    for column in range(144):
        scores = [
            part[:, :, column - left]
            for part, left in zip(parts, (0, 48), strict=True)
            if left <= column < left + 96
        ]
        expected = (sum(scores) / len(scores)).argmax(0).numpy()
        assert np.array_equal(found[:, column], expected)


def test_a_window_sees_native_pixels():
    """A frame is not resized: single pixels decide, whatever its sides are multiples of."""
    image = frame(150, 210)
    found = ScorePredictor(Pointwise(), SPEC, TestTime(window=True, flip=True))(image)
    x = normalise(to_tensor(image)[None], SPEC.preprocessing)
    with torch.inference_mode():
        assert np.array_equal(found, Pointwise()(x).main.argmax(1)[0].numpy())


def test_a_frame_smaller_than_the_window_keeps_its_pixels():
    image = frame(40, 50)
    found = ScorePredictor(Pointwise(), SPEC, TestTime(window=True))(image)
    x = normalise(to_tensor(image)[None], SPEC.preprocessing)
    with torch.inference_mode():
        assert np.array_equal(found, Pointwise()(x).main.argmax(1)[0].numpy())


def test_protocols_in_words():
    assert TestTime().protocol == DEPLOYED
    assert TestTime(native=True).protocol == "scores at native resolution"
    assert TestTime((0.5, 1), flip=True).protocol == "scales 0.5 1, flip"
    assert TestTime(window=True).protocol == "sliding window"
    size = TestTime((0.5, 1), flip=True, window=True, window_size=(1024, 1024))
    assert size.protocol == "scales 0.5 1, flip, sliding window 1024x1024"
    with pytest.raises(ConfigError, match="numbers from"):
        TestTime((0.0,))
    with pytest.raises(ConfigError, match="multiples of 32, found 647x647"):
        TestTime(window=True, window_size=(647, 647))
    with pytest.raises(ConfigError, match="sliding window"):
        TestTime(window_size=(64, 64))
    with pytest.raises(ConfigError, match=r"from 0\.1 to 1"):
        TestTime(window=True, stride=1.5)
