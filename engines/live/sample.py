"""A uniform sample of a drive, in memory: every frame is as likely to be in it as any other.

Source: Vitter, "Random Sampling with a Reservoir", ACM Transactions on Mathematical Software 11,
1985, algorithm R. The drive is cut into stretches, and two samples are drawn, each from every other
stretch: what is learned from one is judged on the other, which shows other places.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from edgeuda.data.images import Image, resize_image
from edgeuda.errors import ConfigError
from edgeuda.records.stream_adaptation import StreamSample
from edgeuda.spec import Preprocessing
from engines.live.sinks import Result

FRAMES = 64
"""Frames that are kept by default, half of them to estimate and half to judge on."""
STRETCH = 10.0
"""Seconds after which frames go to the other sample: what is seen ten seconds later is elsewhere,
unless the vehicle stands."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Frames of a drive by time, each ``[1, H, W, 3]`` uint8 RGB at the network's input size.

    Attributes:
        estimating: Those that statistics are estimated on.
        judging: Those that a candidate is judged on.
        about: Where they are from.
    """

    estimating: list[Image]
    judging: list[Image]
    about: StreamSample


class Sampler:
    """A sink that keeps frames of a drive in memory, as many however long it is.

    Args:
        frames: Kept at most, both samples together; even, 4 or more.
        size: Of the network's input.
        timed: Whether frames have times; without, as in a folder of images, each counts as a
            second.
        seed: Of the draws.

    Raises:
        ConfigError: If ``frames`` is no such number.
    """

    name = "frames to adapt to"

    def __init__(
        self, frames: int, size: Preprocessing, *, timed: bool = True, seed: int = 0
    ) -> None:
        if frames < 4 or frames % 2:
            msg = f"`adapt_frames`: expected an even number, 4 or more, found {frames}"
            raise ConfigError(msg)
        self._each, self._size, self._timed = frames // 2, size, timed
        self._drawn = np.random.default_rng(seed)
        self._held: tuple[list[tuple[int, Image]], list[tuple[int, Image]]] = [], []
        self._seen = [0, 0]
        self._first: tuple[float, int] | None = None
        self._last = 0.0, 0

    @property
    def megabytes(self) -> float:
        """What the frames take at most, 10^6 bytes each."""
        return 2 * self._each * self._size.height * self._size.width * 3 / 1e6

    def write(self, result: Result) -> None:
        """See `engines.live.sinks.Sink`."""
        seconds = (result.seconds or 0.0) if self._timed else float(sum(self._seen))
        self._last = seconds, result.time_ns
        if self._first is None:
            self._first = self._last
        which = int(seconds // STRETCH) % 2
        held, before = self._held[which], self._seen[which]
        self._seen[which] += 1
        place = before if before < self._each else int(self._drawn.integers(0, before + 1))
        if place >= self._each:
            return
        image = resize_image(result.frame.image, self._size.height, self._size.width)
        if image is result.frame.image:  # which a camera may write to again
            image = image.copy()
        if place == len(held):
            held.append((result.time_ns, image[None]))
        else:
            held[place] = result.time_ns, image[None]

    def close(self) -> None:
        """See `engines.live.sinks.Sink`."""

    def sample(self) -> Sample:
        """Return what is held, once nothing more is written."""
        first = self._first or self._last
        estimating, judging = (
            [image for _, image in sorted(held, key=lambda one: one[0])] for held in self._held
        )
        seconds = self._last[0] - first[0] + (not self._timed and self._first is not None)
        count = len(estimating) + len(judging)
        about = StreamSample(
            sum(self._seen), len(estimating), len(judging), round(seconds, 3), _utc(first[1]),
            _utc(self._last[1]), round(count * self.megabytes / (2 * self._each), 3),
        )  # fmt: skip
        return Sample(estimating, judging, about)


def _utc(time_ns: int) -> str:
    found = datetime.fromtimestamp(time_ns // 10**9, timezone.utc)
    return found.isoformat(timespec="seconds")
