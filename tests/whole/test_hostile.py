"""Full disks, planted links, bombs, damaged state: one sentence each, and nothing half-written."""

import json
import os
import stat
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.app import _plain
from edgeuda.data.footage import Frame
from edgeuda.data.images import read_image, read_label, write_image, write_label
from edgeuda.errors import (
    BundleError,
    DataError,
    ModelError,
    OutputError,
    OutputExistsError,
    without_passwords,
)
from edgeuda.files import LOCK_FILE, alone, read_json, stamp, write_atomic, write_json, write_text
from edgeuda.labels import SPACES
from edgeuda.records.identity import MODEL_FILE
from edgeuda.street import write_dataset
from edgeuda.training.pipeline import RunOptions, train_source
from edgeuda.training.recipe import load_recipe
from edgeuda.training.trainer import CHECKPOINT_FILE
from engines.bundle import open_bundle
from engines.live.sinks import OverlayVideo, Result
from engines.onnx.metadata import QUANTIZATION_KEY, runtime_of

TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=4", "source.batch=2", "source.checkpoint_every=2",
)  # fmt: skip


def edgeuda(*arguments):
    code = "from cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "source"
    write_dataset(folder, "simulator", 4, 0, 64, 128, SPACES["camvid-11"])
    return folder


class TestFullDisk:
    def test_a_writer_of_another_library_that_fails_is_understood(self, small_disk):
        (small_disk / "filler").write_bytes(bytes(1_900_000))
        tensors = {"x": torch.zeros(1 << 20)}
        with pytest.raises(OutputError, match=r"a\.pt: cannot be written: the disk is full"):
            write_atomic(small_disk / "a.pt", lambda name: torch.save(tensors, name))
        with pytest.raises(OutputError, match="the disk is full"):
            write_text(small_disk / "a.txt", "x" * (1 << 20))
        assert [path.name for path in small_disk.iterdir()] == ["filler"]

    def test_training_ends_with_one_sentence_and_goes_on_later(self, small_disk, source, tmp_path):
        settings = [part for setting in TINY for part in ("--set", setting)]
        train = ("train", "--source", source, "--recipe", "small", *settings, "--out")
        done = edgeuda(*train, small_disk / "run")
        assert done.returncode == 12, done.stderr
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not any(path.name.startswith(".") for path in (small_disk / "run").iterdir())

    def test_frames_end_with_one_sentence(self, small_disk, tmp_path):
        for index in range(12):
            noise = np.random.default_rng(index).integers(0, 255, (240, 320, 3), dtype=np.uint8)
            write_image(tmp_path / f"in/{index:02}.png", noise)
        done = edgeuda(
            "data", "frames", "--footage", tmp_path / "in", "--out", small_disk / "f",
        )  # fmt: skip
        assert done.returncode in (0, 12), done.stderr
        assert "Traceback" not in done.stderr
        for path in (small_disk / "f/images").iterdir():
            read_image(path)

    def test_a_video_says_that_it_cannot_be_written(self, small_disk):
        sink = OverlayVideo(small_disk / "o.mkv", 25, np.zeros((256, 3), np.uint8))
        noise = np.random.default_rng(0).integers(0, 255, (200, 240, 320, 3), dtype=np.uint8)
        labels = np.zeros((240, 320), np.uint8)
        results = (Result(Frame(Path("f"), "f", 0, 0.0, one), None, labels, "") for one in noise)
        with pytest.raises(OutputError, match=r"o\.mkv: cannot be written: the disk is full"):
            list(map(sink.write, results))
        sink.close()


class TestWriting:
    def test_a_planted_link_is_not_followed(self, tmp_path):
        victim = tmp_path / "victim"
        victim.write_text("mine")
        name = "record.json"
        import hashlib

        own = hashlib.sha256(name.encode()).hexdigest()[:16]
        (tmp_path / f".{own}.{os.getpid()}.tmp.json").symlink_to(victim)  # as it once was called
        write_json(tmp_path / name, {"schema": "x/1"})
        assert victim.read_text() == "mine"

    def test_all_files_can_be_read_by_the_same_people(self, tmp_path, source):
        train_source(load_recipe("small", TINY), source, None, RunOptions(tmp_path / "run"))
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in (tmp_path / "run").iterdir()
            if path.is_file()
        }
        assert MODEL_FILE in modes
        assert len(set(modes.values())) == 1, modes

    def test_two_at_once_are_one_too_many(self, tmp_path):
        with alone(tmp_path / "out"):
            code = (
                "import sys; from pathlib import Path; from edgeuda.files import alone\n"
                f"with alone(Path({str(tmp_path / 'out')!r})): pass"
            )
            other = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False
            )
        assert "another process writes there" in other.stderr
        with alone(tmp_path / "out"):
            pass
        assert not list((tmp_path / "out").iterdir())

    def test_a_run_at_work_is_not_joined(self, tmp_path, source):
        out, settings = tmp_path / "run", (*TINY, "source.steps=100000")
        code = "from cli import main; main()"
        chosen = [part for setting in settings for part in ("--set", setting)]
        verb = ["train", "--source", source, "--recipe", "small", *chosen, "--out", out]
        with subprocess.Popen(
            [sys.executable, "-c", code, *map(str, verb)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as other:  # fmt: skip
            try:
                while not (out / LOCK_FILE).exists():
                    assert other.poll() is None
                    time.sleep(0.05)
                with pytest.raises(OutputExistsError, match="another process writes there"):
                    train_source(
                        load_recipe("small", settings), source, None, RunOptions(out, resume=True)
                    )
                before = (out / "log.jsonl").stat()
                while (after := (out / "log.jsonl").stat()).st_size <= before.st_size:
                    assert other.poll() is None  # it writes to the same log
                assert after.st_ino == before.st_ino
            finally:
                other.kill()


class TestResume:
    def test_exchanged_labels_are_another_data_set(self, tmp_path):
        write_dataset(tmp_path / "s", "simulator", 3, 0, 64, 128, SPACES["camvid-11"])
        recipe = load_recipe("small", TINY)
        train_source(recipe, tmp_path / "s", None, RunOptions(tmp_path / "run"))
        train_source(recipe, tmp_path / "s", None, RunOptions(tmp_path / "run", resume=True))
        for path in (tmp_path / "s/labels").iterdir():
            write_label(path, (read_label(path) + 1) % 11)
        with pytest.raises(OutputExistsError, match="another recipe, seed, model or data"):
            train_source(recipe, tmp_path / "s", None, RunOptions(tmp_path / "run", resume=True))

    def test_large_data_sets_are_told_apart_by_size_and_time(self, tmp_path):
        files = [tmp_path / "a", tmp_path / "b"]
        for path in files:
            path.write_bytes(b"1234")
        whole, quick = stamp(files), stamp(files, limit=0)
        os.utime(files[0], ns=(1, 1))
        assert stamp(files) == whole
        assert stamp(files, limit=0) != quick
        with pytest.raises(DataError, match=r"c: expected a file"):
            stamp([tmp_path / "c"])

    @pytest.mark.parametrize(
        "damage", [lambda p: p.write_bytes(p.read_bytes()[:200]), lambda p: torch.save({"a": 1}, p)]
    )
    def test_a_damaged_checkpoint_is_named(self, damage, tmp_path, source, monkeypatch):
        def killed(*_):
            raise KeyboardInterrupt

        recipe = load_recipe("small", TINY)
        monkeypatch.setattr("edgeuda.training.trainer.save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train_source(recipe, source, None, RunOptions(tmp_path / "run"))
        monkeypatch.undo()
        path = tmp_path / "run" / CHECKPOINT_FILE
        damage(path)
        with pytest.raises(ModelError, match=rf"{CHECKPOINT_FILE}: expected a checkpoint.*Remove"):
            train_source(recipe, source, None, RunOptions(tmp_path / "run", resume=True))
        path.unlink()
        train_source(recipe, source, None, RunOptions(tmp_path / "run", resume=True))


class TestBombs:
    def png(self, width, height):
        def chunk(kind, data):
            body = kind + data
            return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
        rows = zlib.compress(bytes(1000), 9)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", rows)
            + chunk(b"IEND", b"")
        )

    @pytest.mark.parametrize("read", [read_image, read_label])
    def test_an_image_that_would_fill_the_memory(self, read, tmp_path, monkeypatch):
        (tmp_path / "a.png").write_bytes(self.png(20000, 20000))
        with pytest.raises(DataError, match=r"20000x20000 pixels.*EDGEUDA_MAX_PIXELS=400000000"):
            read(tmp_path / "a.png")
        write_image(tmp_path / "b.png", np.zeros((8, 8, 3), np.uint8))
        monkeypatch.setenv("EDGEUDA_MAX_PIXELS", "63")
        with pytest.raises(DataError, match="has 8x8 pixels"):
            read(tmp_path / "b.png")
        monkeypatch.setenv("EDGEUDA_MAX_PIXELS", "64")
        assert read_image(tmp_path / "b.png").shape == (8, 8, 3)

    def test_a_bundle_that_would_fill_the_disk(self, tmp_path, monkeypatch):
        path = tmp_path / "a.edgeuda"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("manifest.json", "{}")
            archive.writestr("models/a.onnx", bytes(300 << 20))
        with pytest.raises(BundleError, match=r"unpacks to 314572802 bytes.*EDGEUDA_MAX_BUNDLE="):
            open_bundle(path)
        monkeypatch.setenv("EDGEUDA_MAX_BUNDLE", "314572802")
        with pytest.raises(BundleError, match="manifest"):
            open_bundle(path)


class TestRecords:
    def test_what_is_no_record(self, tmp_path):
        (tmp_path / "folder.json").mkdir()
        (tmp_path / "deep.json").write_text("[" * 100_000)
        (tmp_path / "latin.json").write_bytes('{"schema": "é"}'.encode("latin-1"))
        for name in ("folder", "deep", "latin"):
            with pytest.raises(DataError, match=rf"{name}\.json: expected a JSON record"):
                read_json(tmp_path / f"{name}.json")

    @pytest.mark.parametrize("text", ["{}", "null", "[]", "x", '"runtime"'])
    def test_damaged_quantization_metadata(self, text):
        with pytest.raises(ModelError, match=r"edgeuda\.quantization.*is damaged"):
            runtime_of({QUANTIZATION_KEY: text})
        new = {"schema": "edgeuda.quantization/2", "runtime": "x"}
        assert runtime_of({QUANTIZATION_KEY: json.dumps(new)}) == "x"
        old = {"schema": "edgeuda.quantization/1", "policy": "x"}
        assert runtime_of({QUANTIZATION_KEY: json.dumps(old)}) == "x"


class TestTerminal:
    def test_passwords_and_control_characters_stay_out(self):
        text = "rtsp://ann:secret@10.0.0.1/live: \x1b]0;owned\x07 é [x]"
        shown = _plain(text)
        assert "secret" not in shown
        assert shown == r"rtsp://***@10.0.0.1/live: \x1b]0;owned\x07 é \[x]"
        assert without_passwords("http://a/b@c") == "http://a/b@c"
