"""Shards: what WebDataset and we read in them, the same bytes again, and what is refused."""

import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.data.curation import curate
from edgeuda.data.folders import labelled_folder
from edgeuda.data.footage import footage
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import image_size, list_images, read_image, write_image, write_label
from edgeuda.data.shards import write_shards
from edgeuda.data.stores import located
from edgeuda.data.treatment import treatment_of
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import sha256
from edgeuda.labels import label_space
from edgeuda.records.frames import Curation, Span

COUNT = 10


def picture(number):
    return np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEUDA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def drive(tmp_path):
    for number in range(COUNT):
        write_image(tmp_path / "drive" / f"{number:04d}.png", picture(number))
    return tmp_path / "drive"


@pytest.fixture
def limit(drive):
    """Bytes into which three samples fit."""
    return int(3.5 * max(path.stat().st_size + 100 for path in drive.iterdir()))


def sums(folder):
    return {path.name: sha256(path) for path in sorted(folder.glob("*.tar"))}


def test_shards_are_footage_in_its_order(tmp_path, drive, limit):
    out = tmp_path / "shards" / "s-%02d.tar"
    assert write_shards(drive, out, limit) == (COUNT, 4)
    pattern = tmp_path / "shards" / "s-{00..03}.tar"
    frames = frame_folder(pattern)
    assert [frames.name_of(path) for path in frames][2:4] == ["s-00/000002.png", "s-01/000003.png"]
    for number, (path, frame) in enumerate(zip(frames, footage(pattern), strict=True)):
        assert (read_image(path) == picture(number)).all()
        assert (frame.image == picture(number)).all()
    assert image_size(frames[0]) == (32, 24)
    assert len(frame_folder(out.with_name("s-01.tar"))) == 3
    with tarfile.open(out.with_name("s-01.tar")) as tar:
        about = json.load(tar.extractfile("000004.json"))
    assert about == {"origin": str(drive / "0004.png"), "index": 4, "seconds": 0.133}
    assert (drive / "0004.png").read_bytes() == frames[4].read_bytes()


def test_shards_in_a_store(tmp_path, drive, limit):
    fsspec = pytest.importorskip("fsspec", reason="needs the extra s3")
    write_shards(drive, tmp_path / "shards" / "s-%02d.tar", limit)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "shards"), "/bucket/shards", recursive=True)
    frames = frame_folder(Path("memory://bucket/shards/s-{00..03}.tar"))
    assert all((read_image(path) == picture(n)).all() for n, path in enumerate(frames))
    one = frame_folder(located("memory://bucket/shards") / "s-02.tar")
    assert [str(path) for path in one][:1] == ["memory://bucket/shards/s-02.tar/000006.png"]
    assert len(one.stamp) == 64
    again = write_shards(located("memory://bucket/shards/s-02.tar"), tmp_path / "a-%02d.tar", limit)
    assert again == (3, 1)
    store.rm("/bucket", recursive=True)


def test_webdataset_reads_them(tmp_path, drive, limit):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    write_shards(drive, tmp_path / "s-%02d.tar", limit)
    url = str(tmp_path / "s-{00..03}.tar")
    found = list(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in found] == [f"{n:06d}" for n in range(COUNT)]
    assert all((sample["png"] == picture(n)).all() for n, sample in enumerate(found))
    assert found[3]["json"]["index"] == 3


def test_the_same_bytes_again_also_after_a_stop(tmp_path, drive, limit):
    (drive / "0001.png").write_bytes(b"broken")
    write_shards(drive, tmp_path / "a" / "s-%02d.tar", limit)
    whole = sums(tmp_path / "a")

    def stop(done):
        if done == 5:
            raise InterruptedError

    out = tmp_path / "b" / "s-%02d.tar"
    with pytest.raises(InterruptedError):
        write_shards(drive, out, limit, report=stop)
    assert list(sums(tmp_path / "b")) == ["s-00.tar"], "half a shard is none"
    with pytest.raises(OutputExistsError):
        write_shards(drive, out, limit)
    with pytest.raises(OutputExistsError, match="something else"):
        write_shards(drive, out, limit + 1, resume=True)
    assert write_shards(drive, out, limit, resume=True) == (COUNT - 1, 3)
    assert sums(tmp_path / "b") == whole
    assert write_shards(drive, out, limit, resume=True) == (COUNT - 1, 3)


def test_labels_become_members_and_no_frames(tmp_path):
    here, space = tmp_path / "labelled", label_space("camvid-11")
    for number in range(3):
        write_image(here / "images" / f"{number}.png", picture(number))
        write_label(here / "labels" / f"{number}.png", np.full((24, 32), number, np.uint8))
    write_shards(labelled_folder(here, space, space), tmp_path / "s-%02d.tar", 10**6)
    assert [path.name for path in list_images(tmp_path / "s-00.tar")] == [
        "000000.png", "000001.png", "000002.png",
    ]  # fmt: skip
    with tarfile.open(tmp_path / "s-00.tar") as tar:
        label = np.frombuffer(tar.extractfile("000002.seg.png").read(), np.uint8)
        own = json.load(tar.extractfile("__edgeuda__/dataset.json"))
    assert (cv2.imdecode(label, cv2.IMREAD_UNCHANGED) == 2).all()
    assert own["label_space"]["name"] == "camvid-11"


def test_what_was_done_to_frames_before_is_known_of_those_in_shards(tmp_path, drive, limit):
    cropped = tmp_path / "cropped"
    curate(drive, cropped, Span(), Curation(crop=(0, 0, 16, 12), distinct=0.0), ".png")
    write_shards(cropped, tmp_path / "s-%02d.tar", 10**7)
    frame = list_images(tmp_path / "s-00.tar")[0]
    found, before = treatment_of(frame), treatment_of(list_images(cropped)[0])
    assert found.changes == before.changes == ("cropped",)
    assert found.geometry == before.geometry
    both = tmp_path / "both.txt"
    both.write_text(f"{drive / '0000.png'}\n{list_images(cropped)[0]}\n")
    with pytest.raises(DataError, match="Shard folders one by one"):
        write_shards(both, tmp_path / "t-%02d.tar", limit)


def test_what_is_no_shard_is_said(tmp_path, drive):
    for name in ("shards.tar", "s-%d.tar", "s-%04d.zip", "s-%04d-%02d.tar", "s-{0..3}.tar"):
        with pytest.raises(ConfigError, match=r"such as shards-%04d\.tar"):
            write_shards(drive, tmp_path / name, 1000)
    for number in range(3 * COUNT):
        write_image(drive / f"more{number}.png", picture(0))
    with pytest.raises(ConfigError, match="more than 10 shards"):
        write_shards(drive, tmp_path / "few" / "s-%01d.tar", 1)
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"x\.tar: expected a shard"):
        frame_folder(tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"y-0\.tar: expected a shard, found no file"):
        frame_folder(tmp_path / "y-{0..3}.tar")
    with pytest.raises(ConfigError, match="runs forwards"):
        frame_folder(tmp_path / "y-{3..0}.tar")
    (tmp_path / "old.tar").mkdir()
    write_image(tmp_path / "old.tar" / "0.png", picture(0))
    assert len(frame_folder(tmp_path / "old.tar")) == 1, "a folder is a folder"


def test_a_shard_that_is_cut_off_is_an_error(tmp_path, drive):
    write_shards(drive, tmp_path / "s-%02d.tar", 10**7)
    whole = (tmp_path / "s-00.tar").read_bytes()
    for end in (len(whole) // 2, 512 * 9, 100, 0):
        (tmp_path / "s-00.tar").write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"s-00\.tar: expected a shard"):
            frame_folder(tmp_path / "s-00.tar")


def test_the_verb(tmp_path, drive):
    def call(*words):
        return CliRunner().invoke(app, ["data", "shard", *map(str, words)])

    done = call("--footage", drive, "--out", tmp_path / "s-%04d.tar", "--size", "1MB")
    assert done.exit_code == 0, done.output
    assert f"{COUNT} samples in 1 shards" in done.output
    assert len(frame_folder(tmp_path / "s-0000.tar")) == COUNT
    for words in ((), ("--footage", drive, "--data", drive)):
        wrong = call(*words, "--out", tmp_path / "t-%02d.tar")
        assert isinstance(wrong.exception, ConfigError)
