"""From footage to a folder of frames: near-duplicates dropped, cropped, masked, undistorted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.data.footage import Frame, Span, footage
from edgeuda.data.images import Image, read_image, write_image
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import alone, is_empty, read_json, sha256, stamp, write_atomic, write_json

logger = logging.getLogger(__name__)

SCHEMA = "edgeuda.frames/1"
INDEX_FILE = "frames.json"
LINES_FILE = "frames.jsonl"
PROGRESS_FILE = "progress.json"
THUMBNAIL = (64, 36)
"""Columns and rows of the grey image by which frames are compared."""
NOTED = 50
"""Frames between two notes of progress; what came after the last is done again."""
FILL = 127
"""Grey that masked pixels are painted in."""

Thumbnail = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Curation:
    """What is done to each frame, in this order: undistort, crop, mask; then compare.

    Attributes:
        calibration: OpenCV calibration file (YAML, XML or JSON) to undistort by, or None.
        crop: Left, top, width and height in pixels, or None.
        mask: Image of the cropped size, or None: what is black in it is painted grey.
        distinct: Mean difference in grey levels to the last kept frame below which a frame is a
            near-duplicate, 0 to keep all.
    """

    calibration: str | None = None
    crop: tuple[int, int, int, int] | None = None
    mask: str | None = None
    distinct: float = 2.0


@dataclass
class Progress:
    """How far a curation is.

    Attributes:
        seen: Wanted frames so far.
        kept: Frames written.
        duplicates: Frames left out as near-duplicates.
        thumbnail: Of the last kept frame, hexadecimal; empty before the first.
    """

    seen: int = 0
    kept: int = 0
    duplicates: int = 0
    thumbnail: str = ""


def curate(
    source: Path,
    out: Path,
    span: Span,
    curation: Curation,
    suffix: str = ".jpg",
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> Progress:
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
    settings = {
        "source": str(source.resolve()),
        **({"source_sha256": stamp([source])} if source.is_file() else {}),
        "span": asdict(span),
        "curation": asdict(curation),
        "files": {
            name: sha256(Path(path))
            for name, path in (("mask", curation.mask), ("calibration", curation.calibration))
            if path is not None and Path(path).is_file()
        },
        "suffix": suffix,
    }
    progress = _begin(out, settings, resume)
    if (out / INDEX_FILE).exists():
        return progress
    prepare = Preparation(curation)
    last = _from_hex(progress.thumbnail)
    with alone(out), (out / LINES_FILE).open("a", encoding="utf-8") as lines:
        for frame in footage(source, span, progress.seen):
            image = prepare(frame.image, frame.origin)
            small = thumbnail(image)
            progress.seen += 1
            if last is not None and difference(last, small) < curation.distinct:
                progress.duplicates += 1
            else:
                last = small
                _write(out, frame, image, suffix, lines.write)
                lines.flush()
                progress.kept += 1
                progress.thumbnail = small.tobytes().hex()
            if progress.seen % NOTED == 0:
                _save(out, settings, progress)
            report(progress)
    record = {"schema": SCHEMA, **settings, **asdict(progress)}
    del record["thumbnail"]
    write_json(out / INDEX_FILE, record)
    (out / PROGRESS_FILE).unlink(missing_ok=True)
    return progress


class Preparation:
    """Undistorts, crops and masks frames; what depends on their size is made once."""

    def __init__(self, curation: Curation) -> None:
        self.crop = curation.crop
        self.mask = None if curation.mask is None else read_image(Path(curation.mask)).max(2) == 0
        self.lens = None if curation.calibration is None else Lens.read(Path(curation.calibration))
        self._maps: dict[tuple[int, int], tuple[Any, Any]] = {}

    def __call__(self, image: Image, origin: Path) -> Image:
        """Return a frame as it is kept, ``[h, w, 3]`` uint8.

        Raises:
            DataError: If crop or mask do not fit; the message names ``origin``.
        """
        if self.lens is not None:
            size = image.shape[0], image.shape[1]
            if size not in self._maps:
                self._maps[size] = self.lens.maps(*size, origin)
            image = np.asarray(cv2.remap(image, *self._maps[size], cv2.INTER_LINEAR), np.uint8)
        if self.crop is not None:
            left, top, width, height = self.crop
            if min(left, top) < 0 or min(width, height) < 1 or (
                top + height > image.shape[0] or left + width > image.shape[1]
            ):  # fmt: skip
                msg = (
                    f"{origin}: crop of {width}x{height} at {left},{top} does not lie within the "
                    f"frame of {image.shape[1]}x{image.shape[0]}"
                )
                raise DataError(msg)
            image = np.ascontiguousarray(image[top : top + height, left : left + width])
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


@dataclass(frozen=True)
class Lens:
    """A camera's calibration.

    Attributes:
        matrix: ``[3, 3]`` float64.
        distortion: Coefficients in OpenCV's order.
        size: Width and height it was made for, or None.
        fisheye: Whether the coefficients are those of the fisheye model.
    """

    matrix: npt.NDArray[np.float64]
    distortion: npt.NDArray[np.float64]
    size: tuple[int, int] | None
    fisheye: bool

    @classmethod
    def read(cls, path: Path) -> Lens:
        """Read a file of OpenCV's FileStorage with ``camera_matrix`` and the coefficients.

        Raises:
            DataError: If it is missing or lacks one of them.
        """
        if not path.is_file():
            msg = f"{path}: expected an OpenCV calibration file, found no file"
            raise DataError(msg)
        try:
            file = cv2.FileStorage()
            file.open(str(path), cv2.FILE_STORAGE_READ)
        except (cv2.error, SystemError) as err:
            msg = f"{path}: expected an OpenCV calibration file, found one that cannot be parsed"
            raise DataError(msg) from err
        matrix = _node(file, "camera_matrix", "cameraMatrix", "K")
        distortion = _node(file, "distortion_coefficients", "distCoeffs", "dist_coeffs", "D")
        if matrix is None or matrix.shape != (3, 3) or distortion is None:
            msg = (
                f"{path}: expected camera_matrix (3x3) and distortion_coefficients as "
                "cv2.FileStorage writes them, found one of them missing"
            )
            raise DataError(msg)
        width, height = (int(file.getNode(f"image_{side}").real()) for side in ("width", "height"))
        model = file.getNode("distortion_model")
        name = model.string() if model.isString() else ""
        fisheye = name in ("equidistant", "fisheye")
        size = (width, height) if width > 0 and height > 0 else None
        return cls(matrix, distortion.ravel(), size, fisheye)

    def maps(self, rows: int, columns: int, origin: Path) -> tuple[Any, Any]:
        """Return the maps for `cv2.remap`; the view is that of the same camera matrix.

        A frame of another size than the calibration's, but of its aspect, scales the matrix.

        Raises:
            DataError: If the aspect differs.
        """
        matrix = self.matrix.copy()
        if self.size is not None and self.size != (columns, rows):
            width, height = self.size
            if abs(columns / width - rows / height) > 0.01 * columns / width:
                msg = (
                    f"{origin}: the calibration is for {width}x{height}, the frame is "
                    f"{columns}x{rows}, of another aspect"
                )
                raise DataError(msg)
            matrix[0] *= columns / width
            matrix[1] *= rows / height
        identity, kind = np.eye(3), cv2.CV_16SC2
        if self.fisheye:
            return cv2.fisheye.initUndistortRectifyMap(
                matrix, self.distortion[:4], identity, matrix, (columns, rows), kind
            )
        return cv2.initUndistortRectifyMap(
            matrix, self.distortion, identity, matrix, (columns, rows), kind
        )


def _node(file: cv2.FileStorage, *names: str) -> npt.NDArray[np.float64] | None:
    for name in names:
        node = file.getNode(name)
        if not node.empty() and node.isMap():
            found = node.mat()
            if found is not None and found.size:
                return np.asarray(found, np.float64)
    return None


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


def _begin(out: Path, settings: dict[str, Any], resume: bool) -> Progress:
    """Open the folder, or find out how far an earlier call came."""
    done, started = out / INDEX_FILE, out / PROGRESS_FILE
    found = done if done.exists() else started if started.exists() else None
    if found is None or not resume:
        if out.exists() and (found is not None or not is_empty(out)):
            msg = f"{out}: exists. Choose another --out, or continue it with --resume"
            raise OutputExistsError(msg)
        progress = Progress()
        _save(out, settings, progress)
        return progress
    record = read_json(found, SCHEMA)
    own = {key: record.pop(key) for key in ("seen", "kept", "duplicates")}
    thumb = record.pop("thumbnail", "")
    record.pop("schema")
    if record != json.loads(json.dumps(settings)):
        msg = f"{out}: holds frames of other footage or settings; nothing was overwritten"
        raise OutputExistsError(msg)
    if found is started:
        # What was written after the last note of progress is written again.
        path = out / LINES_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = "".join(f"{line}\n" for line in lines[: own["kept"]])
        write_atomic(path, lambda name: name.write_text(kept, encoding="utf-8"))
    return Progress(**own, thumbnail=thumb)


def _save(out: Path, settings: dict[str, Any], progress: Progress) -> None:
    write_json(out / PROGRESS_FILE, {"schema": SCHEMA, **settings, **asdict(progress)})


def _write(
    out: Path, frame: Frame, image: Image, suffix: str, line: Callable[[str], object]
) -> None:
    path = out / "images" / f"{frame.name}{suffix}"
    write_image(path, image)
    entry = {
        "file": f"images/{path.name}",
        "origin": str(frame.origin),
        "index": frame.index,
        "seconds": round(frame.seconds, 3),
    }
    line(json.dumps(entry) + "\n")


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
