"""New and old footage as one: both in their shares, whatever their numbers."""

import numpy as np
import pytest

from edgeuda.data.frames import frame_folder
from edgeuda.data.images import write_image
from edgeuda.data.replay import Replay, ReplayedFrames, replayed
from edgeuda.errors import ConfigError
from edgeuda.training.loader import Images

NEW, OLD = 4, 15


@pytest.fixture
def footage(tmp_path):
    """Frames whose brightness says which they are: old ones from 100."""
    for name, count, first in (("new", NEW, 0), ("old", OLD, 100)):
        for number in range(count):
            image = np.full((8, 8, 3), first + number, np.uint8)
            write_image(tmp_path / name / f"{number:03d}.png", image)
    return tmp_path


def both(footage, share=0.5):
    return replayed(footage / "new", Replay(footage / "old", share), learnt=True)


def drawn(frames, positions, seed=0):
    images = Images(frames, (8, 8))
    return [int(images[index][0][0, 0, 0]) for index in images.draw(positions, seed, 1)]


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1, 0.7])
def test_frames_are_drawn_in_their_shares_and_each_once_before_any_again(footage, share):
    found = drawn(both(footage, share), range(600))
    old = [one for one in found if one >= 100]
    assert len(old) == round(share * 600)
    for part, count in ((old, OLD), ([one for one in found if one < 100], NEW)):
        assert len(set(part[:count])) == count
        assert sorted(part[:count]) == sorted(part[count : 2 * count])
        assert part[:count] != part[count : 2 * count]
    assert found == drawn(both(footage, share), range(600))
    assert found != drawn(both(footage, share), range(600), seed=1)


def test_a_batch_has_its_share_and_a_resumed_run_draws_what_it_would_have_drawn(footage):
    frames = both(footage)
    for first in range(0, 40, 4):
        assert sum(one >= 100 for one in drawn(frames, range(first, first + 4))) == 2
    assert drawn(frames, range(40))[13:] == drawn(both(footage), range(13, 40))


def test_batch_norm_and_the_watch_see_both_in_their_shares(footage):
    images = Images(both(footage), (8, 8))
    assert sum(index >= NEW for index in images.draw_common(range(40), 0)) == 20
    chosen = images.evenly(8)
    assert sum(index >= NEW for index in chosen) == 4
    assert chosen == sorted(set(chosen))
    assert len(images.evenly(100)) == NEW + OLD


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(8, 0.5, (4, 4)), (16, 0.5, (4, 12)), (100, 0.5, (NEW, OLD)), (10, 0.9, (1, 9))],
)
def test_samples_have_both_and_a_part_that_lacks_frames_gives_all(footage, count, share, expected):
    frames = both(footage, share)
    found = [path.parent.name for path in frames.sample(count)]
    assert (found.count("new"), found.count("old")) == expected
    assert found == sorted(found)


def test_a_broken_frame_is_replaced_by_one_of_its_part(footage, monkeypatch):
    monkeypatch.setattr("edgeuda.data.frames.MAX_BAD_SHARE", 0.5)
    (footage / "new/003.png").write_bytes(b"\x89PNG")
    (footage / "old/014.png").write_bytes(b"\x89PNG")
    frames = ReplayedFrames(*(frame_folder(footage / name) for name in ("new", "old")), 0.5)
    frames.quiet = True
    assert frames.read(NEW - 1)[0, 0, 0] == 0
    assert frames.read(NEW + OLD - 1)[0, 0, 0] == 100


def test_another_share_or_other_old_frames_are_another_footage(footage):
    known = [list(both(footage, share).identity()) for share in (0.5, 0.5, 0.25)]
    assert known[0] == known[1] != known[2]
    (footage / "old/014.png").unlink()
    assert list(both(footage).identity()) not in known


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_share_is_between_0_and_1(footage, share):
    with pytest.raises(ConfigError, match="`replay_share`: expected a share between 0 and 1"):
        Replay(footage / "old", share)
