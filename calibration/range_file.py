"""Histograms on disk: what a model's activations were on given frames, whole or under way."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.frames import FrameFiles
from calibration.range_shards import collect_on
from calibration.ranges import BINS, Histogram, Progress, chunks, collect
from edgeuda import schemas
from edgeuda.cluster import Cluster, discard, shards_folder
from edgeuda.errors import DataError, Interrupted
from edgeuda.files import sha256_of, write_npz
from edgeuda.records.names import ProviderName

if TYPE_CHECKING:
    import onnx

SCHEMA = schemas.RANGES
SAVE_SECONDS = 10.0
"""Time between two notes of what is under way; what came after the last is done again."""


@dataclass(frozen=True)
class RangeOrigin:
    """What determines the histograms; a file of another origin is never used.

    Attributes:
        model_sha256: Checksum of the FP32 model.
        frames: Checksums of the frames in order.
        height: Rows of the network's input.
        width: Its columns.
        bins: Bins per tensor.
    """

    model_sha256: str
    frames: tuple[str, ...]
    height: int
    width: int
    bins: int = BINS


@dataclass(eq=False)
class RangeFile:
    """A file of histograms that grows as they are collected.

    Attributes:
        path: The ``.npz`` file.
        origin: Of all histograms in it.
        histograms: Of the tensors that are done.
        begun: The chunk under way.
    """

    path: Path
    origin: RangeOrigin
    histograms: dict[str, Histogram]
    begun: Progress | None = None

    @classmethod
    def open(cls, path: Path, origin: RangeOrigin) -> RangeFile:
        """Read a file if it exists, else begin one.

        Raises:
            DataError: If the file is not of ``origin``, or is no such file.
        """
        if not path.exists():
            return cls(path, origin, {})
        file = cls.read(path)
        for key, expected in asdict(origin).items():
            found = getattr(file.origin, key)
            if tuple(found) != tuple(expected) if key == "frames" else found != expected:
                msg = (
                    f"{path}: its ranges were collected with another {_SAYS[key]}. Remove the file "
                    f"or choose another one"
                )
                raise DataError(msg)
        return file

    @classmethod
    def read(cls, path: Path) -> RangeFile:
        """Read a file of any origin.

        Raises:
            DataError: If it is missing or no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                notes = json.loads(str(arrays["notes"]))
                if notes["schema"] != SCHEMA:
                    raise ValueError(notes["schema"])
                origin = RangeOrigin(
                    **{**notes["origin"], "frames": tuple(notes["origin"]["frames"])}
                )
                done, begun = notes["tensors"], notes["begun"]
                ranges, counts = arrays["frame_ranges"], arrays["counts"]
                limits = ranges[:, :, 0].min(1), ranges[:, :, 1].max(1)
                histograms = {
                    name: Histogram(float(limits[0][i]), float(limits[1][i]), counts[i], ranges[i])
                    for i, name in enumerate(done)
                }
                progress = begun and Progress(
                    tuple(begun["tensors"]),
                    arrays["begun_frame_ranges"],
                    (arrays["begun_counts"], begun["steps"]),
                )
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as err:
            msg = f"{path}: expected a file of ranges ({SCHEMA}), found something else ({err!r})"
            raise DataError(msg) from err
        return cls(path, origin, histograms, progress)

    def write(self) -> None:
        """Write what there is, atomically."""
        frames, bins = len(self.origin.frames), self.origin.bins
        notes: dict[str, Any] = {
            "schema": SCHEMA,
            "origin": asdict(self.origin),
            "tensors": list(self.histograms),
            "begun": None,
        }
        done = self.histograms.values()
        arrays: dict[str, Any] = {
            "frame_ranges": np.array([h.frame_ranges for h in done], np.float32).reshape(
                -1, frames, 2
            ),
            "counts": np.array([h.counts for h in done], np.int64).reshape(-1, bins),
        }
        # An interruption may come between taking a chunk's result and forgetting its beginning.
        if self.begun is not None and not set(self.begun.names) <= self.histograms.keys():
            notes["begun"] = {"tensors": list(self.begun.names), "steps": self.begun.steps}
            arrays["begun_frame_ranges"] = self.begun.frame_ranges
            arrays["begun_counts"] = self.begun.counts

        arrays["notes"] = np.array(json.dumps(notes))
        write_npz(self.path, arrays)

    def collect(
        self,
        model: onnx.ModelProto,
        tensors: Sequence[str],
        frames: FrameFiles,
        *,
        threads: int | None = None,
        device: ProviderName = "cpu",
        cluster: Cluster | None = None,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> dict[str, Histogram]:
        """Return the histograms of ``tensors``, collecting only those that the file lacks.

        What is interrupted goes on from here the next time, and ends with the same histograms.

        Args:
            model: As in `calibration.ranges.collect`.
            tensors: As there.
            frames: The frames of ``origin``.
            threads: As there.
            device: As there.
            cluster: Workers among which the frames are divided; None collects in this process.
            progress: Called with the frames done and those to do, over all passes.

        Raises:
            Interrupted: On Ctrl-C, after what there is was written.
        """
        missing = [name for name in tensors if name not in self.histograms]
        if not missing:
            return {name: self.histograms[name] for name in tensors}
        total = 2 * len(frames) * sum(1 for _ in chunks(model, missing))
        finished, saved = 0, time.monotonic()
        if cluster is not None:
            key = sha256_of([json.dumps(asdict(self.origin))])
            for number, names in enumerate(chunks(model, missing)):
                self.histograms |= collect_on(
                    cluster, model, names, frames, key=key, device=device,
                    folder=shards_folder(self.path) / f"{number}", bins=self.origin.bins,
                    progress=partial(_within, progress, 2 * len(frames) * number, total),
                )  # fmt: skip
            self.write()
            discard(self.path)
            return {name: self.histograms[name] for name in tensors}

        def after_step(state: Progress) -> None:
            nonlocal saved
            self.begun = state
            progress(finished + state.steps, total)
            if time.monotonic() - saved > SAVE_SECONDS:
                self.write()
                saved = time.monotonic()

        def after_chunk(histograms: dict[str, Histogram]) -> None:
            nonlocal finished
            self.histograms |= histograms
            self.begun = None
            finished += 2 * len(frames)
            self.write()

        try:
            collect(
                model,
                missing,
                frames,
                bins=self.origin.bins,
                threads=threads,
                device=device,
                begun=self.begun,
                after_step=after_step,
                after_chunk=after_chunk,
            )
        except KeyboardInterrupt:
            self.write()
            msg = f"Interrupted; {self.path} keeps what was collected. The same command goes on"
            raise Interrupted(msg) from None
        return {name: self.histograms[name] for name in tensors}


def _within(
    progress: Callable[[int, int], None], before: int, total: int, done: int, _total: int
) -> None:
    """Say how far a chunk is, as a part of all."""
    progress(before + done, total)


_SAYS = {
    "model_sha256": "model",
    "frames": "set of frames",
    "height": "input size",
    "width": "input size",
    "bins": "number of bins",
}


def ranges_path(model: Path) -> Path:
    """Return where the ranges of a quantized model lie: beside it."""
    return model.with_name(f"{model.name}.ranges.npz")
