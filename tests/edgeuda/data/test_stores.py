"""Places in object stores: what is fetched and when, what goes, what fails, and what is never said.

A real server of S3 stands behind some of these; a store in memory behind the others.
"""

import fcntl
import http.client
import logging
import multiprocessing
import os
import pickle
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cli.crash import describe
from cli.options import destination, place
from edgeuda.data import stores
from edgeuda.data.folders import labelled_folder
from edgeuda.data.footage import footage
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import list_images, read_image, write_image, write_label
from edgeuda.data.stores import StorePath, expanded, local, located
from edgeuda.errors import (
    ConfigError,
    DataError,
    DependencyError,
    OutputError,
    StoreError,
    without_passwords,
)
from edgeuda.labels import label_space

fsspec = pytest.importorskip("fsspec", reason="needs the extra s3")
COUNT = 12


def picture(number):
    return np.full((6, 8, 3), number * 20, np.uint8)


def drive(folder):
    for number in range(COUNT):
        write_image(folder / "ab"[number % 2] / f"{number:04d}.png", picture(number))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and no wait between attempts."""
    monkeypatch.setenv("EDGEUDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "DELAYS", (0.0, 0.0, 0.0))
    return tmp_path / "cache" / "stores" / "files"


def fetched(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


@pytest.fixture
def memory():
    """A store in memory, and what puts a folder there."""
    store = fsspec.filesystem("memory")

    def put(folder, name):
        store.put(str(folder), f"/bucket/{name}", recursive=True)
        return Path(f"memory://bucket/{name}")  # one of the slashes is lost, as in an option

    yield put
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def test_a_folder_in_a_store_is_one_on_disk_to_who_reads_it(tmp_path, memory, cache):
    here = drive(tmp_path / "drive")
    there = frame_folder(memory(here, "drive"))
    assert [there.name_of(path) for path in there] == [
        path.relative_to(here).as_posix() for path in list_images(here)
    ]
    assert str(there[0]) == "memory://bucket/drive/a/0000.png"
    assert not fetched(cache)
    assert there.stamp == frame_folder(Path("memory://bucket/drive")).stamp
    assert not fetched(cache), "to tell footage from another, nothing is fetched"
    taken = [path.name for path in there.sample(3)]
    assert fetched(cache) == sorted(taken)
    for one, other in zip(footage(located("memory://bucket/drive")), footage(here), strict=True):
        assert (one.image == other.image).all()
        assert (one.name, one.index) == (other.name, other.index)
    assert [str(path.relative_to("memory://bucket/drive")) for path in there][:1] == ["a/0000.png"]


def test_a_list_names_files_beside_it_and_in_stores(tmp_path, memory):
    here = drive(tmp_path / "drive")
    (here / "a" / "list.csv").write_text("frame\n0002.png\nmemory://bucket/drive/b/0001.png\n")
    there = memory(here, "drive") / "a/list.csv"
    assert [str(path) for path in list_images(there)] == [
        "memory://bucket/drive/a/0002.png", "memory://bucket/drive/b/0001.png",
    ]  # fmt: skip
    local = tmp_path / "list.txt"
    local.write_text("memory://bucket/drive/b/0003.png\n")
    assert (next(iter(footage(local))).image == picture(3)).all()


def test_labelled_images_in_a_store(tmp_path, memory):
    here, space = tmp_path / "labelled", label_space("camvid-11")
    for number in range(3):
        write_image(here / "images" / f"{number}.png", picture(number))
        write_label(here / "labels" / f"{number}.png", np.full((6, 8), number, np.uint8))
    (here / "dataset.json").write_text(
        '{"schema": "edgeuda.dataset/1", "label_space": "camvid-11"}'
    )
    found = labelled_folder(memory(here, "labelled"), space)
    assert [int(label[0, 0]) for _, label in found] == [0, 1, 2]
    fsspec.filesystem("memory").rm("/bucket/labelled/labels/1.png")
    other = memory(here / "images", "bare/images")
    with pytest.raises(DataError, match="'images' and 'labels'"):
        labelled_folder(Path(str(other.parent).replace(":/", "://")), space, space)


def test_what_is_not_there_is_said_as_of_a_folder(memory):
    with pytest.raises(DataError, match="memory://bucket/none: expected a folder of images"):
        frame_folder(Path("memory://bucket/none"))
    with pytest.raises(DataError, match=r"memory://bucket/list\.csv: expected a readable list"):
        list_images(Path("memory://bucket/list.csv"))


def test_an_object_that_vanished_is_an_error_with_its_name_and_no_damaged_frame(tmp_path, memory):
    frames = frame_folder(memory(drive(tmp_path / "drive"), "drive"))
    fsspec.filesystem("memory").rm("/bucket/drive/a/0002.png")
    with pytest.raises(StoreError, match=r"memory://bucket/drive/a/0002\.png: .*is gone now"):
        frames.sample(COUNT)
    assert not frames.broken


@pytest.fixture
def failing(monkeypatch):
    """Let the store in memory fail so many times."""

    def fail(times, error):
        store = type(fsspec.filesystem("memory"))
        get, left = store.get_file, [times]

        def get_file(self, *args, **more):
            if left[0]:
                left[0] -= 1
                if isinstance(error, Exception):
                    raise error
                Path(args[1]).write_bytes(b"cut")
                return None
            return get(self, *args, **more)

        monkeypatch.setattr(store, "get_file", get_file)
        return left

    return fail


@pytest.mark.parametrize("error", [OSError("reset"), TimeoutError(), None], ids=str)
def test_what_cannot_be_read_is_tried_again(tmp_path, memory, failing, error, monkeypatch):
    waited = []
    monkeypatch.setattr(stores, "DELAYS", (0.5, 1.0, 2.0))
    monkeypatch.setattr(stores.time, "sleep", waited.append)
    frames = frame_folder(memory(drive(tmp_path / "drive"), "drive"))
    left = failing(3, error)
    assert (read_image(frames[0]) == picture(0)).all()
    assert left == [0]
    assert waited == [0.5, 1.0, 2.0]


def test_in_the_end_it_is_an_error_that_tells_no_secret(
    tmp_path, memory, failing, monkeypatch, cache
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush/hush+hush")
    frames = frame_folder(memory(drive(tmp_path / "drive"), "drive"))
    failing(9, OSError("GET https://s3/x?X-Amz-Signature=deadbeef&a=1 with hush/hush+hush"))
    with pytest.raises(StoreError, match="after 4 attempts") as caught:
        read_image(frames[0])
    assert "memory://bucket/drive/a/0000.png" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "deadbeef" not in str(caught.value)
    assert not fetched(cache)


def test_a_store_that_lets_nobody_in_is_not_asked_again(tmp_path, memory, failing):
    frames = frame_folder(memory(drive(tmp_path / "drive"), "drive"))
    left = failing(9, PermissionError("Forbidden"))
    with pytest.raises(StoreError, match="does not let this user read it"):
        read_image(frames[0])
    assert left == [8]


def test_the_cache_keeps_its_limit_and_what_was_used_last(tmp_path, memory, cache, monkeypatch):
    frames = frame_folder(memory(drive(tmp_path / "drive"), "drive"))
    size = max(path.stat().st_size for path in frames)
    monkeypatch.setenv("EDGEUDA_CACHE_LIMIT", str(4 * size))
    for index in range(4):
        read_image(frames[index])
    read_image(frames[0])
    read_image(frames[4])
    assert fetched(cache) == sorted(frames[index].name for index in (0, 2, 3, 4))
    for path in frames:
        read_image(path)
        assert sum(one.stat().st_size for one in cache.rglob("*.png")) <= 4 * size


def test_a_file_in_use_is_not_removed_and_one_that_is_too_large_is_refused(
    tmp_path, memory, cache, monkeypatch
):
    frames = frame_folder(memory(drive(tmp_path / "drive"), "drive"))
    size = max(path.stat().st_size for path in frames)
    monkeypatch.setenv("EDGEUDA_CACHE_LIMIT", str(3 * size))
    with Path(os.fspath(frames[0])).open("rb") as used:
        fcntl.flock(used, fcntl.LOCK_SH)  # as another process does
        for path in frames[1:]:
            read_image(path)
        assert frames[0].name in fetched(cache)
        assert len(fetched(cache)) == 3
    monkeypatch.setenv("EDGEUDA_CACHE_LIMIT", str(size - 20))
    with pytest.raises(StoreError, match="Set EDGEUDA_CACHE_LIMIT to more"):
        read_image(frames[5])
    monkeypatch.setenv("EDGEUDA_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="expected a size such as 20GB"):
        read_image(frames[5])


def test_a_folder_that_is_needed_as_a_whole_is_there_as_a_whole(tmp_path, memory, monkeypatch):
    there = memory(drive(tmp_path / "drive"), "drive") / "a"
    found = local(located(there))
    assert sorted(path.name for path in found.iterdir()) == sorted(
        path.name for path in (tmp_path / "drive/a").iterdir()
    )
    size = max(path.stat().st_size for path in found.iterdir())
    monkeypatch.setenv("EDGEUDA_CACHE", str(tmp_path / "small"))
    monkeypatch.setenv("EDGEUDA_CACHE_LIMIT", str(4 * size))
    with pytest.raises(StoreError, match="its 6 files do not fit into the cache together"):
        local(located(there))


def test_a_listing_that_fails_is_asked_for_again(tmp_path, memory, monkeypatch):
    there = memory(drive(tmp_path / "drive"), "drive")
    store, failed = type(fsspec.filesystem("memory")), []
    ls = store.ls

    def once(self, *args, **more):
        if len(failed) < 2:
            failed.append(args)
            raise ConnectionError("reset")
        return ls(self, *args, **more)

    monkeypatch.setattr(store, "ls", once)
    assert len(list_images(there)) == COUNT
    assert len(failed) == 2


def test_a_file_that_changed_is_fetched_again(tmp_path, memory, monkeypatch):
    place = memory(drive(tmp_path / "drive"), "drive") / "a/0000.png"
    assert (read_image(place) == picture(0)).all()
    write_image(tmp_path / "drive/a/0000.png", picture(7))
    memory(tmp_path / "drive/a/0000.png", "drive/a/0000.png")
    assert (read_image(place) == picture(0)).all(), "a process asks once"
    monkeypatch.setattr(stores, "_SINCE", stores.time.time())  # a process that begins now
    assert (read_image(place) == picture(7)).all()


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:hu/sh@bucket/x", "s3://AKIAhush@bucket/x", "s3://bucket/x?X-Amz-Signature=hush",
        "az://hush@account/x", "s3:/AKIA:hush@bucket/x",
    ],
)  # fmt: skip
def test_an_address_with_a_key_in_it_is_refused_and_not_repeated(text):
    with pytest.raises(ConfigError, match="Keys are taken from where") as caught:
        place(text)
    assert "hu" not in str(caught.value).replace("such", "")
    assert "hush" not in without_passwords(f"edgeuda adapt --target {text}").replace(
        "hu/sh", "hush"
    )


def test_a_log_of_a_crash_holds_no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountKey=hushhush==")
    monkeypatch.setattr(sys, "argv", ["edgeuda", "adapt", "--target", "s3://A:hushhush@b/x"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = describe(RuntimeError("with AccountKey=hushhush== at https://x/?sig=hushhush&y=1"))
    log = next(tmp_path.glob("edgeuda-*.log")).read_text()
    assert "hushhush" not in said + log
    assert "y=1" in log


def test_a_package_that_is_missing_is_named_by_its_extra(monkeypatch):
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(DependencyError, match=rf"edgeuda\[{scheme}\]"):
            frame_folder(Path(f"{scheme}://bucket/drive"))


def test_nothing_is_written_to_a_store(memory):
    with pytest.raises(ConfigError, match="only read"):
        destination("s3://bucket/out")
    with pytest.raises(OutputError, match="nothing is written"):
        located("memory://bucket/x.txt").write_text("x")


def test_what_is_a_place_in_a_store():
    for text in ("s3://b/x", "s3:/b/x"):
        assert str(located(text)) == "s3://b/x"
        assert str(located(Path(text))) == "s3://b/x"
    assert str(located("s3://b/x").parent / "y") == "s3://b/y"
    assert pickle.loads(pickle.dumps(located("s3://b/x"))) == located("s3://b/x")
    for text in ("drive", "/a/b.mcap", "rtsp://camera/1", "0"):
        assert type(located(text)) is type(Path())
    with pytest.raises(ConfigError, match=r"has no '\.\.'"):
        located("s3://b/../x")
    assert expanded("{0..1}-{08..10}.tar")[2:4] == ["0-10.tar", "1-08.tar"]


# --- a real server ---


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("s3fs", reason="s3fs is not installed: no server of S3 to read from")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: no server of S3")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    yield running.get_host_and_port()
    running.stop()


class Between(BaseHTTPRequestHandler):
    """Hands requests on; the first answers that hold an image are cut off in the middle."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        there = http.client.HTTPConnection(*self.server.there)
        there.request(self.command, self.path, headers=dict(self.headers))
        answer = there.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        image = self.command == "GET" and self.path.partition("?")[0].endswith(".png")
        if image and self.server.cut:
            self.server.cut -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(server, monkeypatch):
    """A bucket with a drive in it; ``cut`` of what is returned says how many answers are cut."""
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    proxy.there, proxy.cut = server, 0
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUSHHUSH")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush/hush+hush")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3").clear_instance_cache()
    here = "http://{}:{}".format(*server)
    store = fsspec.filesystem("s3", endpoint_url=here, use_listings_cache=False)
    store.mkdir("bucket")
    yield proxy, store
    store.rm("bucket", recursive=True)
    proxy.shutdown()
    proxy.server_close()


def test_a_folder_in_s3(tmp_path, bucket, cache):
    here = drive(tmp_path / "drive")
    bucket[1].put(str(here), "bucket/drive", recursive=True)
    there = frame_folder(Path("s3://bucket/drive"))
    assert [there.name_of(path) for path in there] == [
        path.relative_to(here).as_posix() for path in list_images(here)
    ]
    taken = [path.name for path in there.sample(2)]
    assert fetched(cache) == sorted(taken)
    assert [frame.image[0, 0, 0] for frame in footage(Path("s3://bucket/drive"))] == [
        read_image(path)[0, 0, 0] for path in list_images(here)
    ]
    assert there[0].stat().st_size == (here / "a/0000.png").stat().st_size
    assert "hush" not in "".join(map(str, there.identity())).lower()


def test_an_answer_that_is_cut_off_is_asked_for_again(tmp_path, bucket):
    bucket[1].put(str(drive(tmp_path / "drive")), "bucket/drive", recursive=True)
    frames = frame_folder(Path("s3://bucket/drive"))
    bucket[0].cut = 2
    assert (read_image(frames[1]) == picture(2)).all()
    assert bucket[0].cut == 0


def test_an_object_that_vanished_from_s3(tmp_path, bucket):
    bucket[1].put(str(drive(tmp_path / "drive")), "bucket/drive", recursive=True)
    frames = frame_folder(Path("s3://bucket/drive"))
    bucket[1].rm_file("bucket/drive/a/0002.png")
    with pytest.raises(StoreError, match=r"s3://bucket/drive/a/0002\.png: .*is gone now"):
        list(frames.images(COUNT))


def test_a_process_that_was_forked_reads_on(tmp_path, bucket):
    bucket[1].put(str(drive(tmp_path / "drive")), "bucket/drive", recursive=True)
    frames = frame_folder(Path("s3://bucket/drive"))
    read_image(frames[0])
    with multiprocessing.get_context("fork").Pool(2) as pool:  # as loaders of training are
        found = pool.map_async(read_image, list(frames)).get(60)
    assert [int(image[0, 0, 0]) for image in found] == [
        int(read_image(path)[0, 0, 0]) for path in frames
    ]


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(DataError, match="s3://nowhere/drive: expected a folder of images"):
        frame_folder(Path("s3://nowhere/drive"))
    assert isinstance(located("s3://nowhere/drive"), StorePath)
