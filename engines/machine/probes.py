"""Where the machine's state can be read: NVML, tegrastats, sysfs, /proc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns, process_time
from typing import Any

from edgeuda.errors import DependencyError, require
from edgeuda.files import text_of
from engines.machine.hardware import GPU_NAMES

INTERVAL = 0.1
"""Seconds between readings."""

Reading = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class SensorProbe:
    """A source of readings.

    Attributes:
        title: What it is.
        units: Unit by channel; a channel's name begins with ``power.``, ``temperature.``,
            ``clock.``, ``throttling.`` or ``load.``.
        read: Returns the channels' values now; one that cannot be read is absent.
        close: Ends it.
    """

    title: str
    units: Mapping[str, str]
    read: Reading
    close: Callable[[], None] = lambda: None


def find_probes(root: Path = Path("/")) -> tuple[list[SensorProbe], dict[str, str]]:
    """Return the probes this machine has, and why kinds are missing, by kind.

    Args:
        root: Where ``sys`` and ``proc`` are.
    """
    missing: dict[str, str] = {}
    found = [
        _nvml(), _tegrastats(), _rapl(root, missing), _ina3221(root), _thermal_zones(root),
        _cpu_clocks(root), _gpu_devfreq(root), _throttle_counts(root), _other_load(root),
    ]  # fmt: skip
    return [probe for probe in found if probe is not None], missing


def _read_number(path: Path) -> float:
    return float(path.read_text(encoding="ascii"))


def _files(read: Mapping[str, tuple[Path, float]], title: str, unit: str) -> SensorProbe | None:
    """Return a probe of the sysfs files that can be read, each times a factor."""
    usable = {}
    for name, (path, factor) in read.items():
        with suppress(OSError, ValueError):
            _read_number(path)
            usable[name] = (path, factor)
    if not usable:
        return None

    def values() -> dict[str, float]:
        found = {}
        for name, (path, factor) in usable.items():
            with suppress(OSError, ValueError):
                found[name] = factor * _read_number(path)
        return found

    return SensorProbe(title, dict.fromkeys(usable, unit), values)


def _thermal_zones(root: Path) -> SensorProbe | None:
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    named = {f"temperature.{text_of(z / 'type') or z.name}": (z / "temp", 1e-3) for z in zones}
    return _files(named, "thermal zones", "°C")


def _cpu_clocks(root: Path) -> SensorProbe | None:
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    probe = _files({str(path): (path, 1e-3) for path in cores}, "cpufreq", "MHz")
    if probe is None:
        return None

    def mean() -> dict[str, float]:
        values = list(probe.read().values())
        return {"clock.cpu": sum(values) / len(values)} if values else {}

    return SensorProbe(probe.title, {"clock.cpu": "MHz"}, mean)


def _gpu_devfreq(root: Path) -> SensorProbe | None:
    """Jetson's integrated GPU."""
    found = {
        f"clock.{path.parent.name}": (path, 1e-6)
        for path in sorted((root / "sys/class/devfreq").glob("*/cur_freq"))
        if GPU_NAMES.search(path.parent.name)
    }
    return _files(found, "devfreq", "MHz")


def _throttle_counts(root: Path) -> SensorProbe | None:
    """Intel's counts of how often a package was throttled, from the beginning of the run."""
    pattern = "cpu[0-9]*/thermal_throttle/package_throttle_count"
    paths = sorted((root / "sys/devices/system/cpu").glob(pattern))
    probe = _files({f"throttling.{path.parts[-3]}": (path, 1) for path in paths[:1]}, "", "events")
    if probe is None:
        return None
    first = probe.read()
    return SensorProbe(
        "thermal_throttle", probe.units,
        lambda: {name: value - first.get(name, value) for name, value in probe.read().items()},
    )  # fmt: skip


def _rapl(root: Path, missing: dict[str, str]) -> SensorProbe | None:
    """Power from Intel's and AMD's energy counters, which wrap around."""
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    counters: dict[str, tuple[Path, float]] = {}
    for zone in zones:
        path = zone / "energy_uj"
        try:
            _read_number(path)
        except PermissionError:
            missing["power"] = f"{path} may be read by root only: chmod a+r it"
        except (OSError, ValueError):
            continue
        else:
            largest = text_of(zone / "max_energy_range_uj")
            name = text_of(zone / "name") or zone.name
            if f"power.{name}" in counters:
                name = f"{name} {zone.name}"
            counters[f"power.{name}"] = path, float(largest or 2**32)
    if not counters:
        return None
    last: dict[str, tuple[int, float]] = {}

    def watts() -> dict[str, float]:
        found = {}
        for name, (path, largest) in counters.items():
            now, energy = perf_counter_ns(), _read_number(path)
            if name in last and now > last[name][0]:
                used = (energy - last[name][1]) % largest
                found[name] = used * 1e-6 / ((now - last[name][0]) / 1e9)
            last[name] = now, energy
        return found

    return SensorProbe("RAPL", dict.fromkeys(counters, "W"), watts)


def _ina3221(root: Path) -> SensorProbe | None:
    """Jetson's power monitor: rails with volts and amperes."""
    rails = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if text_of(chip / "name") != "ina3221":
            continue
        for label in sorted(chip.glob("in[1-3]_label")):
            number = label.name[2]
            pair = chip / f"in{number}_input", chip / f"curr{number}_input"
            with suppress(OSError, ValueError):
                _ = [_read_number(path) for path in pair]
                rails[f"power.{text_of(label)}"] = pair
    if not rails:
        return None

    def watts() -> dict[str, float]:
        return {
            name: _read_number(volts) * _read_number(amperes) * 1e-6
            for name, (volts, amperes) in rails.items()
        }

    return SensorProbe("INA3221", dict.fromkeys(rails, "W"), watts)


def _other_load(root: Path) -> SensorProbe | None:
    """Cores that other processes take, of those this one may use: busy time less its own."""
    stat = root / "proc/stat"
    cores = (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

    def busy() -> float:
        total = 0.0
        for line in stat.read_text(encoding="ascii").splitlines():
            name, *counts = line.split()
            if name[:3] == "cpu" and name[3:].isdecimal() and int(name[3:]) in cores:
                user, nice, system, _idle, _wait, irq, soft, *_ = map(int, counts)
                total += user + nice + system + irq + soft
        return total / ticks

    try:
        last = [perf_counter_ns() / 1e9, busy(), process_time()]
    except (OSError, ValueError):
        return None

    def read() -> dict[str, float]:
        now = [perf_counter_ns() / 1e9, busy(), process_time()]
        seconds, all_busy, own = (b - a for a, b in zip(last, now, strict=True))
        if seconds < 0.05:  # the kernel counts in hundredths of a second
            return {}
        last[:] = now
        return {"load.other": max(0.0, (all_busy - own) / seconds), "load.own": own / seconds}

    return SensorProbe("/proc/stat", {"load.other": "cores", "load.own": "cores"}, read)


def _nvml() -> SensorProbe | None:
    """The first NVIDIA GPU by NVML, where its driver and nvidia-ml-py are."""
    try:
        nvml = require("pynvml", "gpu")
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
    except DependencyError:
        return None
    except Exception:  # NVMLError, whose class is made at run time: no driver, or no GPU
        return None
    readings: dict[str, tuple[str, Callable[[], float]]] = {
        "power.gpu": ("W", lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1e3),
        "temperature.gpu": (
            "°C",
            lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
        ),
        "clock.gpu": ("MHz", lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)),
        "clock.gpu memory": (
            "MHz",
            lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
        ),
        "throttling.gpu": ("reasons", lambda: _throttle_reasons(nvml, device)),
        "load.gpu": ("%", lambda: nvml.nvmlDeviceGetUtilizationRates(device).gpu),
    }
    usable = {}
    for name, (unit, read) in readings.items():
        with suppress(Exception):  # integrated GPUs lack some of them
            read()
            usable[name] = unit, read

    def values() -> dict[str, float]:
        found = {}
        for name, (_, read) in usable.items():
            with suppress(Exception):
                found[name] = float(read())
        return found

    units = {name: unit for name, (unit, _) in usable.items()}
    return SensorProbe("NVML", units, values, nvml.nvmlShutdown) if usable else None


def _throttle_reasons(nvml: Any, device: Any) -> float:
    """Return the bits of the reasons that hold clocks down against the user's will."""
    own_will = (
        nvml.nvmlClocksThrottleReasonGpuIdle
        | nvml.nvmlClocksThrottleReasonApplicationsClocksSetting
    )
    return float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device) & ~own_will)


def _tegrastats() -> SensorProbe | None:
    """Jetson's and DRIVE's tegrastats, a program that prints a line per interval."""
    program = shutil.which("tegrastats")
    if program is None:
        return None
    process = subprocess.Popen(
        [program, "--interval", str(round(1e3 * INTERVAL))],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = parse_tegrastats(process.stdout.readline())
    latest = [first]

    def follow(lines: Any = process.stdout) -> None:
        for line in lines:
            latest[0] = parse_tegrastats(line)

    threading.Thread(target=follow, daemon=True).start()

    def close() -> None:
        process.terminate()
        process.wait(timeout=5)

    if not first:
        close()
        return None
    return SensorProbe(
        "tegrastats", {n: _UNITS[n.split(".")[0]] for n in first}, lambda: latest[0], close
    )


_UNITS = {"power": "W", "temperature": "°C", "clock": "MHz", "load": "%"}


def parse_tegrastats(line: str) -> dict[str, float]:
    """Return the channels of one line of tegrastats: rails, temperatures, GPU clock and load.

    Rails are ``NAME 1234mW/1200mW`` (now, average; JetPack 5 and 6) or ``NAME 1234/1200`` before;
    one may read below zero. A sensor that is off is NaN. The GPU is ``GR3D_FREQ 45%@1300`` or, from
    JetPack 5, ``GR3D_FREQ 45%@[1300,1300]``.
    """
    found = {}
    rail = r"\b([A-Z][A-Z0-9_]+) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?= |$)"
    for name, value in re.findall(rail, line):
        found[f"power.{name}"] = float(value) / 1e3
    for name, value in re.findall(r"\b(\w[\w-]*)@(-?[\d.]+)C\b", line):
        # An unpowered sensor says -256; it may wake up later, as a GPU's does when it is used.
        found[f"temperature.{name}"] = float(value) if float(value) > -200 else float("nan")
    if gpu := re.search(r"GR3D_FREQ (\d+)%(?:@\[?(\d+))?", line):
        found["load.GR3D"] = float(gpu[1])
        if gpu[2]:
            found["clock.GR3D"] = float(gpu[2])
    return found
