"""`data check` and `data frames` with workers: what one process writes, whoever is killed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.cluster import Cluster, shards_folder
from edgeuda.cluster_curation import curate_on_cluster
from edgeuda.data.curation import curate
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import list_images, write_image, write_label
from edgeuda.data.shards import write_shards
from edgeuda.data_check import check
from edgeuda.errors import DataError, OutputExistsError
from edgeuda.files import write_text
from edgeuda.labels import label_space
from edgeuda.records.frames import Curation, Span
from places import ROOT
from processes import kill_after

slow = pytest.mark.slow  # starts Ray, which takes seconds
SPACE = label_space("carla-3")
WHEN = re.compile(rb"\d{4}-\d\d-\d\d.\d\d:\d\d(:\d\d)?")


@pytest.fixture(autouse=True)
def _workers_find_this(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests/support")]))


def picture(value):
    coarse = np.random.default_rng(value).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_NEAREST)


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """150 frames in shards of two: every third is new, one of the middle is broken."""
    for index in range(150):
        write_image(tmp_path / f"drive/{index:03d}.png", picture(index // 3))
    (tmp_path / "drive/070.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Source and target, of which some are damaged; the target holds a copy of a source image."""
    for index in range(40):
        write_image(tmp_path / f"source/images/{index:03d}.png", picture(index))
        label = np.full((48, 64), index % 3, np.uint8)
        write_label(tmp_path / f"source/labels/{index:03d}.png", label)
    for index in range(100):
        write_image(tmp_path / f"target/{index:03d}.png", picture(200 + index))
    shutil.copy(tmp_path / "source/images/007.png", tmp_path / "target/050.png")
    (tmp_path / "target/020.png").write_bytes(b"no image")
    write_label(tmp_path / "source/labels/004.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "source/labels/009.png").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*")}


def checked(**how):
    folders = {"source": labelled_folder(Path("source"), None, SPACE, every=False)}
    frames = {"target": (Path("target"), list_images(Path("target")))}
    return json.dumps(check(folders, frames, **how).record().to_record())


@slow
def test_the_check_finds_the_same(data):
    one = checked()
    assert "source/labels/004.png" in one
    assert "target/020.png" in one
    for workers in (1, 2):
        shards = data / f"shards-{workers}"
        assert checked(cluster=Cluster(workers=workers), shards=shards) == one


@slow
def test_the_verb_of_the_check_writes_the_same_page(data):
    written = {}
    for name, how in (("one", []), ("two", ["--ray"])):
        command = ["data", "check", "--source", "source", "--target", "target"]
        out = data / name / "check.html"
        more = ["--label-space", "carla-3", "--out", str(out), *how]
        done = CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        pages = folder(data / name)
        written[name] = {file: WHEN.sub(b"", pages[file]) for file in pages}
        assert not shards_folder(out).exists()
    assert set(written["one"]) == {"check.html", "check.json", "check.md"}
    for name, content in written["one"].items():
        assert content == written["two"][name], name


@slow
def test_other_images_are_another_check(data):
    how = {"cluster": Cluster(workers=1), "shards": data / "shards"}
    before = checked(**how)
    assert checked(**how) == before
    write_image(data / "target/030.png", picture(999))
    with pytest.raises(DataError, match="found those of another model, other frames or other"):
        checked(**how)


@slow
@pytest.mark.parametrize(
    ("curation", "counts"),
    [(Curation(), (1, 2)), (Curation(distinct=0, crop=(2, 2, 60, 40)), (2,))],
)
def test_frames_are_the_same_folder_with_one_worker_and_two(drive, curation, counts):
    one = curate(Path("drive"), Path("one"), Span(), curation)
    assert one.kept == (50 if curation.distinct else 149)
    for workers in counts:
        out = Path(f"out-{workers}")
        cluster = Cluster(workers=workers)
        found = curate_on_cluster(Path("drive"), out, Span(), curation, cluster)
        assert found == one
        assert folder(drive / "one") == folder(drive / out)
        assert not shards_folder(out).exists()


@slow
def test_the_verb_takes_shards_and_says_what_it_kept(drive):
    write_shards(Path("drive"), drive / "s-%02d.tar", 40_000)
    assert len(list(drive.glob("*.tar"))) > 3
    last = sorted(drive.glob("*.tar"))[-1].stem[2:]
    said = {}
    for name, how in (("one", []), ("two", ["--ray"])):
        command = ["data", "frames", "--footage", f"s-{{00..{last}}}.tar", "--out", name]
        done = CliRunner().invoke(app, [*command, "--rate", "15", *how], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        (said[name],) = [one for one in done.output.splitlines() if "near-duplicates" in one]
    assert said["one"] == said["two"]
    assert folder(drive / "one") == folder(drive / "two")


DRIVER = """
import sys
from pathlib import Path
from cluster_work import Slowly
from edgeuda import cluster_curation
from edgeuda.cluster import Cluster
from edgeuda.records.frames import Curation, Span
folder = Path(sys.argv[1])
class Looking(cluster_curation.Looking):
    def __call__(self):
        return Slowly(super().__call__, folder)()
cluster_curation.Looking = Looking
cluster_curation.curate_on_cluster(
    Path("drive"), Path("out"), Span(), Curation(), Cluster(workers=2)
)
"""


@slow
def test_a_killed_worker_costs_its_shard_and_a_killed_driver_goes_on(drive):
    curate(Path("drive"), Path("one"), Span(), Curation())
    command = [sys.executable, "-c", DRIVER]
    shards = shards_folder(Path("out")) / "looks"
    kept = kill_after([*command, str(drive / "no")], shards, 20)
    assert kept < 75
    write_text(drive / "traces/deadly", "")  # workers of the one that was killed do not look here
    command.append(str(drive / "traces"))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{kept} of 75 shards are done" in done.stderr
    assert "1 of 75 shards were done again" in done.stderr
    assert folder(drive / "one") == folder(drive / "out")
    assert not shards.parent.exists()


@slow
def test_other_frames_or_settings_are_refused(drive, monkeypatch):
    monkeypatch.setattr("edgeuda.cluster_curation.fold", stopped)
    how = (Path("drive"), Path("out"), Span())
    with pytest.raises(KeyboardInterrupt):
        curate_on_cluster(*how, Curation(), Cluster(workers=1))
    with pytest.raises(OutputExistsError, match="other footage or settings"):
        curate_on_cluster(*how, Curation(distinct=9), Cluster(workers=1))
    write_image(drive / "drive/030.png", picture(999))
    with pytest.raises(DataError, match="found those of another model, other frames or other"):
        curate_on_cluster(*how, Curation(), Cluster(workers=1))


def stopped(*_):
    raise KeyboardInterrupt
