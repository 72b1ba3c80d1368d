"""Label Studio: tasks with brush labels as predictions, and annotations from its JSON exports.

Sources: https://labelstud.io/guide/predictions, https://labelstud.io/guide/export and, for run
lengths, `edgeuda.annotation.brush`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from edgeuda.annotation import brush
from edgeuda.annotation.drawn import Annotations, Drawn, Labelled, Mask, damaged
from edgeuda.data.images import IMAGE_SUFFIXES
from edgeuda.errors import DataError
from edgeuda.files import write_text
from edgeuda.labels import LabelSpace, hex_color

TAG, IMAGE = "label", "image"
"""Names of the controls in the labelling interface."""
LOCAL = "/data/local-files/?d=images/"
"""Where Label Studio serves files of a local storage whose root is the folder that was written."""
_UPLOADED = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the names of uploaded files."""
_NAMED = ("brushlabels", "polygonlabels", "labels")


def write(
    out: Path, space: LabelSpace, frames: Iterable[Labelled], model_version: str, prefix: str
) -> None:
    """Write ``images``, ``tasks.json`` and the labelling interface ``labels.xml``.

    Args:
        out: Folder to write.
        space: What the ids mean.
        frames: Frames with their labels.
        model_version: What Label Studio calls the labels' origin.
        prefix: What stands before the names of images in their addresses, see `LOCAL`.
    """
    lines = [
        f"    <Label value={quoteattr(name)} background={quoteattr(hex_color(colour))}/>"
        for name, colour in zip(space.classes, space.palette, strict=True)
    ]
    text = "\n".join(
        [
            "<View>",
            f'  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>',
            f'  <BrushLabels name="{TAG}" toName="{IMAGE}">',
            *lines,
            "  </BrushLabels>",
            "</View>",
        ]
    )
    write_text(out / "labels.xml", text + "\n")
    tasks = []
    for frame in frames:
        frame.copy_into(out / "images")
        prediction: dict[str, Any] = {
            "model_version": model_version,
            "result": list(_results(frame, space)),
        }
        if frame.score is not None:
            prediction["score"] = round(frame.score, 4)
        data = {IMAGE: prefix + quote(frame.name), "frame": frame.name}
        tasks.append({"data": data, "predictions": [prediction]})
    write_text(out / "tasks.json", json.dumps(tasks))


def _results(frame: Labelled, space: LabelSpace) -> Iterator[dict[str, Any]]:
    height, width = frame.label.shape
    for index, name in enumerate(space.classes):
        mask = frame.label == index
        if mask.any():
            yield {
                "id": f"{index:03d}", "type": "brushlabels", "from_name": TAG, "to_name": IMAGE,
                "original_width": width, "original_height": height, "image_rotation": 0,
                "value": {"format": "rle", "rle": brush.encode(mask), "brushlabels": [name]},
            }  # fmt: skip


def read(path: Path, tasks: Sequence[Any]) -> Annotations:
    """Read what an export (JSON or JSON-MIN) says was annotated; predictions are not read.

    Args:
        path: The file, for errors.
        tasks: Its content.

    Raises:
        DataError: If it is damaged. Masks themselves are read later.
    """
    passed_over: Counter[str] = Counter()
    frames = []
    for number, task in enumerate(tasks):
        origin = f"{path}: task {number}"
        try:
            results = list(_annotated(task, passed_over))
            frames.append(Drawn(_names(task, origin), origin, partial(_layers, results, origin)))
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise damaged(origin, "a task of Label Studio", err) from err
    return Annotations("label-studio", frames, dict(passed_over))


def _names(task: Mapping[str, Any], origin: str) -> list[str]:
    """Return what a task's image may be called: as we handed it over, or as Label Studio has it."""
    data = task.get("data", task)
    if isinstance(data.get("frame"), str):
        return [data["frame"]]
    texts = [data.get(IMAGE), *data.values()]
    for text in filter(lambda one: isinstance(one, str), texts):
        parts = urlsplit(text)
        name = parse_qs(parts.query).get("d", [unquote(parts.path)])[0].lstrip("/")
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
            own = PurePosixPath(name)
            bare = own.with_name(_UPLOADED.sub("", own.name, count=1))
            return list(dict.fromkeys([name, str(bare)]))
    msg = f"{origin}: expected the address of an image in its data, found {sorted(data)}"
    raise DataError(msg)


def _annotated(task: Mapping[str, Any], passed_over: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the results of a task's last annotation that was not cancelled, the lowest first."""
    if "annotations" not in task and "data" not in task:  # JSON-MIN
        for value in task.values():
            if isinstance(value, list):
                yield from (_flat(one, passed_over) for one in value if _kind(one, passed_over))
        return
    whole = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
    passed_over["cancelled annotations"] += len(task.get("annotations", ())) - len(whole)
    passed_over["earlier annotations of a frame"] += max(0, len(whole) - 1)
    passed_over["predictions that nobody accepted"] += bool(task.get("predictions")) and not whole
    for result in whole[-1]["result"] if whole else ():
        size = {key: result.get(key) for key in ("original_width", "original_height")}
        one = {**result.get("value", {}), **size}
        if result.get("image_rotation"):
            msg = "expected frames that are not rotated, found one that was in Label Studio"
            raise ValueError(msg)
        if _kind(one, passed_over):
            yield _flat(one, passed_over)


def _kind(value: Any, passed_over: Counter[str]) -> bool:
    """Return whether a result is a mask or polygon with a class; else it is counted."""
    drawn = isinstance(value, dict) and ("rle" in value or "points" in value)
    if drawn and any(value.get(key) for key in _NAMED):
        return True
    passed_over["results that are no brush or polygon with a class"] += 1
    return False


def _flat(value: dict[str, Any], passed_over: Counter[str]) -> dict[str, Any]:
    names = next(value[key] for key in _NAMED if value.get(key))
    passed_over["further classes of one annotation"] += len(names) - 1
    return {**value, "class": str(names[0])}


def _layers(results: list[dict[str, Any]], origin: str) -> Iterator[tuple[str, Mask]]:
    for one in results:
        try:
            height, width = int(one["original_height"]), int(one["original_width"])
            if "rle" in one:
                yield one["class"], brush.decode(one["rle"], height, width)
                continue
            corners = np.array(one["points"], np.float64) / 100 * (width, height)
            canvas = np.zeros((height, width), np.uint8)
            cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], (1,))
            yield one["class"], canvas > 0
        except (KeyError, TypeError, ValueError) as err:
            raise damaged(origin, f"a mask of class {one['class']!r}", err) from err
