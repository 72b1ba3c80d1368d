"""Footage that is listed first: what is decoded, what stands in for broken files, what is said."""

import json
import logging
import os
import pickle
from collections import Counter

import numpy as np
import pytest

from edgeuda.camera import CameraGeometry
from edgeuda.data import frames as module
from edgeuda.data.frames import DAMAGED_FILE, allowed, frame_folder, sampled
from edgeuda.data.images import image_size, list_images, read_image, write_image
from edgeuda.errors import DataError
from edgeuda.files import sha256_of, stamp


def drive(folder, count, broken=(), start=0):
    """Frames of which each has a grey of its own; some are no image."""
    for index in range(count):
        path = folder / f"{index:04d}.png"
        write_image(path, np.full((6, 8, 3), start + index % 200, np.uint8))
        if index in broken:
            path.write_bytes(b"broken")
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """How often each file was decoded."""
    found = Counter()

    def read(path):
        found[path.name] += 1
        return read_image(path)

    monkeypatch.setattr(module, "read_image", read)
    return found


def test_only_what_is_sampled_is_decoded(tmp_path, decoded):
    frames = frame_folder(drive(tmp_path, 100))
    assert not decoded
    assert [path.name for path in frames.sample(4)] == [
        "0000.png", "0025.png", "0050.png", "0075.png",
    ]  # fmt: skip
    assert decoded == {"0000.png": 1, "0025.png": 1, "0050.png": 1, "0075.png": 1}
    assert len(frames.sample(1000)) == 100


def test_the_next_frame_takes_the_place_of_a_broken_one(tmp_path, decoded, caplog):
    frames = frame_folder(drive(tmp_path, 100, broken=(0, 25, 26)))
    wanted = ["0001.png", "0027.png", "0050.png", "0075.png"]
    with pytest.raises(DataError, match="found 2 of 4 that were looked at, of 100"):
        frames.sample(4)
    assert sum(decoded.values()) <= 7
    (tmp_path / "0000.png").write_bytes((tmp_path / "0001.png").read_bytes())
    frames = frame_folder(tmp_path)
    assert [path.name for path in frames.sample(4)] == ["0000.png", *wanted[1:]]
    assert "skipped 1 of 4 that were looked at, of 100 images" in caplog.text
    assert frames.noted() == {"skipped": [str(tmp_path / f"00{n}.png") for n in (25, 26)]}
    caplog.clear()
    assert [path.name for path in frames.sample(4)] == ["0000.png", *wanted[1:]]
    assert "Skipped:" not in caplog.text  # that was said
    assert decoded["0025.png"] == 2  # for the one listing and for the other


def test_a_sample_may_hold_more_broken_frames_than_their_share_but_not_many(tmp_path):
    for seen, most in ((1, 1), (8, 2), (32, 5), (128, 12), (400, 20)):
        assert int(allowed(seen, 400)) == most
    few = frame_folder(drive(tmp_path / "few", 10, broken=(3,)))
    with pytest.raises(DataError, match=r"at most 5% unreadable images, found 1 of 10.*0003\.png"):
        few.sample(10)


def test_nothing_but_broken_files_ends_soon(tmp_path, decoded):
    drive(tmp_path, 200, broken=range(200))
    with pytest.raises(DataError, match="at most 5% unreadable"):
        frame_folder(tmp_path).sample(2)
    with pytest.raises(DataError, match="at most 5% unreadable"):
        list(frame_folder(tmp_path).images(200))
    with pytest.raises(DataError, match="at most 5% unreadable"):
        frame_folder(tmp_path).read(7)
    assert sum(decoded.values()) < 100


def test_frames_that_break_in_a_row_are_one_misfortune_of_a_sample(tmp_path, caplog):
    drive(tmp_path, 200, broken=range(50, 56))
    assert [path.name for path in frame_folder(tmp_path).sample(4)][1] == "0056.png"
    assert "skipped 1 of 4 that were looked at, of 200 images" in caplog.text
    drive(tmp_path, 6, broken=range(6))  # as a camera that starts up leaves them
    (tmp_path / "0050.png").write_bytes((tmp_path / "0060.png").read_bytes())
    with pytest.raises(DataError, match="found 11 of 200"):
        list(frame_folder(tmp_path).images(200))
    drive(tmp_path, 2)
    assert len(list(frame_folder(tmp_path).images(200))) == 191


def test_images_are_read_ahead_and_once(tmp_path, decoded):
    frames = frame_folder(drive(tmp_path, 100, broken=(2, 50)))
    found = frames.images(1000)
    assert next(found)[0].name == "0000.png"
    assert sum(decoded.values()) < 40
    rest = list(found)
    assert [path.name for path, _ in rest[:2]] == ["0001.png", "0003.png"]
    assert all(image[0, 0, 0] == int(path.stem) for path, image in rest)
    assert len(rest) == 97
    assert set(decoded.values()) == {1}
    assert [path.name for path, _ in frame_folder(tmp_path).images(50)][:3] == [
        "0000.png", "0003.png", "0004.png",
    ]  # fmt: skip


def test_a_learner_gets_the_next_frame_whatever_was_read_before(tmp_path):
    drive(tmp_path, 60, broken=(7, 8, 59))
    grey = {7: 9, 8: 9, 59: 0, 10: 10}
    for order in ((7, 8, 59, 10), (10, 59, 8, 7)):
        frames = frame_folder(tmp_path)
        frames.whole = True
        assert {index: int(frames.read(index)[0, 0, 0]) for index in order} == grey
    assert frame_folder(tmp_path).read(7, instead=False) is None
    assert pickle.loads(pickle.dumps(frames)).broken.keys() == {7, 8, 59}


def test_what_was_met_is_kept_for_a_run_that_goes_on(tmp_path, decoded, caplog):
    frames = frame_folder(drive(tmp_path / "frames", 60, broken=(7, 9)))
    frames.whole = True
    frames.read(7)
    frames.keep(tmp_path / "run")
    frames.read(9)
    lines = (tmp_path / "run" / DAMAGED_FILE).read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [7, 9]
    with (tmp_path / "run" / DAMAGED_FILE).open("a") as log:
        log.write('{"index": 11, "fi')  # killed here
    caplog.clear()
    again = frame_folder(tmp_path / "frames")
    again.whole = True
    again.keep(tmp_path / "run")
    assert again.broken == frames.broken
    again.read(9)
    assert decoded["0009.png"] == 1
    assert not caplog.text
    (tmp_path / "frames/0009.png").write_bytes((tmp_path / "frames/0010.png").read_bytes())
    (tmp_path / "frames/0011.png").write_bytes(b"broken")
    mended = frame_folder(tmp_path / "frames")
    mended.whole = True
    mended.keep(tmp_path / "run")
    assert mended.broken.keys() == {7}
    mended.read(11)
    last = frame_folder(tmp_path / "frames")
    last.keep(tmp_path / "run")
    assert last.broken.keys() == {7, 11}
    other = frame_folder(drive(tmp_path / "others", 60))
    other.keep(tmp_path / "run")
    assert not other.broken


def test_several_folders_give_in_proportion(tmp_path):
    parts = [frame_folder(drive(tmp_path / name, count)) for name, count in (("a", 30), ("b", 10))]
    found = sampled(parts, 8)
    assert Counter(path.parent.name for path in found) == {"a": 6, "b": 2}
    assert sampled(parts, 100) == [*parts[0], *parts[1]]


def test_of_each_folder_one_header_is_read_for_a_camera(tmp_path, decoded, monkeypatch):
    geometry = CameraGeometry((8, 6), crop=(0, 0, 4, 4))
    drive(tmp_path / "in/a", 20)
    drive(tmp_path / "in/b", 20)
    read = []
    monkeypatch.setattr(module, "image_size", lambda path: read.append(path) or image_size(path))
    frames = frame_folder(tmp_path / "in", geometry)
    assert [path.relative_to(tmp_path).as_posix() for path in read] == [
        "in/a/0000.png", "in/b/0000.png",
    ]  # fmt: skip
    assert not decoded
    write_image(tmp_path / "in/b/0010.png", np.zeros((6, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"0010\.png: expected a frame of 8x6.*found 20x6"):
        frames.sample(40)
    write_image(tmp_path / "in/b/0000.png", np.zeros((6, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"b/0000\.png: expected a frame of 8x6"):
        frame_folder(tmp_path / "in", geometry)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_sizes_come_from_headers(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_image(path, np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    assert image_size(path) == (80, 60)
    path.write_bytes(path.read_bytes()[:1000])  # the pixels are not needed
    assert image_size(path) == (80, 60)
    path.write_bytes(b"text")
    with pytest.raises(DataError, match="header cannot be read"):
        image_size(path)


def test_a_header_tells_that_a_picture_is_turned(tmp_path):
    from PIL import Image as Pillow

    exif = Pillow.Exif()
    exif[0x0112] = 6
    path = tmp_path / "x.jpg"
    Pillow.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path, exif=exif)
    assert image_size(path) == (60, 80) == read_image(path).shape[1::-1]


def test_identity_is_that_of_names_and_files_and_a_moved_folder_is_the_same(tmp_path):
    drive(tmp_path / "a/images", 3)
    names = [f"images/{index:04d}.png" for index in range(3)]
    paths = list(list_images(tmp_path / "a"))
    assert list(frame_folder(tmp_path / "a").identity()) == [*names, stamp(paths)]
    (tmp_path / "a").rename(tmp_path / "b")
    one = sha256_of(frame_folder(tmp_path / "b").identity())
    (tmp_path / "b/images/0001.png").write_bytes(b"another")
    two = sha256_of(frame_folder(tmp_path / "b").identity())
    (tmp_path / "b/images/0001.png").unlink()
    (tmp_path / "b/images/0001.png").symlink_to(tmp_path / "nowhere")
    assert len({one, two, sha256_of(frame_folder(tmp_path / "b").identity())}) == 3


def test_beyond_a_limit_files_are_told_apart_by_size_and_time_alone(tmp_path, monkeypatch):
    paths = list(list_images(drive(tmp_path, 3)))
    monkeypatch.setattr("edgeuda.files.sha256", lambda path: pytest.fail("was read"))
    facts = [path.stat() for path in paths]
    wanted = sha256_of(f"{fact.st_size} {fact.st_mtime_ns}" for fact in facts)
    assert stamp(paths, 10) == wanted
    os.utime(paths[0], ns=(1, 1))
    assert stamp(paths, 10) != wanted


def test_warnings_name_each_file_once_from_threads(tmp_path, caplog):
    frames = frame_folder(drive(tmp_path, 100, broken=range(0, 100, 25)))
    with caplog.at_level(logging.WARNING):
        frames.sample(100)
    assert sum("Skipped:" in record.message for record in caplog.records) == 4
