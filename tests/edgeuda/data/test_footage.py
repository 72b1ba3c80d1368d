"""Footage: folders, videos, lists, near-duplicates, lenses; what is broken in them."""

import json
import os
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeuda.data import curation as curation_module
from edgeuda.data import footage as module
from edgeuda.data import walk
from edgeuda.data.curation import Lens, Preparation, curate, parse_crop
from edgeuda.data.footage import VIDEO_SUFFIXES, camera, footage, read_ahead
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import IMAGE_SUFFIXES, list_images, read_image, write_image
from edgeuda.data.walk import sorted_names
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import write_text
from edgeuda.records.frames import Curation, Span

SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def picture(value, height=48, width=64):
    """A frame that differs from that of another value everywhere."""
    rng = np.random.default_rng(value)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


def video(path, count=20, fps=10, still=()):
    """A video of ``count`` frames; those in ``still`` repeat the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))
    for index in range(count):
        value = max(i for i in range(index + 1) if i not in still)
        writer.write(np.ascontiguousarray(picture(value)[:, :, ::-1]))
    writer.release()
    return path


def matroska(frames, times, duration):
    """Bytes of a Matroska video of JPEG frames at any times, in milliseconds."""

    def element(code, content):
        if isinstance(content, int):
            content = content.to_bytes(4, "big")
        elif isinstance(content, float):
            content = struct.pack(">d", content)
        size = (0x01 << 56 | len(content)).to_bytes(8, "big")
        return bytes.fromhex(code) + size + content

    height, width = frames[0].shape[:2]
    head = element("1A45DFA3", element("4282", b"matroska") + element("4287", 4))
    info = element("1549A966", element("2AD7B1", 1_000_000) + element("4489", float(duration)))
    video = element("E0", element("B0", width) + element("BA", height))
    entry = element("D7", 1) + element("73C5", 1) + element("83", 1) + element("86", b"V_MJPEG")
    track = element("1654AE6B", element("AE", entry + video))
    clusters = b""
    for frame, at in zip(frames, times, strict=True):
        encoded = cv2.imencode(".jpg", frame)[1].tobytes()
        block = b"\x81" + struct.pack(">h", 0) + b"\x80" + encoded
        clusters += element("1F43B675", element("E7", at) + element("A3", block))
    return head + element("18538067", info + track + clusters)


def folder(path, count):
    for index in range(count):
        write_image(path / f"{index:03d}.png", picture(index))
    return path


def names(frames):
    return [frame.name for frame in frames]


class TestReading:
    def test_folders_videos_and_lists_of_both(self, tmp_path):
        folder(tmp_path / "a" / "b", 2)
        video(tmp_path / "one.avi", 3)
        video(tmp_path / "two" / "one.avi", 2)
        write_text(tmp_path / "list.txt", "a\none.avi\ntwo/one.avi\na/b/001.png\n")
        found = list(footage(tmp_path / "list.txt"))
        assert len(found) == 2 + 3 + 2 + 1
        assert len(set(names(found))) == len(found)
        assert np.array_equal(found[1].image, picture(1))
        assert np.abs(found[3].image.astype(int) - picture(1)).mean() < 12  # a lossy video
        assert [frame.index for frame in found] == [0, 1, 0, 1, 2, 0, 1, 2]
        assert len(list(footage(tmp_path))) == 2 + 3 + 2  # a folder may hold videos

    def test_spans_of_videos_and_of_folders_are_the_same(self, tmp_path):
        video(tmp_path / "v.avi", 20, fps=10)
        folder(tmp_path / "f", 20)
        for span, expected in (
            (Span(fps=10, start=0.5, end=1.0), [5, 6, 7, 8, 9]),
            (Span(fps=10, rate=5), list(range(0, 20, 2))),
            (Span(fps=10, rate=3), [0, 4, 8, 12, 16]),
            (Span(fps=10, rate=100), list(range(20))),
            (Span(fps=10, start=1.8), [18, 19]),
        ):
            for source in ("v.avi", "f"):
                found = list(footage(tmp_path / source, span))
                assert [frame.index for frame in found] == expected, (source, span)
                assert found[0].seconds == pytest.approx(expected[0] / 10)

    def test_skipped_frames_are_not_decoded(self, tmp_path, monkeypatch):
        folder(tmp_path, 6)
        read = []
        monkeypatch.setattr(module, "read_image", lambda path: read.append(path) or picture(0))
        assert len(list(footage(tmp_path, skip=4))) == 2
        assert [path.name for path in read] == ["004.png", "005.png"]

    def test_a_broken_tail_ends_a_video_with_a_warning(self, tmp_path, caplog):
        whole = video(tmp_path / "v.avi", 30).read_bytes()
        (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
        found = list(footage(tmp_path / "cut.avi"))
        assert 5 < len(found) < 30
        assert f"cut.avi: ends after {len(found)} frames, at 1.0 of 3.0 seconds" in caplog.text

    def test_times_are_those_of_the_container(self, tmp_path, caplog):
        """Ten frames at 30 per second, then ten at 2 per second; nothing is broken."""
        times = [33 * index for index in range(10)] + [330 + 500 * index for index in range(10)]
        path = tmp_path / "phone.mkv"
        path.write_bytes(matroska([picture(index) for index in range(20)], times, 5330))
        assert [frame.seconds for frame in footage(path)] == pytest.approx(np.array(times) / 1000)
        found = list(footage(path, Span(start=1.0, end=4.0, rate=1.5)))
        assert [frame.index for frame in found] == [12, 14, 16]
        assert not caplog.text
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        cut = list(footage(path))
        assert 5 < len(cut) < 15
        assert "of 5.3 seconds; the rest cannot be decoded" in caplog.text

    def test_frames_that_were_changed_are_not_taken_for_a_cameras(self, tmp_path, caplog):
        folder(tmp_path / "in", 3)
        for name, settings in (("plain", Curation()), ("cut", Curation(crop=(4, 2, 50, 40)))):
            curate(tmp_path / "in", tmp_path / name, Span(), settings)
            assert len(frame_folder(tmp_path / name)) == 3
        assert "plain" not in caplog.text
        assert "cut: these frames were cropped by `edgeuda data frames`" in caplog.text

    def test_linked_folders_are_entered_and_circles_are_not(self, tmp_path, caplog):
        folder(tmp_path / "disk" / "deep", 2)
        folder(tmp_path / "drive", 1)
        (tmp_path / "drive/other").symlink_to(tmp_path / "disk")
        (tmp_path / "disk/deep/back").symlink_to(tmp_path / "drive")
        wanted = ["000.png", "other/deep/000.png", "other/deep/001.png"]
        found = list_images(tmp_path / "drive")
        assert [str(path.relative_to(tmp_path / "drive")) for path in found] == wanted
        assert list(sorted_names(tmp_path / "drive", SUFFIXES)) == wanted
        assert len(names(footage(tmp_path / "drive"))) == 3
        assert "back: leads back to a folder above it" in caplog.text

    def test_hidden_and_temporary_files_are_no_frames(self, tmp_path, caplog):
        folder(tmp_path, 2)
        for name in (".0123.77.tmp.png", "._000.png"):
            (tmp_path / name).write_bytes(b"half of a picture")
        folder(tmp_path / ".thumbnails", 3)
        with caplog.at_level("INFO"):
            assert [path.name for path in list_images(tmp_path)] == ["000.png", "001.png"]
        assert "left out 2 files whose name begins with a dot" in caplog.text

    @pytest.mark.parametrize("content", [b"", b"not a video" * 100])
    def test_what_is_no_video(self, tmp_path, content):
        (tmp_path / "v.mp4").write_bytes(content)
        with pytest.raises(DataError, match=r"v\.mp4: expected a video"):
            list(footage(tmp_path / "v.mp4"))

    def test_damaged_images_are_left_out_and_nothing_at_all_is_an_error(self, tmp_path, caplog):
        folder(tmp_path / "f", 3)
        (tmp_path / "f" / "001.png").write_bytes(b"")
        (tmp_path / "f" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        assert len(list(footage(tmp_path / "f"))) == 2
        assert "001.png" in caplog.text
        assert "gone.png" in caplog.text
        for index in (0, 2):
            (tmp_path / "f" / f"00{index}.png").write_bytes(b"x")
        with pytest.raises(DataError, match="expected frames that can be read"):
            list(footage(tmp_path / "f"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="expected images, videos or recordings"):
            list(footage(tmp_path / "empty"))
        with pytest.raises(DataError, match=r"notes\.md: expected a folder, a video"):
            list(footage(tmp_path / "notes.md"))

    def test_a_camera_that_is_not_there(self):
        with pytest.raises(DataError, match="Camera 93: cannot be opened"):
            next(camera(93))

    @pytest.mark.parametrize(
        "span", [{"rate": 0}, {"fps": -1}, {"start": -1}, {"start": 2, "end": 1}]
    )
    def test_spans_that_are_none(self, span):
        with pytest.raises(DataError, match="Expected a span"):
            Span(**span)

    def test_a_video_as_target_says_what_to_do(self, tmp_path):
        video(tmp_path / "v.avi", 2)
        with pytest.raises(DataError, match="edgeuda data frames --footage"):
            list_images(tmp_path / "v.avi")


class TestNames:
    def test_sorted_in_parts_on_disk(self, tmp_path, monkeypatch):
        for name in (
            "b/2.JPG",
            "b/1.png",
            "a.png",
            "c d/ü.bmp",
            "b.png",
            "notes.txt",
            "x/y/z.jpeg",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / os.fsdecode(b"raw\xff\n.png")).touch()  # what Linux allows
        whole = list(sorted_names(tmp_path, SUFFIXES))
        assert len(whole) == 7
        assert whole == sorted(whole)
        of_folders = [tmp_path / name for name in whole]
        assert list(list_images(tmp_path)) == sorted(of_folders)
        monkeypatch.setattr(walk, "SORTED_AT_ONCE", 2)
        assert list(sorted_names(tmp_path, SUFFIXES)) == whole
        assert list(list_images(tmp_path)) == sorted(of_folders)
        found = list_images(tmp_path)
        assert [found.name(place) for place in found.leaders] == [
            "a.png",
            "b/1.png",
            "c d/ü.bmp",
            "x/y/z.jpeg",
        ]

    def test_as_many_names_as_fit_at_once(self, tmp_path, monkeypatch):
        folder(tmp_path, 4)
        monkeypatch.setattr(walk, "SORTED_AT_ONCE", 4)
        assert list(sorted_names(tmp_path, SUFFIXES)) == [
            "000.png",
            "001.png",
            "002.png",
            "003.png",
        ]


class TestReadingAhead:
    def test_order_errors_and_bounds(self):
        made = []

        def items():
            for index in range(100):
                made.append(index)
                yield index

        ahead = read_ahead(items(), 3)
        assert next(ahead) == 0
        time.sleep(0.3)
        assert len(made) <= 6
        assert list(ahead) == list(range(1, 100))

        def failing():
            yield 1
            raise DataError("x.png: broken")

        ahead = read_ahead(failing(), 3)
        assert next(ahead) == 1
        with pytest.raises(DataError, match="broken"):
            next(ahead)

    def test_closing_ends_the_thread_and_its_source(self):
        closed = []

        def items():
            try:
                while True:
                    yield 0
            finally:
                closed.append(True)

        ahead = read_ahead(items(), 2)
        next(ahead)
        ahead.close()
        assert closed == [True]


class TestCuration:
    def test_near_duplicates_are_dropped_and_counted(self, tmp_path):
        video(tmp_path / "v.avi", 12, still={4, 5, 6, 9})
        found = curate(tmp_path / "v.avi", tmp_path / "out", Span(), Curation())
        assert (found.seen, found.kept, found.duplicates) == (12, 8, 4)
        lines = [json.loads(line) for line in (tmp_path / "out/frames.jsonl").open()]
        assert [line["index"] for line in lines] == [0, 1, 2, 3, 7, 8, 10, 11]
        assert lines[4]["seconds"] == 0.7
        assert len(list_images(tmp_path / "out")) == 8
        record = json.loads((tmp_path / "out/frames.json").read_text())
        assert record["kept"] == 8
        everything = curate(tmp_path / "v.avi", tmp_path / "all", Span(), Curation(distinct=0))
        assert everything.kept == 12

    def test_slow_change_is_kept_at_last(self, tmp_path):
        """Each frame is like the one before, but not like the last that was kept."""
        for index in range(10):
            write_image(tmp_path / f"f/{index}.png", np.full((8, 8, 3), 100 + index, np.uint8))
        found = curate(tmp_path / "f", tmp_path / "out", Span(), Curation(distinct=3))
        assert found.kept == 4

    @pytest.mark.parametrize("noted", [1, 3, 50])
    def test_an_interrupted_call_goes_on(self, tmp_path, monkeypatch, noted):
        monkeypatch.setattr(curation_module, "NOTED", noted)
        source = video(tmp_path / "v.avi", 14, still={3, 8, 9})
        curate(source, tmp_path / "whole", Span(), Curation(), ".png")

        def stop(progress):
            if progress.seen == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            curate(source, tmp_path / "cut", Span(), Curation(), ".png", report=stop)
        with pytest.raises(OutputExistsError, match="`resume`"):
            curate(source, tmp_path / "cut", Span(), Curation(), ".png")
        found = curate(source, tmp_path / "cut", Span(), Curation(), ".png", resume=True)
        assert (found.seen, found.kept) == (14, 11)
        for path in Path(tmp_path / "whole").rglob("*"):
            if path.is_file():
                other = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
                assert other.read_bytes() == path.read_bytes(), path.name
        again = curate(source, tmp_path / "cut", Span(), Curation(), ".png", resume=True)
        assert again.kept == 11

    def test_an_interrupted_call_goes_on_after_a_frame_that_cannot_be_read(
        self, tmp_path, monkeypatch
    ):
        """Else the frame after it would be extracted twice."""
        monkeypatch.setattr(curation_module, "NOTED", 1)
        every = Curation(distinct=0)
        folder(tmp_path / "f", 6)
        sorted((tmp_path / "f").iterdir())[1].write_bytes(b"no image")
        whole = curate(tmp_path / "f", tmp_path / "whole", Span(), every, ".png")
        assert (whole.seen, whole.kept) == (6, 5)

        def stop(progress):
            if progress.kept == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            curate(tmp_path / "f", tmp_path / "cut", Span(), every, ".png", report=stop)
        found = curate(tmp_path / "f", tmp_path / "cut", Span(), every, ".png", resume=True)
        assert found == whole
        lines = [(tmp_path / name / "frames.jsonl").read_text() for name in ("whole", "cut")]
        assert lines[0] == lines[1]

    def test_other_settings_are_not_mixed_in(self, tmp_path):
        folder(tmp_path / "f", 3)
        curate(tmp_path / "f", tmp_path / "out", Span(), Curation())
        with pytest.raises(OutputExistsError, match="other footage or settings"):
            curate(tmp_path / "f", tmp_path / "out", Span(), Curation(distinct=9), resume=True)

    def test_bonnet_and_overlay(self, tmp_path):
        folder(tmp_path / "f", 1)
        mask = np.full((40, 50, 3), 255, np.uint8)
        mask[:5] = 0
        write_image(tmp_path / "mask.png", mask)
        settings = Curation(crop=(4, 2, 50, 40), mask=str(tmp_path / "mask.png"))
        curate(tmp_path / "f", tmp_path / "out", Span(), settings, ".png")
        found = read_image(list_images(tmp_path / "out")[0])
        assert np.array_equal(found[5:], picture(0)[7:42, 4:54])
        assert (found[:5] == 127).all()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"crop": (30, 0, 50, 40)}, "crop of 50x40 at 30,0 does not lie within"),
            ({"mask": "f/000.png", "crop": (0, 0, 8, 8)}, "expected a mask of"),
            ({"mask": "gone.png"}, r"gone\.png"),
            ({"calibration": "gone.yml"}, r"gone\.yml: expected an OpenCV calibration"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, monkeypatch, settings, message):
        monkeypatch.chdir(tmp_path)
        folder(tmp_path / "f", 1)
        with pytest.raises(DataError, match=message):
            curate(tmp_path / "f", tmp_path / "out", Span(), Curation(**settings))

    def test_crops_in_words(self):
        assert parse_crop("1,2,30,40") == (1, 2, 30, 40)
        with pytest.raises(ConfigError, match="LEFT,TOP,WIDTH,HEIGHT"):
            parse_crop("1,2,3")

    @pytest.mark.parametrize("name", ["日本の道" * 12, "x" * 240])
    def test_long_and_foreign_names(self, tmp_path, name):
        write_image(tmp_path / "f" / f"{name}.png", picture(0))
        curate(tmp_path / "f", tmp_path / "out", Span(), Curation())
        assert len(list_images(tmp_path / "out")) == 1


MATRIX = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])


def calibration(path, distortion, **more):
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    file.write("image_width", 64)
    file.write("image_height", 48)
    file.write("camera_matrix", MATRIX)
    file.write("distortion_coefficients", np.array([distortion], np.float64))
    for key, value in more.items():
        file.write(key, value)
    file.release()
    return str(path)


class TestLens:
    @pytest.mark.parametrize("suffix", ["yml", "xml", "json"])
    def test_undistortion_is_opencvs(self, tmp_path, suffix):
        bent = [-0.3, 0.1, 0.001, -0.002, 0.0]
        path = calibration(tmp_path / f"camera.{suffix}", bent)
        found = Preparation(Curation(calibration=path))(picture(1), Path("a.png"))
        expected = cv2.undistort(picture(1), MATRIX, np.array(bent))
        assert np.abs(found.astype(int) - expected).mean() < 1
        assert np.abs(found.astype(int) - picture(1)).mean() > 3

    def test_no_distortion_changes_nothing(self, tmp_path):
        path = calibration(tmp_path / "camera.yml", [0.0] * 5)
        found = Preparation(Curation(calibration=path))(picture(1), Path("a.png"))
        assert np.array_equal(found, picture(1))

    def test_frames_of_another_size_scale_the_matrix(self, tmp_path):
        lens = Lens.read(Path(calibration(tmp_path / "camera.yml", [-0.3, 0.1, 0, 0, 0])))
        small, large = lens.maps(48, 64, Path("a")), lens.maps(96, 128, Path("a"))
        assert np.abs(large[0][::2, ::2].astype(int) - 2 * small[0]).max() <= 2
        with pytest.raises(DataError, match=r"a: the calibration is for 64x48.*aspect"):
            lens.maps(48, 128, Path("a"))

    def test_fisheye(self, tmp_path):
        path = calibration(tmp_path / "c.yml", [0.1, 0.01, 0, 0], distortion_model="equidistant")
        lens = Lens.read(Path(path))
        assert lens.fisheye
        found = Preparation(Curation(calibration=path))(picture(1), Path("a.png"))
        assert found.shape == (48, 64, 3)
        assert not np.array_equal(found, picture(1))

    def test_files_that_are_none(self, tmp_path):
        write_text(tmp_path / "c.yml", "%YAML:1.0\n---\nfocal: 3\n")
        with pytest.raises(DataError, match=r"c\.yml: expected camera_matrix"):
            Lens.read(tmp_path / "c.yml")
        write_text(tmp_path / "d.yml", "nonsense")
        with pytest.raises(DataError, match=r"d\.yml: expected"):
            Lens.read(tmp_path / "d.yml")
