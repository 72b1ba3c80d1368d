"""Which frames are chosen, how many are enough, and what is kept of them."""

import json

import numpy as np
import onnx
import pytest

from calibration import range_file
from calibration.frame_choice import choose, convergence, covering, diverse, enough
from calibration.placement import ORT_X86
from calibration.range_file import RangeFile, RangeOrigin
from calibration.ranges import Histogram, collect
from edgeuda.data.folders import spread
from edgeuda.data.images import write_image
from edgeuda.errors import ConfigError, DataError, Interrupted, ModelError
from engines.onnx.index import index
from tiny_models import SPEC, exported, random_frames

SIZE = SPEC.preprocessing
FRAMES = [frame[None] for frame in random_frames(4, SIZE.height, SIZE.width, seed=2)]
ORIGIN = RangeOrigin("a" * 64, tuple("bcde"), SIZE.height, SIZE.width, bins=64)


@pytest.fixture(scope="module")
def model():
    return onnx.load_from_string(exported("labels"))


@pytest.fixture(scope="module")
def tensors(model):
    return ORT_X86.place(index(model.graph), frozenset()).measured()[:6]


def same(one, two):
    assert list(one) == list(two)
    for name in one:
        assert (one[name].low, one[name].high) == (two[name].low, two[name].high)
        np.testing.assert_array_equal(one[name].counts, two[name].counts)
        np.testing.assert_array_equal(one[name].frame_ranges, two[name].frame_ranges)


class Stopped(list):
    """Frames that end with Ctrl-C at one reading."""

    def __init__(self, frames, at):
        super().__init__(frames)
        self.left = at

    def __getitem__(self, position):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(position)


@pytest.mark.parametrize("at", [0, 2, 4, 5, 7])
def test_an_interrupted_collection_goes_on(model, tensors, tmp_path, monkeypatch, at):
    """In either pass; what was read before is not read again."""
    monkeypatch.setattr(range_file, "SAVE_SECONDS", 1e9)  # so that Ctrl-C itself has to save
    whole = collect(model, tensors, FRAMES, bins=64, threads=1)
    path = tmp_path / "ranges.npz"
    with pytest.raises(Interrupted, match="goes on"):
        RangeFile.open(path, ORIGIN).collect(model, tensors, Stopped(FRAMES, at), threads=1)
    file = RangeFile.open(path, ORIGIN)
    assert (file.begun.steps if file.begun else 0) == at
    rest = Stopped(FRAMES, 2 * len(FRAMES) - at)
    same(file.collect(model, tensors, rest, threads=1), whole)
    assert rest.left == 0
    # and what is done is never collected again
    same(RangeFile.open(path, ORIGIN).collect(model, tensors, Stopped(FRAMES, 0)), whole)


def test_other_tensors_are_added_to_the_file(model, tensors, tmp_path):
    path = tmp_path / "ranges.npz"
    RangeFile.open(path, ORIGIN).collect(model, tensors[:2], FRAMES, threads=1)
    rest = Stopped(FRAMES, 2 * len(FRAMES))
    found = RangeFile.open(path, ORIGIN).collect(model, tensors, rest, threads=1)
    same(found, collect(model, tensors, FRAMES, bins=64, threads=1))
    assert list(RangeFile.read(path).histograms) == list(tensors)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (RangeOrigin("f" * 64, tuple("bcde"), SIZE.height, SIZE.width, 64), "another model"),
        (
            RangeOrigin("a" * 64, tuple("bcdf"), SIZE.height, SIZE.width, 64),
            "another set of frames",
        ),
        (RangeOrigin("a" * 64, tuple("bcde"), SIZE.height, 32, 64), "another input size"),
    ],
)
def test_ranges_of_something_else_are_refused(model, tensors, tmp_path, other, says):
    path = tmp_path / "ranges.npz"
    RangeFile.open(path, ORIGIN).collect(model, tensors[:1], FRAMES, threads=1)
    with pytest.raises(DataError, match=rf"ranges\.npz: .*{says}"):
        RangeFile.open(path, other)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half a file"])
def test_files_that_are_no_ranges_are_refused(tmp_path, content):
    path = tmp_path / "ranges.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ranges\.npz: expected a file of ranges"):
        RangeFile.open(path, ORIGIN)
    np.savez(path.open("wb"), notes=np.array(json.dumps({"schema": "other"})))
    with pytest.raises(DataError, match="other"):
        RangeFile.open(path, ORIGIN)


def test_unknown_tensors_are_refused(model):
    with pytest.raises(ModelError, match="no tensor 'nothing'"):
        collect(model, ["nothing"], FRAMES)


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """A long dull drive, a short tunnel and a shorter sunset."""
    folder = tmp_path_factory.mktemp("drive")
    rng = np.random.default_rng(0)
    paths = []
    colours = [(90, 90, 90)] * 80 + [(10, 10, 10)] * 12 + [(250, 120, 30)] * 8
    for number, colour in enumerate(colours):
        image = np.clip(np.array(colour) + rng.integers(-6, 7, (40, 60, 3)), 0, 255)
        paths.append(folder / f"{number:03d}.png")
        write_image(paths[-1], image.astype(np.uint8))
    return paths


def test_diverse_frames_show_what_is_rare(drive):
    chosen = diverse(drive, 3, seed=1)
    numbers = [int(path.stem) for path in chosen]
    assert numbers == sorted(numbers)
    assert [sum(a <= n < b for n in numbers) for a, b in ((0, 80), (80, 92), (92, 100))] == [1] * 3
    assert diverse(drive, 3, seed=1) == chosen
    assert len(set(diverse(drive, 20))) == 20
    assert diverse(drive[:3], 5) == drive[:3]


def test_copies_do_not_make_a_choice_shorter(drive, tmp_path):
    same_image = [tmp_path / f"{i}.png" for i in range(10)]
    for path in same_image:
        path.write_bytes(drive[0].read_bytes())
    assert len(set(diverse(same_image, 4))) == 4


def test_uniform_is_spread_and_unknown_is_refused(drive):
    assert [int(p.stem) for p in choose("uniform", drive, 4)] == [0, 25, 50, 75]
    assert choose("diverse", drive, 3) == diverse(spread(drive, 24), 3)
    with pytest.raises(ConfigError, match="uniform or diverse"):
        choose("classes", drive, 4)


def test_covering_prefers_images_with_rare_classes():
    road = [0.9, 0.1, 0.0, 0.0]
    shares = np.array([road, road, [0.8, 0.1, 0.1, 0.0], road, [0.7, 0.2, 0.0, 0.1], road])
    assert covering(shares, 2) == [2, 4]
    assert covering(shares, 10) == list(range(6))


def test_convergence_of_a_constant_and_of_a_growing_range():
    counts = np.ones(4, np.int64)

    def histogram(highs):
        ranges = np.array([[0.0, high] for high in highs], np.float32)
        return Histogram(0.0, max(highs), counts, ranges)

    assert convergence({"a": histogram([2, 2, 2])}) == pytest.approx([1, 1, 1])
    curve = convergence({"a": histogram([1, 1, 1, 2]), "dead": histogram([0, 0, 0, 0])})
    assert curve == sorted(curve)
    assert curve[-1] == pytest.approx(1)
    assert 0.5 < curve[0] < 0.8  # of four orders one begins with the largest
    assert enough(curve) == 4
    assert convergence({"dead": histogram([0, 0])}) == [1.0, 1.0]
