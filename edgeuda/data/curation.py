"""From footage to a folder of frames: near-duplicates dropped, cropped, masked, undistorted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.camera import CameraGeometry, Lens, alike, crop_fits
from edgeuda.data.footage import footage
from edgeuda.data.images import Image, read_image, write_image
from edgeuda.data.recordings import lens_of, recording_of
from edgeuda.data.stores import located
from edgeuda.data.treatment import PROGRESS_FILE, treatment_of
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import (
    alone,
    cache_folder,
    is_empty,
    sha256,
    sha256_of,
    short_name,
    stamp,
    write_atomic,
)
from edgeuda.records.frames import Curation, FramesRecord, Span

logger = logging.getLogger(__name__)

INDEX_FILE = FramesRecord.FILE
LINES_FILE = "frames.jsonl"
IMAGES = "images"
THUMBNAIL = (64, 36)
"""Columns and rows of the grey image by which frames are compared."""
NOTED = 50
"""Frames between two notes of progress; what came after the last is done again."""
FILL = 127
"""Grey that masked pixels are painted in."""
UNTOLD: dict[str, Any] = {"raw": None}
"""In the place of a geometry: nobody knows any more what was done to a frame."""

FROM_RECORDING = "recording"
"""In the place of a calibration file: the one that a recording holds."""
CAMERA_FILE = "camera.yaml"
"""Beside the frames of a recording: the calibration that it holds."""

Thumbnail = npt.NDArray[np.uint8]


@dataclass
class CurationProgress:
    """How far a curation is.

    Attributes:
        seen: Wanted frames so far, those that cannot be read included.
        kept: Frames written.
        duplicates: Frames left out as near-duplicates.
        thumbnail: Of the last kept frame, hexadecimal; empty before the first.
        geometries: What was done to the kept frames since the camera gave them, each once, see
            `edgeuda.camera.CameraGeometry`; None stands for nothing. One that differs from
            frame to frame cannot travel with a model.
    """

    seen: int = 0
    kept: int = 0
    duplicates: int = 0
    thumbnail: str = ""
    geometries: list[dict[str, Any] | None] = field(default_factory=list)

    def takes(
        self, taken: int, small: Thumbnail, done: dict[str, Any] | None, distinct: float
    ) -> bool:
        """Go on to the next frame; returns whether it is kept, or left out as a near-duplicate.

        Args:
            taken: Wanted frames up to this one.
            small: Its thumbnail.
            done: What was done to it since the camera gave it.
            distinct: Grey levels by which it must differ from the last one kept.
        """
        self.seen = taken
        last = _from_hex(self.thumbnail)
        if last is not None and difference(last, small) < distinct:
            self.duplicates += 1
            return False
        if done not in self.geometries:
            self.geometries.append(done)
        self.kept += 1
        self.thumbnail = small.tobytes().hex()
        return True


@dataclass(frozen=True)
class Extraction:
    """A folder of frames that is being written.

    Attributes:
        out: The folder.
        settings: What is asked for.
        progress: How far it is.
        done: Whether nothing is left to do.
    """

    out: Path
    settings: FramesRecord
    progress: CurationProgress
    done: bool

    @classmethod
    def begin(
        cls, source: Path, out: Path, span: Span, curation: Curation, suffix: str, resume: bool
    ) -> Extraction:
        """Make the folder, or find out how far an earlier call came.

        Args:
            source: Footage that was located.
            out: See `curate`, as what follows.
            span: Which frames.
            curation: What is done to them.
            suffix: Format of the images.
            resume: Whether to go on.

        Raises:
            OutputExistsError: See `curate`.
        """
        settings = FramesRecord(
            curation,
            source=str(source.resolve()),
            source_sha256=stamp(files) if (files := _files_of(source)) else None,
            span=span,
            files={
                name: sha256(Path(path))
                for name, path in (("mask", curation.mask), ("calibration", curation.calibration))
                if path is not None and Path(path).is_file()
            },
            suffix=suffix,
        )
        progress = _begin(out, settings, resume)
        return cls(out, settings, progress, (out / INDEX_FILE).exists())

    def save(self) -> None:
        """Note how far it is."""
        _save(self.out, self.settings, self.progress)

    def finish(self) -> None:
        """Write the record that says it is done."""
        geometries = self.progress.geometries
        if len(geometries) > 1 or UNTOLD in geometries:
            logger.warning(
                "%s: what was done to these frames since the camera gave them differs from frame "
                "to frame, or is not known: it cannot travel with a model. Extract raw footage of "
                "one size at a time",
                self.out,
            )
        record = replace(_record(self.settings, self.progress), thumbnail=None)
        record.write(self.out / INDEX_FILE)
        (self.out / PROGRESS_FILE).unlink(missing_ok=True)


def curate(
    source: Path,
    out: Path,
    span: Span,
    curation: Curation,
    suffix: str = ".jpg",
    resume: bool = False,
    report: Callable[[CurationProgress], None] = lambda _: None,
) -> CurationProgress:
    """Write the distinct frames of footage to a folder that every verb takes as target.

    ``images/`` holds the frames, ``frames.jsonl`` a line for each, ``frames.json`` the settings and
    counts once all is done. An interrupted call goes on where it stopped.

    Args:
        source: See `footage`.
        out: Folder to make.
        span: Which frames.
        curation: What is done to them.
        suffix: Format of the written images, ``".jpg"`` or ``".png"``.
        resume: Go on with what is in ``out`` instead of refusing it.
        report: Called after each frame.

    Raises:
        DataError: If the footage, the mask or the calibration cannot be used.
        OutputExistsError: If ``out`` exists and is not resumed, or is of other settings.
    """
    source = located(source)
    work = Extraction.begin(source, out, span, curation, suffix, resume)
    progress = work.progress
    if work.done:
        return progress
    prepare = Preparation(with_camera(curation, source, out))
    with alone(out), (out / LINES_FILE).open("a", encoding="utf-8") as lines:
        for frame in footage(source, span, progress.seen):
            size = frame.image.shape[1], frame.image.shape[0]
            done = prepare.since_camera(size, frame.origin)
            image = prepare(frame.image, frame.origin)
            if progress.takes(frame.taken, thumbnail(image), done, curation.distinct):
                write_image(out / IMAGES / f"{frame.name}{suffix}", image)
                lines.write(line_of(frame.name + suffix, frame.origin, frame.index, frame.seconds))
                lines.flush()
            if progress.seen % NOTED == 0:
                work.save()
            report(progress)
    work.finish()
    return progress


def extracted(source: Path) -> Path:
    """Return a folder with every frame of a video or recording, for whoever reads in any order.

    It is written once, as JPEG, to ``EDGEUDA_CACHE`` or the user's cache; an interrupted call goes
    on.

    Raises:
        DataError: If the video or recording cannot be read.
    """
    source = located(source)
    key = sha256_of([str(source.resolve()), stamp(_files_of(source))])
    stem = short_name(
        Path(str(recording.path if (recording := recording_of(source)) else source)).stem
    )
    out = cache_folder() / "frames" / f"{stem}-{key[:12]}"
    if not (out / INDEX_FILE).exists():
        logger.warning("%s: its frames are written to %s, once", source, out)
        curate(source, out, Span(), Curation(distinct=0.0), resume=True)
    return out / "images"


def _files_of(source: Path) -> list[Path]:
    """Return the files that footage in one piece lies in; none of a folder or list of frames."""
    recording = recording_of(source)
    if recording is None:
        return [source] if source.is_file() else []
    inside = sorted(recording.path.iterdir()) if recording.path.is_dir() else [recording.path]
    return [path for path in inside if path.is_file()]


def with_camera(curation: Curation, source: Path, out: Path) -> Curation:
    """Write the calibration that a recording holds, and put it where it is asked for.

    Raises:
        DataError: If it is asked for and there is none.
    """
    recording = recording_of(source)
    lens = None if recording is None else lens_of(recording)
    if lens is not None:
        lens.write(out / CAMERA_FILE)
    if curation.calibration != FROM_RECORDING:
        return curation
    if lens is None:
        msg = (
            f"{source}: expected a recording with a calibration (CameraInfo) to undistort by, "
            "found none. Give an OpenCV calibration file"
        )
        raise DataError(msg)
    return replace(curation, calibration=str(out / CAMERA_FILE))


class Preparation:
    """Undistorts, crops and masks frames."""

    def __init__(self, curation: Curation) -> None:
        self.crop = curation.crop
        self.mask = None if curation.mask is None else read_image(Path(curation.mask)).max(2) == 0
        self.lens = None if curation.calibration is None else Lens.read(Path(curation.calibration))

    def __call__(self, image: Image, origin: Path) -> Image:
        """Return a frame as it is kept, ``[h, w, 3]`` uint8.

        Raises:
            DataError: If lens, crop or mask do not fit; the message names ``origin``.
        """
        geometry = self.geometry((image.shape[1], image.shape[0]), origin)
        if geometry is not None:
            image = geometry.apply(image, origin)
        if self.mask is not None:
            if self.mask.shape != image.shape[:2]:
                rows, columns = self.mask.shape
                msg = (
                    f"{origin}: expected a mask of the (cropped) frame's size "
                    f"{image.shape[1]}x{image.shape[0]}, found {columns}x{rows}"
                )
                raise DataError(msg)
            image = np.where(self.mask[..., None], FILL, image).astype(np.uint8)
        return image

    def geometry(self, size: tuple[int, int], origin: Path) -> CameraGeometry | None:
        """Return what is done to frames of a width and height before they are masked.

        Raises:
            DataError: See `__call__`.
        """
        if self.lens is None and self.crop is None:
            return None
        if self.crop is not None and not crop_fits(self.crop, size):
            left, top, width, height = self.crop
            msg = (
                f"{origin}: crop of {width}x{height} at {left},{top} does not lie within the "
                f"frame of {size[0]}x{size[1]}"
            )
            raise DataError(msg)
        lens = self.lens
        if lens is not None and lens.size is None:
            lens = replace(lens, size=size)
        if lens is not None and lens.size is not None and not alike(size, lens.size):
            lens.maps(size[1], size[0], origin)  # says what is wrong
        try:
            return CameraGeometry(size, lens, self.crop)
        except ConfigError as err:
            msg = f"{origin}: {err}"
            raise DataError(msg) from err

    def since_camera(self, size: tuple[int, int], origin: Path) -> dict[str, Any] | None:
        """Return all that was done to a frame since its camera gave it, as a record.

        Frames of a folder that was extracted before bring along what was done to them there.

        Raises:
            DataError: If they were and are to be undistorted now.
        """
        before = treatment_of(origin)
        first = None if before is None else before.geometry
        if before is not None and before.changes and self.lens is not None:
            msg = (
                f"{origin}: expected a frame as the camera gives it to undistort, found one that "
                f"was {before.words} before, as {before.record} says. Undistort the raw footage"
            )
            raise DataError(msg)
        own = self.geometry(size, origin)
        if before is not None and not before.told:
            return UNTOLD
        if own is None or first is None:
            done = own or first
            return None if done is None else done.to_record()
        assert own.crop is not None
        left, top = (first.crop_at(first.raw) or (0, 0))[:2]
        crop = left + own.crop[0], top + own.crop[1], *own.crop[2:]
        if own.raw != first.size or not crop_fits(crop, first.raw):
            return UNTOLD
        return CameraGeometry(first.raw, first.lens, crop).to_record()


def thumbnail(image: Image) -> Thumbnail:
    """Return the small grey image by which frames are compared."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA), np.uint8)


def difference(a: Thumbnail, b: Thumbnail) -> float:
    """Return the mean difference of two thumbnails in grey levels."""
    return float(cv2.absdiff(a, b).mean())


def _from_hex(text: str) -> Thumbnail | None:
    if not text:
        return None
    columns, rows = THUMBNAIL
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(rows, columns)


def _begin(out: Path, settings: FramesRecord, resume: bool) -> CurationProgress:
    """Open the folder, or find out how far an earlier call came."""
    done, started = out / INDEX_FILE, out / PROGRESS_FILE
    found = done if done.exists() else started if started.exists() else None
    if found is None or not resume:
        if out.exists() and (found is not None or not is_empty(out)):
            msg = f"{out}: exists. Choose another `out`, or continue it with `resume`"
            raise OutputExistsError(msg)
        progress = CurationProgress()
        _save(out, settings, progress)
        return progress
    record = FramesRecord.read(found)
    progress = CurationProgress(
        record.seen or 0, record.kept or 0, record.duplicates or 0, record.thumbnail or "",
        record.geometries or ([None] if record.kept else []),
    )  # fmt: skip
    if replace(record, thumbnail=progress.thumbnail) != _record(settings, progress):
        msg = f"{out}: holds frames of other footage or settings; nothing was overwritten"
        raise OutputExistsError(msg)
    if found is done:
        started.unlink(missing_ok=True)  # interrupted after the record was written
    else:
        # What was written after the last note of progress is written again.
        path = out / LINES_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = "".join(f"{line}\n" for line in lines[: progress.kept])
        write_atomic(path, lambda name: name.write_text(kept, encoding="utf-8"))
    return progress


def _save(out: Path, settings: FramesRecord, progress: CurationProgress) -> None:
    _record(settings, progress).write(out / PROGRESS_FILE)


def _record(settings: FramesRecord, progress: CurationProgress) -> FramesRecord:
    """Return the record; frames as the camera gave them have no geometry in it."""
    done = asdict(progress)
    if progress.geometries in ([], [None]):
        done["geometries"] = None
    return replace(settings, **done)


def line_of(file: str, origin: Path, index: int, seconds: float) -> str:
    """Return the line of `LINES_FILE` for a frame that is kept.

    Args:
        file: The name of its image.
        origin: The image file or video that it comes from.
        index: Its place there, or among the images.
        seconds: Since the beginning of its video, or of the images.
    """
    entry = {
        "file": f"{IMAGES}/{file}",
        "origin": str(origin),
        "index": index,
        "seconds": round(seconds, 3),
    }
    return json.dumps(entry) + "\n"


def parse_crop(text: str) -> tuple[int, int, int, int]:
    """Read ``LEFT,TOP,WIDTH,HEIGHT``.

    Raises:
        ConfigError: If it is something else.
    """
    try:
        left, top, width, height = (int(part) for part in text.split(","))
    except ValueError as err:
        msg = f"Crop: expected LEFT,TOP,WIDTH,HEIGHT in pixels, found {text!r}"
        raise ConfigError(msg) from err
    return left, top, width, height
