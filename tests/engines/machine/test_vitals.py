"""The machine's state: every source on files and modules that look like the real ones."""

import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from edgeuda.errors import DeviceError
from engines.machine import hardware as machine
from engines.machine import probes as sources
from engines.machine.probes import SensorProbe, find_probes, parse_tegrastats
from engines.machine.vitals import Monitor, Vitals, energy_per_frame


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def probes(root):
    found, missing = find_probes(root)
    return {probe.title: probe for probe in found}, missing


def test_a_bare_machine_has_no_probes(tmp_path):
    assert probes(tmp_path) == ({}, {})


def test_thermal_zones_clocks_and_throttling(tmp_path):
    cpu = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone0/temp": "48500",
            "sys/class/thermal/thermal_zone1/temp": "30000",
            "sys/class/thermal/thermal_zone2/type": "broken",
            "sys/class/thermal/thermal_zone2/temp": "",
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "2000000",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "3000000",
            f"{cpu}/cpu0/thermal_throttle/package_throttle_count": "7",
        },
    )
    found, _ = probes(tmp_path)
    assert found["thermal zones"].read() == {
        "temperature.x86_pkg_temp": 48.5, "temperature.thermal_zone1": 30.0,
    }  # fmt: skip
    assert found["cpufreq"].read() == {"clock.cpu": 2500.0}
    assert found["thermal_throttle"].read() == {"throttling.cpu0": 0.0}
    write(tmp_path, {f"{cpu}/cpu0/thermal_throttle/package_throttle_count": "9"})
    assert found["thermal_throttle"].read() == {"throttling.cpu0": 2.0}


def test_rapl_is_energy_over_time_and_wraps_around(tmp_path, monkeypatch):
    zone = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, {
        f"{zone}/name": "package-0", f"{zone}/energy_uj": "900000",
        f"{zone}/max_energy_range_uj": "1000000",
    })  # fmt: skip
    now = [0]
    monkeypatch.setattr(sources, "perf_counter_ns", lambda: now[0])
    found, _ = probes(tmp_path)
    read = found["RAPL"].read
    assert read() == {}  # a single count is no power
    now[0] = 100_000_000
    write(tmp_path, {f"{zone}/energy_uj": "950000"})
    assert read() == {"power.package-0": pytest.approx(0.5)}
    now[0] = 200_000_000
    write(tmp_path, {f"{zone}/energy_uj": "50000"})
    assert read() == {"power.package-0": pytest.approx(1.0)}


def test_rapl_that_only_root_may_read_is_said(tmp_path, monkeypatch):
    zone = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, {f"{zone}/energy_uj": "1"})

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(sources, "_read_number", refuse)
    _, missing = find_probes(tmp_path)
    assert "root only" in missing["power"]
    assert "energy_uj" in missing["power"]


def test_jetsons_rails_and_gpu_clock(tmp_path):
    chip = "sys/class/hwmon/hwmon3"
    write(tmp_path, {
        f"{chip}/name": "ina3221", f"{chip}/in1_label": "VDD_IN", f"{chip}/in1_input": "5000",
        f"{chip}/curr1_input": "2400", f"{chip}/in2_label": "VDD_CPU_GPU_CV",
        f"{chip}/in2_input": "5000", f"{chip}/curr2_input": "600",
        "sys/class/hwmon/hwmon0/name": "nct6775",
        "sys/class/devfreq/17000000.ga10b/cur_freq": "612000000",
        "sys/class/devfreq/other/cur_freq": "1",
    })  # fmt: skip
    found, _ = probes(tmp_path)
    assert found["INA3221"].read() == {"power.VDD_IN": 12.0, "power.VDD_CPU_GPU_CV": 3.0}
    assert found["devfreq"].read() == {"clock.17000000.ga10b": 612.0}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (  # JetPack 6, Orin
            "11-21-2026 10:00:00 RAM 2456/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU "
            "[12%@1510,3%@1510,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 45%@[611,0] cpu@48.5C "
            "soc2@46.9C gpu@47.25C tj@48.5C VDD_IN 5230mW/4987mW VDD_CPU_GPU_CV 812mW/700mW",
            {
                "power.VDD_IN": 5.23, "power.VDD_CPU_GPU_CV": 0.812, "temperature.cpu": 48.5,
                "temperature.soc2": 46.9, "temperature.gpu": 47.25, "temperature.tj": 48.5,
                "load.GR3D": 45.0, "clock.GR3D": 611.0,
            },
        ),
        (  # JetPack 4, Nano
            "RAM 1025/3956MB (lfb 2x4MB) CPU [5%@1479,0%@1479] EMC_FREQ 0% GR3D_FREQ 99%@921 "
            "PLL@41C CPU@43.5C PMIC@-256C thermal@43C POM_5V_IN 3300/3100 POM_5V_GPU 1200/900",
            {
                "power.POM_5V_IN": 3.3, "power.POM_5V_GPU": 1.2, "temperature.PLL": 41.0,
                "temperature.CPU": 43.5, "temperature.thermal": 43.0, "load.GR3D": 99.0,
                "clock.GR3D": 921.0, "temperature.PMIC": float("nan"),
            },
        ),
        (  # a rail below zero, and a GPU that sleeps in the first line
            "gpu@-256C VDD_GPU -12mW/3mW VIN 9000mW/-1mW",
            {"temperature.gpu": float("nan"), "power.VDD_GPU": -0.012, "power.VIN": 9.0},
        ),
        ("GR3D_FREQ 0%", {"load.GR3D": 0.0}),
        ("", {}),
    ],
)  # fmt: skip
def test_tegrastats(line, expected):
    assert parse_tegrastats(line) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        (  # AGX Orin: the module's rails; NC is no rail, and VIN_SYS_5V0 feeds VDDQ
            "VDD_GPU_SOC 6000mW/1mW VDD_CPU_CV 2000mW/1mW VIN_SYS_5V0 4000mW/1mW NC 500mW/1mW "
            "VDDQ_VDD2_1V8AO 1000mW/1mW NC 0mW/0mW",
            12.0,
        ),
        (  # Thor: VIN is the whole board
            "VDD_GPU 7000mW/1mW VDD_CPU_SOC_MSS 5400mW/1mW VIN_SYS_5V0 3000mW/1mW VIN 21000mW/1mW",
            21.0,
        ),
        ("VDD_IN 5000mW/1mW VDD_CPU_GPU_CV 800mW/1mW VDD_SOC 1400mW/1mW", 5.0),  # Orin NX
        ("POM_5V_IN 3300/3100 POM_5V_GPU 1200/900 POM_5V_CPU 500/400", 3.3),  # Nano
        ("VDD_GPU_SOC -10mW/0mW VDD_CPU_CV 2000mW/1mW", 1.99),
    ],
)
def test_a_boards_power_is_added_once(line, watts):
    state = Vitals([0.0, 1.0])
    state.channels = {name: [value] * 2 for name, value in parse_tegrastats(line).items()}
    assert energy_per_frame(state, 0, 1, 1) == pytest.approx(watts)


def test_tegrastats_is_a_program_that_is_started_and_ended(tmp_path, monkeypatch):
    program = tmp_path / "tegrastats"
    program.write_text(
        "#!/bin/sh\necho 'GR3D_FREQ 1%@100 VDD_IN 1000mW/1mW'\nsleep 0.2\n"
        "echo 'GR3D_FREQ 2%@200 VDD_IN 2000mW/1mW'\nexec sleep 60\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sources.shutil, "which", lambda name: str(tmp_path / name))
    probe = sources._tegrastats()
    assert probe.units == {"load.GR3D": "%", "clock.GR3D": "MHz", "power.VDD_IN": "W"}
    for _ in range(100):
        if probe.read()["power.VDD_IN"] == 2:
            break
        time.sleep(0.02)
    assert probe.read() == {"load.GR3D": 2.0, "clock.GR3D": 200.0, "power.VDD_IN": 2.0}
    probe.close()


class NvmlError(Exception):
    pass


def nvml(**changes):
    """A module like nvidia-ml-py's."""

    def lacks(*_):
        raise NvmlError("Not Supported")

    members = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: ("gpu", index),
        "nvmlDeviceGetPowerUsage": lambda _: 75_500,
        "nvmlDeviceGetTemperature": lambda _, sensor: 61 + sensor,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlDeviceGetClockInfo": lambda _, kind: {1: 1980, 2: 2619}[kind],
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "nvmlClocksThrottleReasonGpuIdle": 1,
        "nvmlClocksThrottleReasonApplicationsClocksSetting": 2,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 3,
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=88),
        "nvmlDeviceGetName": lambda _: "NVIDIA Orin",
        "nvmlSystemGetDriverVersion": lambda: "540.3",
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 60_000,
        "nvmlDeviceGetApplicationsClock": lambda _, kind: {1: 1500}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda _, kind: {1: 1995}[kind],
    }
    return SimpleNamespace(**members | {k: v or lacks for k, v in changes.items()})


def test_nvml(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    found, _ = probes(tmp_path)
    assert found["NVML"].read() == {
        "power.gpu": 75.5, "temperature.gpu": 61.0, "clock.gpu": 1980.0,
        "clock.gpu memory": 2619.0, "throttling.gpu": 0.0, "load.gpu": 88.0,
    }  # fmt: skip
    assert machine.gpu_identity() == {
        "gpu": "NVIDIA Orin", "gpu_driver": "540.3", "gpu_power_limit_w": "60",
        "gpu_clocks_mhz": "1980 now, 1500 asked for, 1995 at most",
    }  # fmt: skip
    # what an integrated GPU lacks hides nothing else
    for name in ("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetApplicationsClock"):
        monkeypatch.setitem(sys.modules, "pynvml", nvml(**{name: None}))
        facts = machine.gpu_identity()
        assert list(facts.values()).count("not available") == 1
        assert facts["gpu_driver"] == "540.3"
    thermal = nvml(nvmlDeviceGetPowerUsage=None)
    thermal.nvmlDeviceGetCurrentClocksThrottleReasons = lambda _: 1 | 0x20
    monkeypatch.setitem(sys.modules, "pynvml", thermal)
    read = probes(tmp_path)[0]["NVML"].read()
    assert "power.gpu" not in read
    assert read["throttling.gpu"] == 0x20


def test_nvml_without_a_driver_or_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=None))
    assert probes(tmp_path)[0] == {}
    assert set(machine.gpu_identity().values()) == {"not available"}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert probes(tmp_path)[0] == {}
    assert set(machine.gpu_identity().values()) == {"not available"}


def test_other_load_is_what_others_take_of_our_cores(tmp_path, monkeypatch):
    clock = {"wall": 0, "own": 0.0}
    monkeypatch.setattr(sources, "perf_counter_ns", lambda: clock["wall"])
    monkeypatch.setattr(sources, "process_time", lambda: clock["own"])
    monkeypatch.setattr(sources.os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    monkeypatch.setattr(sources.os, "sysconf", lambda _: 100)

    def stat(first, second, third):
        rows = [
            f"cpu{i} {busy} 0 0 500 9 0 0 0 0 0" for i, busy in enumerate((first, second, third))
        ]
        write(tmp_path, {"proc/stat": "\n".join(["cpu 1 1 1 1 1 1 1 1 1 1", *rows])})

    stat(1000, 1000, 1000)
    read = probes(tmp_path)[0]["/proc/stat"].read
    clock["wall"] += 10_000_000
    assert read() == {}  # shorter than the kernel's ticks
    clock |= {"wall": 1_000_000_000, "own": 0.9}
    stat(1090, 9000, 1030)  # core 1 is not ours
    assert read() == {"load.other": pytest.approx(0.3), "load.own": pytest.approx(0.9)}


def test_the_monitor_reads_all_probes_on_one_axis_and_survives_a_broken_one():
    broken = SensorProbe("broken", {"power.x": "W"}, lambda: 1 / 0)
    closed = []
    enough = threading.Event()
    count = iter(range(1000))

    def read():
        if (number := next(count)) > 5:
            enough.set()
        return {"temperature.a": 40.0 + number}

    working = SensorProbe("working", {"temperature.a": "°C"}, read, lambda: closed.append(1))
    origin = time.perf_counter_ns()
    with Monitor(origin, [broken, working], interval=0.001) as state:
        assert enough.wait(10)
    assert closed == [1]
    columns = state.arrays()
    assert len({len(values) for values in columns.values()}) == 1
    assert (np.diff(columns["time_s"]) > 0).all()
    assert np.isnan(columns["power.x"]).all()
    found = state.summary()
    assert found.channels["temperature.a"].start == 40
    assert "power.x" not in found.channels
    assert set(found.not_available) == {"clock", "throttling", "load"}
    assert (found.throttled, found.other_load_cores) == (None, None)


def readings(**channels):
    state = Vitals([0.0, 1.0, 2.0, 3.0])
    state.channels = {name.replace("__", "."): values for name, values in channels.items()}
    return state


def test_energy_per_frame_is_power_over_the_span():
    state = readings(power__a=[100.0, 10.0, 20.0, 100.0], power__b=[1.0, 1.0, 1.0, 1.0])
    assert energy_per_frame(state, 0.5, 2.5, 10) == pytest.approx((15 + 1) * 2 / 10)
    assert energy_per_frame(readings(), 0, 3, 10) is None
    # the input rail is the sum of the others
    state = readings(power__VDD_IN=[9.0] * 4, power__VDD_GPU=[5.0] * 4)
    assert energy_per_frame(state, 0, 3, 3) == pytest.approx(9)
    # RAPL's package holds its cores
    state = readings(**{"power__package-0": [8.0] * 4, "power__core": [5.0] * 4})
    assert energy_per_frame(state, 0, 3, 3) == pytest.approx(8)


def test_throttling_is_told_from_not_knowing():
    assert readings().throttled is None
    assert readings(throttling__gpu=[float("nan")] * 4).throttled is None
    assert readings(throttling__gpu=[0.0] * 4).throttled is False
    assert readings(throttling__gpu=[0.0, 0.0, 4.0, 0.0]).throttled is True


def test_jetsons_identity(tmp_path, monkeypatch):
    write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0\nmore"})
    monkeypatch.setattr(machine, "_said", " ".join)
    assert machine.jetson_identity(tmp_path) == {
        "l4t": "R36 (release), REVISION: 4.0", "nvpmodel": "nvpmodel -q",
        "jetson_clocks": "jetson_clocks --show", "gpu_clock_lock": "not available",
    }  # fmt: skip
    monkeypatch.undo()
    assert set(machine.jetson_identity(tmp_path / "none").values()) == {"not available"}
    assert machine._said(["echo", "NV Power Mode: MAXN"]) == "NV Power Mode: MAXN"
    assert machine._said(["false"]) == "not available"


@pytest.mark.parametrize(
    ("low", "says"), [("1300500000", "at 1300 MHz"), ("306000000", "no, 306 to 1300 MHz")]
)
def test_a_locked_clock_is_told_without_root(tmp_path, low, says):
    folder = "sys/class/devfreq/17000000.gpu"
    other = "sys/class/devfreq/15480000.nvdec"
    for place in (folder, other):
        write(tmp_path, {f"{place}/min_freq": low, f"{place}/max_freq": "1300500000"})
    write(tmp_path, {f"{other}/min_freq": "1", f"{other}/max_freq": "2"})
    assert machine.jetson_identity(tmp_path)["gpu_clock_lock"] == says


def test_what_cuda_says_of_itself_is_recorded(monkeypatch, tmp_path):
    assert machine.drive_release(tmp_path) is None
    write(tmp_path, {"etc/nvidia/version-pdk.txt": "7.0.3.0"})
    assert machine.drive_release(tmp_path) == "7.0.3.0"
    monkeypatch.setattr(machine, "driver_version", lambda: (12, 6))
    monkeypatch.setattr(machine, "gpu_title", lambda: "Orin (8.7)")
    facts = machine.identity()
    assert (facts["cuda_driver"], facts["cuda_device"]) == ("12.6", "Orin (8.7)")
    assert "drive_os" in facts

    def absent():
        msg = "No NVIDIA driver here"
        raise DeviceError(msg)

    monkeypatch.setattr(machine, "driver_version", absent)
    assert set(machine.cuda_identity().values()) == {"not available"}
