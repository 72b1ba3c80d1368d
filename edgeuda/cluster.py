"""A map over shards of frames on a Ray cluster: resumed by the shard, merged in order.

Frames are cut into contiguous shards. A worker is a Ray actor that opens what it needs, a model for
example, once and then takes one shard after the other. What it counts comes back to the process
that asked, which writes it to a file of its own, whole or not at all. Files are read again in the
order of the frames, one at a time. So results do not depend on how many workers there were, or on
which of them was first. Where a worker or the process that asked is killed, only the shards that
were in work are done again.

Ray Core does it, not Ray Data, which is built upon it. Ray Data repeats the work of a killed actor
without saying so and without an end, and moves results as Arrow tables through its object store.
Here a repetition is counted, a shard that kills three workers is an error, and results are files.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeuda.errors import DataError, DeviceError, Interrupted, require
from edgeuda.files import alone, write_npz
from edgeuda.interrupts import same_handlers
from edgeuda.records.shards import ShardsRecord

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]
    Opened = AbstractContextManager[Callable[[Any], Arrays]]

logger = logging.getLogger(__name__)

LOCAL = "local"
"""In the place of an address: workers on this machine, for as long as the work takes."""
LARGEST = 256
"""Frames of a shard at most."""
FEWEST = 64
"""Shards at least, as far as there are frames, so that no worker waits long for the last one."""
ATTEMPTS = 3
"""Workers that a shard may cost before it is taken for the reason."""
REACH_SECONDS = 10.0
"""How long the address of a cluster is given to answer."""
STORE_BYTES = 256 << 20
"""Object store of a local cluster: results wait there for some milliseconds."""


@dataclass(frozen=True)
class Cluster:
    """Where shards are worked on.

    Attributes:
        address: Of a running Ray cluster, as ``ray.init`` takes it, or `LOCAL`.
        workers: How many; None takes as many as there are cores, or GPUs, for.
        threads: Cores of each worker.
        gpu: Whether each worker has a GPU to itself.
    """

    address: str = LOCAL
    workers: int | None = None
    threads: int = 1
    gpu: bool = False


@dataclass(frozen=True)
class Task:
    """A map over frames.

    Attributes:
        what: What is done, in a word or two, for messages.
        key: Checksum of all that results depend on: model, frames, settings.
        frames: How many there are.
        open: Called once in each worker; what it returns is entered there, and then called with
            what ``item`` returned. It is pickled, and so are results: arrays by name.
        item: Returns what a worker needs to know of some frames. Called in this process for a shard
            when its turn comes, so that no worker lists all frames.
        unit: What is counted by ``frames``, for messages.
        largest: Frames of a shard at most.
    """

    what: str
    key: str
    frames: int
    open: Callable[[], Opened]
    item: Callable[[range], Any]
    unit: str = "frames"
    largest: int = LARGEST

    @property
    def shard(self) -> int:
        """Frames of a shard: it follows from how many frames there are, not from the workers."""
        return max(1, min(self.largest, self.frames // FEWEST))

    def shards(self) -> list[range]:
        """Return the frames of each shard."""
        return [
            range(first, min(first + self.shard, self.frames))
            for first in range(0, self.frames, self.shard)
        ]


@dataclass(frozen=True)
class Results:
    """What the shards came to, in files.

    Attributes:
        files: One ``.npz`` file for each shard, in the order of the frames.
        repeated: Shards that were done again because their worker died.
    """

    files: tuple[Path, ...]
    repeated: int = 0

    def __iter__(self) -> Iterator[Arrays]:
        """Yield the arrays of each shard; one is read when it is asked for, and no two are held."""
        import numpy as np

        for file in self.files:
            with np.load(file, allow_pickle=False) as arrays:
                yield arrays


def shards_folder(out: Path) -> Path:
    """Return where the shards of an output lie until it is written: beside it."""
    return out.with_name(f"{out.name}.shards")


def discard(out: Path) -> None:
    """Remove the shards of an output that is written."""
    shutil.rmtree(shards_folder(out), ignore_errors=True)


def map_shards(
    task: Task,
    cluster: Cluster,
    folder: Path,
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Results:
    """Do what is missing of a task, and return all of its results.

    Args:
        task: What is to be done.
        cluster: Where.
        folder: Where results are written, one file per shard; what lies there already is taken.
        progress: Called with the frames done and those to do.

    Raises:
        DataError: If the folder holds shards of another task.
        DependencyError: If Ray is not installed.
        DeviceError: If the cluster cannot be reached, has no room for a worker, or a shard ends
            three workers.
        Interrupted: On Ctrl-C.
        EdgeudaError: What a worker raises.
    """
    shards = task.shards()
    files = tuple(folder / f"{number:07d}.npz" for number in range(len(shards)))
    with alone(folder):
        _begin(task, folder)
        todo = [number for number, file in enumerate(files) if not file.exists()]
        if len(todo) < len(shards):
            logger.warning(
                "%s: goes on where %s was stopped: %d of %d shards are done",
                folder, task.what, len(shards) - len(todo), len(shards),
            )  # fmt: skip
        if not todo:
            return Results(files)
        done = task.frames - sum(len(shards[number]) for number in todo)
        try:
            with same_handlers(), _connected(cluster, len(todo)) as (ray, workers):
                pool = _Pool(ray, cluster, task, shards, todo)
                for number, arrays in pool.run(workers):
                    write_npz(files[number], arrays)
                    done += len(shards[number])
                    progress(done, task.frames)
        except KeyboardInterrupt:
            msg = f"Interrupted; {folder} keeps the shards that are done. The same command goes on"
            raise Interrupted(msg) from None
    if pool.repeated:
        logger.warning(
            "%s: %d of %d shards were done again because their worker died; the result is the same",
            task.what, pool.repeated, len(shards),
        )  # fmt: skip
    return Results(files, pool.repeated)


def _begin(task: Task, folder: Path) -> None:
    """Write down what the shards are of, or check that those which are there are of the same."""
    wanted = ShardsRecord(task.what, task.key, task.frames, task.shard)
    path = folder / ShardsRecord.FILE
    if not path.exists():
        wanted.write(path)
    elif ShardsRecord.read(path) != wanted:
        msg = (
            f"{folder}: expected shards of this {task.what}, found those of another model, other "
            "frames or other settings. Remove the folder, or choose another `out`"
        )
        raise DataError(msg)


class _Pool:
    """Workers, and which shard each of them has."""

    def __init__(
        self, ray: Any, cluster: Cluster, task: Task, shards: list[range], todo: list[int]
    ) -> None:
        self._ray, self._task, self._shards = ray, task, shards
        self._todo = deque(todo)
        self._died: Counter[int] = Counter()
        self._said: set[tuple[str, str]] = set()
        self._waiting: dict[Any, tuple[Any, int]] = {}
        self._open = ray.put(task.open)
        self._worker = ray.remote(_Worker).options(
            num_cpus=cluster.threads, num_gpus=int(cluster.gpu), max_restarts=0, max_task_retries=0
        )
        self._threads = cluster.threads

    @property
    def repeated(self) -> int:
        """Shards that were done again."""
        return len(self._died)

    def run(self, workers: int) -> Iterator[tuple[int, Arrays]]:
        """Yield the results of the shards as they come; no more of them than workers are held."""
        ray = self._ray
        for _ in range(workers):
            self._give(self._hired())
        while self._waiting:
            (ready, *_), _ = ray.wait(list(self._waiting), num_returns=1)
            worker, number = self._waiting.pop(ready)
            try:
                arrays, messages = ray.get(ready)
            except ray.exceptions.RayTaskError as err:
                raise self._reason(err.cause) from None
            except ray.exceptions.RayError as err:  # the actor, its machine or its result is lost
                ray.kill(worker)
                self._bury(number, err)
                self._give(self._hired())
                continue
            self._give(worker)  # before the result is written: nobody waits for a disk
            self._say(messages)
            yield number, arrays

    def _hired(self) -> Any:
        return self._worker.remote([self._open], self._threads)

    def _give(self, worker: Any) -> None:
        """Give a worker its next shard; one without leaves its cores to others."""
        if not self._todo:
            self._ray.kill(worker)
            return
        number = self._todo.popleft()
        item = self._task.item(self._shards[number])
        self._waiting[worker.do.remote(item)] = worker, number

    def _bury(self, number: int, err: Exception) -> None:
        """Put the shard of a worker that died first in the line.

        Raises:
            DeviceError: If workers cannot begin, or several died of it.
        """
        lines = str(err).strip().splitlines()
        if "creation task" in lines[0]:
            raise DeviceError(_cannot_begin(self._task.what, lines[-1]))
        shard, why = self._shards[number], lines[0]
        self._died[number] += 1
        if self._died[number] == ATTEMPTS:
            msg = (
                f"{self._task.what}: {ATTEMPTS} workers died of {self._task.unit} {shard[0]} to "
                f"{shard[-1]}, the last one of: {why}. Is there memory enough for each worker?"
            )
            raise DeviceError(msg)
        logger.warning(
            "A worker died on %s %d to %d, which are done again: %s",
            self._task.unit, shard[0], shard[-1], why,
        )  # fmt: skip
        self._todo.appendleft(number)

    def _reason(self, err: Exception) -> Exception:
        """Return what a worker raised; what Ray could not hand to it is said in a sentence."""
        if not isinstance(err, self._ray.exceptions.RaySystemError):
            return err
        return DeviceError(_cannot_begin(self._task.what, str(err)))

    def _say(self, messages: list[tuple[str, int, str]]) -> None:
        """Say what a worker warned of; what several warn of is said once."""
        for name, level, text in messages:
            if (name, text) not in self._said:
                self._said.add((name, text))
                logging.getLogger(name).log(level, "%s", text)


def _cannot_begin(what: str, why: str) -> str:
    return (
        f"{what}: a worker could not begin ({why.strip().splitlines()[-1].strip()}). Install the "
        "same edgeuda, with the same extras, on all machines of the cluster"
    )


class _Worker:
    """An actor: opens what it needs with its first shard, and keeps it open."""

    def __init__(self, opened: list[Any], threads: int) -> None:
        import cv2

        cv2.setNumThreads(threads)
        self._reference, self._stack = opened, ExitStack()
        self._call: Callable[[Any], Arrays] | None = None
        self._heard = _Heard(logging.WARNING)
        logging.getLogger().addHandler(self._heard)

    def do(self, item: Any) -> tuple[Arrays, list[tuple[str, int, str]]]:
        """Return the result of a shard, and what was warned of meanwhile."""
        self._heard.messages.clear()
        if self._call is None:  # not when it is made: errors then come back as they are
            opened = require("ray", "ray").get(self._reference[0])
            self._call = self._stack.enter_context(opened())
        return self._call(item), list(self._heard.messages)


class _Heard(logging.Handler):
    """Keeps warnings for the process that asked."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append((record.name, record.levelno, record.getMessage()))


@contextmanager
def _connected(cluster: Cluster, shards: int) -> Iterator[tuple[Any, int]]:
    """Start or join the cluster; yields Ray, and how many workers there are going to be.

    Raises:
        DependencyError: If Ray is not installed.
        DeviceError: If the cluster cannot be reached, or has no room for a worker.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent to Ray's makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = require("ray", "ray")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    cores = len(os.sched_getaffinity(0))
    try:
        if cluster.address == LOCAL:
            ray.init(
                address=LOCAL, include_dashboard=False, object_store_memory=STORE_BYTES,
                num_cpus=max(cores, (cluster.workers or 1) * cluster.threads), **quiet,
            )  # fmt: skip
        else:
            _knock(cluster.address)
            ray.init(address=cluster.address, **quiet)
    except (OSError, RuntimeError, ValueError) as err:
        msg = (
            f"Ray: expected a cluster at {cluster.address!r}, found none that answers "
            f"({str(err).strip().splitlines()[0]}). Give HOST:PORT of a running one, or no address "
            "for one on this machine"
        )
        raise DeviceError(msg) from err
    try:
        has = ray.cluster_resources()
        room = int(has.get("CPU", 0)) // cluster.threads
        if cluster.gpu:
            room = min(room, int(has.get("GPU", 0)))
        if not room:
            wanted = f"{cluster.threads} cores" + (" and a GPU" if cluster.gpu else "")
            msg = (
                f"Ray at {cluster.address!r}: expected {wanted} for a worker, found "
                f"{has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs"
            )
            raise DeviceError(msg)
        yield ray, min(room, cluster.workers or room, shards)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out within seconds what Ray itself tries for minutes: whether anybody answers.

    Raises:
        OSError: If nobody does.
    """
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
