"""Adapting where it drives: made of the drive, judged without labels, installed like any other."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from calibration import stream
from calibration.api import calibrate
from calibration.batch_norm import adapt_batch_norm
from calibration.observe import Observer
from calibration.options import Options
from calibration.stream import adapt_installed, base_of, require_adaptable, shift_of
from cli.app import app
from edgeuda.decision import StreamDemands, enough_seen, judge_stream
from edgeuda.errors import BundleError, ConfigError, ModelError
from edgeuda.files import sha256
from edgeuda.records.calibration import CalibrationRecord, Limits, record_path
from edgeuda.records.installation import Demands
from edgeuda.records.live import LiveRecord
from edgeuda.records.stream_adaptation import StreamSample, StreamShift
from edgeuda.records.watch import Alarm, WatchRecord
from engines import installation
from engines.bundle import open_bundle
from engines.bundle_model import CURRENT
from engines.installation import (
    PREVIOUS,
    attempt,
    current_in,
    demanded,
    fall_back,
    install,
    left_for,
    note_alarms,
    read,
)
from engines.live.sample import Sample
from engines.live.watch import Watch, WatchSettings
from engines.onnx.graphs import metadata_of
from engines.onnx.metadata import made_from
from engines.opening import open_runner
from engines.packing import pack
from engines.reference import reference_in
from interruptions import changes_made
from places import ROOT
from tiny_models import exported, random_frames, write_frames

ANY = StreamDemands(frames=1, seconds=0.0, agreement=0.0, acceptance=0.0, int8=1.0)


def sampled(count=8, seed=7, darker=0.5):
    """A sample of a drive in less light."""
    frames = [
        (darker * one).astype(np.uint8)[None] for one in random_frames(count, 64, 128, seed=seed)
    ]
    half = count // 2
    about = StreamSample(
        count, half, half, 80.0, "2026-12-01T17:00:00+00:00", "2026-12-01T17:01:20+00:00", 0.2
    )
    return Sample(frames[:half], frames[half:], about)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """FP32 alone, FP32 and INT8 that give their confidence, and INT8 alone."""
    folder = tmp_path_factory.mktemp("bundles")
    write_frames(folder / "frames", random_frames(20, 64, 128))
    fp32, int8, plain = (folder / name for name in ("net.onnx", "net-int8.onnx", "plain.onnx"))
    plain.write_bytes(exported(confidence=True))
    fp32.write_bytes(exported(confidence=True))
    options = Options(
        "ort-x86", rule="mse", equalize=True, keep_float=("*conv1.weight",), threads=1,
        limits=Limits(0.0, 0.0),
    )  # fmt: skip
    calibrate(fp32, folder / "frames", int8, options=options, frames=20)
    (folder / "terms.txt").write_text("for nobody")
    found = {}
    for name, models in (("fp32", [plain]), ("int8", [fp32, int8]), ("alone", [int8])):
        found[name] = folder / f"{name}.edgeuda"
        pack(models, found[name], acceptance=folder / "frames", licences=[folder / "terms.txt"])
    pack([plain], folder / "bare.edgeuda")
    return found | {"bare": folder / "bare.edgeuda", "folder": folder}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(installation, "TIMED", 2)
    monkeypatch.setattr(installation, "WARM", 1)


def watched(alarms, windows):
    found = [Alarm(float(n), None, "light", {}) for n in range(alarms)]
    return WatchRecord(0.1, 10.0, windows, 0, [], found, [])


def vehicle(bundles, into, name="fp32"):
    install(bundles[name], into, threads=1)
    return sha256(bundles[name])


def graph_in(bundle, name):
    return onnx.load_from_string(open_bundle(bundle).read(f"models/{name}"))


def test_a_drive_makes_the_next_network(bundles, tmp_path, caplog):
    """The graph is that of `adapt_batch_norm` on half of the sample, and all else goes along."""
    into, sample = tmp_path / "vehicle", sampled()
    ran = vehicle(bundles, into)
    done = adapt_installed(into, ran, sample, threads=1, prior=3.0, demands=ANY)
    assert (done.decision, done.reasons, done.error) == ("installed", (), None)
    current = into / CURRENT
    assert current.resolve().stem == done.sha256 == sha256(current)
    assert (into / PREVIOUS).resolve().stem == ran
    wanted, _ = adapt_batch_norm(
        graph_in(bundles["fp32"], "plain.onnx"), sample.estimating, "m", prior=3.0,
        layers=stream.DETAIL, threads=1,
    )  # fmt: skip
    bundle = open_bundle(current)
    found = graph_in(current, "plain.onnx")
    images = np.concatenate(sample.judging)
    seen = [Observer(one, 1)(images[:1]).log_probabilities for one in (wanted, found)]
    np.testing.assert_array_equal(*seen)
    lineage = bundle.manifest.lineage
    assert (lineage.parent, lineage.driven.origin, lineage.driven.generation) == (ran, ran, 1)
    assert bundle.read("licences/terms.txt") == b"for nobody"
    event = read(into).history[-1]
    assert event.parent == ran
    assert str(event.driven).startswith("4 frames from 2026-12-01T17:00:00+00:00")
    # A second drive goes on from there, and remembers what was installed first.
    again = adapt_installed(into, done.sha256, sampled(seed=8), threads=1, prior=3.0, demands=ANY)
    assert again.decision == "installed"
    second = open_bundle(current).manifest.lineage
    assert (second.parent, second.driven.origin) == (done.sha256, ran)
    assert second.driven.generation == 2
    assert [one.bundle for one in second.ancestors] == [done.sha256, ran]
    first, last = (base_of(one, "cpu") for one in (bundles["fp32"], current))
    assert first.expected.keys() == last.expected.keys()
    for name, labels in first.expected.items():
        np.testing.assert_array_equal(last.expected[name], labels)
        np.testing.assert_array_equal(last.frames[name], first.frames[name])
    assert again.shift.acceptance < 1
    assert fall_back(into, "").sha256 == done.sha256
    assert not [one for one in caplog.records if "kept" in one.message]


def test_int8_is_rounded_anew_as_it_was(bundles, tmp_path):
    into, sample = tmp_path / "vehicle", sampled(40)
    ran = vehicle(bundles, into, "int8")
    done = adapt_installed(into, ran, sample, threads=1, prior=3.0, demands=ANY)
    assert (done.decision, done.error) == ("installed", None)
    assert all(0.5 < one < 1 for one in done.int8_agreement)  # of a random network
    bundle = open_bundle(into / CURRENT)
    assert sorted(one.name for one in bundle.of("model")) == [
        "models/net-int8.onnx", "models/net.onnx",
    ]  # fmt: skip
    records = [
        CalibrationRecord.from_record(
            json.loads(open_bundle(one).read("calibration/net-int8.onnx.calibration.json")), "r"
        )
        for one in (bundles["int8"], into / CURRENT)
    ]
    old, new = records
    assert (new.rule, new.transforms) == (old.rule, old.transforms) == (
        "mse", ("weights equalized across layers",),
    )  # fmt: skip
    floats = [{one.weight for one in record.layers if not one.int8} for record in records]
    assert floats[0] == floats[1]
    assert len(floats[0]) > 1
    assert len(new.frames) == 20
    fp32 = next(one for one in bundle.of("model") if one.name == "models/net.onnx")
    assert made_from(metadata_of(graph_in(into / CURRENT, "net-int8.onnx"))) == fp32.sha256
    # What is normal for it: the drive, whose frames do not follow each other.
    int8 = next(one for one in bundle.of("model") if one.name == "models/net-int8.onnx")
    reference = reference_in(bundle, int8)
    assert [one.frames for one in reference.stretches] == [1] * 40
    Watch(reference, WatchSettings())
    with open_runner(into / CURRENT, 1, confidence=True) as runner:
        assert runner.precision == "int8"
    assert not list((into).glob("*.png"))


@pytest.mark.parametrize(
    ("demands", "reasons"),
    [
        (replace(ANY, agreement=1.0), ("less alike",)),
        (replace(ANY, acceptance=1.0), ("forgets",)),
        (replace(ANY, agreement=1.0, acceptance=1.0), ("less alike", "forgets")),
    ],
)
def test_what_does_not_pass_is_refused_and_noted(bundles, tmp_path, demands, reasons):
    into = tmp_path / "vehicle"
    ran = vehicle(bundles, into)
    done = adapt_installed(into, ran, sampled(), threads=1, demands=demands)
    assert (done.decision, done.reasons) == ("refused", reasons)
    assert (into / CURRENT).resolve().stem == ran
    assert not (into / PREVIOUS).exists()
    event = read(into).history[-1]
    assert (event.action, event.sha256) == ("refused", done.sha256)
    assert event.parent == ran
    assert event.driven is not None
    assert "and 100 % have to be" in event.reason
    assert len(list(into.glob("*.edgeuda"))) == 2


def test_what_is_adapted_has_to_keep_what_its_parent_had_to(bundles, tmp_path, monkeypatch):
    into = tmp_path / "vehicle"
    install(bundles["fp32"], into, threads=1, demands=Demands(budget_ms=1e6, agreement=0.5))
    assert demanded(into, sha256(bundles["fp32"])) == Demands(1e6, 0.5)
    monkeypatch.setattr(installation, "_timed", lambda _runner: {"50": 1e6, "95": 1e6 + 1})
    ran = current_in(into)
    done = adapt_installed(into, ran, sampled(), threads=1, demands=ANY)
    assert done.decision == "failed"
    assert "the budget is 1e+06 ms" in done.error
    assert current_in(into) == ran
    assert demanded(into, "0" * 64) == Demands()


def test_a_drive_that_shows_too_little_makes_nothing(bundles, tmp_path):
    into = tmp_path / "vehicle"
    ran = vehicle(bundles, into)
    done = adapt_installed(into, ran, sampled(), threads=1)
    assert (done.decision, done.reasons) == ("nothing made", ("too few frames",))
    short = replace(sampled(40), about=replace(sampled(40).about, seconds=59.0))
    assert enough_seen(short.about, StreamDemands()) == ("too short",)
    assert [one.action for one in read(into).history] == ["installed"]


def test_judging_sees_both_networks_on_the_same_frames():
    graph = onnx.load_from_string(exported(confidence=True))
    dark, _ = adapt_batch_norm(graph, sampled().estimating, "m", threads=1)
    one, two = Observer(graph, 1), Observer(dark, 1)
    frames = [frame[None] for frame in random_frames(3, 64, 128, seed=9)]
    labels = {"a": one(frames[0]).labels}
    same = shift_of(one, one, frames, 11, {"a": frames[0][0]}, labels)
    assert (same.agreement, same.class_distance, same.acceptance) == (1.0, 0.0, 1.0)
    assert same.confidence[0] == same.confidence[1]
    other = shift_of(one, two, frames, 11, {"a": frames[0][0]}, labels)
    seen = [(one(frame).labels, two(frame).labels) for frame in frames]
    assert other.agreement == pytest.approx(np.mean([(a == b).mean() for a, b in seen]))
    assert other.acceptance == pytest.approx((seen[0][0] == seen[0][1]).mean())
    counted = [
        np.bincount(np.concatenate([p[i].ravel() for p in seen]), minlength=11) for i in (0, 1)
    ]
    for shares, counts in zip(other.shares, counted, strict=True):
        np.testing.assert_allclose(shares, counts / counts.sum())
    probabilities = [np.exp(two(frame).log_probabilities) for frame in frames]
    assert other.confidence[1] == pytest.approx(np.mean([p.max(0).mean() for p in probabilities]))
    entropy = np.mean([-(p * np.log(p)).sum(0).mean() for p in probabilities])
    assert other.entropy[1] == pytest.approx(entropy, rel=1e-4)


def test_the_rule():
    shift = StreamShift(0.9, (0.8, 0.8), (0.5, 0.5), ((1.0,), (1.0,)), 0.0, 0.95)
    demands = StreamDemands(agreement=0.9, acceptance=0.95)
    assert judge_stream(shift, demands) == ()
    assert judge_stream(shift, demands, (0.93, 0.921)) == ()
    assert judge_stream(shift, demands, (0.93, 0.919)) == ("INT8 differs",)
    assert judge_stream(replace(shift, agreement=0.89), demands) == ("less alike",)
    assert judge_stream(replace(shift, acceptance=0.94), demands) == ("forgets",)


def test_killed_at_any_change_one_of_both_networks_works(bundles, tmp_path, monkeypatch):
    """Before each change of the disk in the vehicle's folder."""
    sample = sampled()

    def start(name):
        return tmp_path / name, vehicle(bundles, tmp_path / name)

    into, ran = start("whole")
    done = []

    def adapt(into=into):
        done.append(adapt_installed(into, ran, sample, threads=1, demands=ANY))

    total = changes_made(adapt, into)
    assert total > 5
    ends = set()
    for at in range(1, total + 1):
        into, _ = start(f"at{at}")
        with suppress(KeyboardInterrupt):
            changes_made(lambda into=into: adapt(into), into, at)
        current = (into / CURRENT).resolve().stem
        ends.add(current == ran)
        base_of(into / CURRENT, "cpu")
        with attempt(into / CURRENT) as now:
            assert now == current
        if current == ran:
            adapt(into)
            assert done[-1].decision == "installed"
        assert fall_back(into, "").sha256 == ran
    assert ends == {True, False}


def test_another_network_that_became_current_stays(bundles, tmp_path, monkeypatch):
    into = tmp_path / "vehicle"
    ran = vehicle(bundles, into)
    other = vehicle(bundles, into, "int8")
    done = adapt_installed(into, ran, sampled(), threads=1, demands=ANY)
    assert (done.decision, done.reasons) == ("nothing made", ("replaced",))
    # Also where it came while the candidate was made.
    monkeypatch.setattr(stream, "current_in", lambda _into: ran)
    done = adapt_installed(into, ran, sampled(), threads=1, demands=ANY)
    assert done.decision == "failed"
    assert "is not the current one of" in done.error
    assert (into / CURRENT).resolve().stem == other


def test_a_network_that_was_left_is_not_made_again(bundles, tmp_path):
    """Else every drive would install it, and every alarm go back."""
    into = tmp_path / "vehicle"
    ran = vehicle(bundles, into)
    require_adaptable(into / CURRENT, "cpu")
    assert note_alarms(into / CURRENT, ran, watched(1, 7200)) is None
    made = adapt_installed(into, ran, sampled(), threads=1, demands=ANY)
    require_adaptable(into / CURRENT, "cpu")
    back = note_alarms(into / CURRENT, made.sha256, watched(50, 720))
    assert (back.action, back.sha256) == ("fell back", ran)
    assert left_for(into, ran).reason == back.reason
    with pytest.raises(BundleError, match=r"was adapted on this vehicle before, and fallen back"):
        require_adaptable(into / CURRENT, "cpu")
    vehicle(bundles, into, "int8")
    require_adaptable(into / CURRENT, "cpu")
    assert fall_back(into, "by hand").sha256 == ran  # from a network that was not adapted
    require_adaptable(into / CURRENT, "cpu")


def test_what_cannot_be_adapted_is_refused_before_the_drive(bundles, tmp_path, monkeypatch):
    into = tmp_path / "vehicle"
    vehicle(bundles, into, "bare")
    with pytest.raises(BundleError, match=r"expected acceptance frames of models/plain\.onnx"):
        require_adaptable(into / CURRENT, "cpu")
    vehicle(bundles, into, "alone")
    with pytest.raises(BundleError, match=r"expected the FP32 model that models/net-int8\.onnx"):
        require_adaptable(into / CURRENT, "cpu")
    with pytest.raises(BundleError, match="expected the network of a vehicle's folder"):
        require_adaptable(bundles["fp32"], "cpu")
    vehicle(bundles, into, "int8")
    require_adaptable(into / CURRENT, "cpu")
    monkeypatch.setenv("EDGEUDA_PUBLIC_KEY", str(tmp_path / "public.pem"))
    with pytest.raises(BundleError, match="A vehicle has no key to sign what it adapts with"):
        require_adaptable(into / CURRENT, "cpu")


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ({"transforms": ["fine-tuned with its FP32 form as teacher"]}, "fine-tuned"),
        ({"quantizer": "modelopt"}, "quantizer modelopt"),
        ({"rule": "tensorrt-cache"}, "quantizer edgeuda, rule tensorrt-cache"),
    ],
)
def test_int8_that_cannot_be_made_again_is_refused(bundles, tmp_path, change, how):
    folder = bundles["folder"]
    for name in ("net.onnx", "net-int8.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    beside = record_path(tmp_path / "net-int8.onnx")
    record = json.loads(record_path(folder / "net-int8.onnx").read_text())
    beside.write_text(json.dumps(record | change))
    models = [tmp_path / "net.onnx", tmp_path / "net-int8.onnx"]
    pack(models, tmp_path / "odd.edgeuda", acceptance=folder / "frames")
    with pytest.raises(ModelError, match=rf"cannot be repeated on the vehicle \({how}"):
        base_of(tmp_path / "odd.edgeuda", "cpu")
    beside.unlink()
    pack(models, tmp_path / "none.edgeuda", acceptance=folder / "frames")
    with pytest.raises(BundleError, match="expected the record of how"):
        base_of(tmp_path / "none.edgeuda", "cpu")


def typed(*words, code=0):
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_the_verb(bundles, tmp_path, monkeypatch):
    """A folder as a drive, its record, the history and the way back."""
    into, frames = tmp_path / "vehicle", tmp_path / "frames"
    typed("install", bundles["fp32"], "--into", into, "--threads", 1)
    ran = sha256(bundles["fp32"])
    write_frames(frames, [(0.6 * one).astype(np.uint8) for one in random_frames(64, 64, 128)])
    run = ("run", "--model", into / CURRENT, "--target", frames, "--threads", 1, "--adapt-bn")
    monkeypatch.setattr(stream, "StreamDemands", lambda: StreamDemands(acceptance=1.0))
    done = typed(*run, "--adapt-frames", 32, "--out", tmp_path / "one")
    record = LiveRecord.read(tmp_path / "one" / "run.json").adaptation
    assert record.decision == "refused"
    assert "forgets" in record.reasons
    assert (record.sample.seen, record.sample.estimating, record.sample.judging) == (64, 16, 16)
    assert record.sample.seconds == 64
    assert "32 frames to adapt to take 0.8 MB at most" in done.output
    why = f"refused: {record.reasons[0]}"
    assert f"not adapted to 16 frames of the drive, {why}" in done.output
    monkeypatch.setattr(stream, "StreamDemands", lambda: ANY)
    typed(*run, "--adapt-frames", 8, "--out", tmp_path / "two")
    record = LiveRecord.read(tmp_path / "two" / "run.json").adaptation
    assert record.decision == "installed"
    assert (into / CURRENT).resolve().stem == record.sha256
    said = typed("installed", into).output
    assert f"current: {record.sha256[:12]}, adapted on vehicle from {ran[:12]} with 4" in said
    typed("run", "--model", into / CURRENT, "--target", frames, "--out", tmp_path / "three")
    typed("fallback", "--into", into)
    assert (into / CURRENT).resolve().stem == ran
    for words, error in (
        (("--keep", tmp_path / "kept"), "--adapt-bn and --keep contradict each other"),
        (("--member", "plain"), "--adapt-bn and --member contradict each other"),
    ):
        with pytest.raises(ConfigError, match=error):
            CliRunner().invoke(
                app, [*map(str, run), *map(str, words), "--out", str(tmp_path / "no")],
                catch_exceptions=False,
            )  # fmt: skip


def test_what_fails_leaves_the_drive_and_the_network(bundles, tmp_path, monkeypatch):
    into, frames = tmp_path / "vehicle", tmp_path / "frames"
    vehicle(bundles, into)
    write_frames(frames, random_frames(4, 64, 128))

    def broken(*_args, **_how):
        msg = "no room for it"
        raise BundleError(msg)

    monkeypatch.setattr(stream, "StreamDemands", lambda: ANY)
    monkeypatch.setattr(stream, "pack", broken)
    monkeypatch.setattr("engines.live.sample.STRETCH", 2.0)
    with pytest.raises(ModelError, match="The drive is complete, and the network stays: no room"):
        CliRunner().invoke(
            app,
            ["run", "--model", str(into / CURRENT), "--target", str(frames), "--threads", "1",
             "--adapt-bn", "--adapt-frames", "4", "--out", str(tmp_path / "out")],
            catch_exceptions=False,
        )  # fmt: skip
    record = LiveRecord.read(tmp_path / "out" / "run.json")
    assert (record.frames.segmented, record.adaptation.decision) == (4, "failed")
    assert (into / CURRENT).resolve().stem == sha256(bundles["fp32"])


def test_there_is_no_torch_in_it():
    code = (
        "import sys\n"
        "for name in ('torch', 'kornia', 'lightning_fabric', 'safetensors', 'pydantic', 'timm'):\n"
        "    sys.modules[name] = None\n"
        "import calibration.stream\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
