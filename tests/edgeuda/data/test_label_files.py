"""Label files in every form that people save them, and lists of files."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from edgeuda.data.folders import labelled_folder
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import read_image, read_label, write_image, write_label
from edgeuda.data.label_files import read_channel, read_colours, read_ids, read_palette_index
from edgeuda.data.lists import read_list, write_list
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import short_name, write_atomic
from edgeuda.labels import IGNORE, SPACES

CITY, CARLA = SPACES["cityscapes-19"], SPACES["carla-0.9.14"]
FRAME = np.full((4, 6, 3), 90, np.uint8)


def label(*values):
    found = np.zeros((4, 6), np.uint8)
    found.ravel()[: len(values)] = values
    return found


def coloured(ids, space):
    return space.colors()[ids]


def test_ids_colours_and_palettes_of_one_space_are_the_same_labels(tmp_path):
    ids = label(0, 13, 18, 2)
    write_label(tmp_path / "ids.png", ids)
    write_image(tmp_path / "colours.png", coloured(ids, CITY))
    alpha = np.dstack([coloured(ids, CITY)[:, :, ::-1], np.full((4, 6), 255, np.uint8)])
    cv2.imwrite(str(tmp_path / "alpha.png"), alpha)
    indexed = Pillow.fromarray(ids, "P")
    indexed.putpalette(CITY.colors()[:19].ravel().tolist())
    indexed.save(tmp_path / "palette.png")
    grey = Pillow.fromarray(ids, "P")
    grey.putpalette([value for value in range(256) for _ in range(3)])
    grey.save(tmp_path / "greys.png")
    for name in ("ids", "colours", "alpha", "palette", "greys"):
        assert np.array_equal(read_ids(tmp_path / f"{name}.png", CITY), ids), name


def grey_png(ids, depth):
    """A grey PNG of fewer than 8 bits per pixel, written by hand: few libraries can."""
    rows, columns = ids.shape
    bits = np.unpackbits(ids[..., None], axis=2)[..., 8 - depth :].reshape(rows, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", columns, rows, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_files_of_few_bits_hold_the_numbers_they_hold(depth, tmp_path):
    ids = label(*range(2**depth))
    path = tmp_path / "mask.png"
    path.write_bytes(grey_png(ids, depth))
    assert np.array_equal(np.asarray(Pillow.open(path).convert("L")).max(), 255)  # as it is drawn
    for read in (read_label, read_palette_index, lambda file: read_ids(file, CITY)):
        assert np.array_equal(read(path), ids)


def test_a_boolean_mask_keeps_class_1(tmp_path):
    Pillow.fromarray(label(0, 1, 1).astype(bool)).save(tmp_path / "mask.png")
    assert np.array_equal(read_ids(tmp_path / "mask.png", CITY), label(0, 1, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_no_label_whatever_its_name(channels, tmp_path):
    pixels = np.full((8, 8) if channels == 1 else (8, 8, 3), 7, np.uint8)
    (tmp_path / "0.png").write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    for read in (
        read_label, lambda file: read_ids(file, CITY), lambda file: read_colours(file, CITY),
        lambda file: read_channel(file, 0),
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"0\.png: expected a label image, found a JPEG"):
            read(tmp_path / "0.png")


def test_a_palette_whose_colours_say_something_else_is_refused(tmp_path):
    """An image editor that saves colours with few entries numbers them as it likes."""
    few = Pillow.fromarray(label(0, 1, 2), "P")
    few.putpalette([*CITY.palette[10], *CITY.palette[13], *CITY.palette[0]])
    few.save(tmp_path / "few.png")
    with pytest.raises(DataError, match=r"few\.png: index 0 .* class 'sky'.* not class 0"):
        read_ids(tmp_path / "few.png", CITY)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 6, 3), (35, 142, 107), np.uint8), "Red and blue seem to be swapped"),
        (np.full((4, 6, 3), 7, np.uint8), "three equal channels"),
        (np.full((4, 6, 3), (9, 8, 7), np.uint8), "expected the colours of label space"),
    ],
)
def test_colours_that_are_none(tmp_path, pixels, message):
    write_image(tmp_path / "a.png", pixels)
    with pytest.raises(DataError, match=message):
        read_ids(tmp_path / "a.png", CITY)


def test_sixteen_bits_are_not_cut_to_eight(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 6), 260, np.uint16))
    with pytest.raises(DataError, match=r"deep\.png: expected an 8-bit .* found 1 .* uint16"):
        read_ids(tmp_path / "deep.png", CITY)


@pytest.mark.parametrize(("space", "road", "car"), [("carla-0.9.14", 1, 14), ("carla-0.9", 7, 10)])
def test_carla_raw_and_coloured(tmp_path, space, road, car):
    """The semantic camera saves BGRA with the tag in red; its palette is that of Cityscapes."""
    tags = label(road, car, 0)
    tags[1:] = road
    raw = np.zeros((4, 6, 4), np.uint8)
    raw[:, :, 2], raw[:, :, 3] = tags, 255
    write_image(tmp_path / "images/1.png", FRAME)
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "labels/1.png"), raw)
    data = labelled_folder(tmp_path, CITY, SPACES[space])
    expected = [0, 13, IGNORE, IGNORE]
    assert data.read(0)[1].ravel()[:4].tolist() == expected
    numbered = data.read(0)[1]
    cv2.imwrite(str(tmp_path / "labels/1.png"), raw[:, :, 2])
    assert np.array_equal(data.read(0)[1], numbered)
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[tags == road], colours[tags == car] = (128, 64, 128), (0, 0, 142)
    write_image(tmp_path / "labels/1.png", colours)
    assert np.array_equal(data.read(0)[1], numbered)
    raw[0, 0, 2] = 99
    cv2.imwrite(str(tmp_path / "labels/1.png"), raw)
    with pytest.raises(DataError, match=r"expected the tags .* found \[99\]"):
        data.read(0)


def test_carla_fences_in_the_colours_of_two_versions(tmp_path):
    fence = CARLA.classes.index("Fence")
    for colour in ((190, 153, 153), (100, 40, 40)):
        write_image(tmp_path / "a.png", np.full((2, 2, 3), colour, np.uint8))
        assert (read_ids(tmp_path / "a.png", CARLA) == fence).all()


def test_dataset_json_may_name_a_space(tmp_path):
    write_image(tmp_path / "images/a.png", FRAME)
    write_label(tmp_path / "labels/a.png", label(14, 1))
    (tmp_path / "dataset.json").write_text(
        '{"schema": "edgeuda.dataset/1", "label_space": "carla-0.9.14"}'
    )
    assert labelled_folder(tmp_path, CITY).read(0)[1].ravel()[:3].tolist() == [13, 0, IGNORE]


def test_lists_of_pairs_and_of_frames(tmp_path):
    for name in ("a", "b c"):
        write_image(tmp_path / f"x/{name}.jpg", FRAME)
        write_label(tmp_path / f"y/{name}.png", label(3))
    (tmp_path / "pairs.csv").write_text(
        'image,label\nx/a.jpg,y/a.png\n\n# held out\n"x/b c.jpg", y/b c.png\n', encoding="utf-8-sig"
    )
    (tmp_path / "pairs.txt").write_text("x/a.jpg y/a.png\n")
    (tmp_path / "tabs.txt").write_text("x/b c.jpg\ty/b c.png\n")
    (tmp_path / "frames.txt").write_text("x/b c.jpg\n" + str(tmp_path / "x/a.jpg") + "\n")
    pairs = labelled_folder(tmp_path / "pairs.csv", CITY)
    assert [pair.image.name for pair in pairs.pairs] == ["a.jpg", "b c.jpg"]
    assert pairs.read(1)[1].ravel()[0] == 3
    assert len(labelled_folder(tmp_path / "pairs.txt", CITY)) == 1
    assert labelled_folder(tmp_path / "tabs.txt", CITY).pairs[0].label.name == "b c.png"
    assert [path.name for path in frame_folder(tmp_path / "frames.txt")] == ["b c.jpg", "a.jpg"]
    assert len(frame_folder(tmp_path / "pairs.csv")) == 2  # its first column


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x/a.jpg\n", r"line 1: expected an image and its label, found 'x/a\.jpg'"),
        (b"# nothing\n", "expected the names of files"),
        (b"\xff\xfe\x00x", "expected a list in UTF-8"),
    ],
)
def test_lists_that_are_none(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / "list.csv", 2)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: expected a readable list"):
        labelled_folder(tmp_path / "gone.txt", CITY)


def test_unmapped_classes_are_refused_unless_told_otherwise(tmp_path, caplog):
    write_image(tmp_path / "images/a.png", FRAME)
    write_label(tmp_path / "labels/a.png", label(0, 9))
    thirteen, robot = SPACES["cityscapes-13"], SPACES["robotcar-9"]
    with pytest.raises(ConfigError, match="`ignore_unmapped`"):
        labelled_folder(tmp_path, robot, thirteen)
    with caplog.at_level("INFO"):
        data = labelled_folder(tmp_path, robot, thirteen, ignore_unmapped=True)
    assert data.read(0)[1].ravel()[:2].tolist() == [8, robot.classes.index("automobile")]
    assert "labels of cityscapes-13 as robotcar-9" in caplog.text
    assert "car -> automobile" in caplog.text


def test_what_exif_and_suffixes_do(tmp_path):
    picture = Pillow.fromarray(FRAME)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images/A.JPG", exif=exif)
    write_label(tmp_path / "labels/A.png", label(1))
    (tmp_path / "labels/A.png").rename(tmp_path / "labels/A.PNG")
    data = labelled_folder(tmp_path, CITY)
    with pytest.raises(DataError, match=r"\(4x6\), found 6x4. The image's EXIF orientation"):
        data.read(0)


@pytest.mark.parametrize("stem", ["x" * 251, "目" * 83, "name with spaces, commas\t[and] more"])
def test_long_and_foreign_names_go_through(tmp_path, stem):
    """255 bytes are what file systems allow; nothing that is written beside may be longer."""
    write_image(tmp_path / f"images/{stem}.png", FRAME)
    write_atomic(tmp_path / f"labels/{stem}.png", lambda name: write_label(name, label(3)))
    data = labelled_folder(tmp_path, CITY)
    assert data.read(0)[1].ravel()[0] == 3
    assert [path.stem for path in frame_folder(tmp_path / "images")] == [stem]
    write_list(tmp_path / "pairs.csv", ("image", "label"), [(p.image, p.label) for p in data.pairs])
    assert labelled_folder(tmp_path / "pairs.csv", CITY).pairs[0].label.stem == stem
    assert len(short_name(stem).encode()) <= 150


def test_frames_with_alpha_in_grey_and_of_16_bits_are_read_as_viewers_show_them(tmp_path):
    rgb = np.full((4, 6, 3), (200, 100, 50), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([rgb[:, :, ::-1], np.full((4, 6), 9, np.uint8)]))
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)
    cv2.imwrite(str(tmp_path / "b.png"), rgb[:, :, 0])
    assert np.array_equal(read_image(tmp_path / "b.png"), np.full((4, 6, 3), 200, np.uint8))
    cv2.imwrite(str(tmp_path / "c.png"), rgb[:, :, ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "c.png"), rgb)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(rgb).save(tmp_path / "d.jpg", exif=exif)
    assert read_image(tmp_path / "d.jpg").shape == (6, 4, 3)


def test_broken_links_and_empty_files_among_frames_are_skipped_and_named(tmp_path, caplog):
    for index in range(60):
        write_image(tmp_path / f"{index:02d}.png", FRAME)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "empty.PNG").touch()
    assert len(frame_folder(tmp_path).sample(62)) == 60
    assert "gone.png" in caplog.text
    assert "empty.PNG" in caplog.text
    assert "skipped 2 of 62 images" in caplog.text
    for index in range(4):
        (tmp_path / f"none{index}.jpg").touch()
    with pytest.raises(DataError, match=r"at most 5% unreadable images, found 6 of 66"):
        frame_folder(tmp_path).sample(66)
