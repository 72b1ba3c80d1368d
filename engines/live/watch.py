"""Whether a stream still looks like the frames that its model was made for: a test over windows.

Every few seconds the means of a window's frames are held against those of as many frames of the
reference that follow each other. A mean that the reference makes too unlikely is an alarm. How
unlikely follows from the false alarms per hour that the user accepts, by the prediction interval of
Student's distribution: with few stretches of footage in the reference the interval is wide, and
what cannot be told from normal is not an alarm. Source: Hahn and Meeker, "Statistical Intervals",
1991, section 4.7; that frames resemble those before them is met as by Bayley and Hammersley, "The
Effective Number of Independent Observations in an Autocorrelated Time Series", 1946.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeuda.errors import ConfigError, DataError
from edgeuda.records.reference import CLASSES, DISTANCE, SURENESS, Reference
from edgeuda.records.watch import Alarm, AlarmKind, Limit, Tested, WatchRecord
from engines.signals import FrameStatistics, class_distance, confidence_distance

Numbers = npt.NDArray[np.float64]

BLOCKS = (4, 16)
"""Frames of the reference that are taken together: the largest number that a window has, and of
which the reference has enough for a column."""
FEWEST = 8
"""Independent blocks of the reference below which a column is not tested: its limit would be so far
off that testing it would only make the other columns' limits wider."""
LOGARITHMS = ("sharpness", DISTANCE)
"""Columns that are ratios by nature: twice as sharp is as far as half as sharp."""
LIGHT = ("brightness", "red", "green", "blue", "red_spread", "green_spread", "blue_spread")
DULL = 0.3
"""Part of its usual sharpness, as a part of what the other regions have, below which a region is
called dull. In less light all have less."""
GAP = 0.2
"""Seconds between two frames that are looked at."""
ENTRIES = 1000
"""Entries of the timeline that are reached; then two become one."""
LEAST_UNIT = 1e-3
"""Of a column that hardly varies, as a part of its mean."""


@dataclass(frozen=True)
class WatchSettings:
    """How a stream is watched.

    Attributes:
        per_hour: False alarms in an hour that are accepted.
        window: Seconds that are taken together. Longer ones find smaller changes later.
    """

    per_hour: float = 0.1
    window: float = 10.0

    def __post_init__(self) -> None:
        if not (self.per_hour > 0 and self.window > 0):
            msg = (
                "`alarms_per_hour` and `watch_window`: expected positive numbers, found "
                f"{self.per_hour:g} and {self.window:g}"
            )
            raise ConfigError(msg)

    @property
    def hop(self) -> float:
        """Seconds between two tests: windows overlap by half."""
        return self.window / 2

    @property
    def tests_per_hour(self) -> float:
        """Number of tests in an hour."""
        return 3600 / self.hop


@dataclass(frozen=True)
class WatchState:
    """What the newest test found.

    Attributes:
        seconds: End of its window.
        ratio: The farthest column as a part of its limit; above 1 it is not taken for chance.
        column: That column.
        alarm: The alarm that goes on, if one does.
    """

    seconds: float
    ratio: float
    column: str
    alarm: Alarm | None


class Watch:
    """Holds a stream against a reference.

    Args:
        reference: Of the model that runs.
        settings: How often it may cry wolf, and how long it looks.

    Raises:
        DataError: If the reference has too few frames.

    Example:
        >>> watch = Watch(reference, WatchSettings(per_hour=0.1))    # doctest: +SKIP
        >>> alarm = watch.add(12.5, statistics(seen, classes))       # doctest: +SKIP
    """

    def __init__(self, reference: Reference, settings: WatchSettings) -> None:
        self.reference, self.settings = reference, settings
        self._columns = reference.per_frame
        values = np.column_stack([_straight(n, reference.column(n)) for n in self._columns])
        lengths = [one.frames for one in reference.stretches]
        chance = settings.per_hour / settings.tests_per_hour
        self._normals = {size: normal(values, lengths, size, min(chance, 0.5)) for size in BLOCKS}
        self._window: deque[tuple[float, Numbers, Numbers]] = deque()
        self._next: float | None = None
        self._alarms: list[Alarm] = []
        self._state: WatchState | None = None
        self._clear: float | None = None
        self._tested = self._untested = 0
        self._timeline: list[tuple[float, float, int]] = []
        self._every = 1
        sharpness = [region.sharpness for region in reference.regions]
        self._sharp = np.array([one.mean for one in sharpness])
        # A region of sky and trees is now sharp and now not.
        self._usual = {
            CLASSES: np.array([region.classes for region in reference.regions]),
            SURENESS: np.array([region.confidence for region in reference.regions]),
        }
        self._textured = self._sharp > [one.deviation for one in sharpness]

    @property
    def alarm(self) -> Alarm | None:
        """The alarm that goes on, if one does."""
        return self._alarms[-1] if self._alarms and self._alarms[-1].until is None else None

    @property
    def state(self) -> WatchState | None:
        """What the newest test found; None before the first."""
        return None if self._state is None else replace(self._state, alarm=self.alarm)

    def due(self, seconds: float) -> bool:
        """Whether a frame is to be added: those that follow too soon say the same."""
        return not self._window or seconds >= self._window[-1][0] + GAP

    def add(self, seconds: float, said: FrameStatistics) -> Alarm | None:
        """Take a frame; returns an alarm if one begins with it.

        Args:
            seconds: When it came; not before the frame before it.
            said: The frame, see `engines.signals.statistics`.
        """
        if self._next is None:
            self._next = seconds + self.settings.window
        found = None
        if seconds >= self._next:
            found = self._test(self._next)
            steps = math.floor((seconds - self._next) / self.settings.hop) + 1
            self._untested += steps - 1  # while no frame came
            self._next += steps * self.settings.hop
        self._window.append((seconds, self._row(said), said.sharpness[:-1]))
        return found

    def record(self) -> WatchRecord:
        """Return what was seen so far."""
        usual = self._normals[max(self._normals)]
        limits = [
            Limit(
                name, float(mean), float(unit),
                float(limit) if math.isfinite(limit) else None, round(float(blocks), 1),
            )
            for name, mean, unit, limit, blocks in zip(
                self._columns, usual.mean, usual.unit, usual.limit, usual.blocks, strict=True
            )
        ]  # fmt: skip
        return WatchRecord(
            self.settings.per_hour,
            self.settings.window,
            self._tested,
            self._untested,
            limits,
            list(self._alarms),
            [
                Tested(round(when, 1), round(ratio, 3), self._columns[at])
                for when, ratio, at in self._timeline
            ],
        )

    def _row(self, said: FrameStatistics) -> Numbers:
        given = dict(zip(self._columns, said.values, strict=False))  # the others come last
        if CLASSES in self._columns:
            given[CLASSES] = class_distance(said.classes[:-1], self._usual[CLASSES])
        if SURENESS in self._columns:
            given[SURENESS] = confidence_distance(said.confidence[:-1], self._usual[SURENESS])
        features = self.reference.features
        if DISTANCE in self._columns and features is not None:
            if said.features is None:
                msg = "expected pooled features of the model, found none"
                raise DataError(msg)
            given[DISTANCE] = float(features.distances(said.features[None])[0])
        return np.array([float(_straight(n, np.array(given[n]))) for n in self._columns])

    def _test(self, now: float) -> Alarm | None:
        begin = now - self.settings.window
        while self._window and self._window[0][0] < begin:
            self._window.popleft()
        if len(self._window) < BLOCKS[0]:
            self._untested += 1
            return None
        self._tested += 1
        means = np.mean([row for _, row, _ in self._window], axis=0)
        usual = self._normals[max(size for size in self._normals if size <= len(self._window))]
        apart = (means - usual.mean) / usual.unit
        ratios = np.abs(apart) / usual.limit
        worst = int(ratios.argmax())
        self._note(now, float(ratios[worst]), worst)
        self._state = WatchState(now, float(ratios[worst]), self._columns[worst], None)
        current = self.alarm
        if ratios[worst] <= 1:
            self._clear = now if self._clear is None else self._clear
            if current is not None and now - self._clear >= self.settings.window:
                self._alarms[-1] = replace(current, until=self._clear)
            return None
        self._clear = None
        if current is not None:
            return None
        over = {self._columns[at]: round(float(apart[at]), 2) for at in np.flatnonzero(ratios > 1)}
        regions = np.mean([sharp for _, _, sharp in self._window], axis=0)
        found = Alarm(now, None, self._kind(over, regions), over)
        self._alarms.append(found)
        return found

    def _kind(self, over: Mapping[str, float], regions: Numbers) -> AlarmKind:
        """Return what the change looks like.

        Args:
            over: Columns beyond their limits, and how far.
            regions: Mean sharpness of each region.
        """
        usual = regions / np.maximum(self._sharp, 1e-9)
        middle = np.median(usual[self._textured]) if self._textured.any() else 0.0
        dull = self._textured & (usual < DULL * middle)
        if dull.any() and 2 * dull.sum() <= self._textured.sum():
            return "covered"
        if over.get("sharpness", 0.0) < 0:
            return "blur"
        return "light" if any(name in over for name in LIGHT) else "scene"

    def _note(self, now: float, ratio: float, column: int) -> None:
        """Add to the timeline, which stays bounded: of two neighbours the higher one is kept."""
        if self._tested % self._every and self._timeline:
            if ratio > self._timeline[-1][1]:
                self._timeline[-1] = now, ratio, column
            return
        self._timeline.append((now, ratio, column))
        if len(self._timeline) == ENTRIES:
            pairs = zip(self._timeline[::2], self._timeline[1::2], strict=True)
            self._timeline = [max(pair, key=lambda one: one[1]) for pair in pairs]
            self._every *= 2


class Normal(NamedTuple):
    """How far the mean of a window may be from that of the reference, by column.

    Attributes:
        mean: ``[D]`` float64.
        unit: ``[D]`` standard deviation of the difference.
        limit: ``[D]`` units beyond which it is not taken for chance; infinite where the reference
            says too little.
        blocks: ``[D]`` blocks of the reference, as far as they are independent.
    """

    mean: Numbers
    unit: Numbers
    limit: Numbers
    blocks: Numbers


def normal(values: Numbers, lengths: Sequence[int], frames: int, chance: float) -> Normal:
    """Return what is normal, from frames in stretches that follow each other.

    A window's mean varies like that of a block of the reference. Windows of more frames vary less,
    so a limit keeps its promise for them. Long blocks make narrow limits, and there are few of
    them: each column is measured by the longest of which there are enough.

    Args:
        values: ``[N, D]`` of the reference's frames.
        lengths: Of its stretches, N together.
        frames: Of a window at least, `BLOCKS`' first or more.
        chance: That any column goes beyond its limit in one test.

    Raises:
        DataError: If no column has `FEWEST` independent blocks.
    """
    found = [_blocked(values, lengths, size) for size in BLOCKS if size <= frames]
    enough = [one.blocks >= FEWEST for one in found]
    tested = np.any(enough, axis=0)
    if not tested.any():
        most = max(float(one.blocks.max()) for one in found)
        msg = (
            f"The reference has {len(values)} frames that say as little of how much normal varies "
            f"as {most:.1f} independent ones, and {FEWEST} are needed. Calibrate on "
            "footage of more places and times"
        )
        raise DataError(msg)
    each = chance / 2 / tested.sum()
    best = found[0]
    for one, of in zip(found[1:], enough[1:], strict=True):
        best = Normal(*(np.where(of, new, old) for new, old in zip(one, best, strict=True)))
    quantile = [student_quantile(each, float(one) - 1) for one in np.maximum(best.blocks, 2.0)]
    # What the reference holds is normal, however unlikely.
    limit = np.where(tested, np.maximum(quantile, best.limit), np.inf)
    return best._replace(limit=limit)


def _blocked(values: Numbers, lengths: Sequence[int], size: int) -> Normal:
    """Return what blocks of a size say; ``limit`` is how far the farthest of them is."""
    means = np.stack([values[part].mean(0) for part in _blocks(lengths, size)])
    count, apart = len(means), means - means.mean(0)
    power = (apart**2).mean(0)
    follow = np.zeros_like(power)
    if count > 1:
        follow = (apart[1:] * apart[:-1]).sum(0) / (count * np.maximum(power, 1e-300))
    follow = np.clip(follow, 0, 0.99)
    blocks = np.maximum(count * (1 - follow) / (1 + follow), 1.0)
    independent = np.maximum(blocks, 2.0)
    spread = np.sqrt(power / (1 - 1 / independent))
    least = LEAST_UNIT * np.abs(means.mean(0)) + 1e-9
    unit = np.maximum(spread * np.sqrt(1 + 1 / independent), least)
    return Normal(means.mean(0), unit, np.abs(apart / unit).max(0), blocks)


def student_quantile(chance: float, freedom: float) -> float:
    """Return what Student's t exceeds with a chance.

    Args:
        chance: Above 0, at most 0.5.
        freedom: Degrees of freedom, above 0; they need not be whole.
    """
    low, high = 0.0, 1.0
    while _tail(high, freedom) > chance:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(middle, freedom) > chance else (low, middle)
    return (low + high) / 2


def _tail(t: float, freedom: float) -> float:
    """Return the chance that Student's t exceeds ``t``, 0 or more."""
    # Half of the regularised incomplete beta function I_x(freedom / 2, 1 / 2), by its continued
    # fraction (Press et al., "Numerical Recipes", section 6.4, with Lentz's method).
    x, a, b = freedom / (freedom + t * t), freedom / 2, 0.5
    if x > (a + 1) / (a + b + 2):
        return 0.5 - 0.5 * _beta(1 - x, b, a)
    return 0.5 * _beta(x, a, b)


def _beta(x: float, a: float, b: float) -> float:
    if x <= 0:
        return 0.0
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 500):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + factor * d)
            c = _away(1 + factor / c)
            result *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * result


def _away(value: float) -> float:
    """Return a number that can be divided by."""
    return value if abs(value) > 1e-300 else 1e-300


def _blocks(lengths: Sequence[int], size: int) -> list[slice]:
    """Return blocks of frames that follow each other; what is left of a stretch is a block, too."""
    ends = np.cumsum(lengths).tolist()
    return [
        slice(first, min(first + size, end))
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
        for first in range(begin, end, size)
    ]


def _straight(name: str, values: npt.NDArray[np.floating]) -> Numbers:
    """Return a column on the scale in which it is compared."""
    found = np.asarray(values, np.float64)
    return np.log(np.maximum(found, 1e-6)) if name in LOGARITHMS else found
