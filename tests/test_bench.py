import itertools
import json
import math
import random
import subprocess
from fractions import Fraction
from statistics import mean, median, pstdev

import numpy as np
import pytest
from tiny_models import SPEC, exported, random_frames, write_frames

import engines.bench
from edgeuda.errors import ConfigError, DataError, ModelError
from edgeuda.files import read_json, sha256
from engines import machine
from engines.bench import MAX_FRAMES, STAGES, bench
from engines.percentiles import median_interval, samples_needed, summarise, supported


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

    low, high = median_interval(random.Random(0).sample(range(1, n + 1), n))
    assert low + high == n + 1
    assert coverage(int(low)) >= Fraction(95, 100) > coverage(int(low) + 1)


def test_no_median_interval_below_six():
    assert median_interval([1.0, 2, 3, 4, 5]) is None


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

        def __init__(self, path, threads, device):
            self.name, self.ms = path.stem, float(path.stem[1:])

        def __call__(self, images):
            assert images.shape == (1, 64, 128, 3)
            earlier = sum(name == self.name for name, _ in clock.calls)
            clock.calls.append((self.name, images.tobytes()))
            # While cold, a call takes longer, and every one 1 ms less than the one before.
            clock.pass_ms(self.ms + max(0, clock.cold_rounds - earlier))
            return np.zeros((1, 64, 128), np.uint8)

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

    def after(milliseconds, function):
        def timed(*args):
            clock.pass_ms(milliseconds)
            return function(*args)

        return timed

    monkeypatch.setattr(engines.bench, "open_runner", TimedRunner)
    monkeypatch.setattr(engines.bench, "perf_counter_ns", clock)
    for name, milliseconds in (("resize_image", 1), ("resize_label", 0.5)):
        timed = after(milliseconds, getattr(engines.bench, name))
        monkeypatch.setattr(engines.bench, name, timed)
    return clock


@pytest.fixture
def models(tmp_path):
    paths = [tmp_path / f"{name}.onnx" for name in ("a8", "b2", "c16")]
    for path in paths:
        path.write_bytes(path.stem.encode())
    return paths


@pytest.mark.usefixtures("clock")
def test_stages_and_ratios(models, frames):
    record = bench(models, frames, samples=12)
    inference = {"a8": 8.0, "b2": 2.0, "c16": 16.0}
    for model in record.models:
        expected = (1.0, inference[model.name], 0.5, inference[model.name] + 1.5)
        for stage, value in zip(STAGES, expected, strict=True):
            assert model.samples_ms[stage] == [value] * 12
            assert model.stages[stage] == summarise([value] * 12)
    assert [(r.baseline, r.candidate, r.inference_median) for r in record.ratios] == [
        ("a8", "b2", 4.0),
        ("a8", "c16", 0.5),
    ]


def test_models_take_turns_on_the_same_frame(models, frames, clock):
    record = bench(models, frames, samples=30)
    rounds = [clock.calls[start : start + 3] for start in range(0, len(clock.calls), 3)]
    assert len(rounds) == record.method.warmup_rounds + 30
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
    record = bench(models[:1], frames, samples=11, warmup_seconds=seconds)
    assert record.method.warmup_rounds >= least
    assert record.method.warmup_seconds >= seconds
    assert record.method.warmup_stable is stable
    if stable:
        assert record.models[0].stages["inference"].max == 8.0


@pytest.mark.usefixtures("clock")
def test_progress_and_frame_limit(models, frames):
    seen = []
    record = bench(
        models[:1], frames * 20, samples=11, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 11) for done in range(1, 12)]
    assert record.method.frames == MAX_FRAMES


@pytest.mark.usefixtures("clock")
def test_refusals(models, frames):
    with pytest.raises(ConfigError, match="at least 11 samples"):
        bench(models, frames, samples=10)
    with pytest.raises(DataError, match="at least one frame"):
        bench(models, [])
    for paths, names in (([], None), (models[:1] * 2, None), (models, ["x"]), (models[:2], "aa")):
        with pytest.raises(ConfigError, match="name of its own"):
            bench(paths, frames, names=names)


def test_record_of_a_real_run(tmp_path, frames):
    """With ONNX Runtime and a real clock; nothing is asserted about how long anything took."""
    models = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for path, head in zip(models, ("labels", "logits"), strict=True):
        path.write_bytes(exported(head))
    out = tmp_path / "bench.json"
    result = bench(
        models, frames, out, threads=1, samples=64, warmup_seconds=0.05, names=["A", "B"]
    )
    record = read_json(out, "edgeuda.bench/1")
    assert record == json.loads(json.dumps(result.to_record()))
    assert record["machine"]["onnxruntime"] in record["models"][0]["backend"]
    method = record["method"]
    assert (method["batch"], method["threads"], method["samples"]) == (1, 1, 64)
    assert (method["interleaved"], method["frames"]) == (True, 3)
    for name, path, model in zip("AB", models, record["models"], strict=True):
        assert (model["name"], model["file"], model["sha256"]) == (name, path.name, sha256(path))
        assert (model["precision"], model["input"]) == ("fp32", [64, 128])
        assert model["size_bytes"] == len(path.read_bytes())
        columns = [model["samples_ms"][stage] for stage in STAGES]
        for *parts, total in zip(*columns, strict=True):
            assert min(parts) > 0
            assert sum(parts) == pytest.approx(total)
        for stage in STAGES:
            assert list(model["stages"][stage]["percentiles"]) == ["50", "90"]
            low, high = model["stages"][stage]["median_ci"]
            assert low <= model["stages"][stage]["percentiles"]["50"] <= high
    (ratio,) = record["ratios"]
    one, two = (model["samples_ms"]["inference"] for model in record["models"])
    assert (ratio["baseline"], ratio["candidate"]) == ("A", "B")
    pairs = [a / b for a, b in zip(one, two, strict=True)]
    assert ratio["inference_median"] == pytest.approx(median(pairs))
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
    assert machine.git_commit(tmp_path) == "not available"  # no commit yet
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "tag")
    clean = machine.git_commit(tmp_path)
    assert len(clean) == 40
    assert set(clean) <= set("0123456789abcdef")
    (tmp_path / "file").write_text("2")
    assert machine.git_commit(tmp_path) == f"{clean}-dirty"
