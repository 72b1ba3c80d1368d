"""The trade-off: uncertainty, the choice, and a sweep over real small networks."""

import itertools
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

import tensorrt_modules
from calibration import tradeoff, variants
from calibration.telling_frames import telling_frames
from calibration.tradeoff import sweep
from calibration.variants import Sweep, SweptNetwork
from edgeuda.accuracy.evaluation import miou_of
from edgeuda.accuracy.uncertainty import RESAMPLES, miou_difference, miou_interval
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import write_label
from edgeuda.decision import Candidate, Need, change_of, choose, judge_int8
from edgeuda.errors import ConfigError, DataError, ModelError, OutputExistsError
from edgeuda.files import read_json, sha256
from edgeuda.records.form import parse
from edgeuda.records.tradeoff import Budget, Choice, Estimate, Figure, TradeoffRecord
from engines.bench.load import Load
from engines.onnx_export import export_onnx
from engines.onnxruntime_runner import OnnxRunner
from engines.report.page import build_report
from engines.report.words import int8_in_a_sweep, why_chosen
from engines.tensorrt.library import Library
from tiny_models import SPEC, quick_first, random_frames, random_network, write_frames

# --- uncertainty ---


def counts(n, seed=0, right=0.8, classes=3):
    """Confusion matrices of images whose share of right pixels varies around ``right``."""
    rng = np.random.default_rng(seed)
    found = np.zeros((n, classes, classes), np.int64)
    for image in found:
        share = np.clip(rng.normal(right, 0.1), 0, 1)
        for truth in range(classes):
            hits = rng.binomial(1000, share)
            image[truth] = (1000 - hits) // (classes - 1)
            image[truth, truth] = 1000 - (1000 - hits) // (classes - 1) * (classes - 1)
    return found


def test_the_interval_is_that_of_drawn_blocks():
    images = counts(40)
    found = miou_interval(images, seed=3)
    assert found.value == pytest.approx(miou_of(images.sum(0)))
    # the slow obvious way, with the same generator
    block = 8
    starts = np.random.default_rng(3).multinomial(5, np.full(40, 1 / 40), size=RESAMPLES)
    drawn = []
    for row in starts[:200]:
        chosen = [
            images[(start + i) % 40]
            for start, times in enumerate(row)
            for _ in range(times)
            for i in range(block)
        ]
        drawn.append(miou_of(np.sum(chosen, 0)))
    assert found.low < np.mean(drawn) < found.high
    assert np.percentile(drawn, 2.5) == pytest.approx(found.low, abs=0.01)
    assert np.percentile(drawn, 97.5) == pytest.approx(found.high, abs=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = miou_of(counts(4000, seed=1).sum(0))
    held = [
        found.low <= truth <= found.high
        for found in (miou_interval(counts(60, seed=seed)) for seed in range(100, 200))
    ]
    assert np.mean(held) > 0.85  # a bootstrap of few blocks is a little too narrow


def test_a_difference_is_paired():
    images = counts(40)
    same = miou_difference(images, images)
    assert (same.value, same.low, same.high, same.none) == (0, 0, 0, True)
    worse = images.copy()
    worse[:, 0, 0] -= 100
    worse[:, 0, 1] += 100
    found = miou_difference(images, worse)
    assert not found.none
    assert found.high - found.low < 0.3 * (
        miou_interval(images).high - miou_interval(images).low
    )  # what makes an image hard for both cancels
    with pytest.raises(DataError, match="the same labelled images"):
        miou_difference(images, counts(40, seed=5)[:39])


def test_a_class_that_never_occurs_does_not_count():
    images = counts(20, classes=2)
    wide = np.zeros((20, 3, 3), np.int64)
    wide[:, :2, :2] = images
    assert miou_interval(wide) == miou_interval(images)
    with pytest.raises(DataError, match="at least one image"):
        miou_interval(np.zeros((3, 2, 2), np.int64))


# --- the choice ---


def one(name, precision, tail, accuracy, network="net"):
    return Candidate(name, precision, network, tail / 1.1, tail, accuracy)


FP32, INT8 = one("fp32", "fp32", 40.0, 0.60), one("int8", "int8", 20.0, 0.59)


@pytest.mark.parametrize(
    ("candidates", "budget", "name", "why", "int8"),
    [
        ([FP32, INT8], Budget(33), "int8", "1 of 2 variants keep p99 of 33 ms", "INT8 is worth it"),
        ([FP32, INT8], Budget(50), "fp32", "2 of 2", "int8 loses 1.0 points, and fp32 is fast"),
        ([FP32, INT8], Budget(10), None, "No variant keeps p99 of 10 ms. Fastest: int8", None),
        ([FP32, INT8], Budget(33, 0.6), None, "p99 of 33 ms and mIoU of 60 %", None),
        ([FP32, INT8], Budget(None, 0.595), "fp32", "1 of 2", "int8 is not accurate enough"),
        ([FP32], Budget(50), "fp32", "1 of 1", None),
        # of equals within noise the fastest
        (
            [FP32, one("int8", "int8", 20, 0.597)], Budget(), "int8",
            "fp32 is 0.3 points more accurate, which is within noise", "INT8 is worth it",
        ),
        # INT8 that is slower than FP32 is not worth it
        (
            [FP32, one("int8", "int8", 44, 0.60)], Budget(50), "fp32", "2 of 2",
            "not worth it here: int8 is not faster (40.0 against 36.4 ms)",
        ),
        (
            [FP32, INT8, one("small", "fp32", 15, 0.40)], Budget(17), "small",
            "fp32 is more accurate (60.0 %) but misses the deadline", "int8 is not faster",
        ),
    ],
)  # fmt: skip
def test_choice(candidates, budget, name, why, int8):
    for order in itertools.permutations(candidates):
        found = choose(order, budget)
        assert parse(Choice, json.loads(json.dumps(asdict(found))), "a record") == found
        assert found.name == name
        assert why in why_chosen(found, budget, "p99")
        assert (found.int8 is None) is (int8 is None)
        assert found.int8 is None or int8 in int8_in_a_sweep(found.int8, "p99")


def test_an_interval_says_more_than_the_convention():
    candidates = [FP32, one("int8", "int8", 20, 0.592)]  # 0.8 points: more than the convention

    def sure(_one, _other):
        return Estimate(-0.008, -0.010, -0.006)

    def unsure(_one, _other):
        return Estimate(-0.008, -0.02, 0.004)

    assert choose(candidates, Budget(), sure).name == "fp32"
    assert choose(candidates, Budget(), unsure).name == "int8"


@pytest.mark.parametrize(
    ("speed", "accuracy", "need", "status", "reason"),
    [
        (Figure(2, (1.9, 2.1)), Figure(-0.008), Need(), "worth it", "faster"),
        (Figure(2), Figure(-0.02), Need(), "not worth it", "costs accuracy"),
        # what the budget needs may cost what the budget allows
        (Figure(2), Figure(-0.02), Need(float_in_time=False), "worth it", "faster"),
        (Figure(2), Figure(-0.008), Need(float_in_time=True), "not worth it", "not needed"),
        (Figure(2), Figure(-0.003), Need(float_in_time=True), "worth it", "faster"),
        # chance decides by the interval, not by the convention
        (Figure(2), Figure(-0.008, (-0.02, 0.01)), Need(float_in_time=True), "worth it", "faster"),
        (Figure(2), Figure(-0.02, (-0.05, 0.01)), Need(), "not worth it", "costs accuracy"),
        (Figure(1.1, (0.9, 1.3)), Figure(0.0), Need(), "not worth it", "not faster"),
        (Figure(0.8, (0.7, 0.9)), None, Need(), "not worth it", "slower"),
        (Figure(2), Figure(0.0), Need(accurate=False), "not worth it", "not accurate enough"),
        (Figure(2), Figure(0.0), Need(fast=False), "not worth it", "misses the deadline"),
        (None, Figure(-0.02), Need(), "not worth it", "costs accuracy"),
        (None, Figure(0.0), Need(), "unknown", "not recorded"),
        (Figure(2), Figure(float("nan")), Need(), "unknown", "not recorded"),
    ],
)
def test_one_verdict_on_int8(speed, accuracy, need, status, reason):
    found = judge_int8(speed, accuracy, need)
    assert (found.status, found.reason) == (status, reason)


def test_one_rule_says_what_is_noise():
    assert change_of(Figure(0.004)) == "noise"
    assert change_of(Figure(0.006)) == "better"
    assert change_of(Figure(-0.03)) == "worse"
    assert change_of(Figure(-0.03, (-0.07, 0.01))) == "noise"
    assert change_of(Figure(0.03), ((0.38, 0.42), (0.41, 0.45))) == "noise"
    assert change_of(Figure(0.03), ((0.38, 0.40), (0.41, 0.45))) == "better"
    assert change_of(Figure(float("nan"))) == "unknown"


def test_int8_is_held_against_its_own_float_form():
    """Not against the most accurate float of the network, which may have a larger input."""
    candidates = [
        Candidate("large fp32", "fp32", "net", 90, 99, 0.62, "512x1024"),
        Candidate("fp32", "fp32", "net", 36, 40, 0.60, "256x512", (35, 37)),
        Candidate("int8", "int8", "net", 18, 20, 0.598, "256x512", (17.5, 18.5)),
    ]
    found = choose(candidates, Budget(33)).int8
    assert (found.int8.name, found.rival.name, found.taken) == ("int8", "fp32", True)
    assert found.verdict.speed == Figure(2, (35 / 18.5, 37 / 17.5))


# --- the sweep ---


def network(name, seed, calls):
    def export(path, size, head):
        calls.append((name, size, head))
        fed = replace(SPEC.preprocessing, height=size[0], width=size[1])
        spec = replace(SPEC, preprocessing=fed)
        export_onnx(
            random_network(seed=seed), spec, path, head=head, frames=random_frames(1, 90, 200)
        )

    return SweptNetwork(name, SPEC.width, str(seed) * 64, (64, 128), export)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Frames, and what the first network says of them as labels, with some of it wrong."""
    root = tmp_path_factory.mktemp("data")
    paths = write_frames(root / "images", random_frames(8, 90, 180))
    rng = np.random.default_rng(0)
    for path in paths:
        label = np.kron(rng.integers(0, len(SPEC.label_space), (9, 18)), np.ones((10, 10)))
        write_label(root / "labels" / path.name, label.astype(np.uint8))
    return paths, labelled_folder(root, SPEC.label_space)


@pytest.fixture
def what(footage):
    frames, labelled = footage
    calls = []
    made = Sweep(
        [network("a b", 0, calls), network("c", 1, calls)], [(64, 128), (32, 64)],
        ["fp32", "int8"], ["labels"], ["cpu"], frames, frames, labelled,
        Load(samples=33), repeats=1, threads=1,
    )  # fmt: skip
    return made, calls


@pytest.mark.slow
def test_a_sweep_of_real_networks(what, tmp_path, footage):
    made, calls = what
    out = tmp_path / "sweep"
    record = sweep(made, out, Budget(1000))
    names = [row.name for row in record.variants]
    assert names == [
        f"{net} {size} {precision}"
        for net in ("a b", "c")
        for size in ("64x128", "32x64")
        for precision in ("FP32", "INT8")
    ]
    assert record == TradeoffRecord.read(out / "tradeoff.json")
    assert len(calls) == 4  # an export per network and size
    for row in record.variants:
        path = out / "models" / row.file
        assert row.sha256 == sha256(path)
        with OnnxRunner(path, 1) as runner:
            assert runner.precision == row.precision
            size = runner.spec.preprocessing
            assert [size.height, size.width] == list(row.size)
        assert row.accuracy.low <= row.accuracy.value <= row.accuracy.high
        assert 0 <= row.boundary_miou <= 1
        assert (row.agreement_with_fp32 is None) is (row.precision == "fp32")
        assert (row.change_from_fp32 is None) is (row.precision == "fp32")
        assert set(row.total_ms) == {"50"}
    # scores are those of `evaluate`, which the report reads too
    for path in out.glob("results/*-cpu.json"):
        evaluation = read_json(path, "edgeuda.evaluation/1")
        row = next(r for r in record.variants if r.name == evaluation["name"])
        assert row.accuracy.value == pytest.approx(evaluation["miou"])
        assert row.boundary_miou == pytest.approx(evaluation["boundary"]["miou"])
    # telling frames are shown by each network, the choice, its FP32 form, and the truth
    shown = [read_json(p) for p in sorted(out.glob("results/frames-*/predictions.json"))]
    assert shown[-1]["name"] == "ground truth"
    assert record.taken in {one["name"] for one in shown}
    assert all(len(one["frames"]) == 6 for one in shown)
    page, data, *_ = build_report([out], tmp_path / "report.html")
    report = json.loads(data.read_text())
    # On a busy machine it is said to be provisional.
    assert report["verdicts"][0]["headline"].startswith(f"Take {record.taken}")
    assert report["notes"] == []
    assert "some on which the chosen model is worst" in page.read_text()
    assert "among the worst, mIoU" in page.read_text()


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(what, tmp_path, monkeypatch):
    made, calls = what
    out = tmp_path / "sweep"
    scored = []
    real = tradeoff.evaluate

    def stopping(*args, **kwargs):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(tradeoff, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(made, out, Budget())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.onnx")}
    monkeypatch.setattr(tradeoff, "evaluate", real)
    first = sweep(made, out, Budget(1000))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(calls) == 4
    # another budget asks for nothing to be made, scored or timed again
    for name in ("evaluate", "bench"):
        monkeypatch.setattr(tradeoff, name, lambda *_, **__: pytest.fail("ran again"))
    second = sweep(made, out, Budget(1e-6))
    assert second.taken is None
    assert [r.accuracy for r in second.variants] == [r.accuracy for r in first.variants]


def test_networks_may_be_added_but_nothing_else_changed(what, tmp_path, footage):
    made, _ = what
    out = tmp_path / "sweep"
    small = replace(made, networks=made.networks[:1], sizes=[], precisions=["fp32"])
    assert len(sweep(small, out, Budget()).variants) == 1
    more = replace(small, networks=made.networks)
    assert len(sweep(more, out, Budget()).variants) == 2
    kept = read_json(out / ".earlier" / "1" / "bench.json")  # nothing measured is lost
    assert sha256(out / ".earlier" / "1" / kept["samples"]["file"]) == kept["samples"]["sha256"]
    _, data, *_ = build_report([out], tmp_path / "report.html")
    assert len([r for r in json.loads(data.read_text())["records"] if "bench" in r["file"]]) == 1
    with pytest.raises(OutputExistsError, match="labels_sha256"):
        sweep(replace(small, labelled=None), out, Budget())
    with pytest.raises(OutputExistsError, match="other files"):
        sweep(more, footage[0][0].parent, Budget())


@pytest.mark.slow
def test_without_labels_variants_are_held_against_fp32(what, tmp_path):
    made, _ = what
    bare = replace(made, networks=made.networks[:1], labelled=None)
    record = sweep(bare, tmp_path / "sweep", Budget())
    fp32, int8, small, small_int8 = record.variants
    assert small.accuracy.value < 1  # held against the larger input
    assert 0.5 < small_int8.agreement_with_fp32 < 1  # and INT8 against its own size
    assert record.measure == "mean IoU with FP32"
    assert fp32.accuracy == Estimate(1, 1, 1)
    assert int8.accuracy.value < 1
    assert 0.5 < int8.agreement_with_fp32 < 1
    assert (record.data, int8.change_from_fp32, int8.boundary_miou) == (None, None, None)
    assert not list((tmp_path / "sweep").glob("results/*-cpu.json"))  # agreement is no score
    page, *_ = build_report([tmp_path / "sweep"], tmp_path / "report.html")
    assert "without labels" in page.read_text()


def test_sweeps_that_make_no_sense(what):
    made, _ = what
    for change in ({"networks": []}, {"rows": 3}, {"networks": [made.networks[0]] * 2}):
        with pytest.raises(ConfigError, match="Sweep: expected"):
            replace(made, **change).variants()
    with pytest.raises(ConfigError, match="labelled images to tell the networks a b, c apart"):
        replace(made, labelled=None).variants()


def test_int8_of_one_set_of_ranges_serves_every_runtime(what, tmp_path):
    made, _ = what
    both = [
        variants.Variant("c", (64, 128), "int8", "labels", runtime)
        for runtime in ("cpu", "openvino", "cuda")
    ]
    files = [variants.make(variant, made, tmp_path) for variant in both]
    assert [f.name for f in files] == [
        *["c-64x128-labels-int8-ort-x86.onnx"] * 2, "c-64x128-labels-int8-tensorrt.onnx",
    ]  # fmt: skip
    assert len(list(tmp_path.rglob("*.ranges.npz"))) == 1


def test_two_runtimes_of_a_cpu_are_measured_side_by_side(what, tmp_path):
    pytest.importorskip("openvino")
    made, _ = what
    made = replace(
        made, networks=made.networks[1:], sizes=[(64, 128)], runtimes=["cpu", "openvino"]
    )
    record = sweep(made, tmp_path / "sweep", Budget(1000))
    assert [row.name for row in record.variants] == [
        "c 64x128 FP32", "c 64x128 INT8", "c 64x128 FP32 openvino", "c 64x128 INT8 openvino",
    ]  # fmt: skip
    assert len(list((tmp_path / "sweep/models").glob("*.onnx"))) == 2
    fp32 = [row.accuracy.value for row in record.variants if row.precision == "fp32"]
    assert fp32[0] == pytest.approx(fp32[1], abs=1e-3)
    assert record.taken in {row.name for row in record.variants}


@pytest.mark.parametrize("version", quick_first(["8.6.1", "10.3.0", "10.16.1.11"], ["10.3.0"]))
def test_engines_of_every_precision_on_every_tensorrt(what, tmp_path, monkeypatch, version):
    """Before 10.12 FP16 graphs are refused; a sweep of them has to come to its end all the same."""
    made, _ = what
    made = replace(
        made, networks=made.networks[1:], sizes=[(64, 128)], precisions=["fp32", "fp16", "int8"],
        runtimes=["engine"], load=Load(samples=11),
    )  # fmt: skip
    device = tensorrt_modules.HostDevice()
    numbers = tuple(int(n) for n in version.split(".")[:3])
    trt = Library("tensorrt", tensorrt_modules.running(version, device), numbers)
    for place in ("tensorrt.library", "tensorrt.runner"):
        monkeypatch.setattr(f"engines.{place}.load_tensorrt", lambda *_, **__: trt)
    monkeypatch.setattr("engines.tensorrt.runner.open_device", lambda: device)
    monkeypatch.setattr("engines.tensorrt.cache.gpu_title", lambda: "Orin (8.7)")
    record = sweep(made, tmp_path / "sweep", Budget(1000))
    by_flag = numbers < (10, 12)
    for row in record.variants:
        engine = read_json(tmp_path / "sweep/engines" / f"{row.file}.json", "edgeuda.build/1")
        assert engine["precision"] == row.precision
        assert engine["options"]["half"] == (by_flag and row.precision != "fp32")
        half = row.precision == "fp16" or (by_flag and row.precision == "int8")
        assert engine["rest"] == ("fp16" if half else "fp32")
        assert row.execution["cuda_graphs"] == "replayed"
        assert row.fallbacks == []
    bench = read_json(tmp_path / "sweep/results/bench.json", "edgeuda.bench/2")
    assert [model["precision"] for model in bench["models"]] == ["fp32", "fp16", "int8"]
    assert {tuple(m["execution"]) for m in bench["models"]} == {tuple(row.execution)}


def test_an_engine_of_another_precision_ends_a_sweep(what, tmp_path, monkeypatch):
    made, _ = what
    trt = Library("tensorrt", tensorrt_modules.module("10.16.1.11"), (10, 16, 1))
    monkeypatch.setattr("engines.tensorrt.library.load_tensorrt", lambda *_, **__: trt)
    wrong = SimpleNamespace(record=SimpleNamespace(precision="fp32"), path=None)
    monkeypatch.setattr("engines.tensorrt.cache.cached_engine", lambda *_: wrong)
    variant = variants.Variant("c", (64, 128), "int8", "labels", "engine")
    with pytest.raises(ModelError, match="expected an engine in int8, found fp32"):
        variants.make(variant, made, tmp_path)


def test_telling_frames_are_the_worst_and_some_of_the_middle():
    images = counts(21)
    images[2] = 0  # nothing is labelled there
    found = telling_frames(images)
    order = sorted((i for i in range(21) if i != 2), key=lambda i: miou_of(images[i]))
    assert list(found) == [*order[:4], *order[9:11]]
    assert [note.split(",")[0] for note in found.values()] == ["among the worst"] * 4 + [
        "typical"
    ] * 2
    assert list(telling_frames(images[:1])) == [0]
