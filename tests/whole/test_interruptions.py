"""Work that is interrupted at any line, and begun again, ends as if it had not been."""

from contextlib import suppress

import numpy as np
import onnx
import torch

from calibration.placement import ORT_X86
from calibration.range_file import RangeFile, RangeOrigin
from edgeuda.data.curation import curate
from edgeuda.data.images import write_image
from edgeuda.errors import Interrupted
from edgeuda.labels import SPACES
from edgeuda.methods.selection import SelectorSettings
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.checkpoint import save_model
from edgeuda.records.frames import Curation, Span
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.training.pseudo_labels import label_footage
from engines.onnx.index import index
from interruptions import lines_run
from tiny_models import SPEC, exported, random_frames


def test_ranges_are_those_of_a_run_that_was_not_interrupted(tmp_path, monkeypatch):
    """No frame is counted twice, wherever Ctrl-C comes and whenever the state was saved."""
    model = onnx.load_from_string(exported("labels"))
    tensors = ORT_X86.place(index(model.graph), frozenset()).measured()[:3]
    size = SPEC.preprocessing
    frames = [frame[None] for frame in random_frames(2, size.height, size.width, 1)]
    monkeypatch.setattr("calibration.range_file.SAVE_SECONDS", -1.0)
    monkeypatch.setattr("calibration.ranges.CHUNK_BYTES", 1)

    def work(path):
        origin = RangeOrigin("0" * 64, ("a", "b"), size.height, size.width, 64)
        RangeFile.open(path, origin).collect(model, tensors, frames, threads=1)

    work(tmp_path / "whole.npz")
    files = ("calibration/ranges.py", "calibration/range_file.py")
    total = lines_run(lambda: work(tmp_path / "counted.npz"), files)
    assert total > 100
    whole = np.load(tmp_path / "whole.npz")
    for at in range(1, total + 1, 13):
        path = tmp_path / f"{at}.npz"
        with suppress(KeyboardInterrupt, Interrupted):
            lines_run(lambda path=path: work(path), files, at)
        work(path)
        found = np.load(path)
        for key in whole.files:
            assert np.array_equal(whole[key], found[key]), (at, key)


def contents(out):
    """Bytes by name; a temporary name that was just made may stay, for nothing reads it."""
    files = (p for p in out.rglob("[!.]*") if p.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


LAST = 60


def require_same_after_interrupts(work, folder, files, every):
    """Interrupt work at every so many lines of some files, and begin it again: all end alike.

    At each of the last lines: there the record is written, and what led to it is removed.
    """
    work(folder / "whole")
    whole = contents(folder / "whole")
    total = lines_run(lambda: work(folder / "counted"), files)
    assert total > 100
    for at in [*range(1, total - LAST, every), *range(total - LAST, total + 1)]:
        out = folder / f"{at}"
        with suppress(KeyboardInterrupt):
            lines_run(lambda out=out: work(out), files, at)
        work(out)
        assert contents(out) == whole, at


def test_frames_of_footage_are_those_of_a_run_that_was_not_interrupted(tmp_path, monkeypatch):
    for place in range(5):
        value = np.random.default_rng(place // 2).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        write_image(tmp_path / f"in/{place}.png", value)
    monkeypatch.setattr("edgeuda.data.curation.NOTED", 2)

    def work(out):
        curate(tmp_path / "in", out, Span(), Curation(), ".png", resume=True)

    require_same_after_interrupts(work, tmp_path, ("data/curation.py", "edgeuda/files.py"), 7)


def test_pseudo_labels_are_those_of_a_run_that_was_not_interrupted(tmp_path):
    for place in range(4):
        value = np.random.default_rng(place).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        write_image(tmp_path / f"in/{place}.png", value)
    torch.manual_seed(0)
    spec = ModelSpec("bisenet", 0.125, SPACES["camvid-11"], Preprocessing(64, 96))
    save_model(BiSeNet(11, 0.125), spec, tmp_path / "m.safetensors")
    settings = SelectorSettings(initial=0.1)

    def work(out):
        label_footage(tmp_path / "m.safetensors", tmp_path / "in", out, settings, resume=True)

    files = ("training/pseudo_labels.py", "edgeuda/files.py")
    require_same_after_interrupts(work, tmp_path, files, 11)
