"""A map over shards: the same for any workers, resumed by the shard, whoever is killed."""

import itertools
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from cluster_work import Traced, task
from edgeuda import cluster as cluster_module
from edgeuda.cluster import FEWEST, LARGEST, Cluster, Results, _Pool, map_shards
from edgeuda.errors import DataError, DependencyError, DeviceError
from edgeuda.files import write_npz
from places import ROOT
from processes import kill_after

slow = pytest.mark.slow  # starts Ray, which takes seconds
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])


@pytest.fixture(autouse=True)
def _workers_find_this(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)


@pytest.mark.parametrize("frames", [1, 2, 63, 64, 65, 1000, 100_000])
def test_shards_are_all_frames_once_in_order(tmp_path, frames):
    shards = task(Traced(tmp_path), frames).shards()
    assert [frame for shard in shards for frame in shard] == list(range(frames))
    assert max(map(len, shards)) <= LARGEST
    assert len(shards) >= min(frames, FEWEST)


class Immediately:
    """The part of Ray that a pool uses; every call is done at once and kept until it is fetched."""

    class exceptions:  # noqa: N801
        RayError = RayTaskError = ZeroDivisionError

    def __init__(self):
        self.held, self.names = {}, itertools.count()

    def put(self, value):
        return value

    def remote(self, kind):
        class Handle:
            def options(self, **_):
                return self

            def remote(handle, opened, _threads):  # noqa: N805
                with opened[0]() as call:
                    handle.call = call
                handle.do = type("Do", (), {"remote": lambda _, item: self.keep(call(item))})()
                return handle

        return Handle()

    def keep(self, value):
        name = next(self.names)
        self.held[name] = value
        return name

    def wait(self, names, num_returns):
        return names[:num_returns], names[num_returns:]

    def get(self, name):
        return self.held.pop(name), []

    def kill(self, worker):
        pass


def test_results_that_are_held_do_not_grow_with_the_frames(tmp_path):
    for frames in (640, 6400):
        ray, work = Immediately(), task(Traced(tmp_path), frames)
        pool = _Pool(ray, Cluster(), work, work.shards(), list(range(len(work.shards()))))
        found = 0
        for _, arrays in pool.run(2):
            found += len(arrays["squares"])
            assert len(ray.held) <= 2
        assert found == frames


def test_results_are_read_one_at_a_time(tmp_path, monkeypatch):
    files = tuple(tmp_path / f"{n}.npz" for n in range(5))
    for number, file in enumerate(files):
        write_npz(file, {"squares": np.array([number])})
    opened = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda file, **how: opened.append(file) or load(file, **how))
    for number, arrays in enumerate(Results(files), 1):
        assert arrays["squares"].tolist() == [number - 1]
        assert len(opened) == number


def test_shards_of_something_else_are_refused(tmp_path):
    work = Traced(tmp_path)
    cluster_module._begin(task(work, 9), tmp_path)
    cluster_module._begin(task(work, 9), tmp_path)
    with pytest.raises(DataError, match="other frames or other settings"):
        cluster_module._begin(task(work, 9, key="cubes"), tmp_path)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"edgeuda\[ray\]"):
        map_shards(task(Traced(tmp_path), 9), Cluster(), tmp_path / "shards")


def test_nobody_at_the_address_is_found_out_at_once(tmp_path):
    with pytest.raises(DeviceError, match=r"127\.0\.0\.1:1.*found none that answers"):
        map_shards(task(Traced(tmp_path), 9), Cluster("127.0.0.1:1"), tmp_path / "shards")


@slow
def test_one_worker_and_two_write_the_same_files_and_open_once_each(tmp_path):
    found = {}
    for workers in (1, 2):
        traces = tmp_path / f"traces-{workers}"
        traces.mkdir()
        work = Traced(traces)
        results = map_shards(task(work, 200), Cluster(workers=workers), tmp_path / f"{workers}")
        found[workers] = [file.read_bytes() for file in results.files]
        assert results.repeated == 0
        assert len(work.lines("opened")) == workers
        squares = np.concatenate([arrays["squares"] for arrays in results])
        assert squares.tolist() == [n * n for n in range(200)]
    assert found[1] == found[2]


@slow
def test_a_killed_worker_costs_its_shard_which_is_said_and_counted(tmp_path, caplog):
    work = Traced(tmp_path, deadly=101)
    with caplog.at_level(logging.WARNING):
        results = map_shards(task(work, 200), Cluster(workers=2), tmp_path / "shards")
    assert results.repeated == 1
    assert len(work.lines("opened")) == 3
    begun = sorted(map(int, work.lines("begun")))
    shards = [shard.start for shard in task(work, 200).shards()]
    dead = next(shard for shard in task(work, 200).shards() if 101 in shard)
    assert begun == sorted([*shards, dead.start])
    assert f"died on frames {dead[0]} to {dead[-1]}, which are done again" in caplog.text
    assert caplog.text.count("one core is little") == 1, "said by three workers"
    assert "1 of 67 shards were done again" in caplog.text
    squares = np.concatenate([arrays["squares"] for arrays in results])
    assert squares.tolist() == [n * n for n in range(200)]


@slow
def test_a_shard_that_kills_every_worker_is_an_error(tmp_path):
    work = Traced(tmp_path, deadly=5, lives=99)
    with pytest.raises(DeviceError, match="3 workers died of frames 5 to 5"):
        map_shards(task(work, 20), Cluster(workers=2), tmp_path / "shards")
    assert len(list(tmp_path.glob("death-*"))) == 3


@slow
def test_an_error_of_a_worker_comes_as_it_is(tmp_path):
    with pytest.raises(DataError, match=r"^000013\.png: expected an image, found none$"):
        map_shards(task(Traced(tmp_path, bad=13), 20), Cluster(workers=2), tmp_path / "shards")


@slow
def test_a_worker_that_lacks_a_package_says_which(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(DeviceError, match=r"could not begin .*cluster_work.* on all machines"):
        map_shards(task(Traced(tmp_path), 20), Cluster(workers=1), tmp_path / "shards")


DRIVER = """
import sys
from pathlib import Path
from cluster_work import Traced, task
from edgeuda.cluster import Cluster, map_shards
folder = Path(sys.argv[1])
found = map_shards(task(Traced(folder, seconds=0.1), 64), Cluster(workers=2), folder / "shards")
print(len(found.files))
"""


@slow
def test_a_killed_driver_goes_on_with_the_shards_that_were_in_work(tmp_path):
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    kept = kill_after(command, tmp_path / "shards", 6)
    assert kept < 64
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "64"
    assert f"{kept} of 64 shards are done" in done.stderr
    begun = Traced(tmp_path).lines("begun")
    assert sorted(set(map(int, begun))) == list(range(64))
    # Two in work, and two that were given out before the last two results were written.
    assert len(begun) - 64 <= 4
