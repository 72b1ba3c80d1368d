"""What is wrong with data, and how far two domains are apart, before anything learns from them."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeuda.cluster import Cluster, Task, map_shards
from edgeuda.data.curation import THUMBNAIL, Thumbnail, difference, thumbnail
from edgeuda.data.folders import LabelledFolder, Pair, class_counts, parallel, spread
from edgeuda.data.images import Image, is_turned, list_images, read_image
from edgeuda.data.splits import sequence_of
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import sha256, sha256_of, stamp
from edgeuda.labels import counterparts, describe
from edgeuda.records.data_check import (
    SHOWN,
    AxisStatistics,
    CheckedData,
    ClassCount,
    DataCheckRecord,
    DataFinding,
    DomainGap,
    SizeCount,
)

STATISTICS = ("lightness", "green to red", "blue to yellow")
"""Axes of CIELAB; lightness 0 to 100, the others about -100 to 100."""
SAME = 2.0
"""Mean difference in grey levels of two thumbnails below which images count as duplicates."""
BITS_APART = 3
"""Bits by which the hashes of near-duplicates may differ; see `similar`."""
RARE = 0.001
"""Share of the pixels below which a class is called rare."""

MEDIUM, LARGE = 0.8, 2.0
"""Differences of means, in deviations between images: from the first a gap is noted, from the
second it is a warning. 0.8 is what Cohen calls large; at 2 the two domains hardly overlap."""
CHANCE = 2.6
"""Standard errors that one of six differences exceeds by chance in about one of twenty checks."""
WORDS = {
    "mean of lightness": ("darker", "brighter"),
    "mean of green to red": ("greener", "redder"),
    "mean of blue to yellow": ("bluer", "yellower"),
    "deviation of lightness": ("of less contrast", "of more contrast"),
    "deviation of green to red": ("paler between green and red", "more varied from green to red"),
    "deviation of blue to yellow": (
        "paler between blue and yellow", "more varied from blue to yellow",
    ),
}  # fmt: skip
"""What the target is, if a statistic is below that of the source, and if it is above."""


@dataclass
class Look:
    """One image as the check sees it.

    Attributes:
        path: The image.
        label: Its label file, or None.
        defect: Why the image cannot be read, or None.
        label_defect: Why the label cannot be used, or None.
        size: Rows and columns.
        turned: Whether EXIF turns it by a quarter.
        digest: SHA-256 of the file.
        hash: 64 bits of a difference hash.
        small: Its thumbnail.
        colour: Mean and deviation of the three `STATISTICS`.
        counts: ``[K]`` pixels of each class.
    """

    path: Path
    label: Path | None = None
    defect: str | None = None
    label_defect: str | None = None
    size: tuple[int, int] | None = None
    turned: bool = False
    digest: str = ""
    hash: int = 0
    small: Thumbnail | None = None
    colour: npt.NDArray[np.float64] | None = None
    counts: npt.NDArray[np.int64] | None = None


@dataclass
class DataSet:
    """A data set and what was seen of it.

    Attributes:
        name: ``source``, ``target`` or ``test``.
        root: Where it is.
        total: Images in it.
        looks: At those that were looked at.
        labelled: The labelled folder, or None.
    """

    name: str
    root: Path
    total: int
    looks: list[Look]
    labelled: LabelledFolder | None = None

    @property
    def readable(self) -> list[Look]:
        """Those whose image can be read."""
        return [look for look in self.looks if look.defect is None]

    @property
    def counts(self) -> npt.NDArray[np.int64] | None:
        """``[M, K]`` pixels of each class in each labelled image."""
        rows = [look.counts for look in self.looks if look.counts is not None]
        return np.stack(rows) if rows else None


@dataclass
class Check:
    """The result.

    Attributes:
        roles: By name.
        findings: The worst first.
        gap: Distance of source and target, if both are there.
    """

    roles: dict[str, DataSet]
    findings: list[DataFinding] = field(default_factory=list)
    gap: DomainGap | None = None

    def record(self) -> DataCheckRecord:
        """Return what is written of it."""
        roles = {name: _checked(role) for name, role in self.roles.items()}
        return DataCheckRecord(roles, self.gap, self.findings)


def check(
    labelled: Mapping[str, LabelledFolder],
    frames: Mapping[str, tuple[Path, Sequence[Path]]],
    limit: int = 2000,
    cluster: Cluster | None = None,
    shards: Path | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Check:
    """Look at data sets.

    Args:
        labelled: Labelled folders by role, ``source`` or ``test``.
        frames: By role, ``target``: its folder and its frames.
        limit: Images of each that are looked at, evenly spread.
        cluster: Workers among which the images are divided; None looks at them in this process.
        shards: Folder of what workers saw, see `edgeuda.cluster.map_shards`.
        progress: Called with the images done and those to do, by a cluster.

    Raises:
        DataError: If ``shards`` holds what was seen of other data.
        DeviceError: See `edgeuda.cluster.map_shards`.
    """
    views = {
        name: [View(pair.image, pair.label, name) for pair in spread(folder.pairs, limit)]
        for name, folder in labelled.items()
    }
    for name, (_, paths) in frames.items():
        views[name] = [View(path) for path in spread(paths, limit)]
    every = [view for part in views.values() for view in part]
    looking = Looking({name: replace(folder, pairs=()) for name, folder in labelled.items()})
    if cluster is None or shards is None:
        looks = iter(parallel(looking.look, every))
    else:
        looks = _divided(looking, every, cluster, shards, progress)
    known = {name: (folder.root, len(folder)) for name, folder in labelled.items()}
    known |= {name: (root, len(paths)) for name, (root, paths) in frames.items()}
    roles = {
        name: DataSet(name, *known[name], list(islice(looks, len(part))), labelled.get(name))
        for name, part in views.items()
    }
    result = Check(roles)
    for role in roles.values():
        result.findings += [*_defects(role), *_sizes(role), *_classes(role), *_repeats(role)]
    result.findings += _leaks(list(roles.values()))
    if "source" in roles and "target" in roles:
        result.gap = gap(roles["source"], roles["target"])
        if result.gap is not None:
            seen = [len(roles[name].readable) for name in ("source", "target")]
            result.findings += _apart(result.gap, CHANCE * math.sqrt(1 / seen[0] + 1 / seen[1]))
    if {"source", "test"} <= labelled.keys():
        result.findings += _absent(roles)
    order = {"error": 0, "warning": 1, "note": 2}
    result.findings.sort(key=lambda finding: order[finding.severity])
    return result


@dataclass(frozen=True)
class View:
    """What is looked at.

    Attributes:
        image: The image.
        label: Its label file, or None.
        role: Of the labelled folder that it is of.
    """

    image: Path
    label: Path | None = None
    role: str = ""


@dataclass(frozen=True)
class Looking:
    """Looks at images, in this process or in a worker.

    Attributes:
        folders: How labels are read, by role; none of them holds its pairs.
    """

    folders: Mapping[str, LabelledFolder]

    @contextmanager
    def __call__(self) -> Iterator[Callable[[list[View]], dict[str, npt.NDArray[Any]]]]:
        """Open it in a worker."""
        yield lambda views: packed([self.look(view) for view in views])

    def look(self, view: View) -> Look:
        """Look at one image, and at its label."""
        path = view.image
        if view.label is None:
            try:
                return _described(path, read_image(path))
            except DataError as err:
                return Look(path, defect=str(err))
        folder = replace(self.folders[view.role], pairs=(Pair(path, view.label),))
        try:
            image, label = folder.read(0)
        except DataError as err:
            look = self.look(View(path))
            look.label = view.label
            look.label_defect = None if look.defect is not None else str(err)
            return look
        look = _described(path, image)
        look.label = view.label
        look.counts = class_counts([label], len(folder.space))[0]
        if look.counts.sum() == 0:
            look.label_defect = f"{view.label}: expected labelled pixels, found all of them ignored"
        return look


def _described(path: Path, image: Image) -> Look:
    look = Look(path, size=(image.shape[0], image.shape[1]))
    look.turned = is_turned(path)
    look.digest = sha256(path)
    look.small = thumbnail(image)
    look.hash = difference_hash(look.small)
    look.colour = colour_statistics(image)
    return look


def _divided(
    looking: Looking,
    views: list[View],
    cluster: Cluster,
    shards: Path,
    progress: Callable[[int, int], None],
) -> Iterator[Look]:
    """Look at images in workers; yields the looks in order, those of one shard at a time."""

    def item(places: range) -> list[View]:
        """Return views by paths that hold wherever a worker stands."""
        part = views[places.start : places.stop]
        return [
            replace(
                view,
                image=view.image.absolute(),
                label=None if view.label is None else view.label.absolute(),
            )
            for view in part
        ]

    files = [path for view in views for path in (view.image, view.label) if path is not None]
    spaces = (
        f"{name} {folder.stored} {folder.space} {folder.layout}"
        for name, folder in looking.folders.items()
    )
    key = sha256_of((*spaces, *map(str, files), stamp(files, missing=True)))
    results = map_shards(
        Task("data check", key, len(views), looking, item), cluster, shards, progress=progress
    )
    rest = iter(views)
    for shard in results:
        yield from unpacked(shard, rest)


_PLAIN = ("defect", "label_defect", "size", "turned", "digest", "hash")


def packed(looks: Sequence[Look]) -> dict[str, npt.NDArray[Any]]:
    """Return looks as a file of a shard holds them: a row of JSON and a thumbnail for each.

    Numbers of JSON are those of Python again when they are read, to the last bit.
    """
    blank = np.zeros(THUMBNAIL[::-1], np.uint8)
    rows = []
    for look in looks:
        row = {name: getattr(look, name) for name in _PLAIN}
        for name, array in (("colour", look.colour), ("counts", look.counts)):
            row[name] = None if array is None else array.tolist()
        rows.append(json.dumps(row))
    small = [blank if look.small is None else look.small for look in looks]
    return {"rows": np.array(rows), "small": np.stack(small)}


def unpacked(shard: Mapping[str, npt.NDArray[Any]], views: Iterator[View]) -> Iterator[Look]:
    """Yield the looks that `packed` was given, by the names of the next of some views.

    A worker names files by whole paths; here they are named as they were given.
    """
    for text, small in zip(shard["rows"], shard["small"], strict=True):
        row, view = json.loads(str(text)), next(views)
        look = Look(view.image, view.label, turned=row["turned"], digest=row["digest"])
        look.hash, look.size = row["hash"], None if row["size"] is None else tuple(row["size"])
        for name in ("defect", "label_defect"):
            why = row[name]
            for path in (view.image, view.label):
                if why is not None and path is not None:
                    why = why.replace(str(path.absolute()), str(path))
            setattr(look, name, why)
        if row["colour"] is not None:
            look.small, look.colour = small, np.array(row["colour"], np.float64)
        if row["counts"] is not None:
            look.counts = np.array(row["counts"], np.int64)
        yield look


def colour_statistics(image: Image) -> npt.NDArray[np.float64]:
    """Return mean and standard deviation of lightness and both colour axes, ``[6]`` float64."""
    small = cv2.resize(image, (128, 72), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    return np.concatenate([lab.mean(0), lab.std(0)]).astype(np.float64)


def difference_hash(small: Thumbnail) -> int:
    """Return 64 bits: whether each of 8x8 cells is darker than its right neighbour."""
    cells = cv2.resize(small, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def similar(a: Sequence[Look], b: Sequence[Look]) -> list[tuple[Look, Look]]:
    """Return pairs of near-duplicates between two lists of readable images.

    Hashes may differ by `BITS_APART` bits, so that one of four quarters is equal: candidates are
    found by quarter, then their thumbnails are compared.
    """
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, look in enumerate(b):
        for quarter in range(4):
            buckets[quarter, look.hash >> (16 * quarter) & 0xFFFF].append(index)
    found = []
    for look in a:
        near = {
            index
            for quarter in range(4)
            for index in buckets.get((quarter, look.hash >> (16 * quarter) & 0xFFFF), ())
        }
        for index in sorted(near):
            other = b[index]
            apart = (look.hash ^ other.hash).bit_count()
            if apart <= BITS_APART and _alike(look, other):
                found.append((look, other))
                break
    return found


def _alike(a: Look, b: Look) -> bool:
    assert a.small is not None
    assert b.small is not None
    return a.digest == b.digest or difference(a.small, b.small) < SAME


def gap(source: DataSet, target: DataSet) -> DomainGap | None:
    """Return how far two domains are apart in brightness and colour, None without images."""
    rows = [
        np.array([look.colour for look in role.readable], np.float64) for role in (source, target)
    ]
    if min(map(len, rows)) < 2:
        return None
    means = [found.mean(0) for found in rows]
    covariances = [np.cov(found, rowvar=False) for found in rows]
    pooled = np.sqrt((covariances[0].diagonal() + covariances[1].diagonal()) / 2)
    apart = (means[1] - means[0]) / np.maximum(pooled, 1e-9)
    names = [f"{kind} of {axis}" for kind in ("mean", "deviation") for axis in STATISTICS]
    beyond = ((rows[1] - means[0]) * np.sign(apart) > 0).mean(0)
    return DomainGap(
        frechet(means, covariances),
        {
            role.name: _between_halves(found)
            for role, found in zip((source, target), rows, strict=True)
        },
        dict(zip(names, apart.tolist(), strict=True)),
        dict(zip(names, beyond.tolist(), strict=True)),
    )


def _between_halves(found: npt.NDArray[np.float64]) -> float | None:
    """Return the Fréchet distance of the first half of a data set from its second."""
    if len(found) < 4:
        return None
    halves = np.array_split(found, 2)
    return frechet([x.mean(0) for x in halves], [np.cov(x, rowvar=False) for x in halves])


def scale(measured: DomainGap) -> str:
    """Say what a distance of `gap` is to be held against."""
    known = [x for x in measured.within.values() if x is not None]
    if not known:
        return "there are too few images to say how far two halves of one data set are apart"
    usual = max(known)
    if measured.frechet <= usual:
        return f"two halves of one data set are as far apart ({usual:.1f})"
    times = f"{measured.frechet / usual:.1f} times as much as" if usual > 0 else "beside"
    return f"{times} two halves of one data set ({usual:.1f})"


def _apart(measured: DomainGap, chance: float) -> list[DataFinding]:
    """Say what the gap between source and target means, and what of a recipe answers it.

    Args:
        measured: See `gap`.
        chance: Deviations that as few images may be apart by chance.
    """
    least = max(MEDIUM, chance)
    gaps = {k: v for k, v in measured.standardised.items() if abs(v) >= least}
    if not gaps:
        return []
    ordered = sorted(gaps, key=lambda name: -abs(gaps[name]))
    said = [
        f"{WORDS[name][gaps[name] > 0]} by {abs(gaps[name]):.1f} deviations" for name in ordered
    ]
    first = WORDS[ordered[0]][gaps[ordered[0]] > 0]
    share = f"{100 * measured.beyond[ordered[0]]:.0f} % of them are {first} than the source's mean"
    advice = [
        "Adapt, and begin with AdaBN, the first stage of the recipes edge, lite and small: it "
        "takes brightness and contrast of the target into the network's statistics"
    ]
    if any("lightness" not in name for name in ordered):
        advice.append(
            "where a stage trains on source images, `stage1.style=colour` (likewise "
            "source.style and stage2.style) gives them the target's colours"
        )
    advice.append("leave source.augment on, which varies both while the source network trains")
    worst = abs(gaps[ordered[0]])
    return [
        DataFinding(
            "warning" if worst >= LARGE else "note",
            "source, target",
            f"images of target are {', '.join(said)}; {share}. The distance in brightness and "
            "colour is "
            f"{measured.frechet:.1f}, {scale(measured)}",
            "; ".join(advice),
        )
    ]


def frechet(
    means: Sequence[npt.NDArray[np.float64]], covariances: Sequence[npt.NDArray[np.float64]]
) -> float:
    """Return the Fréchet distance of two Gaussians, in the units of their axes.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions",
    1982: the root of ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``.
    """
    values = np.linalg.eigvals(covariances[0] @ covariances[1])
    roots = np.sqrt(np.maximum(values.real, 0)).sum()
    spread_ = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
    return float(math.sqrt(max(0.0, float(((means[0] - means[1]) ** 2).sum() + spread_))))


def _defects(role: DataSet) -> list[DataFinding]:
    found = []
    bad = [look.defect for look in role.looks if look.defect is not None]
    if bad:
        share = len(bad) / len(role.looks)
        found.append(
            DataFinding.about(
                "error" if role.labelled or share > 0.05 else "warning",
                role.name,
                f"{len(bad)} of {len(role.looks)} images cannot be read",
                "Remove them or copy them again",
                bad,
            )
        )
    missing = _missing(role)
    if missing:
        found.append(
            DataFinding.about(
                "error",
                role.name,
                f"{len(missing)} images have no label",
                "Remove them, or give a list of pairs",
                [str(path) for path in missing],
            )
        )
    wrong = [look.label_defect for look in role.looks if look.label_defect is not None]
    if wrong:
        found.append(
            DataFinding.about(
                "error",
                role.name,
                f"{len(wrong)} of {len(role.looks)} labels cannot be used",
                "See docs/data.md for the forms that are read",
                wrong,
            )
        )
    turned = [str(look.path) for look in role.looks if look.turned]
    if turned:
        found.append(
            DataFinding.about(
                "warning" if role.labelled else "note",
                role.name,
                f"{len(turned)} images are turned by their EXIF orientation",
                "Labels must be of the turned image, as viewers show it",
                turned,
            )
        )
    return found


def _missing(role: DataSet) -> list[Path]:
    """Return the images of a labelled folder that have no label file."""
    if role.labelled is None:
        return []
    try:
        images = list_images(role.root)
    except DataError:  # dataset.json says that they lie elsewhere
        return []
    have = {pair.image for pair in role.labelled.pairs}
    return [path for path in images if path not in have]


def _sizes(role: DataSet) -> list[DataFinding]:
    sizes = Counter(look.size for look in role.readable)
    aspects = {round(size[1] / size[0], 2) for size in sizes if size is not None}
    if len(aspects) <= 1:
        return []
    usual = sizes.most_common(1)[0][0]
    others = [str(look.path) for look in role.readable if look.size != usual]
    return [
        DataFinding.about(
            "warning",
            role.name,
            f"images of {len(sizes)} sizes and {len(aspects)} aspects; all are resized to the "
            "network's input, so some are stretched",
            "Crop them to one aspect",
            others,
        )
    ]


def _classes(role: DataSet) -> list[DataFinding]:
    counts = role.counts
    if counts is None or role.labelled is None:
        return []
    names, totals = role.labelled.space.classes, counts.sum(0)
    found = []
    absent = [names[i] for i in np.flatnonzero(totals == 0)]
    if absent:
        found.append(
            DataFinding(
                "warning",
                role.name,
                f"no pixel of {', '.join(absent)}",
                "What has no source label cannot be learned; what is not in the test is not scored",
            )
        )
    rare = [
        f"{names[i]} ({totals[i] / totals.sum():.4%}, {int((counts[:, i] > 0).sum())} images)"
        for i in np.flatnonzero((totals > 0) & (totals < RARE * totals.sum()))
    ]
    if rare:
        text = f"rare: {', '.join(rare)}"
        found.append(DataFinding("note", role.name, text, "Their IoU will swing between seeds"))
    return found


def _repeats(role: DataSet) -> list[DataFinding]:
    """Images that equal another of the same data set; neighbours in a sequence excepted."""
    by_digest: dict[str, list[Look]] = defaultdict(list)
    for look in role.readable:
        by_digest[look.digest].append(look)
    same = [looks for looks in by_digest.values() if len(looks) > 1]
    found = []
    if same:
        extra = sum(len(looks) - 1 for looks in same)
        files = [f"{looks[0].path} = {looks[1].path}" for looks in same]
        text = f"{extra} images are copies of others"
        found.append(DataFinding("warning", role.name, text, "Remove them", files[:SHOWN], extra))
    ordered = sorted(role.readable, key=lambda look: sequence_of(look.path))
    still = [
        str(after.path)
        for before, after in pairwise(ordered)
        if before.digest != after.digest and _alike(before, after)
    ]
    if len(still) > 0.1 * len(ordered):
        found.append(
            DataFinding.about(
                "warning" if role.labelled is None else "note",
                role.name,
                f"{len(still)} of {len(ordered)} images hardly differ from the one before",
                "Thin them out: edgeuda data frames --footage FOLDER --out FRAMES",
                still,
            )
        )
    return found


def _leaks(roles: Sequence[DataSet]) -> list[DataFinding]:
    found = []
    for index, first in enumerate(roles):
        for second in roles[index + 1 :]:
            pairs = similar(first.readable, second.readable)
            if not pairs:
                continue
            copies = sum(a.digest == b.digest for a, b in pairs)
            scored = "test" in (first.name, second.name)
            # Frames that are scored may be adapted to: without their labels that is transduction.
            severe = scored and "source" in (first.name, second.name)
            advice = {
                True: "Scores on images that were trained on say nothing: remove them from one",
                False: "Say so beside the scores: the network has seen these frames, unlabelled"
                if scored
                else "Is one of the folders the wrong one?",
            }[severe]
            found.append(
                DataFinding.about(
                    "error" if severe else "warning",
                    f"{first.name}, {second.name}",
                    f"{len(pairs)} images of {first.name} are also in {second.name}, "
                    f"{copies} of them byte by byte",
                    advice,
                    [f"{a.path} = {b.path}" for a, b in pairs],
                )
            )
    return found


def _absent(roles: Mapping[str, DataSet]) -> list[DataFinding]:
    test = roles.get("test")
    source, there = roles["source"].counts, None if test is None else test.counts
    if source is None or there is None or test is None or test.labelled is None:
        return []
    trained, names = roles["source"].labelled, test.labelled.space.classes
    if trained is None:
        return []
    if names != trained.space.classes:
        try:
            text = describe(counterparts(test.labelled.space, trained.space))
        except ConfigError as err:
            return [DataFinding("error", "source, test", str(err))]
        text = f"labels of {test.labelled.space.name} count as {trained.space.name}: {text}"
        return [DataFinding("note", "source, test", text)]
    lost = [names[i] for i in np.flatnonzero((source.sum(0) == 0) & (there.sum(0) > 0))]
    if not lost:
        return []
    return [
        DataFinding(
            "error",
            "source, test",
            f"{', '.join(lost)} are scored but have no source label",
            "Their IoU will be 0: map them to another class, or ignore them",
        )
    ]


def _checked(role: DataSet) -> CheckedData:
    sizes = Counter(look.size for look in role.readable if look.size is not None)
    colours = np.array([look.colour for look in role.readable], np.float64)
    record = CheckedData(
        str(role.root), role.total, len(role.looks), len(role.readable),
        [SizeCount(*size, number) for size, number in sizes.most_common(20)],
    )  # fmt: skip
    if len(colours):
        record = replace(
            record,
            colour={
                axis: AxisStatistics(
                    float(colours[:, i].mean()),
                    float(colours[:, i].std()),
                    float(colours[:, i + 3].mean()),
                )
                for i, axis in enumerate(STATISTICS)
            },
            lightness=np.histogram(colours[:, 0], 20, (0, 100))[0].tolist(),
        )
    counts = role.counts
    if counts is None or role.labelled is None:
        return record
    pixels, total = counts.sum(0), max(1, int(counts.sum()))
    everything = sum(
        look.size[0] * look.size[1]
        for look in role.looks
        if look.counts is not None and look.size is not None
    )
    return replace(
        record,
        label_space=role.labelled.space.name,
        classes={
            name: ClassCount(
                int(pixels[i]), float(pixels[i] / total), int((counts[:, i] > 0).sum())
            )
            for i, name in enumerate(role.labelled.space.classes)
        },
        ignored_share=1 - total / max(1, everything),
    )
