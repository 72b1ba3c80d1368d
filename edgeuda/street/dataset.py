"""A folder of rendered images and labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from edgeuda.data.images import write_image, write_label
from edgeuda.errors import ConfigError, OutputExistsError
from edgeuda.files import write_atomic
from edgeuda.labels import SPACES, LabelSpace, mapping
from edgeuda.records.dataset import DatasetRecord
from edgeuda.street.domain import DOMAIN_NAMES, domain_of
from edgeuda.street.scene import STILL, Drive, render


def write_dataset(
    out: Path,
    domain: str,
    count: int,
    seed: int,
    height: int,
    width: int,
    space: LabelSpace,
    workers: int = 1,
    drive: Drive = STILL,
) -> None:
    """Render a dataset: ``images/000000.png``, ``labels/000000.png``, ..., ``dataset.json``.

    Frames of drives are called ``000000_0000.png``: the street, then the frame.

    A pair is complete once its label exists, the dataset once ``dataset.json`` does. An interrupted
    call with the same arguments goes on where it stopped.

    Args:
        out: Folder, created if need be.
        domain: One of `DOMAIN_NAMES`.
        count: Number of streets: of images, where each is a still.
        seed: Images of two seeds have nothing in common.
        height: Rows.
        width: Columns.
        space: Label space of the written labels; classes it lacks become ignored.
        workers: Number of processes; the result does not depend on it.
        drive: How the camera moves along each street; stills by default.

    Raises:
        ConfigError: If the domain is unknown or a number is out of range.
        OutputExistsError: If ``out`` holds a dataset of other parameters.
    """
    if domain not in DOMAIN_NAMES:
        msg = f"Unknown street domain {domain!r}; known: {', '.join(DOMAIN_NAMES)}"
        raise ConfigError(msg)
    if count < 1 or workers < 1 or seed < 0:
        msg = (
            f"A street dataset needs count >= 1, workers >= 1 and seed >= 0, "
            f"found {count}, {workers} and {seed}"
        )
        raise ConfigError(msg)
    origin = {
        "renderer": "street",
        "domain": domain,
        "seed": seed,
        "count": count,
        "height": height,
        "width": width,
        **({"drive": asdict(drive)} if drive.frames > 1 else {}),
    }
    record = DatasetRecord(space.to_record(), origin=origin)
    finished = out / DatasetRecord.FILE
    # Written first under another name, so that an interrupted dataset knows its parameters too.
    started = out / "dataset.partial.json"
    for path in (finished, started):
        if path.exists():
            _require_same(path, record)
    if not finished.exists():
        record.write(started)
    work = partial(_write_pair, out, domain, seed, height, width, space, drive)
    places = range(count * drive.frames)
    if workers == 1:
        _drain(map(work, places))
    else:
        # A forked child would inherit locked mutexes of OpenCV's or torch's threads.
        fresh = get_context("spawn")
        with ProcessPoolExecutor(workers, fresh, cv2.setNumThreads, (1,)) as pool:
            try:
                _drain(pool.map(work, places, chunksize=8))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # stop soon, also on Ctrl-C
                raise
    record.write(finished)
    started.unlink(missing_ok=True)


def _drain(results: Iterable[None]) -> None:
    for _ in results:
        pass


def _require_same(path: Path, record: DatasetRecord) -> None:
    found = DatasetRecord.read(path)
    if found.to_record() != json.loads(record.to_json()):  # tuples are lists in a file
        msg = (
            f"{path}: expected the dataset that was asked for ({record.origin}, labels "
            f"{record.label_space['name']!r}), found another ({found.origin}); "
            "nothing was overwritten. Choose another folder or remove it"
        )
        raise OutputExistsError(msg)


def _write_pair(
    out: Path,
    domain: str,
    seed: int,
    height: int,
    width: int,
    space: LabelSpace,
    drive: Drive,
    place: int,
) -> None:
    index, frame = divmod(place, drive.frames)
    name = f"{index:06d}.png" if drive.frames == 1 else f"{index:06d}_{frame:04d}.png"
    image_path, label_path = out / "images" / name, out / "labels" / name
    if image_path.exists() and label_path.exists():
        return
    # Spreads (seed, index) over 64 bits, so that datasets of seeds 0 and 1 do not overlap.
    own = int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])
    image, label = render(domain_of(domain, own), own, height, width, drive, frame)
    table = mapping(SPACES["cityscapes-19"], space, ignore_unmapped=True)
    write_atomic(image_path, lambda path: write_image(path, image))
    write_atomic(label_path, lambda path: write_label(path, table[label]))
