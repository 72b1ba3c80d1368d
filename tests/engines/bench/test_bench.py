import itertools
import json
import math
import random
import subprocess
from fractions import Fraction
from statistics import mean, pstdev

import numpy as np
import pytest

import engines.bench.frame_path
import engines.bench.load
import engines.bench.measure
from edgeuda.errors import ConfigError, DataError, ModelError
from edgeuda.files import read_json, sha256
from edgeuda.records.bench import samples_path
from edgeuda.records.percentiles import (
    drift,
    percentile_interval,
    samples_needed,
    summarise,
    supported,
)
from engines.bench.frame_path import STAGES
from engines.bench.load import Load, preset
from engines.bench.measure import MAX_FRAMES, bench
from engines.machine import hardware as machine
from engines.report.records import read_records
from tiny_models import SPEC, exported, random_frames, write_frames


@pytest.fixture
def frames(tmp_path):
    return write_frames(tmp_path, random_frames(3, 90, 180))


# --- statistics ---


@pytest.mark.parametrize(
    ("percentile", "n"), [(50, 11), (90, 64), (95, 130), (99, 662), (99.9, 6636)]
)
def test_samples_needed_are_mlperfs(percentile, n):
    p = Fraction(str(percentile)) / 100

    def at_most_one_exceeds(n):
        return p**n + n * p ** (n - 1) * (1 - p)

    assert samples_needed(percentile) == n
    assert at_most_one_exceeds(n) <= Fraction(1, 100) < at_most_one_exceeds(n - 1)


def test_supported_percentiles_grow_with_the_sample():
    assert [supported(n) for n in (10, 11, 63, 64, 6635)] == [
        (),
        (50,),
        (50,),
        (50, 90),
        (50, 90, 95, 99),
    ]
    assert supported(6636)[-1] == 99.9


@pytest.mark.parametrize("n", [2, 5, 11, 64, 700, 7000])
def test_summary_against_definitions(n):
    rng = random.Random(n)
    values = [rng.expovariate(1) for _ in range(n)]
    values[1] = 1000.0  # an outlier, which must count
    summary = summarise(values)
    assert (summary.n, summary.min, summary.max) == (n, min(values), 1000.0)
    assert summary.mean == pytest.approx(mean(values))
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert summary.jitter == pytest.approx(pstdev(steps))
    assert list(summary.percentiles) == [f"{p:g}" for p in supported(n)]
    for percentile, value in summary.percentiles.items():
        rank = math.ceil(Fraction(percentile) / 100 * n)
        assert value == sorted(values)[rank - 1]


def test_a_single_latency_is_no_summary():
    with pytest.raises(DataError, match="at least 2"):
        summarise([1.0])


@pytest.mark.parametrize("n", [6, 11, 25, 100, 701])
def test_median_interval_is_the_tightest_of_95_percent(n):
    def coverage(rank):  # of the rank-th smallest to the rank-th largest
        return 1 - Fraction(2 * sum(math.comb(n, k) for k in range(rank)), 2**n)

    low, high = percentile_interval(random.Random(0).sample(range(1, n + 1), n), 50)
    assert low + high == n + 1
    assert coverage(int(low)) >= Fraction(95, 100) > coverage(int(low) + 1)


@pytest.mark.parametrize(("percentile", "n"), [(90, 64), (95, 200), (99, 662), (99, 2000)])
def test_percentile_interval_against_the_binomial_distribution(percentile, n):
    p = Fraction(percentile, 100)

    def at_most(k):  # samples below the percentile
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    low, high = map(int, percentile_interval(list(range(1, n + 1)), percentile))
    assert at_most(low - 1) <= Fraction(25, 1000) < at_most(low)
    assert 1 - at_most(high - 1) <= Fraction(25, 1000) < 1 - at_most(high - 2)
    assert low <= math.ceil(p * n) <= high


def test_no_interval_where_the_extremes_do_not_reach_the_confidence():
    assert percentile_interval([1.0, 2, 3, 4, 5], 50) is None
    assert percentile_interval(list(range(300)), 99) is None
    assert percentile_interval([], 50) is None


def test_a_hundred_thousand_samples_have_an_interval():
    low, high = percentile_interval(list(range(1, 100_001)), 99.9)
    assert 99_870 < low < 99_900 < high < 99_930


def test_drift_compares_the_last_third_with_the_first():
    noise = [0.1 * (i % 7) for i in range(60)]
    found = drift([10 + x for x in noise])
    assert (found.ratio, found.significant) == (1.0, False)
    found = drift([10 + x + i / 10 for i, x in enumerate(noise)])
    assert found.significant
    assert found.ratio == pytest.approx(found.last / found.first)
    assert found.last - found.first == pytest.approx(4, abs=0.1)
    assert drift([1.0] * 32) is None


# --- bench ---


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def pass_ms(self, milliseconds):
        self.now += round(milliseconds * 1e6)


@pytest.fixture
def clock(monkeypatch):
    """Replace runtime and clock: model ``aN`` takes N ms, resizing 1 ms, resizing back 0.5 ms."""
    clock = Clock()
    clock.calls = []
    clock.cold_rounds = 0

    class TimedRunner:
        spec, head, precision, backend = SPEC, "labels", "fp32", "imaginary 1.0"

        def __init__(self, path, threads, device, *, graphs=True):
            self.name, self.ms = path.stem, float(path.stem[1:])
            clock.opened.append((path.stem, device, graphs))
            self.execution, self.fallbacks = {}, []
            self.falls_back = clock.fallbacks.get(self.name)

        def buffer(self, _batch=1):
            return None

        def __call__(self, images):
            assert images.shape[1:] == (64, 128, 3)
            if self.falls_back and not self.fallbacks:  # a runner knows only after it ran
                self.execution, self.fallbacks = {"cuda_graphs": "no"}, [self.falls_back]
            earlier = sum(name == self.name for name, _ in clock.calls)
            clock.calls.append((self.name, images.tobytes()))
            # While cold, a call takes longer, and every one 1 ms less than the one before.
            took = self.ms * len(images) + max(0, clock.cold_rounds - earlier)
            took += clock.hiccups.pop(earlier, 0)
            clock.pass_ms(took)
            self.parts = {"inference": round(1e6 * took), "upsample": 0}
            return np.zeros((len(images), 64, 128), np.uint8)

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

    def after(milliseconds, function):
        def timed(*args):
            clock.pass_ms(milliseconds)
            return function(*args)

        return timed

    clock.opened, clock.hiccups, clock.fallbacks = [], {}, {}
    monkeypatch.setattr(engines.bench.measure, "open_runner", TimedRunner)
    for module in (engines.bench.load, engines.bench.frame_path):
        monkeypatch.setattr(module, "perf_counter_ns", clock)
    monkeypatch.setattr(engines.bench.measure, "perf_counter_ns", clock)
    monkeypatch.setattr(
        engines.bench.load.time, "sleep", lambda seconds: clock.pass_ms(1e3 * seconds)
    )
    durations = {"resize_image": 1, "resize_label": 0.5, "decode_image": 2, "paint": 0.25}
    for name, milliseconds in durations.items():
        timed = after(milliseconds, getattr(engines.bench.frame_path, name))
        monkeypatch.setattr(engines.bench.frame_path, name, timed)
    return clock


@pytest.fixture
def models(tmp_path):
    paths = [tmp_path / f"{name}.onnx" for name in ("a8", "b2", "c16")]
    for path in paths:
        path.write_bytes(path.stem.encode())
    return paths


def samples_of(path, index, stage):
    with np.load(samples_path(path)) as file:
        return file[f"{index}.{stage}"]


@pytest.mark.usefixtures("clock")
def test_stages_and_ratios(models, frames, tmp_path):
    out = tmp_path / "bench.json"
    record = bench(models, frames, out, load=Load(samples=12), repeats=1)
    inference = {"a8": 8.0, "b2": 2.0, "c16": 16.0}
    for index, model in enumerate(record.models):
        took = inference[model.name]
        expected = {
            "decode": 2.0, "resize": 1.0, "inference": took, "upsample": 0.5, "total": took + 1.5,
            "overlay": 0.25, "end_to_end": took + 3.75,
        }  # fmt: skip
        assert set(model.stages) == set(expected)
        for stage, value in expected.items():
            np.testing.assert_allclose(samples_of(out, index, stage), [value] * 12)
            assert model.stages[stage] == summarise([value] * 12)
        assert list(model.stages) == [stage for stage in STAGES if stage in expected]
        assert model.frames_per_second == pytest.approx(1e3 / (took + 1.5))
        assert model.energy_per_frame_j is None
    found = [(r.baseline, r.candidate, r.inference_median) for r in record.ratios]
    assert found == [("a8", "b2", 4.0), ("a8", "c16", 0.5)]
    assert record.ratios[0].total_median == pytest.approx(9.5 / 3.5)


def test_models_take_turns_on_the_same_frame(models, frames, clock):
    record = bench(models, frames, load=Load(samples=30), repeats=1)
    rounds = [clock.calls[start : start + 3] for start in range(0, len(clock.calls), 3)]
    assert len(rounds) == sum(record.method.warmup_rounds) + 30
    measured = rounds[-30:]
    for turns in measured:
        assert {name for name, _ in turns} == {"a8", "b2", "c16"}
        assert len({image for _, image in turns}) == 1
    assert len({tuple(name for name, _ in turns) for turns in measured}) == 6  # every order occurs
    assert len({turns[0][1] for turns in measured}) == len(frames)


@pytest.mark.parametrize(
    ("cold_rounds", "seconds", "least", "stable"),
    [(0, 0.0, 1, False), (0, 2.0, 80, True), (100, 2.0, 120, True), (100_000, 0.5, 1, False)],
    ids=["none", "minimum time", "until settled", "time limit"],
)
def test_warm_up(models, frames, clock, cold_rounds, seconds, least, stable):
    clock.cold_rounds = cold_rounds
    record = bench(models[:1], frames, load=Load(samples=11), repeats=1, warmup_seconds=seconds)
    assert record.method.warmup_rounds[0] >= least
    assert record.method.warmup_seconds[0] >= seconds
    assert record.method.warmup_stable is stable
    assert ("had not settled" in " ".join(record.warnings)) is not stable
    if stable:
        assert record.models[0].stages["inference"].max == 8.0


def test_every_repeat_opens_and_warms_up_anew(models, frames, clock, tmp_path):
    out = tmp_path / "bench.json"
    record = bench(models[:1], frames, out, load=Load(samples=35), repeats=3)
    assert [name for name, _, _ in clock.opened] == ["a8"] * 3
    assert len(record.method.warmup_rounds) == 3
    assert samples_of(out, 0, "run").tolist() == [0.0] * 12 + [1.0] * 12 + [2.0] * 12
    assert record.models[0].run_medians == [9.5] * 3
    assert record.noise == 0
    start = samples_of(out, 0, "start_s")
    assert (np.diff(start) > 0).all()
    assert (np.diff(start).reshape(-1)[[11, 23]] > 2).all()  # a warm-up lies between


def test_noise_is_the_spread_of_repeated_medians(models, frames, clock):
    clock.cold_rounds = 0
    slow = dict.fromkeys(range(10_000), 0)
    clock.hiccups = slow
    first = bench(models[:1], frames, load=Load(samples=33), warmup_seconds=0)
    assert first.noise == 0
    calls = len(clock.calls)
    clock.hiccups = dict.fromkeys(range(calls + 12, calls + 24), 0.95)  # the second repeat
    assert bench(models[:1], frames, load=Load(samples=33), warmup_seconds=0).noise == (
        pytest.approx(0.1)
    )
    assert bench(models[:1], frames, load=Load(samples=33), repeats=2).noise is None


@pytest.mark.usefixtures("clock")
def test_a_duration_is_kept_as_well_as_a_count(models, frames):
    record = bench(models[:1], frames, load=Load(samples=11, seconds=5), repeats=1)
    # 11.75 ms end to end: decoding and painting pass too
    assert record.method.samples == math.ceil(5000 / 11.75)


# --- at a camera's rate ---


def test_a_fast_model_waits_for_frames(models, frames, clock, tmp_path):
    out = tmp_path / "bench.json"
    load = Load("frame rate", samples=20, fps=50)
    record = bench(models[:2], frames, out, load=load, repeats=1)
    for index, took in enumerate((8.0, 2.0)):
        np.testing.assert_allclose(samples_of(out, index, "total"), took + 1.5, atol=1e-3)
        np.testing.assert_allclose(samples_of(out, index, "waiting"), 0, atol=1e-3)
        np.testing.assert_allclose(np.diff(samples_of(out, index, "start_s")), 0.02, atol=1e-6)
    assert [m.deadline.limit_ms for m in record.models] == [20.0, 20.0]
    assert [m.deadline.misses for m in record.models] == [0, 0]
    assert record.models[0].frames_per_second == pytest.approx(50, rel=0.05)
    assert not record.ratios


def test_a_slow_model_falls_behind_without_bound(models, frames, clock, tmp_path):
    out = tmp_path / "bench.json"
    load = Load("frame rate", samples=20, fps=100)
    record = bench([models[2]], frames, out, load=load, repeats=1)  # 17.5 ms, 10 ms between
    np.testing.assert_allclose(samples_of(out, 0, "total"), 17.5 + 7.5 * np.arange(20), atol=1e-3)
    (model,) = record.models
    assert (model.deadline.misses, model.deadline.share, model.dropped) == (20, 1.0, 0)
    assert model.longest_queue == int(19 * 17.5 // 10) - 19
    assert model.drift is None


def test_dropped_frames_are_counted_and_are_misses(models, frames, clock, tmp_path):
    out = tmp_path / "bench.json"
    load = Load("frame rate", samples=20, fps=100, drop=True)
    record = bench([models[2]], frames, out, load=load, repeats=1, deadline_ms=30)
    assert samples_of(out, 0, "total").max() < 17.5 + 10 + 1e-3
    (model,) = record.models
    # 20 frames of 17.5 ms see 35 come
    assert model.dropped == int(19 * 17.5 // 10) - 19
    assert model.deadline.misses == model.dropped
    assert model.deadline.share == pytest.approx(model.dropped / (20 + model.dropped))
    assert record.method.late_frames == "dropped"


def test_several_cameras_are_served_in_turn(models, frames, clock, tmp_path):
    out = tmp_path / "bench.json"
    load = Load("frame rate", samples=21, fps=20, cameras=3)
    bench(models[:1], frames, out, load=load, repeats=1)
    np.testing.assert_array_equal(samples_of(out, 0, "camera"), [0, 1, 2] * 7)
    # all three come at once; the second waits for the first
    np.testing.assert_allclose(
        samples_of(out, 0, "waiting").reshape(7, 3), [[0, 9.5, 19]] * 7, atol=1e-3
    )


@pytest.mark.usefixtures("clock")
def test_offline_counts_images_of_batches(models, frames):
    record = bench(models[:1], frames, load=Load("offline", samples=11, batch=4), repeats=1)
    (model,) = record.models
    # a batch of four: 4 resizes, 32 ms, 4 resizes back
    assert model.stages["total"].max == pytest.approx(38)
    assert model.frames_per_second == pytest.approx(4 / 0.038)


@pytest.mark.parametrize("name", ["mlperf-singlestream", "mlperf-constantstream"])
def test_presets_are_mlperfs(name):
    load = preset(name)
    wanted = {
        "mlperf-singlestream": ("closed loop", 6636, 600, None),
        "mlperf-constantstream": ("frame rate", 100_000, 600, 15),
    }[name]
    assert (load.arrival, load.samples, load.seconds, load.fps) == wanted
    assert samples_needed(load.percentile) <= load.samples
    with pytest.raises(ConfigError, match="mlperf-singlestream, mlperf-constantstream"):
        preset("mlperf")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"samples": 10}, "at least 11 samples"),
        ({"fps": 30}, "for arrival at a frame rate"),
        ({"arrival": "frame rate"}, "for arrival at a frame rate"),
        ({"arrival": "frame rate", "fps": 0}, "above 0"),
        ({"cameras": 2}, "several cameras"),
        ({"drop": True}, "dropped"),
        ({"batch": 2}, "only offline"),
        ({"seconds": -1}, "no negative seconds"),
    ],
)
def test_loads_that_make_no_sense(fields, words):
    with pytest.raises(ConfigError, match=words):
        Load(**fields)


@pytest.mark.usefixtures("clock")
def test_ctrl_c_keeps_what_was_measured(models, frames, tmp_path):
    out = tmp_path / "bench.json"

    def stop(done, _total):
        if done >= 40:
            raise KeyboardInterrupt

    bench(
        models[:2], frames, out, load=Load(samples=6636, preset="rules"), repeats=1, progress=stop
    )
    record = read_json(out, "edgeuda.bench/2")
    assert (record["method"]["complete"], record["method"]["preset_met"]) == (False, False)
    assert record["method"]["samples"] == 20
    assert any("stopped before its end" in line for line in record["warnings"])
    early = tmp_path / "early.json"
    with pytest.raises(KeyboardInterrupt):
        bench(models, frames, early, load=Load("frame rate", fps=50), progress=stop, repeats=1)
    assert not early.exists()  # of the third model nothing was measured


def test_what_came_otherwise_than_asked_is_recorded_and_warned_of(clock, models, frames, tmp_path):
    clock.fallbacks = {"b2": "no CUDA graphs, as the capture failed"}
    out = tmp_path / "bench.json"
    record = bench(models[:2], frames, out, load=Load(samples=33), repeats=1)
    assert [model.fallbacks for model in record.models] == [[], [clock.fallbacks["b2"]]]
    assert [model.execution for model in record.models] == [{}, {"cuda_graphs": "no"}]
    assert "b2: no CUDA graphs, as the capture failed" in record.warnings
    written = json.loads(out.read_text())["models"][1]
    assert written["fallbacks"] == [clock.fallbacks["b2"]]
    # the report reads it, and a record from before it was there
    earlier = json.loads(out.read_text())
    for model in earlier["models"]:
        del model["execution"], model["fallbacks"]
    before = tmp_path / "before.json"
    before.write_text(json.dumps(earlier))
    now, old = (read_records([path]).benches[0].models[1] for path in (out, before))
    assert (list(now.fallbacks), list(old.fallbacks)) == ([clock.fallbacks["b2"]], [])


@pytest.mark.usefixtures("clock")
def test_progress_and_frame_limit(models, frames):
    seen = []
    record = bench(
        models[:1], frames * 20, load=Load(samples=11), repeats=1,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(done, 11) for done in range(1, 12)]
    assert record.method.frames == MAX_FRAMES


@pytest.mark.usefixtures("clock")
def test_refusals(models, frames):
    with pytest.raises(ConfigError, match="1 to 63 repeats"):
        bench(models, frames, repeats=64)
    with pytest.raises(DataError, match="at least one frame"):
        bench(models, [])
    for paths, names in (([], None), (models[:1] * 2, None), (models, ["x"]), (models[:2], "aa")):
        with pytest.raises(ConfigError, match="name of its own"):
            bench(paths, frames, names=names)


def test_record_of_a_real_run(tmp_path, frames):
    """With ONNX Runtime and a real clock; nothing is asserted about how long anything took."""
    models = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for path, head in zip(models, ("labels", "scores"), strict=True):
        path.write_bytes(exported(head))
    out = tmp_path / "bench.json"
    result = bench(
        models, frames, out, load=Load(samples=66), threads=1, warmup_seconds=0.05,
        names=["A", "B"], deadline_ms=1e-3,
    )  # fmt: skip
    record = read_json(out, "edgeuda.bench/2")
    assert record == json.loads(json.dumps(result.to_record()))
    assert record["machine"]["onnxruntime"] in record["models"][0]["backend"]
    method = record["method"]
    assert (method["batch"], method["threads"], method["samples"]) == (1, 1, 66)
    assert (method["arrival"], method["frames"], method["outliers"]) == (
        "closed loop", 3, "none removed",
    )  # fmt: skip
    assert record["samples"] == {
        "file": "bench.samples.npz", "sha256": sha256(samples_path(out)),
    }  # fmt: skip
    with np.load(samples_path(out)) as file:
        columns = dict(file)
    for index, (name, path, model) in enumerate(zip("AB", models, record["models"], strict=True)):
        assert (model["name"], model["file"], model["sha256"]) == (name, path.name, sha256(path))
        assert (model["precision"], model["input"]) == ("fp32", [64, 128])
        assert model["size_bytes"] == len(path.read_bytes())
        own = {s: columns[f"{index}.{s}"] for s in model["stages"]}
        parts = sum(own[s] for s in ("resize", "inference", "upsample"))
        np.testing.assert_allclose(parts, own["total"])
        assert (own["decode"] + own["total"] + own["overlay"] <= own["end_to_end"]).all()
        for stage in model["stages"].values():
            assert list(stage["percentiles"]) == ["50", "90"]
            low, high = stage["intervals"]["50"]
            assert low <= stage["percentiles"]["50"] <= high
        assert model["deadline"] == {"limit_ms": 1e-3, "misses": 66, "share": 1.0}
    # the machine's state is on the clock of the samples
    assert columns["state.time_s"][0] <= columns["0.start_s"][0]
    assert columns["state.time_s"][-1] >= columns["0.start_s"][-1] - 0.2
    (ratio,) = record["ratios"]
    one, two = (columns[f"{index}.inference"] for index in (0, 1))
    assert (ratio["baseline"], ratio["candidate"]) == ("A", "B")
    assert ratio["inference_median"] == pytest.approx(np.median(one / two))
    assert ratio["low"] <= ratio["inference_median"] <= ratio["high"]


def test_foreign_model_leaves_no_record(tmp_path, frames):
    model, out = tmp_path / "m.onnx", tmp_path / "bench.json"
    model.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        bench([model], frames, out)
    assert not out.exists()


# --- machine ---


def test_identity_is_flat_and_never_blank():
    record = machine.identity()
    assert all(isinstance(value, str) and value.strip() for value in record.values())
    assert record["numpy"] == np.__version__
    assert int(record["cores_usable"]) >= 1


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "flags"),
    [
        (
            "processor\t: 0\nmodel name\t: Quick CPU\nflags\t\t: fpu avx2 avx512_vnni avx512f\n\n"
            "processor\t: 1\nmodel name\t: Other\nflags\t\t: fpu\n",
            "Quick CPU",
            "avx2 avx512_vnni",
        ),
        ("processor : 0\nFeatures : fp asimd asimddp\n", None, "asimddp"),
        ("model name : Old\nflags : fpu sse2\n", "Old", "none of interest"),
        ("", None, "not available"),
    ],
    ids=["x86", "arm", "plain", "unreadable"],
)
def test_cpu_is_read_from_the_kernel(monkeypatch, tmp_path, cpuinfo, cpu, flags):
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    table = machine._proc_table
    monkeypatch.setattr(machine, "_proc_table", lambda name: table(tmp_path / name.name))
    record = machine.identity()
    assert record["cpu_flags"] == flags
    assert record["memory"] == "not available"  # there is no meminfo in the folder
    assert cpu is None or record["cpu"] == cpu


def test_git_commit(tmp_path):
    def git(*args):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *args], check=True, capture_output=True
        )

    assert machine.git_commit(tmp_path) == "not available"
    git("init")
    assert machine.git_commit(tmp_path).startswith("not available: fatal:")  # no commit yet
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "tag")
    clean = machine.git_commit(tmp_path)
    assert len(clean) == 40
    assert set(clean) <= set("0123456789abcdef")
    (tmp_path / "file").write_text("2")
    assert machine.git_commit(tmp_path) == f"{clean}-dirty"


def test_a_commit_that_git_cannot_tell_says_why(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()

    def slow(command, **_):
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(subprocess, "run", slow)
    found = machine.git_commit(tmp_path)
    assert found == "not available: git describe took more than a minute"
