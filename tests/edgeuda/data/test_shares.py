"""Shards divided among ranks: who opens which, in which order, and what is refused."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeuda.data import shares, stores
from edgeuda.data.curation import curate
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import write_image
from edgeuda.data.shards import write_shards
from edgeuda.data.shares import ShardFiles, SharedFrames, held
from edgeuda.data.treatment import geometry_of
from edgeuda.errors import DataError
from edgeuda.records.frames import Curation, Span
from edgeuda.training.loader import Images

COUNT = 24


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEUDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shares, "COMMON", 1)


def drive(folder, count=COUNT):
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
        write_image(folder / f"{number:04d}.png", pixels)
    return folder


def sharded(folder, per=4):
    size = max(path.stat().st_size for path in folder.iterdir())
    write_shards(folder, folder.parent / "s-%02d.tar", int((per + 0.5) * (size + 100)))
    last = len(list(folder.parent.glob("s-*.tar"))) - 1
    return folder.parent / f"s-{{00..{last:02d}}}.tar"


@pytest.fixture
def pattern(tmp_path):
    """Six shards of four frames."""
    found = sharded(drive(tmp_path / "drive"))
    assert found.name == "s-{00..05}.tar"
    return found


@pytest.fixture
def opened(monkeypatch):
    """Names of the shards whose members were listed."""
    names = []
    members = stores._members

    def listing(shard, prefix):
        names.append(shard.stem)
        return members(shard, prefix)

    monkeypatch.setattr(stores, "_members", listing)
    return names


def test_numbers_and_names_are_those_of_the_whole_list(pattern):
    files, whole = ShardFiles(frame_folder(pattern).root), frame_folder(pattern)
    assert len(files) == len(whole) == COUNT
    assert [files.name(index) for index in range(COUNT)] == list(map(whole.name_of, whole))
    assert list(files) == list(whole)
    assert files.name(-1) == files.name(COUNT - 1)
    with pytest.raises(IndexError):
        files.name(COUNT)


def test_a_rank_opens_its_own_shards_and_the_common_one(pattern, opened):
    frames = SharedFrames(pattern, 1, 3)
    assert len(frames) == COUNT
    assert not opened
    assert list(frames.own) == [4, 5, 6, 7, 16, 17, 18, 19]
    assert list(frames.common) == [0, 1, 2, 3]
    images = Images(frames, (12, 16))
    for item in range(9):
        for index in images.draw(range((3 * item + 1) * 2, (3 * item + 2) * 2), 0, 1):
            assert images[index][0].shape == (12, 16, 3)
    assert sorted(set(opened)) == ["s-01", "s-04"]
    assert len(opened) == 2
    assert frames.one_each[0].parent.name == "s-00"
    assert sorted(set(opened)) == ["s-00", "s-01", "s-04"]
    assert len(list(frames.identity())) == 6 + 2
    assert images.identity() is not None
    assert len(opened) == 3


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_an_epoch_of_a_rank_is_its_share_once(pattern, batch):
    ranks, seen = 2, Counter()
    for rank in range(ranks):
        frames = SharedFrames(pattern, rank, ranks)
        images = Images(frames, (12, 16))
        drawn = []
        for item in range(24 // batch + 1):
            first = (item * ranks + rank) * batch
            drawn += images.draw(range(first, first + batch), 7, 1)
        for epoch in (drawn[:12], drawn[12:24]):
            assert sorted(epoch) == list(frames.own)
        assert drawn[:12] != drawn[12:24]
        seen.update(drawn[:12])
        again = (9 * ranks + rank) * batch  # a run that goes on asks for the tenth batch first
        tenth = Images(SharedFrames(pattern, rank, ranks), (12, 16)).draw(
            range(again, again + batch), 7, 1
        )
        assert len(drawn) < 10 * batch or tenth == drawn[9 * batch : 10 * batch]
    assert seen == Counter(range(COUNT))


def test_each_frame_is_worked_on_by_one_rank(pattern):
    found = []
    for rank in range(3):
        images = Images(SharedFrames(pattern, rank, 3), (12, 16))
        found += images.portion(rank, 3)
        assert list(images.common) == [0, 1, 2, 3]
    assert sorted(found) == list(range(COUNT))


def test_what_stands_in_for_a_broken_frame_lies_in_its_shard(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("edgeuda.data.frames.MAX_BAD_SHARE", 0.2)
    pattern = sharded(drive(tmp_path / "drive"))
    for number in (7, 13):  # the last one of rank 1's first shard; one of rank 0
        path = next(tmp_path.glob(f"s-0{number // 4}.tar"))
        with tarfile.open(path) as tar:
            start = tar.getmember(f"{number:06d}.png").offset_data
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"no image")
    frames = SharedFrames(pattern, 1, 3)
    frames.whole = True  # as in training
    whole = frame_folder(pattern)
    assert np.array_equal(frames.read(7), whole.read(4))
    assert "000007.png" in caplog.text
    assert frames._bad() == 1
    assert frames.read(13) is not None
    assert sorted(frames.broken) == [7, 13]
    assert frames._bad() == 1, "that of another rank counts there"


def test_identity_is_of_shards_and_ranks(pattern):
    def one(rank=0, ranks=2):
        return list(SharedFrames(pattern, rank, ranks).identity())

    before = one()
    assert one(rank=1) == before
    assert one(ranks=3) != before
    shard = pattern.with_name("s-03.tar")
    os.utime(shard, (1, 1))
    assert one() != before


def test_what_cannot_be_divided_is_refused(tmp_path, pattern):
    with pytest.raises(DataError, match="expected a shard for each of 7 ranks at least, found 6"):
        SharedFrames(pattern, 0, 7)
    with pytest.raises(DataError, match="shares of 4 to 8 frames"):
        SharedFrames(pattern, 0, 4)
    with tarfile.open(tmp_path / "t-0.tar", "w") as tar:
        tar.add(tmp_path / "drive/0000.png", "000000.png")
    with pytest.raises(DataError, match=r"t-0\.tar: expected a shard of `edgeuda data shard`"):
        held(tmp_path / "t-0.tar")
    with pytest.raises(DataError, match=r"t-1\.tar: expected a shard, found no file"):
        held(tmp_path / "t-1.tar")


def test_a_shard_that_holds_something_else_than_it_says_is_found_out(tmp_path, pattern):
    (tmp_path / "s-02.tar").write_bytes((tmp_path / "s-01.tar").read_bytes())
    assert ShardFiles(frame_folder(pattern).root).name(8) == "s-02/000004.png"  # as many as before
    with (
        tarfile.open(tmp_path / "s-03.tar", "w", format=tarfile.USTAR_FORMAT) as tar,
        tarfile.open(tmp_path / "s-01.tar") as other,
    ):
        for member in other:
            if member.name != "000005.png":
                tar.addfile(member, other.extractfile(member))
    with pytest.raises(DataError, match=r"s-03\.tar: expected 4 frames, .* found 3"):
        SharedFrames(pattern, 1, 2)[12]


def test_treatment_is_known_of_what_a_rank_opens(tmp_path):
    drive(tmp_path / "raw")
    curate(tmp_path / "raw", tmp_path / "frames", Span(), Curation(distinct=0, crop=(0, 0, 8, 8)))
    write_shards(tmp_path / "frames", tmp_path / "s-%02d.tar", 3000)
    last = len(list(tmp_path.glob("s-*.tar"))) - 1
    frames = SharedFrames(tmp_path / f"s-{{00..{last:02d}}}.tar", 1, 2)
    assert geometry_of(frames.one_each).crop == (0, 0, 8, 8)


def test_shards_of_a_store_are_fetched_by_who_draws_from_them(tmp_path, pattern):
    fsspec = pytest.importorskip("fsspec", reason="needs the extra s3")
    store = fsspec.filesystem("memory")
    for shard in tmp_path.glob("s-*.tar"):
        store.put(str(shard), f"/bucket/{shard.name}")
    there = SharedFrames(Path(f"memory://bucket/{pattern.name}"), 1, 3)
    here = SharedFrames(pattern, 1, 3)
    assert len(list(there.identity())) == 8

    def fetched():
        return sorted(path.name for path in (tmp_path / "cache").rglob("*.tar"))

    assert list(there.own) == list(here.own)
    assert not fetched()
    assert np.array_equal(there.read(17), here.read(17))
    assert fetched() == ["s-04.tar"]
    store.store.clear()
    store.pseudo_dirs[:] = [""]
