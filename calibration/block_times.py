"""Which blocks are faster in float on the machine that calibrates.

Integer convolutions win where the processor multiplies bytes in one instruction (VNNI). Elsewhere a
block may lose more to rounding its inputs than its products gain, and only a clock tells which.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calibration.sensitivity import Quantize, groups_of
from edgeuda.records.calibration import BlockTime, MeasuredPlacement
from engines.machine.hardware import identity
from engines.onnx.session import open_session, usable_cores

if TYPE_CHECKING:
    import onnx

RUNS = 9
"""Turns in which two graphs are compared."""
WARM_UP = 2
GAIN = 0.01
"""Share of the time by which a block has to be faster in float to stay so."""


def faster_in_float(
    model: onnx.ModelProto,
    convs: Sequence[str],
    quantize: Quantize,
    frame: npt.NDArray[np.uint8],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> MeasuredPlacement:
    """Time each block both ways, in the whole graph, and keep float what is faster so.

    Each block alone is returned to float first. Those that gain are then tried together, the
    largest gain first, for a boundary between float and INT8 costs time of its own.

    Args:
        model: The FP32 graph.
        convs: Convolutions that would be quantized, by their output.
        quantize: See `calibration.sensitivity.Quantize`.
        frame: ``[1, H, W, 3]`` uint8 that is segmented while the clock runs.
        threads: Of ONNX Runtime; None takes every usable core. With one, the processor's time is
            taken, which other work on the machine hardly changes; else that of the wall.
        progress: Called with blocks done and blocks there are.
    """
    count = threads or usable_cores()
    clock = time.process_time if count == 1 else time.perf_counter

    def opened(floating: frozenset[str]) -> Callable[[], Any]:
        session = open_session(quantize(floating).SerializeToString(), threads=count)
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: frame})

    integers = current = opened(frozenset())
    groups = {
        group: frozenset(conv for conv, _ in members)
        for group, members in groups_of(model, convs).items()
    }
    alone: dict[str, tuple[float, float]] = {}
    for number, (group, own) in enumerate(groups.items()):
        alone[group] = _in_turns(integers, opened(own), clock)
        progress(number + 1, len(groups))
    kept: list[str] = []
    floating: frozenset[str] = frozenset()
    for group in sorted(groups, key=lambda one: alone[one][1] / alone[one][0]):
        before, after = alone[group]
        if after > (1 - GAIN) * before:
            break
        trial = opened(floating | groups[group])
        before, after = _in_turns(current, trial, clock)
        if after <= (1 - GAIN) * before:
            kept.append(group)
            floating |= groups[group]
            current = trial
    whole = _in_turns(integers, current, clock) if kept else None
    first = next(iter(alone.values()), (0.0, 0.0))[0]
    before, after = whole or (first, first)
    return MeasuredPlacement(
        kept_float=tuple(kept),
        convs=floating,
        int8_ms=before,
        chosen_ms=after,
        blocks=tuple(
            BlockTime(group, tuple(sorted(groups[group])), *times) for group, times in alone.items()
        ),
        clock="processor" if count == 1 else "wall",
        threads=count,
        machine=identity(),
    )


def _in_turns(
    one: Callable[[], Any], other: Callable[[], Any], clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the median milliseconds of two callers that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(WARM_UP + RUNS):
        for which in (0, 1) if run % 2 else (1, 0):
            began = clock()
            (one, other)[which]()
            if run >= WARM_UP:
                times[which].append(1e3 * (clock() - began))
    return statistics.median(times[0]), statistics.median(times[1])
