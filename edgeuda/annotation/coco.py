"""COCO: masks as run lengths or polygons in one JSON file, and panoptic segmentation.

Source: https://cocodataset.org/#format-data. Run lengths and polygons are `pycocotools`'.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeuda.annotation.drawn import Annotations, Drawn, Labelled, Mask, damaged
from edgeuda.data.images import intact_bytes
from edgeuda.errors import DataError, require
from edgeuda.files import write_text
from edgeuda.labels import LabelSpace


def write(out: Path, space: LabelSpace, frames: Iterable[Labelled]) -> None:
    """Write ``images`` and ``annotations.json``: of each frame a mask per class, as a crowd.

    Args:
        out: Folder to write.
        space: What the ids mean. Category ids are one higher: CVAT does not read a category 0.
        frames: Frames with their labels.

    Raises:
        DependencyError: If ``pycocotools`` is not installed.
    """
    masks = require("pycocotools.mask", "labels")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, frame in enumerate(frames, 1):
        frame.copy_into(out / "images")
        height, width = frame.label.shape
        images.append({"id": number, "file_name": frame.name, "height": height, "width": width})
        for index in range(len(space)):
            mask = frame.label == index
            if not mask.any():
                continue
            found = masks.encode(np.asfortranarray(mask, np.uint8))
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": index + 1,
                "segmentation": {"size": [height, width], "counts": found["counts"].decode()},
                "area": int(mask.sum()), "bbox": masks.toBbox(found).tolist(), "iscrowd": 1,
            })  # fmt: skip
    categories = [
        {"id": index, "name": name, "supercategory": ""}
        for index, name in enumerate(space.classes, 1)
    ]
    record = {"images": images, "categories": categories, "annotations": annotations}
    write_text(out / "annotations.json", json.dumps(record))


def read(path: Path, record: Mapping[str, Any]) -> Annotations:
    """Read masks, polygons or panoptic segments.

    Args:
        path: The file; PNGs of panoptic segments lie beside it or below.
        record: Its content.

    Raises:
        DataError: If it is damaged. Masks themselves are read later.
        DependencyError: If ``pycocotools`` is not installed.
    """
    require("pycocotools.mask", "labels")
    passed_over: Counter[str] = Counter()
    by_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    try:
        names = {one["id"]: str(one["name"]) for one in record["categories"]}
        for one in record["annotations"]:
            if one.get("segmentation") or "segments_info" in one:
                by_image[one["image_id"]].append(one)
            else:
                passed_over["annotations without a mask"] += 1
        frames = [
            Drawn(
                [str(image["file_name"])],
                f"{path}: {image['file_name']}",
                partial(_layers, path, image, by_image.pop(image["id"], []), names),
            )
            for image in record["images"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise damaged(path, "COCO annotations", err) from err
    if by_image:
        number = next(iter(by_image))
        msg = f"{path}: expected an image for each annotation, found none of id {number}"
        raise DataError(msg)
    return Annotations("coco", frames, passed_over)


def _layers(
    path: Path,
    image: Mapping[str, Any],
    annotations: list[Mapping[str, Any]],
    names: Mapping[Any, str],
) -> Iterator[tuple[str, Mask]]:
    for one in annotations:
        if "segments_info" in one:
            yield from _segments(path, one, names)
        else:
            yield _drawn(one, image, names, f"{path}: {image['file_name']}")


def _drawn(
    one: Mapping[str, Any], image: Mapping[str, Any], names: Mapping[Any, str], origin: str
) -> tuple[str, Mask]:
    try:
        size = int(image["height"]), int(image["width"])
        return names[one["category_id"]], _mask(one["segmentation"], size)
    except Exception as err:  # pycocotools raises nothing narrower
        raise damaged(origin, "a mask of a known category", err) from err


def _mask(segmentation: Any, size: tuple[int, int]) -> Mask:
    masks = require("pycocotools.mask", "labels")
    if isinstance(segmentation, list):  # polygons
        found = masks.merge(masks.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        found = masks.frPyObjects(segmentation, *size)
    else:
        found = segmentation
    return np.asarray(masks.decode(found), bool)


def _segments(
    path: Path, one: Mapping[str, Any], names: Mapping[Any, str]
) -> Iterator[tuple[str, Mask]]:
    """Yield panoptic segments: the ids in a PNG are red + 256 green + 65536 blue."""
    file = str(one["file_name"])
    places = (path.parent / file, path.with_suffix("") / file)
    png = next((place for place in places if place.is_file()), None)
    if png is None:
        msg = (
            f"{path}: expected the panoptic segments {file} beside it or in {path.stem}, found none"
        )
        raise DataError(msg)
    pixels = cv2.imdecode(intact_bytes(png), cv2.IMREAD_COLOR)
    if pixels is None:
        msg = f"{png}: expected panoptic segments, found bytes that cannot be decoded"
        raise DataError(msg)
    ids = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])  # OpenCV's order is BGR
    try:
        segments = [(names[part["category_id"]], int(part["id"])) for part in one["segments_info"]]
    except (KeyError, TypeError, ValueError) as err:
        raise damaged(path, "panoptic segments of known categories", err) from err
    for name, number in segments:
        yield name, ids == number
