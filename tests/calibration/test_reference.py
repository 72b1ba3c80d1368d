"""What is kept of normal frames: against numpy, in the bundle, and refused where it is amiss."""

import json
import zipfile
from itertools import pairwise

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import calibration
import engines
from calibration import reference
from calibration.reference import autocorrelation, feature_model, successive, write_reference
from cli.app import app
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import read_image, resize_image
from edgeuda.errors import BundleError, ConfigError, DataError, ModelError
from edgeuda.files import sha256
from edgeuda.records.arrays import Floats
from edgeuda.records.reference import (
    BINS,
    CLASSES,
    COLUMNS,
    DISTANCE,
    SURENESS,
    FeatureModel,
    Reference,
    reference_path,
)
from engines.bundle import MANIFEST, open_bundle
from engines.onnxruntime_runner import OnnxRunner
from engines.reference import reference_in, reference_of
from engines.runner import signals_of
from engines.signals import class_distance, confidence_distance, statistics
from tiny_models import SPEC, exported, random_frames, write_frames

COUNT = 40


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    frames = random_frames(COUNT // 2, 90, 200, seed=3)
    drift = [cv2.addWeighted(f, 0.5, g, 0.5, 0) for f, g in pairwise(frames)]
    drift.append(frames[-1])
    write_frames(folder, [one for pair in zip(frames, drift, strict=True) for one in pair])
    return folder


@pytest.fixture(scope="module", params=["ort-x86", "tensorrt"])
def calibrated(request, footage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    fp32.write_bytes(exported("labels", confidence=True))
    calibration.calibrate(
        fp32, footage, int8, runtime=request.param, frames=4, reference_frames=32,
        options=calibration.Options(request.param, threads=1),
    )  # fmt: skip
    return int8, Reference.read(reference_path(int8))


@pytest.fixture(scope="module")
def seen(calibrated, footage):
    """What the INT8 model says of the frames of the reference, one by one."""
    int8, record = calibrated
    places = [s.first + n for s in record.stretches for n in range(s.frames)]
    images = [read_image(footage / f"{place:03d}.png") for place in places]
    fed = [resize_image(image, 64, 128) for image in images]
    with OnnxRunner(int8, 1, confidence=True) as runner:
        return images, fed, [runner.signals(one[None]) for one in fed]


def test_it_says_of_what_it_is(calibrated):
    int8, record = calibrated
    assert record.model.sha256 == sha256(int8)
    assert record.model.file == "int8.onnx"
    assert record.backend.startswith("onnxruntime")
    assert record.classes == SPEC.label_space.classes
    assert (record.rows, record.columns, record.frames, record.footage) == (64, 128, 32, COUNT)
    assert [(s.first, s.frames) for s in record.stretches] == [(0, 16), (20, 16)]
    assert record.remarks == ("32 frames are few: 100 or more show how much normal varies",)
    assert record.skipped is None
    assert reference_of(int8) == record
    assert reference_path(int8).stat().st_size < 25_000


def test_it_is_of_what_runs_on_the_vehicle(calibrated, seen):
    """By numpy from the INT8 graph's own outputs, at each frame."""
    _, record = calibrated
    _, fed, said = seen
    confidence = np.stack([one.confidence[0] for one in said])
    found = record.column("confidence")
    np.testing.assert_allclose(found, confidence.mean((1, 2)) / 255, rtol=1e-6)
    wanted = np.histogram(confidence, BINS, (0, 256))[0]
    np.testing.assert_array_equal(record.whole.confidence, wanted)
    corner = np.histogram(confidence[:, :2, :4], BINS, (0, 256))[0]
    np.testing.assert_array_equal(record.regions[0].confidence, corner)
    lowest = np.histogram(confidence[:, 6:, 12:], BINS, (0, 256))[0]
    np.testing.assert_array_equal(record.regions[-1].confidence, lowest)
    for number, name in enumerate(("red", "green", "blue")):
        channel = np.stack([one[..., number] for one in fed]).astype(float)
        np.testing.assert_allclose(record.column(name), channel.mean((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(record.column(f"{name}_spread"), channel.std((1, 2)), rtol=1e-5)


def test_look_and_classes_by_region(calibrated, seen):
    _, record = calibrated
    images, fed, said = seen
    labels = [
        cv2.resize(one.labels[0], (200, 90), interpolation=cv2.INTER_NEAREST_EXACT) for one in said
    ]
    shares = np.bincount(np.stack(labels).ravel(), minlength=11) / np.stack(labels).size
    np.testing.assert_allclose(record.whole.classes, shares, atol=0.01)
    assert sum(record.regions[5].classes) == pytest.approx(1, abs=1e-5)
    grey = [cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(float) for one in fed]
    brightness = [one.mean() for one in grey]
    np.testing.assert_allclose(record.column("brightness"), brightness, rtol=1e-5)
    assert record.whole.brightness.mean == pytest.approx(np.mean(brightness), rel=1e-4)
    assert record.whole.brightness.deviation == pytest.approx(np.std(brightness, ddof=1), rel=1e-3)
    for one, found in zip(grey, record.column("sharpness"), strict=True):
        around = np.pad(one, 1, mode="reflect")
        beside = around[1:-1, :-2] + around[1:-1, 2:]
        edges = around[:-2, 1:-1] + around[2:, 1:-1] + beside - 4 * one
        assert found == pytest.approx(edges.var(), rel=1e-5)
    part = [one[:16, :32].mean() for one in grey]
    assert record.regions[0].brightness.mean == pytest.approx(np.mean(part), rel=1e-4)
    assert len(images) == 32


def test_how_far_a_frame_is_in_classes_and_confidence_is_measured_by_the_others(calibrated, seen):
    """By Jensen-Shannon's and Kolmogorov-Smirnov's distances, the mean over the regions."""
    int8, record = calibrated
    with OnnxRunner(int8, 1, confidence=True) as runner:
        said = [statistics(signals_of(runner, image), 11) for image in seen[0]]
    classes, sure = (
        [[row / row.sum() for row in part[:-1]] for part in (one, sum(others))]
        for one, *others in (
            [said[3].classes, *(frame.classes for frame in said[8:])],
            [said[3].confidence, *(frame.confidence for frame in said[8:])],
        )
    )
    apart = [np.sqrt(jensen_shannon(p, q)) for p, q in zip(*classes, strict=True)]
    assert record.column(CLASSES)[3] == pytest.approx(np.mean(apart), rel=1e-5)
    apart = [np.abs(np.cumsum(p) - np.cumsum(q)).max() for p, q in zip(*sure, strict=True)]
    assert record.column(SURENESS)[3] == pytest.approx(np.mean(apart), rel=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_few_frames_are_a_reference_too(calibrated, footage, tmp_path, frames):
    model = tmp_path / "model.onnx"
    model.write_bytes(calibrated[0].read_bytes())
    record = write_reference(model, frame_folder(footage), frames, threads=1)
    assert record.frames == frames
    assert (record.column(CLASSES) > 0).all() == (frames > 1)  # one has no others


def jensen_shannon(p, q):
    def entropy(one):
        return -sum(x * np.log2(x) for x in one if x > 0)

    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def test_what_distances_are_between():
    one, other = np.array([[3, 0, 0], [0, 0, 0]]), np.array([[0, 5, 5], [1, 2, 3]])
    assert class_distance(one, one) == confidence_distance(other, other) == 0
    assert class_distance(one, other) == pytest.approx(1)  # the empty region does not count
    assert confidence_distance(one, other) == pytest.approx(1)
    half = np.array([[1, 1, 0], [0, 0, 0]])
    assert confidence_distance(one, half) == pytest.approx(0.5)
    assert class_distance(one[1:], other[1:]) == 0


def test_features_have_a_covariance_that_can_be_inverted(calibrated, seen):
    _, record = calibrated
    features = np.stack([one.features[0] for one in seen[2]]).astype(float)
    kept = record.features
    np.testing.assert_allclose(kept.mean.array, features.mean(0), rtol=1e-5, atol=1e-6)
    directions = kept.directions.array.astype(float)
    assert directions.shape == (4, 64)  # one for every eight frames
    np.testing.assert_allclose(directions @ directions.T, np.eye(4), atol=2e-3)
    inner = directions.T @ np.diag(np.array(kept.variances) - kept.rest) @ directions
    spread = np.diag(kept.spread.array.astype(float))
    covariance = spread @ (inner + kept.rest * np.eye(64)) @ spread
    apart = features - kept.mean.array
    slow = np.sqrt(np.einsum("nc,cd,nd->n", apart, np.linalg.inv(covariance), apart) / 64)
    np.testing.assert_allclose(kept.distances(features), slow, rtol=0.02)
    assert np.mean(kept.distances(features) ** 2) == pytest.approx(31 / 32, rel=0.05)
    assert record.per_frame == (*COLUMNS, CLASSES, SURENESS, DISTANCE)
    others = feature_model(features[8:])  # a frame's distance is by the frames of other parts
    np.testing.assert_allclose(
        record.column(DISTANCE)[:8], others.distances(features[:8]), rtol=1e-3
    )


def test_features_of_another_kind_are_farther():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 128)) * rng.uniform(0.1, 5, 128)
    noise = rng.uniform(0.01, 0.5, 128)

    def draw(count):
        return rng.standard_normal((count, 6)) @ mixing + noise * rng.standard_normal((count, 128))

    model, new = feature_model(draw(400)), draw(400)
    usual = np.sort(model.distances(new))
    assert 0.8 < np.median(usual) < 1.2
    away = new + 8 * noise * np.sign(rng.standard_normal(128))  # off the usual directions
    assert np.median(model.distances(away)) > usual[-4]
    dead = np.zeros((50, 8))
    assert np.isfinite(feature_model(dead).distances(dead + 1)).all()


def test_how_much_one_frame_says_of_the_next():
    rng = np.random.default_rng(1)
    values = np.zeros(4000)
    for n in range(1, len(values)):
        values[n] = 0.8 * values[n - 1] + rng.standard_normal()
    assert autocorrelation(values, [4000]) == pytest.approx(0.8, abs=0.04)
    assert autocorrelation(rng.permutation(values), [4000]) == pytest.approx(0, abs=0.06)
    jumps = np.repeat(rng.standard_normal(100), 10)  # between stretches nothing follows
    assert autocorrelation(jumps, [10] * 100) == pytest.approx(1, abs=0.01)
    assert autocorrelation(values[:9], [1] * 9) is None
    assert autocorrelation(np.full(9, 0.3), [9]) is None


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (5, 9, [0, 1, 2, 3, 4]),
        (100, 3, [0, 1, 2]),
        (100, 32, [*range(16), *range(50, 66)]),
        (40, 32, [*range(16), *range(20, 36)]),
    ],
)
def test_frames_are_stretches_that_are_spread(total, count, expected):
    assert successive(total, count) == expected


def test_no_stretch_runs_from_one_footage_to_another():
    found = reference._stretches([0, 1, 2, 3, 7], {0, 2})
    assert [(one.first, one.frames) for one in found] == [(0, 2), (2, 2), (7, 1)]


def test_frames_are_never_taken_twice():
    for total in range(1, 120):
        for count in range(1, 120, 7):
            places = successive(total, count)
            assert len(places) == len(set(places)) <= count
            assert places == sorted(places)
            assert places[-1] < total


def test_what_is_wanting_is_said(tmp_path, footage, monkeypatch):
    """Few frames, none that follow each other, and one that cannot be read."""
    model = tmp_path / "m.onnx"
    model.write_bytes(exported("labels", confidence=True))
    frames = write_frames(tmp_path / "frames", random_frames(30, 64, 128))
    frames[7].write_bytes(b"no image")
    record = write_reference(model, frame_folder(tmp_path / "frames"), 99, threads=1)
    assert [(s.first, s.frames) for s in record.stretches] == [(0, 7), (8, 22)]
    assert record.frames == 29
    assert [name.endswith("007.png") for name in record.skipped] == [True]
    monkeypatch.setattr(reference, "STRETCH", 1)
    record = write_reference(model, frame_folder(footage), 6, threads=1)
    assert record.autocorrelation == (None,) * len(record.per_frame)
    assert record.features is None
    assert record.per_frame == (*COLUMNS, CLASSES, SURENESS)
    assert record.remarks == (
        "6 frames are few: 100 or more show how much normal varies",
        "no two frames follow each other: how much one says of the next is not known",
        "6 frames are too few for the features, of which nothing is kept",
    )


def test_a_model_without_confidence_has_none(tmp_path, footage):
    model = tmp_path / "m.onnx"
    model.write_bytes(exported("labels"))
    with pytest.raises(ModelError, match=r"expected an output 'confidence'"):
        write_reference(model, frame_folder(footage), 4, threads=1)
    with pytest.raises(ConfigError, match=r"gives no confidence.*`reference_frames` out"):
        calibration.calibrate(model, footage, tmp_path / "i.onnx", reference_frames=4)
    assert not (tmp_path / "i.onnx").exists()
    calibration.calibrate(model, footage, tmp_path / "i.onnx", frames=2)
    assert not reference_path(tmp_path / "i.onnx").exists()
    with pytest.raises(DataError, match=r"expected what is normal for i\.onnx, found no such file"):
        reference_of(tmp_path / "i.onnx")


@pytest.mark.parametrize(
    "how", [{"adapt_batch_norm": True}, {"equalize": True, "correct_biases": True}]
)
def test_what_is_done_to_the_graph_first_leaves_it(tmp_path, footage, how):
    model, out = tmp_path / "m.onnx", tmp_path / "i.onnx"
    model.write_bytes(exported("labels", confidence=True))
    options = calibration.Options("ort-x86", threads=1, **how)
    calibration.calibrate(model, footage, out, frames=4, options=options)
    assert reference_of(out).frames == 4  # as many as ranges were collected on
    with OnnxRunner(out, 1, confidence=True) as runner:
        assert runner.signals(np.zeros((1, 64, 128, 3), np.uint8)).features.shape == (1, 64)


def test_the_command_line_says_what_was_kept(tmp_path, footage):
    sure, plain = tmp_path / "sure.onnx", tmp_path / "plain.onnx"
    sure.write_bytes(exported("labels", confidence=True))
    plain.write_bytes(exported("labels"))

    def run(model, out, *more):
        done = CliRunner().invoke(app, [
            "calibrate", "--model", str(model), "--target", str(footage), "--out", str(out),
            "--frames", "2", "--threads", "1", "--min-agreement", "0",
            "--min-class-agreement", "0", *more,
        ])  # fmt: skip
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    text = run(sure, tmp_path / "a.onnx", "--reference-frames", "20")
    assert "reference of what is normal: 16 of 40 frames in 1 stretch 16 frames are few" in text
    text = run(sure, tmp_path / "b.onnx", "--reference-frames", "0")
    assert "no reference of what is normal lies beside the model, as asked" in text
    text = run(plain, tmp_path / "c.onnx")
    assert "as it was exported without --confidence" in text


# --- in a bundle ---


@pytest.fixture
def bundle(calibrated, tmp_path):
    return engines.write_bundle([calibrated[0]], tmp_path / "vehicle.edgeuda")


def test_it_travels(bundle, calibrated):
    (model,) = bundle.of("model")
    assert model.about["confidence"] is True
    assert [one.name for one in bundle.of("reference")] == ["reference/int8.onnx.reference.json"]
    assert reference_in(bundle, model) == calibrated[1]


def test_a_bundle_without_one_opens(calibrated, tmp_path):
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(exported("labels"))
    bundle = engines.write_bundle([plain], tmp_path / "old.edgeuda")
    (model,) = open_bundle(bundle.path).of("model")
    assert "confidence" not in model.about
    assert reference_in(bundle, model) is None


def test_an_altered_one_is_refused(bundle, tmp_path):
    for member, change in (
        ("reference/int8.onnx.reference.json", (b'"frames": 32', b'"frames": 31')),
        (MANIFEST, (b'"role": "reference"', b'"role": "other"')),
    ):
        altered = tmp_path / "altered.edgeuda"
        with zipfile.ZipFile(bundle.path) as old, zipfile.ZipFile(altered, "w") as new:
            for info in old.infolist():
                content = old.read(info)
                if info.filename == member:
                    assert change[0] in content
                    content = content.replace(*change)
                new.writestr(info, content)
        with pytest.raises(BundleError, match="Do not use it"):
            open_bundle(altered)


def test_that_of_another_model_is_refused(calibrated, tmp_path):
    int8, record = calibrated
    other = tmp_path / "other.onnx"
    other.write_bytes(exported("labels", confidence=True))
    record.write(reference_path(other))
    with pytest.raises(DataError, match=r"is of int8\.onnx .* and other\.onnx is another model"):
        engines.write_bundle([other], tmp_path / "b.edgeuda")
    # Someone without a key who lists it in a manifest of her own.
    named = tmp_path / "int8.onnx"
    named.write_bytes(other.read_bytes())
    forged = engines.bundle.write_bundle(
        tmp_path / "forged.edgeuda",
        [("model", named, {}), ("reference", reference_path(int8), {})], {},
    )  # fmt: skip
    assert len(forged.files) == 2
    opened = open_bundle(tmp_path / "forged.edgeuda")
    with pytest.raises(BundleError, match=r"models/int8\.onnx is another model.*Do not use"):
        reference_in(opened, opened.of("model")[0])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r.update(schema="edgeuda.reference/2"), "expected schema 'edgeuda.reference/1'"),
        (lambda r: r.update(frames=7), "expected frames in stretches 7, found 32"),
        (lambda r: r.pop("whole"), "expected 'whole'"),
        (lambda r: r["whole"]["confidence"].pop(), "expected 32 bins"),
        (lambda r: r["regions"].pop(), "expected regions 16, found 15"),
        (lambda r: r["values"].update(base64="AAAA"), "bytes for"),
        (lambda r: r["values"].update(base64="?"), "expected base64"),
        (lambda r: r["values"].update(shape=[-1, 2]), "without negative sizes"),
        (lambda r: r["features"].update(rest=0), "expected positive variances"),
        (lambda r: r["features"]["variances"].pop(), "sizes that fit 64 channels"),
        (lambda r: r["regions"][0].update(classes=[1.0]), "each of 11 classes"),
        (lambda r: r.update(autocorrelation=[]), "expected autocorrelations"),
    ],
)
def test_damaged_ones_say_what_is_wrong(calibrated, change, why):
    record = calibrated[1].to_record()
    record = json.loads(json.dumps(record))
    assert Reference.from_record(record, "r.json") == calibrated[1]
    change(record)
    with pytest.raises(DataError, match=rf"r\.json: .*{why}.*Calibrate again"):
        Reference.from_record(record, "r.json")


def test_arrays_as_text():
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    np.testing.assert_array_equal(Floats.of(values).array, values)
    half = Floats.of(values, "float16")
    np.testing.assert_allclose(half.array, values, rtol=1e-3)
    assert len(half.base64) == 40
    with pytest.raises(ValueError, match="finite"):
        Floats.of([np.nan])
    with pytest.raises(ValueError, match="positive"):
        FeatureModel(Floats.of([0.0]), Floats.of([0.0]), Floats.of(np.zeros((0, 1))), (), 1.0)
