"""The machine's state while something runs: power, clocks, temperature, throttling, other load.

A thread reads whatever the machine offers, on the clock of the latencies. What it does not offer
is named, with the reason.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

from edgeuda.records.bench import Channel, MachineState
from engines.machine.probes import INTERVAL, SensorProbe, find_probes

OTHER_LOAD = 0.15
"""Share of the usable cores that other processes take, above which it is said."""
_BOARD = re.compile(r"power\.(VDD_IN|VIN|POM_5V_IN|VDD_TOTAL|psys\b.*)$")
_PART_OF_A_PART = re.compile(r"dram|core|uncore|\.NC$|\.VDDQ_")
KINDS = ("power", "temperature", "clock", "throttling", "load")
"""What a report expects to be told, or told that it is not available."""


@dataclass
class Vitals:
    """Readings on one time axis.

    Attributes:
        time_s: When each was taken, by the run's clock.
        channels: ``[n]`` values by channel; NaN where a reading failed.
        units: Unit by channel.
        sources: Titles of the probes.
        missing: What is not available, by kind, and why.
    """

    time_s: list[float] = field(default_factory=list)
    channels: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the time axis and all channels, ``[n]`` each."""
        columns = {name: np.asarray(values, np.float64) for name, values in self.channels.items()}
        return {"time_s": np.asarray(self.time_s, np.float64), **columns}

    def mean(self, channel: str, start_s: float, end_s: float) -> float | None:
        """Return a channel's mean between two times, or None if it was not read there."""
        at = np.asarray(self.time_s)
        values = np.asarray(self.channels.get(channel, []), np.float64)
        chosen = values[(at >= start_s) & (at <= end_s)] if len(values) == len(at) else values[:0]
        chosen = chosen[~np.isnan(chosen)]
        return float(chosen.mean()) if len(chosen) else None

    def summary(self) -> MachineState:
        """Return what records keep: per channel mean, extremes, first and last; no samples."""
        channels = {}
        for name, values in self.channels.items():
            known = np.asarray(values, np.float64)
            known = known[~np.isnan(known)]
            if not len(known):
                continue
            figures = (known.mean(), known.min(), known.max(), known[0], known[-1])
            channels[name] = Channel(self.units[name], len(known), *map(float, figures))
        return MachineState(
            INTERVAL, self.sources, channels, self.missing, self.throttled, self.other_load
        )

    @property
    def throttled(self) -> bool | None:
        """Whether clocks were held down at any time; None if nothing tells."""
        told = [v for k, vs in self.channels.items() if k.startswith("throttling.") for v in vs]
        told = [value for value in told if not np.isnan(value)]
        return any(value > 0 for value in told) if told else None

    @property
    def other_load(self) -> float | None:
        """Cores that other processes took on average; None if it is not known."""
        values = np.asarray(self.channels.get("load.other", []), np.float64)
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else None


class Monitor:
    """Reads probes in a thread, from entering to leaving the context.

    Args:
        origin_ns: Zero of the run's clock, by ``perf_counter_ns``.
        probes: What to read; None takes all there are.
        interval: Seconds between readings.
    """

    def __init__(
        self,
        origin_ns: int,
        probes: Sequence[SensorProbe] | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self.vitals = Vitals()
        self._origin, self._interval = origin_ns, interval
        self._probes, missing = find_probes() if probes is None else (list(probes), {})
        known = {name for probe in self._probes for name in probe.units}
        for probe in self._probes:
            self.vitals.sources.append(probe.title)
            self.vitals.units.update(probe.units)
        self.vitals.channels = {name: [] for name in known}
        for kind in KINDS:
            if not any(name.startswith(f"{kind}.") for name in known):
                self.vitals.missing[kind] = missing.get(kind, "nothing here tells it")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Vitals:
        self._thread.start()
        return self.vitals

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        for probe in self._probes:
            probe.close()

    def _work(self) -> None:
        while True:
            now = (perf_counter_ns() - self._origin) / 1e9
            values: dict[str, float] = {}
            for probe in self._probes:
                with suppress(Exception):  # a sensor that fails must not end a measurement
                    values.update(probe.read())
            self.vitals.time_s.append(now)
            for name, column in self.vitals.channels.items():
                column.append(values.get(name, float("nan")))
            if self._stop.wait(self._interval):
                return


def energy_per_frame(vitals: Vitals, start_s: float, end_s: float, frames: int) -> float | None:
    """Return joules per frame of a span in which only one model ran; None without a power meter.

    The sum over the meters of `power_channels`.
    """
    watts = [vitals.mean(name, start_s, end_s) for name in power_channels(vitals)]
    known = [value for value in watts if value is not None]
    return sum(known) * (end_s - start_s) / frames if known and frames else None


def power_channels(vitals: Vitals) -> list[str]:
    """Return the power channels that may be added: that of the whole board, else the parts.

    Whole boards are ``VDD_IN`` (Orin NX, Nano), ``VIN`` (Thor), ``POM_5V_IN`` (Nano before),
    ``VDD_TOTAL`` and RAPL's ``psys``. Parts of parts do not count: of AGX Orin ``VDDQ_VDD2_1V8AO``,
    which ``VIN_SYS_5V0`` feeds, of RAPL ``dram``, ``core`` and ``uncore``. ``NC`` is no rail.
    """
    names = [name for name in vitals.channels if name.startswith("power.")]
    total = [name for name in names if _BOARD.match(name)]
    return total[:1] or [name for name in names if not _PART_OF_A_PART.search(name)]
