"""A uniform sample of a drive in two halves, which is kept in memory."""

from dataclasses import replace

import numpy as np
import pytest

from edgeuda.errors import ConfigError
from edgeuda.spec import Preprocessing
from engines.live.sample import STRETCH, Sampler
from live_results import BEGAN, result

SIZE = Preprocessing(32, 64)


def given(index, rate=1.0, value=None):
    image = np.full((64, 128, 3), index % 251 if value is None else value, np.uint8)
    seconds = index / rate
    one = result(index, image=image, time_ns=BEGAN + round(1e9 * seconds))
    return replace(one, seconds=seconds)


def drive(sampler, count, rate=1.0):
    for index in range(count):
        sampler.write(given(index, rate))
    return sampler.sample()


def values(images):
    return [int(image[0, 0, 0, 0]) for image in images]


def test_every_frame_is_as_likely_as_any_other():
    """Counted over many seeds: half of 120 frames, 10 of each 60."""
    counts = np.zeros(120, int)
    for seed in range(400):
        found = drive(Sampler(20, SIZE, seed=seed), 120)
        for one in values([*found.estimating, *found.judging]):
            counts[one] += 1
    assert counts.sum() == 400 * 20
    # Of 400 draws with a chance of 1/6 each: 66.7 with a deviation of 7.5.
    assert counts.min() > 66.7 - 4 * 7.5
    assert counts.max() < 66.7 + 4 * 7.5
    assert abs(counts[:60].mean() - counts[60:].mean()) < 4


def test_what_is_judged_on_is_of_other_stretches():
    found = drive(Sampler(40, SIZE), 100)
    assert len(found.estimating) == len(found.judging) == 20
    assert all(int(one // STRETCH) % 2 == 0 for one in values(found.estimating))
    assert all(int(one // STRETCH) % 2 == 1 for one in values(found.judging))
    assert values(found.estimating) == sorted(values(found.estimating))
    assert found.estimating[0].shape == (1, 32, 64, 3)


def test_memory_is_that_of_the_frames_however_long_the_drive_is():
    sampler = Sampler(8, SIZE)
    found = drive(sampler, 3000, rate=10.0)
    about = found.about
    assert sampler.megabytes == pytest.approx(8 * 32 * 64 * 3 / 1e6)
    assert (about.seen, about.estimating, about.judging, about.seconds) == (3000, 4, 4, 299.9)
    assert (about.began, about.ended) == ("2023-11-14T22:13:20+00:00", "2023-11-14T22:18:20+00:00")


def test_the_same_drive_gives_the_same_sample():
    one, two, other = (drive(Sampler(8, SIZE, seed=seed), 200) for seed in (1, 1, 2))
    assert values(one.estimating) == values(two.estimating) != values(other.estimating)


def test_images_without_times_count_a_second_each():
    sampler = Sampler(40, SIZE, timed=False)
    found = drive(sampler, 62, rate=30.0)
    assert (found.about.seconds, found.about.estimating, found.about.judging) == (62.0, 20, 20)


def test_a_frame_that_a_camera_writes_to_again_is_copied():
    sampler, image = Sampler(4, SIZE), np.full((32, 64, 3), 7, np.uint8)
    sampler.write(result(0, image=image))
    image[:] = 9
    assert values(sampler.sample().estimating) == [7]


def test_an_empty_drive_and_odd_numbers():
    found = Sampler(4, SIZE).sample()
    assert (found.about.seen, found.estimating, found.about.seconds) == (0, [], 0.0)
    for frames in (2, 5):
        with pytest.raises(ConfigError, match=r"`adapt_frames`: expected an even number, 4 or mor"):
            Sampler(frames, SIZE)
