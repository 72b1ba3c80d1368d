"""Work for a cluster that leaves traces: who did which frames, and who dies of which."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeuda.cluster import Task
from edgeuda.errors import DataError


@dataclass(frozen=True)
class Traced:
    """Squares the frames of a shard.

    Attributes:
        folder: Where a line is left for every opening and every shard that is begun.
        deadly: Frame that kills its worker.
        lives: How often it does; each time leaves a file.
        bad: Frame that cannot be read.
        seconds: What a shard takes.
    """

    folder: Path
    deadly: int | None = None
    lives: int = 1
    bad: int | None = None
    seconds: float = 0.0

    @contextmanager
    def __call__(self) -> Iterator[Callable[[range], dict[str, np.ndarray]]]:
        self.note("opened", str(os.getpid()))
        logging.getLogger("edgeuda.work").warning("one core is little")
        yield self.square

    def square(self, frames: range) -> dict[str, np.ndarray]:
        self.note("begun", str(frames.start))
        time.sleep(self.seconds)
        deaths = len(list(self.folder.glob("death-*")))
        if self.deadly in frames and deaths < self.lives:
            (self.folder / f"death-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.bad in frames:
            msg = f"{self.bad:06d}.png: expected an image, found none"
            raise DataError(msg)
        return {"squares": np.array(frames, np.int64) ** 2}

    def note(self, what: str, line: str) -> None:
        with (self.folder / what).open("a") as file:
            file.write(f"{line}\n")

    def lines(self, what: str) -> list[str]:
        return (self.folder / what).read_text().split()


def task(work: Traced, frames: int, key: str = "squares") -> Task:
    return Task("squaring", key, frames, work, lambda places: places)


@dataclass(frozen=True)
class Slowly:
    """Work that takes its time, and of which a worker dies once where a file `deadly` says so."""

    work: Callable[[], AbstractContextManager[Callable[[Any], dict[str, np.ndarray]]]]
    folder: Path

    @contextmanager
    def __call__(self) -> Iterator[Callable[[Any], dict[str, np.ndarray]]]:
        with self.work() as call:

            def slow(item: Any) -> dict[str, np.ndarray]:
                time.sleep(0.1)
                found = call(item)
                with suppress(FileNotFoundError):
                    (self.folder / "deadly").unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            yield slow
