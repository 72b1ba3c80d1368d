"""Work that is interrupted at any line, and begun again, ends as if it had not been."""

from contextlib import suppress

import numpy as np
import onnx
from interruptions import lines_run
from tiny_models import SPEC, exported, random_frames

from calibration.graph import index
from calibration.placement import ORT_X86
from calibration.range_file import Origin, RangeFile
from edgeuda.errors import Interrupted


def test_ranges_are_those_of_a_run_that_was_not_interrupted(tmp_path, monkeypatch):
    """No frame is counted twice, wherever Ctrl-C comes and whenever the state was saved."""
    model = onnx.load_from_string(exported("labels"))
    tensors = ORT_X86.place(index(model.graph), frozenset()).measured()[:3]
    size = SPEC.preprocessing
    frames = [frame[None] for frame in random_frames(2, size.height, size.width, 1)]
    monkeypatch.setattr("calibration.range_file.SAVE_SECONDS", -1.0)
    monkeypatch.setattr("calibration.ranges.CHUNK_BYTES", 1)

    def work(path):
        origin = Origin("0" * 64, ("a", "b"), size.height, size.width, 64)
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
