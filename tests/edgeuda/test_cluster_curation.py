"""Frames that workers wrote, folded in order: the folder of one process, however they were cut."""

import json

import cv2
import numpy as np
import pytest

from edgeuda.cluster import Cluster, Results, shards_folder
from edgeuda.cluster_curation import Place, curate_on_cluster, fold, looked, written
from edgeuda.data.curation import CurationProgress, Extraction, Preparation, curate
from edgeuda.data.footage import Stills, footage, name_of
from edgeuda.data.images import write_image
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import write_npz, write_text
from edgeuda.records.frames import Curation, Span

STILL = {1, 2, 5, 6, 7, 11}
BROKEN = (4, 8, 13)


def picture(value, height=48, width=64):
    rng = np.random.default_rng(value)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Fourteen frames: some stand still, some are broken, one of those is the last."""
    for index in range(14):
        value = max(i for i in range(index + 1) if i not in STILL)
        write_image(tmp_path / f"drive/{'ab'[index // 7]}/{index:03d}.png", picture(value))
    for index in BROKEN:
        (tmp_path / f"drive/{'ab'[index // 7]}/{index:03d}.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*")}


def folded(source, out, span, curation, suffix, size):
    """What `curate_on_cluster` does, with shards of some size that are worked on here."""
    stills = Stills.of(source, span)
    work = Extraction.begin(source, out, span, curation, suffix, out.exists())
    places = [
        Place(path.absolute(), name_of(path, index) + suffix)
        for path, index in zip(stills.files, stills.places, strict=True)
    ]
    every = curation.distinct <= 0
    prepare, images, files = Preparation(curation), out / "images", []
    for first in range(0, len(places), size):
        files.append(shards_folder(out) / f"{first:07d}.npz")
        found = looked(prepare, images if every else None, places[first : first + size])
        write_npz(files[-1], found)
    kept = fold(work, stills, Results(tuple(files)))
    if not every:
        written(prepare, images, [places[number] for number in kept])
    work.finish()
    return work.progress


@pytest.mark.parametrize("size", [1, 3, 256])
@pytest.mark.parametrize(
    ("span", "curation", "suffix"),
    [
        (Span(), Curation(), ".png"),
        (Span(), Curation(distinct=0), ".jpg"),
        (Span(fps=10, rate=5, start=0.2), Curation(distinct=9), ".png"),
        (Span(), Curation(crop=(4, 2, 50, 40)), ".png"),
    ],
)
def test_the_folder_is_that_of_one_process(drive, size, span, curation, suffix):
    source = drive.joinpath("drive").relative_to(drive)
    one = curate(source, drive / "one", span, curation, suffix)
    many = folded(source, drive / "many", span, curation, suffix, size)
    assert one == many
    assert folder(drive / "one") == folder(drive / "many")
    assert one.kept < one.seen


def test_lists_of_folders_and_images_too(drive):
    write_text(drive / "list.txt", "drive/b\ndrive/a/003.png\ndrive/a\n")
    curate(drive / "list.txt", drive / "one", Span(), Curation())
    folded(drive / "list.txt", drive / "many", Span(), Curation(), ".jpg", 3)
    assert folder(drive / "one") == folder(drive / "many")


def test_geometries_are_kept_in_their_order_and_said(drive, caplog):
    for index in (9, 10, 12):
        write_image(drive / f"drive/b/{index:03d}.png", picture(index, 64, 96))
    crop = Curation(crop=(0, 0, 40, 30))
    one = curate(drive / "drive", drive / "one", Span(), crop)
    assert [found["raw"] for found in one.geometries] == [[64, 48], [96, 64]]
    folded(drive / "drive", drive / "many", Span(), crop, ".jpg", 4)
    assert folder(drive / "one") == folder(drive / "many")
    assert "many: what was done to these frames" in caplog.text


def test_each_frame_is_held_against_the_last_one_kept():
    progress = CurationProgress()
    greys = [100, 101, 102, 103, 104, 100]
    small = [np.full((36, 64), grey, np.uint8) for grey in greys]
    taken = [progress.takes(place, one, None, 3.0) for place, one in enumerate(small, 1)]
    assert taken == [True, False, False, True, False, True]
    assert (progress.seen, progress.kept, progress.duplicates) == (6, 3, 3)
    assert progress.geometries == [None]


@pytest.mark.parametrize("span", [Span(), Span(fps=10, start=0.3, end=1.2), Span(fps=10, rate=3)])
def test_stills_are_the_images_of_footage_in_its_order(drive, span):
    stills = Stills.of(drive / "drive", span)
    found = list(zip(stills.files, stills.places, strict=True))
    read = [(frame.origin, frame.index) for frame in footage(drive / "drive", span)]
    broken = [one for one in found if one[1] in BROKEN]
    assert [one for one in found if one not in broken] == read


def test_a_video_is_one_stream(drive):
    (drive / "drive/a/tail.mp4").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"tail\.mp4: expected images to divide.*one stream"):
        curate_on_cluster(drive / "drive", drive / "out", Span(), Curation(), Cluster())
    assert not (drive / "out").exists()


def test_a_folder_that_one_process_began_is_left_to_it(drive, monkeypatch):
    monkeypatch.setattr("edgeuda.data.curation.NOTED", 1)

    def stop(progress):
        if progress.seen == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(drive / "drive", drive / "out", Span(), Curation(), report=stop)
    before = folder(drive / "out")
    how = (drive / "drive", drive / "out", Span(), Curation(), Cluster())
    with pytest.raises(OutputExistsError, match="`resume`"):
        curate_on_cluster(*how)
    with pytest.raises(ConfigError, match="begun in one process"):
        curate_on_cluster(*how, resume=True)
    assert folder(drive / "out") == before


def test_nothing_is_done_twice(drive):
    curate(drive / "drive", drive / "out", Span(), Curation())
    how = (drive / "drive", drive / "out", Span(), Curation(), Cluster())
    with pytest.raises(OutputExistsError):
        curate_on_cluster(*how)
    assert (
        curate_on_cluster(*how, resume=True).kept
        == json.loads((drive / "out/frames.json").read_text())["kept"]
    )


def test_footage_without_a_wanted_image_is_said_before_ray_starts(drive):
    span = Span(start=1000.0)
    with pytest.raises(DataError, match="expected frames that can be read within"):
        curate_on_cluster(drive / "drive", drive / "out", span, Curation(), Cluster())


def test_a_mask_that_is_not_there_is_said_before_ray_starts(drive):
    curation = Curation(mask="gone.png")
    with pytest.raises(DataError, match=r"gone\.png"):
        curate_on_cluster(drive / "drive", drive / "out", Span(), curation, Cluster())
