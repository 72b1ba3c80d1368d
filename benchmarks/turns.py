"""Timing: callers that take turns in one process, and functions in a process of their own."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.result import ROOT


@dataclass(frozen=True)
class Turns:
    """Seconds of each caller, one value per turn.

    Attributes:
        wall: By the clock on the wall.
        cpu: Of all threads of this process; other work of the machine changes it less, and with
            one thread it is what the wall would say of a machine that is idle.
        thread: Of the thread that calls: what the wall would say where the other threads have
            cores of their own and keep ahead.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    thread: dict[str, list[float]]

    def ms(self, clock: str = "wall") -> dict[str, float]:
        """Return the median milliseconds of each caller."""
        seconds = getattr(self, clock)
        return {name: round(1e3 * statistics.median(s), 2) for name, s in seconds.items()}

    def ratio(self, one: str, other: str, clock: str = "wall") -> dict[str, Any]:
        """Return median and quartiles of ``one`` over ``other`` of the same turn."""
        seconds = getattr(self, clock)
        return ratios(seconds[one], seconds[other])


def ratios(ones: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Return median and quartiles of the ratios of neighbours."""
    found = sorted(a / b for a, b in zip(ones, others, strict=True))
    return {
        "median": round(statistics.median(found), 3),
        "quartiles": [round(found[len(found) * part // 4], 3) for part in (1, 3)],
    }


def in_turns(callers: Mapping[str, Callable[[], object]], runs: int, warm_up: int = 3) -> Turns:
    """Call each once in every turn, in the other direction every other time.

    Whatever else the machine does then falls on all of them alike.
    """
    clocks = {"wall": time.perf_counter, "cpu": time.process_time, "thread": time.thread_time}
    turns = Turns(**{clock: {name: [] for name in callers} for clock in clocks})
    names = list(callers)
    for run in range(warm_up + runs):
        for name in names if run % 2 else reversed(names):
            began = {clock: now() for clock, now in clocks.items()}
            callers[name]()
            if run >= warm_up:
                for clock, now in clocks.items():
                    getattr(turns, clock)[name].append(now() - began[clock])
    return turns


@dataclass(frozen=True)
class Alone:
    """What a function returned in a process of its own, and that process's cost.

    Attributes:
        value: As JSON keeps it.
        cpu: Seconds of the processor, imports included.
    """

    value: Any
    cpu: float


def alone(call: Callable[..., Any], *arguments: Any) -> Alone:
    """Call a function of a module in a process of its own; paths go as text.

    Its module is imported there, so that it should import what costs memory where it is used.
    """
    script = (
        f"import json, sys; from {call.__module__} import {call.__qualname__} as call; "
        "print(); print(json.dumps(call(*json.loads(sys.argv[1]))))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments, default=str)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
    return Alone(json.loads(done.stdout.splitlines()[-1]), cpu)


def peak_kib() -> int:
    """Return the most memory of this process so far.

    `getrusage` would report the parent's peak from before this program was started.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def say(*words: object) -> None:
    """Print on standard error, as standard output is the result's."""
    print(*words, file=sys.stderr, flush=True)
