"""Which frames of a drive to bring home: those that teach most, spread over it, within a budget.

A frame's value is the product of three ratios to what is usual: how unsure the model is, how rare
the classes are that it sees, and how far the features are from the reference. The set that is kept
is held at its budget by taking out, whenever a frame comes in, the one with the least value times
distance to the nearest other one. Source of the exchange: Minack, Siberski and Nejdl, "Incremental
Diversification for Very Large Sets: a Streaming-based Approach", SIGIR 2011. Weights of classes are
those of `edgeuda.frame_selection`, and so is the distance, in time and in what is seen where.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edgeuda.camera import CameraGeometry
from edgeuda.data.images import Image, encode_jpeg
from edgeuda.data.treatment import say_treated
from edgeuda.errors import ConfigError, OutputError, OutputExistsError
from edgeuda.files import alone, now_utc, write_atomic
from edgeuda.frame_selection import unlike, weights
from edgeuda.records.arrays import Floats
from edgeuda.records.frames import FramesRecord
from edgeuda.records.keep import KeepBudget, KeepCounts, KeepReason, KeptFrame, KeptRecord
from edgeuda.records.predictions import ModelFile
from edgeuda.records.reference import Reference
from engines.live.sinks import Result
from engines.live.watch import GAP
from engines.signals import FrameStatistics

logger = logging.getLogger(__name__)

Redact = Callable[[Image], Image]
QUALITY = 95
"""Of the JPEG files."""
MOST = 3.0
"""A ratio counts as this at most: a frame of a covered lens is not worth all others."""
HELD = 1.0
"""Seconds for which what changed is held in memory at most, while more comes: the record of many
frames takes its time, and what is soon replaced is never written."""
EVERY = GAP
"""Seconds between two frames that are weighed."""
IMAGES = "images"
_NAME = re.compile(r"\d{8}T\d{12}Z_.+\.jpg")
_TINY = 1e-6
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, eq=False)
class _Kept:
    """A frame in the set; ``layout`` is ``[D]`` float32, see `layout_of`."""

    frame: KeptFrame
    layout: npt.NDArray[np.float32]


def layout_of(said: FrameStatistics) -> npt.NDArray[np.float32]:
    """Return what is seen where: the root of each class's share in each region, ``[R * K]``.

    Euclidean distances of these are Hellinger's, times the root of twice the regions.
    """
    regions = said.classes[:-1]
    shares = regions / np.maximum(regions.sum(1, keepdims=True), 1)
    return np.asarray(np.sqrt(shares), np.float16).astype(np.float32).ravel()


class Keeper:
    """A sink that keeps frames in a folder, which holds no more than its budget at any moment.

    The folder is one of frames like any other: ``images/`` with JPEG files that are named after
    the time of capture, and `KeptRecord`. It goes on where an earlier drive ended. Of a process
    that was killed, what the record and the images do not agree about is put right and said.

    Args:
        folder: Where to; a new or empty folder, or one of the same model.
        budget: What may be in it.
        model: The model that runs.
        classes: Names of its classes.
        reference: What was normal for it, if that is known.
        redact: Name and function that images go through before they are written.
        geometry: What is done to raw frames, see `edgeuda.data.treatment`.
        every: Seconds between two frames that are weighed; 0 weighs all.

    Raises:
        OutputExistsError: If the folder holds anything else, or another process writes there.
        OutputError: If it cannot be written to.
        DataError: If its record is damaged.
    """

    name = "kept frames"

    def __init__(
        self,
        folder: Path,
        budget: KeepBudget,
        model: ModelFile,
        classes: tuple[str, ...],
        reference: Reference | None = None,
        redact: tuple[str, Redact] | None = None,
        geometry: CameraGeometry | None = None,
        every: float = EVERY,
    ) -> None:
        self.folder, self.budget = folder, budget
        self._features = None if reference is None else reference.features
        self._usual = None if reference is None else np.array(reference.whole.classes)
        self._redact = None if redact is None else redact[1]
        self._about = KeptRecord(
            now_utc(), model, classes, budget, reference is not None,
            None if redact is None else redact[0], 0, 0.0, (0.0,) * len(classes), 0.0, (),
            Floats.of(np.zeros((0, 0)), "float16"),
        )  # fmt: skip
        self._every, self._due = every, float("-inf")
        self._kept: list[_Kept] = []
        self._waiting: dict[str, bytes] = {}
        self._leaving: list[str] = []
        self._flushed = perf_counter()
        self._unlike = np.zeros((budget.frames + 1, budget.frames + 1), np.float32)
        self._shares, self._doubt, self._seen = np.zeros(len(classes)), 0.0, 0
        self._before = self._seconds = 0.0
        self._considered = self._unredacted = self._unwritten = 0
        self._error: str | None = None
        self._old: frozenset[str] = frozenset()
        self._open = ExitStack()
        found = _existing(folder, self._about)
        self._open.enter_context(alone(folder, "keep"))
        try:
            if geometry is not None:
                say_treated(folder, geometry)
            if found is not None:
                self._resume(found)
            self._write_record()
        except BaseException:
            self._open.close()
            raise

    def due(self, seconds: float) -> bool:
        """Whether a frame is to be weighed: those that follow too soon say the same.

        Args:
            seconds: When it came; to be called once for each frame, in their order.
        """
        if seconds < self._due:
            return False
        self._due = seconds + self._every
        return True

    def write(self, result: Result) -> None:
        """See `engines.live.sinks.Sink`; a result without statistics is passed over."""
        if result.said is None:
            return
        self._considered += 1
        self._seconds = self._before + (result.seconds or 0.0)
        new = self._valued(result, result.said)
        self._add(new)
        content = self._wanted(new, result.frame.image)
        stay = None if content is None else self._within_budget()
        if content is None or stay is None or stay[-1] != len(self._kept) - 1:
            self._kept.pop()
        else:
            self._waiting[self._kept[-1].frame.file] = content
            self._leave(stay)
        if self._waiting and perf_counter() - self._flushed >= HELD:
            self._flush()

    def close(self) -> None:
        """See `engines.live.sinks.Sink`."""
        try:
            self._flush()
        finally:
            self._open.close()

    def counts(self, dropped: int) -> KeepCounts:
        """Return what the drive came to.

        Args:
            dropped: Frames that were never handed over.
        """
        frames = [one.frame for one in self._kept]
        return KeepCounts(
            str(self.folder), self._considered, dropped, len(frames),
            round(sum(one.bytes for one in frames) / 1e6, 3),
            sum(one.file not in self._old for one in frames),
            self._unredacted, self._unwritten, self._error,
        )  # fmt: skip

    def _valued(self, result: Result, said: FrameStatistics) -> _Kept:
        """Count a frame and return what the record will say of it."""
        whole = said.classes[-1] / max(int(said.classes[-1].sum()), 1)
        confidence = float(said.values[0])
        self._seen += 1
        self._shares += (whole - self._shares) / self._seen
        self._doubt += (1 - confidence - self._doubt) / self._seen
        distance = None
        if self._features is not None and said.features is not None:
            distance = round(float(self._features.distances(said.features[None])[0]), 4)
        taken = _EPOCH + timedelta(microseconds=result.time_ns // 1000)
        name = f"{taken:%Y%m%dT%H%M%S%f}Z_{result.frame.name}.jpg"
        frame = KeptFrame(
            f"{IMAGES}/{name}", 0, str(result.frame.origin),
            taken.isoformat(timespec="microseconds"), result.time_ns, round(confidence, 4),
            tuple(round(float(share), 5) for share in whole), distance, 0.0, "spread",
        )  # fmt: skip
        return _Kept(frame, layout_of(said))

    def _add(self, new: _Kept) -> None:
        """Put a frame last, with its distances in look to the others."""
        place = len(self._kept)
        self._kept.append(new)
        if place:
            others = np.stack([one.layout for one in self._kept[:-1]])
            found = unlike(others, new.layout, new.layout.size // len(self._about.classes))
            self._unlike[place, :place] = self._unlike[:place, place] = found

    def _wanted(self, new: _Kept, image: Image) -> bytes | None:
        """Return the file of the last frame, whose size is noted; None if it is not to be kept."""
        if self._within_budget()[-1] != len(self._kept) - 1:  # before the work of encoding it
            return None
        if any(one.frame.file == new.frame.file for one in self._kept[:-1]):
            self._fail(f"{new.frame.file}: there already; was the clock set back?")
            return None
        shown = self._redacted(image)
        if shown is None:
            return None
        content = encode_jpeg(shown, QUALITY)
        if len(content) > 1e6 * self.budget.megabytes:
            self._fail(f"a frame has {len(content) / 1e6:.1f} MB, more than all may have together")
            return None
        self._kept[-1] = replace(new, frame=replace(new.frame, bytes=len(content)))
        return content

    def _ratios(self, frames: Sequence[KeptFrame]) -> npt.NDArray[np.float64]:
        """Return how unsure, rare and far frames are, ``[N, 3]``, each 1 for a usual frame."""
        shares = self._shares
        if self._usual is not None:
            shares = (shares + self._usual) / 2
        weight = weights(shares[None].astype(np.float32))
        doubt = np.array([1 - one.confidence for one in frames]) / max(self._doubt, _TINY)
        rare = np.array([one.classes for one in frames]) @ weight
        far = np.array([1.0 if one.distance is None else one.distance for one in frames])
        return np.asarray(np.minimum(np.column_stack([doubt, rare, far]), MOST), np.float64)

    def _within_budget(self) -> list[int]:
        """Return the places of frames that stay, in order; the others are one too many."""
        stay = list(range(len(self._kept)))
        sizes = [one.frame.bytes for one in self._kept]
        while len(stay) > self.budget.frames or (
            sum(sizes[at] for at in stay) > 1e6 * self.budget.megabytes
        ):
            del stay[self._least(stay)]
        return stay

    def _least(self, stay: list[int]) -> int:
        """Return which of the frames to take out first, as a position in ``stay``."""
        frames = [self._kept[at].frame for at in stay]
        value = self._ratios(frames).prod(1)
        times = np.array([one.time_ns for one in frames]) / 1e9
        apart = max(self._seconds / self.budget.frames, _TINY)  # of frames that are evenly spread
        near = np.minimum(np.abs(times[:, None] - times) / apart, 1)
        near = near * self._unlike[np.ix_(stay, stay)]
        np.fill_diagonal(near, 1)
        return int(((value + _TINY) * (near.min(1) + _TINY)).argmin())

    def _redacted(self, image: Image) -> Image | None:
        """Return an image as it may be written; None if it may not."""
        if self._redact is None:
            return image
        try:
            done = self._redact(image.copy())  # other sinks hold it, too
            if (
                not isinstance(done, np.ndarray)
                or done.dtype != np.uint8
                or done.shape != image.shape
            ):
                found = getattr(done, "shape", type(done).__name__)
                msg = f"expected uint8 {image.shape}, found {getattr(done, 'dtype', '')} {found}"
                raise TypeError(msg)
        except Exception as err:  # whatever it is, the frame must not be written as it was
            if not self._unredacted:
                logger.warning("%s failed: its frame is not written: %r", self._about.redact, err)
            self._unredacted += 1
            self._error = f"{self._about.redact}: {err!r}"
            return None
        return done

    def _flush(self) -> None:
        """Write what changed: the record, then images, after those that left are gone.

        The record comes first: images that it does not list are those to be removed.
        """
        self._flushed = perf_counter()
        try:
            self._write_record()
        except OutputError as err:
            self._lose(list(self._waiting), err)
            return
        unwritten = self._unwritten
        while self._leaving:
            (self.folder / self._leaving[-1]).unlink(missing_ok=True)
            self._leaving.pop()
        for file in list(self._waiting):
            self._write_image(file)
        if self._unwritten > unwritten:
            with suppress(OutputError):
                self._write_record()

    def _write_image(self, file: str) -> None:
        content = self._waiting[file]
        try:
            write_atomic(self.folder / file, lambda name: name.write_bytes(content))
        except OutputError as err:
            self._lose([file], err)
        else:
            del self._waiting[file]

    def _lose(self, files: list[str], err: OutputError) -> None:
        """Give up images that the disk does not take, if any; later ones are tried again."""
        lost = {at for at, one in enumerate(self._kept) if one.frame.file in files}
        self._leave([at for at in range(len(self._kept)) if at not in lost])
        for _ in files or [KeptRecord.FILE]:
            self._fail(str(err))

    def _leave(self, stay: list[int]) -> None:
        for at in sorted(set(range(len(self._kept))) - set(stay), reverse=True):
            file = self._kept[at].frame.file
            if self._waiting.pop(file, None) is None:
                self._leaving.append(file)
            self._remove(at)

    def _remove(self, at: int) -> None:
        """Take a frame out; the last one takes its place."""
        last = len(self._kept) - 1
        self._unlike[at, : last + 1] = self._unlike[last, : last + 1]
        self._unlike[: last + 1, at] = self._unlike[: last + 1, last]
        self._kept[at] = self._kept[last]
        self._kept.pop()

    def _fail(self, why: str) -> None:
        if not self._unwritten:
            logger.warning("%s: a frame is not kept: %s", self.folder, why)
        self._unwritten += 1
        self._error = why

    def _write_record(self) -> None:
        kept = sorted(self._kept, key=lambda one: one.frame.time_ns)
        frames = [one.frame for one in kept]
        if frames:
            frames = [
                replace(one, value=round(float(row.prod()), 4), reason=_reason(row))
                for one, row in zip(frames, self._ratios(frames), strict=True)
            ]
        layouts = np.stack([one.layout for one in kept]) if kept else np.zeros((0, 0))
        record = replace(
            self._about, created=now_utc(), seen=self._seen, seconds=round(self._seconds, 3),
            shares=tuple(round(float(share), 6) for share in self._shares),
            doubt=round(self._doubt, 6), frames=tuple(frames),
            layouts=Floats.of(layouts, "float16"),
        )  # fmt: skip
        path, text = self.folder / KeptRecord.FILE, record.to_json() + "\n"
        write_atomic(path, lambda name: name.write_text(text, encoding="utf-8"))

    def _resume(self, found: KeptRecord) -> None:
        """Take over what is in the folder, and put right what a kill left."""
        self._seen, self._seconds, self._before = found.seen, found.seconds, found.seconds
        self._shares, self._doubt = np.array(found.shares), found.doubt
        size = max(len(found.frames), self.budget.frames) + 1
        self._unlike = np.zeros((size, size), np.float32)
        images = self.folder / IMAGES
        unlisted = {path.name for path in images.glob("*.jpg")}
        lost = 0
        for frame, layout in zip(found.frames, found.layouts.array, strict=True):
            path = self.folder / frame.file
            if path.is_file() and path.stat().st_size == frame.bytes:
                self._add(_Kept(frame, layout))
                unlisted.discard(path.name)
            else:
                lost += 1
        for name in unlisted:
            (images / name).unlink()
        if lost or unlisted:
            logger.warning(
                "%s: %d frames of its record are missing or cut off, and %d images that the record "
                "does not list were removed: an earlier drive was cut off there",
                self.folder, lost, len(unlisted),
            )  # fmt: skip
        self._leave(self._within_budget())
        self._flush()
        self._old = frozenset(one.frame.file for one in self._kept)


def _reason(ratios: npt.NDArray[np.float64]) -> KeepReason:
    """Return which ratio is the largest, if it is above that of a usual frame."""
    names: tuple[KeepReason, ...] = ("unsure", "rare", "far")
    return names[int(ratios.argmax())] if ratios.max() > 1 else "spread"


def _existing(folder: Path, wanted: KeptRecord) -> KeptRecord | None:
    """Return the record of a folder that may be gone on with; None for a new one.

    Raises:
        OutputExistsError: If it holds anything else.
        DataError: If its record is damaged.
    """
    again = "Choose another folder for `keep`"
    if folder.exists() and not folder.is_dir():
        msg = f"{folder}: expected a folder for the frames to keep, found a file. {again}"
        raise OutputExistsError(msg)
    found = folder / KeptRecord.FILE
    known = found.exists()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        own = str(inside) in (KeptRecord.FILE, FramesRecord.FILE, IMAGES) or (
            str(inside.parent) == IMAGES and _NAME.fullmatch(path.name)
        )
        if not (own and known) and not path.name.startswith("."):
            msg = (
                f"{path}: expected an empty folder, or the frames that an earlier drive kept, "
                f"found this. {again}"
            )
            raise OutputExistsError(msg)
    if not known:
        return None
    record = KeptRecord.read(found)
    for what, there, here in (
        ("the model", record.model.sha256, wanted.model.sha256),
        ("the function that redacts", record.redact, wanted.redact),
    ):
        if there != here:
            msg = f"{found}: {what} was {there}, and is {here} now. {again}"
            raise OutputExistsError(msg)
    return record


def redactor(text: str) -> tuple[str, Redact]:
    """Return the function that ``package.module:function`` names, after that name.

    It is called with ``[H, W, 3]`` uint8 RGB and returns an image of the same shape and type.

    Raises:
        ConfigError: If there is none.
    """
    module, _, function = text.partition(":")
    expected = f"`redact`: expected package.module:function, found {text!r}"
    if not (module and function):
        raise ConfigError(expected)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as err:  # of a module of the user's, which may do anything
        msg = f"{expected}, which cannot be imported ({err!r}). Is its folder in PYTHONPATH?"
        raise ConfigError(msg) from err
    if not callable(found):
        msg = f"{expected}, which is no function"
        raise ConfigError(msg)
    return text, found
