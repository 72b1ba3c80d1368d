"""Folders of frames and labelled images: what is accepted, refused, skipped."""

import logging
import struct
import zlib

import cv2
import numpy as np
import pytest

from edgeuda.data.folders import class_counts, labelled_folder, spread
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import (
    read_image,
    read_label,
    resize_image,
    resize_label,
    write_image,
    write_label,
)
from edgeuda.errors import DataError
from edgeuda.labels import IGNORE, SPACES

CAMVID = SPACES["camvid-11"]


def image(seed=0, size=(24, 32)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for index in range(3):
        write_image(tmp_path / "images" / "a" / f"{index}.png", image(index))
        write_label(tmp_path / "labels" / "a" / f"{index}.png", np.full((24, 32), index, np.uint8))
    return tmp_path


def test_pairs_are_matched_by_relative_path(folder):
    data = labelled_folder(folder, CAMVID)
    assert len(data) == 3
    for index, (pixels, label) in enumerate(data):
        assert np.array_equal(pixels, image(index))
        assert (label == index).all()


def test_labels_are_mapped_to_the_wanted_space(folder):
    data = labelled_folder(folder, CAMVID, SPACES["cityscapes-19"])
    # road, sidewalk, building of Cityscapes in CamVid's order
    assert [int(label[0, 0]) for _, label in data] == [3, 4, 1]


def test_ids_outside_the_space_are_named(folder):
    bad = folder / "labels" / "a" / "1.png"
    label = np.zeros((24, 32), np.uint8)
    label[0, 0], label[0, 1], label[0, 2] = 11, 40, IGNORE
    write_label(bad, label)
    with pytest.raises(DataError, match=r"a/1\.png.*0 to 10.*'camvid-11'.*\[11, 40\]"):
        list(labelled_folder(folder, CAMVID))


def test_sizes_must_agree(folder):
    write_label(folder / "labels" / "a" / "2.png", np.zeros((24, 30), np.uint8))
    with pytest.raises(DataError, match=r"2\.png.*32x24.*30x24"):
        list(labelled_folder(folder, CAMVID))


def test_a_missing_label_is_named(folder):
    (folder / "labels" / "a" / "0.png").unlink()
    with pytest.raises(DataError, match=r"a/0\.png.*1 are missing"):
        labelled_folder(folder, CAMVID)


def test_colour_labels_are_refused(folder):
    write_image(folder / "labels" / "a" / "0.png", image())
    with pytest.raises(DataError, match=r"colours of label space 'camvid-11', found \(0, 46, 81\)"):
        list(labelled_folder(folder, CAMVID))


def test_unknown_label_space_and_missing_folders(folder, tmp_path):
    with pytest.raises(DataError, match="--label-space"):
        labelled_folder(folder)
    with pytest.raises(DataError, match="no such folder"):
        labelled_folder(tmp_path / "nowhere", CAMVID)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found none"):
        frame_folder(tmp_path / "empty")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_and_foreign_images_are_errors(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_image(path, image())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(DataError, match=rf"x\{suffix}.*truncated"):
        read_image(path)
    path.write_bytes(b"no image at all, just text")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        read_label(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("after", [b"\0" * 4096, b"MotionPhoto" * 500])
def test_a_whole_image_with_something_behind_it_is_whole(tmp_path, suffix, after):
    path = tmp_path / f"x{suffix}"
    write_image(path, image())
    expected, whole = read_image(path), path.read_bytes()
    path.write_bytes(whole + after)
    assert np.array_equal(read_image(path), expected)
    path.write_bytes(whole[: len(whole) * 3 // 4] + after)
    with pytest.raises(DataError, match="truncated"):
        read_image(path)


def test_a_change_of_shape_is_said_once(caplog):
    for _ in range(3):
        resize_image(np.zeros((361, 480, 3), np.uint8), 256, 512)
        resize_image(np.zeros((361, 480, 3), np.uint8), 224, 320)  # by 7 %
        resize_image(np.zeros((64, 512, 3), np.uint8), 64, 127)
    assert len(caplog.records) == 2
    assert "480x361 are resized to 512x256: things become 1.50 times as wide" in caplog.text
    assert "512x64 are resized to 127x64: things become 4.03 times as narrow" in caplog.text


@pytest.mark.parametrize("channels", [(), (3,)])
def test_frames_of_12_bits_are_not_read_as_night(tmp_path, monkeypatch, channels):
    path, deep = tmp_path / "x.png", np.zeros((8, 8, *channels), np.uint16)
    deep[:4] = 4000
    deep[4:] = 2048
    cv2.imwrite(str(path), deep)
    with pytest.raises(DataError, match=r"x\.png: a PNG of 16 bits whose values end at 4000"):
        read_image(path)
    monkeypatch.setenv("EDGEUDA_FRAME_BITS", "12")
    assert read_image(path)[[0, 7], 0, 0].tolist() == [250, 128]
    monkeypatch.setenv("EDGEUDA_FRAME_BITS", "16")
    assert read_image(path)[[0, 7], 0, 0].tolist() == [15, 8]
    monkeypatch.setenv("EDGEUDA_FRAME_BITS", "twelve")
    with pytest.raises(DataError, match="number of bits from 8 to 16, found 'twelve'"):
        read_image(path)
    monkeypatch.delenv("EDGEUDA_FRAME_BITS")
    chunk = b"sBIT" + bytes([12] * (3 if channels else 1))
    whole = path.read_bytes()  # the chunk goes behind the header, with its length and checksum
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(whole[:33] + chunk + whole[33:])
    assert read_image(path)[[0, 7], 0, 0].tolist() == [250, 128]
    cv2.imwrite(str(path), deep * 16)
    assert read_image(path)[[0, 7], 0, 0].tolist() == [250, 128]


def test_few_bad_frames_are_skipped_and_counted(tmp_path, caplog):
    for index in range(40):
        write_image(tmp_path / f"{index:02}.png", image(index))
    (tmp_path / "07.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        frames = frame_folder(tmp_path).sample(40)
    assert len(frames) == 39
    assert "07.png" in caplog.text
    assert "skipped 1 of 40" in caplog.text
    for index in range(2):
        (tmp_path / f"{index:02}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"at most 5%.*3 of 40.*00\.png"):
        frame_folder(tmp_path).sample(40)


def test_nearest_resize_of_labels_takes_pixel_centres():
    label = np.arange(4, dtype=np.uint8)[None].repeat(4, 0)
    assert resize_label(label, 8, 8)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_class_counts_ignore_unlabelled_pixels():
    label = np.array([[0, 0, 1, IGNORE]], np.uint8)
    assert class_counts([label, label[:, 2:]], 3).tolist() == [[2, 1, 0], [0, 1, 0]]
    assert class_counts([], 3).shape == (0, 3)


def test_spread_is_even_and_ordered():
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread("abc", 9) == ["a", "b", "c"]
