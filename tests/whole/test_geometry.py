"""What was done to training frames is in the model's spec, and done to raw frames everywhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from calibration.frame_choice import diverse
from calibration.frames import FrameFiles
from cli.app import app
from edgeuda.camera import CameraGeometry, Lens
from edgeuda.data import treatment
from edgeuda.data.curation import curate
from edgeuda.data.folders import labelled_folder
from edgeuda.data.footage import footage
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import list_images, read_image, read_label, write_image, write_label
from edgeuda.data.lists import write_list
from edgeuda.data.treatment import as_shown, geometry_of, read_frame
from edgeuda.errors import ConfigError, DataError, ModelError
from edgeuda.files import read_json, write_json
from edgeuda.labels import SPACES
from edgeuda.models.checkpoint import load_model
from edgeuda.records.frames import Curation, Span
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.street import write_dataset
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe
from engines.bench.frame_path import FramePath, read_shot
from engines.bench.load import Load
from engines.bench.measure import bench
from engines.bundle_model import model_file
from engines.onnx.metadata import read_spec
from engines.onnxruntime_runner import OnnxRunner
from engines.runner import segment
from tiny_models import SPEC, exported, random_frames

RAW = (160, 96)
CROP = (8, 6, 140, 80)
LENS = Lens(
    (150.0, 0, 80, 0, 150.0, 48, 0, 0, 1), (-0.3, 0.1, 0.001, -0.002, 0.0), RAW, fisheye=False
)
GEOMETRY = CameraGeometry(RAW, LENS, CROP)
TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=2", "source.batch=2", "adabn.batches=2", "adabn.batch=4", "monitor.frames=2",
    'stages=["adabn"]',
)  # fmt: skip


def calibration(path, lens=LENS):
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    file.write("image_width", RAW[0])
    file.write("image_height", RAW[1])
    file.write("camera_matrix", np.array(lens.matrix).reshape(3, 3))
    file.write("distortion_coefficients", np.array([lens.distortion]))
    if lens.fisheye:
        file.write("distortion_model", "fisheye")
    file.release()
    return path


def video(path, count=8):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, RAW)
    for image in random_frames(count, RAW[1], RAW[0], seed=5):
        writer.write(np.ascontiguousarray(image[:, :, ::-1]))
    writer.release()
    return path


def cli(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def frames(out, source, *options):
    cli("data", "frames", "--footage", source, "--out", out, "--format", "png", "--distinct", 0,
        *options)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """A raw video, its frames as they are and treated, and a network adapted to the treated."""
    root = tmp_path_factory.mktemp("drive")
    video(root / "drive.avi")
    frames(root / "raw", root / "drive.avi")
    lens = calibration(root / "camera.yml")
    frames(root / "treated", root / "drive.avi", "--calibration", lens,
           "--crop", ",".join(map(str, CROP)))  # fmt: skip
    lens.unlink()  # what was done is in frames.json, not where the calibration was
    write_dataset(root / "source", "simulator", 4, 0, 64, 128, SPACES["camvid-11"])
    settings = load_recipe("small", TINY)
    train_source(settings, root / "source", None, RunOptions(root / "run"))
    adapt(settings, root / "run", root / "source", root / "treated", RunOptions(root / "adapted"))
    cli("export", "--model", root / "adapted", "--target", root / "raw", "--out", root / "m.onnx")
    return root


def label_maps(folder):
    return [read_label(path) for path in sorted((folder / "labels").iterdir())]


def equal(one, two):
    assert len(one) == len(two) > 0
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


# --- the geometry itself ---


@pytest.mark.parametrize("fisheye", [False, True])
def test_it_is_opencvs_undistortion_and_then_the_crop(fisheye):
    lens = replace(LENS, distortion=(0.1, 0.01, 0.0, 0.0), fisheye=True) if fisheye else LENS
    image = random_frames(1, RAW[1], RAW[0])[0]
    matrix, bent = np.array(lens.matrix).reshape(3, 3), np.array(lens.distortion)
    make = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
    maps = make(matrix, bent, np.eye(3), matrix, RAW, cv2.CV_16SC2)
    left, top, width, height = CROP
    whole = cv2.remap(image, *maps, cv2.INTER_LINEAR)
    found = CameraGeometry(RAW, lens, CROP).apply(image, Path("a.png"))
    assert np.array_equal(found, whole[top : top + height, left : left + width])
    assert not np.array_equal(found, image[top : top + height, left : left + width])


def test_labels_move_as_pixels_do_and_what_comes_from_outside_is_ignored():
    barrel = replace(LENS, distortion=(0.4, 0.0, 0.0, 0.0))  # the corners lie outside
    rows, columns = np.mgrid[: RAW[1], : RAW[0]]
    label = ((rows // 16 + columns // 16) % 11).astype(np.uint8)
    found = CameraGeometry(RAW, barrel).apply_to_labels(label, Path("a.png"))
    matrix, bent = np.array(barrel.matrix).reshape(3, 3), np.array(barrel.distortion)
    x, y = cv2.initUndistortRectifyMap(matrix, bent, np.eye(3), matrix, RAW, cv2.CV_32FC1)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    inside = (column >= 0) & (column < RAW[0]) & (row >= 0) & (row < RAW[1])
    expected = np.full_like(label, 255)
    expected[inside] = label[row[inside], column[inside]]
    assert 0.01 < (~inside).mean() < 0.5
    assert np.array_equal(found, expected)
    assert set(np.unique(found)) <= {*range(11), 255}


def test_frames_of_another_resolution_are_cropped_in_proportion():
    image = random_frames(1, 2 * RAW[1], 2 * RAW[0])[0]
    found = CameraGeometry(RAW, crop=CROP).apply(image, Path("a.png"))
    assert np.array_equal(found, image[12:172, 16:296])
    half = CameraGeometry((80, 48), crop=(4, 3, 70, 40))
    assert half.same_as(CameraGeometry(RAW, crop=CROP))
    assert not half.same_as(CameraGeometry(RAW, crop=(20, 6, 140, 80)))
    assert not half.same_as(CameraGeometry(RAW, LENS, CROP))
    assert GEOMETRY.same_as(replace(GEOMETRY, lens=replace(LENS)))
    with pytest.raises(DataError, match=r"a\.png: expected a frame of 160x96.*found 96x160"):
        GEOMETRY.apply(np.zeros((160, 96, 3), np.uint8), Path("a.png"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("raw", [0, 96]),
        ("raw", [160, 1 << 20]),
        ("raw", None),
        ("crop", [100, 0, 140, 80]),
        ("crop", [0, 0, 10]),
        ("lens", {"model": "pinhole"}),
        ("lens", {**GEOMETRY.to_record()["lens"], "model": "plenoptic"}),
        ("lens", {**GEOMETRY.to_record()["lens"], "size": [0, 0]}),
        ("lens", {**GEOMETRY.to_record()["lens"], "camera_matrix": [1.0] * 8}),
        ("lens", {**GEOMETRY.to_record()["lens"], "camera_matrix": [0.0] * 9}),
        ("lens", {**GEOMETRY.to_record()["lens"], "distortion_coefficients": [float("nan")] * 5}),
    ],
)
def test_a_damaged_one_is_no_geometry(key, value):
    spec = json.loads(with_geometry().to_json())
    spec["preprocessing"]["geometry"][key] = value
    with pytest.raises(ModelError, match=r"m\.onnx: expected a model written by edgeuda"):
        ModelSpec.from_json(json.dumps(spec), "m.onnx")


# --- in the spec ---


def with_geometry(geometry=GEOMETRY):
    return replace(SPEC, preprocessing=replace(SPEC.preprocessing, geometry=geometry))


def test_a_spec_without_is_written_as_ever():
    assert SPEC.to_json().endswith(
        '"preprocessing": {"height": 64, "width": 128, "mean": [0.485, 0.456, 0.406], '
        '"std": [0.229, 0.224, 0.225]}}'
    )
    assert ModelSpec.from_json(SPEC.to_json(), "m").preprocessing.geometry is None


@pytest.mark.parametrize(
    "geometry",
    [
        GEOMETRY,
        CameraGeometry(RAW, crop=CROP),
        CameraGeometry(RAW, replace(LENS, distortion=(0.1, 0.01, 0, 0), fisheye=True)),
    ],
)
def test_a_spec_comes_back_with_it(geometry):
    spec = with_geometry(geometry)
    assert ModelSpec.from_json(spec.to_json(), "m") == spec
    assert Preprocessing.from_record(spec.preprocessing.to_record()) == spec.preprocessing


def test_it_travels_from_checkpoint_to_bundle(drive, tmp_path):
    for file in (drive / "adapted", drive / "adapted" / "adabn"):
        assert load_model(file)[1].preprocessing.geometry == GEOMETRY
    assert load_model(drive / "run")[1].preprocessing.geometry is None
    assert read_spec(drive / "m.onnx").preprocessing.geometry == GEOMETRY
    cli("bundle", "--model", drive / "m.onnx", "--out", tmp_path / "b.edgeuda")
    with model_file(tmp_path / "b.edgeuda", "cpu") as file, OnnxRunner(file) as runner:
        assert runner.spec.preprocessing.geometry == GEOMETRY


def test_what_is_learnt_from_is_the_targets_and_is_said(drive, tmp_path, caplog):
    settings = load_recipe("small", TINY)
    with caplog.at_level("INFO"):
        adapt(
            settings, drive / "adapted", drive / "source", drive / "raw", RunOptions(tmp_path / "r")
        )
    assert load_model(tmp_path / "r")[1].preprocessing.geometry is None
    assert "Target frames are" not in caplog.text
    with caplog.at_level("INFO"):
        adapt(
            settings, drive / "run", drive / "source", drive / "treated", RunOptions(tmp_path / "t")
        )  # fmt: skip
    assert "Target frames are undistorted (pinhole) and cropped to 140x80 at 8,6" in caplog.text
    styled = load_recipe("small", (*TINY, "source.style=colour"))
    train_source(
        styled, drive / "source", None, RunOptions(tmp_path / "s"), target=drive / "treated"
    )  # fmt: skip
    assert load_model(tmp_path / "s")[1].preprocessing.geometry == GEOMETRY


def test_treated_source_images_leave_no_trace(drive, tmp_path):
    shutil.copytree(drive / "source", tmp_path / "source")
    shutil.copy(drive / "treated" / "frames.json", tmp_path / "source")
    train_source(
        load_recipe("small", TINY), tmp_path / "source", None, RunOptions(tmp_path / "run")
    )
    assert load_model(tmp_path / "run")[1].preprocessing.geometry is None


def test_footage_of_two_geometries_is_no_target(drive, tmp_path):
    paths = [*list_images(drive / "raw"), *list_images(drive / "treated")]
    both = tmp_path / "both.csv"
    write_list(both, ("image",), [(path,) for path in paths])
    settings = load_recipe("small", TINY)
    with pytest.raises(DataError, match=r"its frames are undistorted.*are raw\. A model has one"):
        adapt(settings, drive / "run", drive / "source", both, RunOptions(tmp_path / "a"))


# --- what data frames says ---


def test_frames_keep_what_was_done_to_those_they_were_made_from(drive, tmp_path):
    curate(drive / "treated", tmp_path / "again", Span(), Curation(distinct=0), ".png")
    assert geometry_of(list_images(tmp_path / "again")) == GEOMETRY
    cut = Curation(crop=(10, 5, 100, 60), distinct=0)
    curate(drive / "treated", tmp_path / "cut", Span(), cut, ".png")
    assert geometry_of(list_images(tmp_path / "cut")) == replace(GEOMETRY, crop=(18, 11, 100, 60))
    raw = [frame.image for frame in footage(drive / "drive.avi")]
    found = [read_image(path) for path in list_images(tmp_path / "cut")]
    shown = [replace(GEOMETRY, crop=(18, 11, 100, 60)).apply(one, Path("a")) for one in raw]
    assert equal(found, shown)
    lens = calibration(tmp_path / "camera.yml")
    with pytest.raises(DataError, match=r"was undistorted and cropped before.*Undistort the raw"):
        curate(drive / "treated", tmp_path / "bent", Span(), Curation(calibration=str(lens)))


def test_raw_frames_have_the_record_they_always_had(drive):
    assert "geometries" not in read_json(drive / "raw" / "frames.json")
    assert read_json(drive / "treated" / "frames.json")["geometries"] == [GEOMETRY.to_record()]


def test_an_interrupted_extraction_knows_too(drive, tmp_path):
    def stop(progress):
        if progress.seen == 3:
            raise KeyboardInterrupt

    cut = Curation(crop=CROP, distinct=0)
    with pytest.raises(KeyboardInterrupt):
        curate(drive / "drive.avi", tmp_path / "out", Span(), cut, ".png", report=stop)
    path = list_images(tmp_path / "out")[0]
    with pytest.raises(DataError, match=r"progress\.json says that these were cropped"):
        read_frame(path, CameraGeometry(RAW, crop=CROP))  # not noted yet: it is not guessed
    curate(drive / "drive.avi", tmp_path / "out", Span(), cut, ".png", resume=True)
    assert geometry_of([path]) == CameraGeometry(RAW, crop=CROP)


def test_footage_of_several_sizes_cannot_travel(tmp_path, caplog):
    for number, size in enumerate([(48, 64), (96, 128)]):
        write_image(tmp_path / f"f/{number}.png", random_frames(1, *size)[0])
    curate(tmp_path / "f", tmp_path / "out", Span(), Curation(crop=(0, 0, 40, 40)), ".png")
    assert "differs from frame to frame, or is not known" in caplog.text
    paths = list_images(tmp_path / "out")
    assert geometry_of(paths) is None
    treatment.say_learnt(paths, None)
    assert "these frames were cropped, and the record does not say how exactly" in caplog.text
    with pytest.raises(DataError, match="it does not say how exactly"):
        read_frame(paths[0], CameraGeometry((64, 48), crop=(0, 0, 40, 40)))


def test_a_mask_does_not_travel_and_that_is_said(drive, tmp_path, caplog):
    write_image(tmp_path / "mask.png", np.full((80, 140, 3), 255, np.uint8))
    settings = Curation(crop=CROP, mask=str(tmp_path / "mask.png"), distinct=0)
    curate(drive / "drive.avi", tmp_path / "out", Span(), settings, ".png")
    paths = list_images(tmp_path / "out")
    treatment.say_learnt(paths, geometry_of(paths))
    assert "A mask does not travel with the model" in caplog.text
    caplog.clear()
    frame_folder(tmp_path / "out", CameraGeometry(RAW, crop=CROP))
    assert "these frames were masked by `edgeuda data frames`" in caplog.text


def test_records_of_others_are_none_of_ours(tmp_path):
    write_image(tmp_path / "a.png", random_frames(1, RAW[1], RAW[0])[0])
    (tmp_path / "frames.json").write_text("[1, 2]")
    assert treatment.treatment_of(tmp_path / "a.png") is None
    write_json(tmp_path / "frames.json", {"schema": "edgeuda.frames/1", "curation": 3})
    with pytest.raises(DataError, match=r"frames\.json: its 'edgeuda\.frames/1' record is damaged"):
        treatment.treatment_of(tmp_path / "a.png")


# --- everywhere ---


def test_predict_gives_the_same_of_video_raw_and_treated_frames(drive, tmp_path):
    for name, target in (("v", "drive.avi"), ("r", "raw"), ("t", "treated")):
        cli("predict", "--model", drive / "m.onnx", "--target", drive / target,
            "--out", tmp_path / name)  # fmt: skip
    expected = label_maps(tmp_path / "t")
    assert expected[0].shape == (80, 140)
    assert equal(label_maps(tmp_path / "v"), expected)
    assert equal(label_maps(tmp_path / "r"), expected)
    notes = {name: read_json(tmp_path / name / "predictions.json") for name in "vrt"}
    counts = [(notes[n]["geometry"]["applied"], notes[n]["geometry"]["as_found"]) for n in "vrt"]
    assert counts == [(8, 0), (8, 0), (0, 8)]
    for name in "vrt":  # the report shows frames beside labels of their size
        frame = tmp_path / name / notes[name]["frames"][0]["frame"]
        assert np.array_equal(read_image(frame), read_image(list_images(drive / "treated")[0]))


def test_the_report_puts_the_labels_of_a_raw_frame_side_by_side(drive, tmp_path):
    """Each model writes the frame as it sees it; both are of one raw frame."""
    for name in ("one", "two"):
        cli("predict", "--model", drive / "m.onnx", "--target", drive / "raw", "--name", name,
            "--out", tmp_path / name)  # fmt: skip
    cli("report", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    frame = list_images(drive / "raw")[0].name
    assert page.count(f'alt="Camera frame {frame}"') == 1
    for name in ("one", "two"):
        assert f"{frame} with the classes of {name}" in page


def test_run_gives_the_same_of_a_raw_video_and_of_treated_frames(drive, tmp_path):
    for name, target in (("v", "drive.avi"), ("t", "treated")):
        cli("run", "--model", drive / "m.onnx", "--target", drive / target, "--labels", "--video",
            "--out", tmp_path / name)  # fmt: skip
    assert equal(label_maps(tmp_path / "v"), label_maps(tmp_path / "t"))
    record = read_json(tmp_path / "v" / "run.json")["geometry"]
    assert record == {**GEOMETRY.to_record(), "applied": 8, "as_found": 0}
    assert read_json(tmp_path / "t" / "run.json")["geometry"]["as_found"] == 8
    overlay = next(footage(tmp_path / "v" / "overlay.mkv")).image
    assert overlay.shape == (80, 140, 3)


def test_it_is_said_once_that_it_was_applied(caplog):
    treatment._say_applied.cache_clear()
    image = random_frames(1, RAW[1], RAW[0])[0]
    with caplog.at_level("INFO"):
        for _ in range(3):
            as_shown(image, Path("camera0"), GEOMETRY)
    assert caplog.text.count("Raw frames are undistorted (pinhole) and cropped to 140x80") == 1


def test_calibrate_writes_the_same_graph_from_raw_and_treated_frames(drive, tmp_path):
    graphs, ranges = [], []
    for name in ("raw", "treated"):
        out = tmp_path / f"{name}.onnx"
        found = CliRunner().invoke(app, [
            "calibrate", "--model", str(drive / "m.onnx"), "--target", str(drive / name),
            "--out", str(out), "--choose", "diverse", "--frames", "4", "--page",
            str(tmp_path / f"{name}.html"),
        ])  # fmt: skip
        assert out.exists(), found.output  # a network of two steps need not be accepted
        graphs.append(onnx.load(out).graph)
        record = read_json(out.with_name(f"{out.name}.calibration.json"))
        ranges.append((record["ranges"], [frame["name"] for frame in record["frames"]]))
        assert record["preprocessing"]["geometry"] == GEOMETRY.to_record()
        assert record["geometry"]["applied"] == (4 if name == "raw" else 0)
    assert ranges[0] == ranges[1]
    one, two = ([n.SerializeToString() for n in graph.node] for graph in graphs)
    assert one == two
    for a, b in zip(graphs[0].initializer, graphs[1].initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))


def test_bench_is_fed_and_times_it(drive, tmp_path):
    raw, treated = (list_images(drive / name) for name in ("raw", "treated"))
    with OnnxRunner(drive / "m.onnx") as runner:
        path = FramePath(runner)
        for one, two in zip(raw, treated, strict=True):
            shots = read_shot(one), read_shot(two)
            stages, (labels,) = path.labels([shots[0].image], [one])
            _, (expected,) = path.labels([shots[1].image], [two])
            assert np.array_equal(labels, expected)
            assert np.array_equal(labels, segment(runner, shots[1].image))
            parts = sum(v for k, v in stages.items() if k != "total")
            assert stages["geometry"] > 0
            assert parts == pytest.approx(stages["total"], rel=0.05)
    record = bench([drive / "m.onnx"], raw, load=Load(samples=33), repeats=1, warmup_seconds=0.1)
    (model,) = record.models
    assert "geometry" in model.stages
    assert "cropped to 140x80 at 8,6" in model.execution["geometry"]
    assert "applied to 8 of 8 frames" in model.execution["geometry"]


def test_evaluate_moves_labels_along(drive, tmp_path):
    space = SPACES["camvid-11"].to_record()
    rng = np.random.default_rng(0)
    for name in ("raw", "treated"):
        shutil.copytree(drive / name / "images", tmp_path / name / "images")
        shutil.copy(drive / name / "frames.json", tmp_path / name)
        write_json(
            tmp_path / name / "dataset.json", {"schema": "edgeuda.dataset/1", "label_space": space}
        )
    for path in list_images(tmp_path / "raw"):
        label = cv2.resize(rng.integers(0, 11, (6, 10), np.uint8), RAW, interpolation=0)
        write_label(tmp_path / "raw" / "labels" / path.name, label)
        write_label(
            tmp_path / "treated" / "labels" / path.name,
            GEOMETRY.apply_to_labels(label, path),
        )
    scores = {}
    for name in ("raw", "treated"):
        for model in ("m.onnx", "adapted"):
            out = tmp_path / f"{name}-{model}.json"
            cli("evaluate", "--model", drive / model, "--data", tmp_path / name, "--out", out)
            scores[name, model] = read_json(out)
    for model in ("m.onnx", "adapted"):
        one, two = scores["raw", model], scores["treated", model]
        assert one["confusion"] == two["confusion"]
        assert one["geometry"]["applied"] == 8
    folder = labelled_folder(tmp_path / "raw")
    assert folder.labels_sha256() != replace(folder, geometry=GEOMETRY).labels_sha256()
    folder = labelled_folder(tmp_path / "treated")
    assert folder.labels_sha256() == replace(folder, geometry=GEOMETRY).labels_sha256()


def test_pseudo_labels_of_raw_frames_come_with_the_frames_they_are_of(drive, tmp_path):
    for name in ("raw", "treated"):
        cli("pseudo-label", "--model", drive / "adapted", "--target", drive / name, "--selector",
            "all", "--out", tmp_path / name)  # fmt: skip
    pairs = {name: list(labelled_folder(tmp_path / name)) for name in ("raw", "treated")}
    assert equal([p[0] for p in pairs["raw"]], [p[0] for p in pairs["treated"]])
    assert equal([p[1] for p in pairs["raw"]], [p[1] for p in pairs["treated"]])
    assert not (tmp_path / "treated" / "images").exists()
    assert geometry_of(list_images(tmp_path / "raw" / "images")) == GEOMETRY


def test_half_and_diff_see_the_same(drive, tmp_path):
    said = []
    for name in ("raw", "treated"):
        half = tmp_path / f"{name}.onnx"
        said.append(cli("half", "--model", drive / "m.onnx", "--target", drive / name, "--out",
                        half, "--min-agreement", 0).splitlines()[0])  # fmt: skip
        cli("diff", drive / "m.onnx", half, "--target", drive / name, "--out",
            tmp_path / f"{name}.json")  # fmt: skip
    assert said[0] == said[1]
    one, two = (read_json(tmp_path / f"{name}.json") for name in ("raw", "treated"))
    assert one.pop("geometry")["applied"] == two.pop("geometry")["as_found"] == 8
    assert one["agreement"] == two["agreement"]


def test_frames_are_chosen_as_the_model_sees_them(drive):
    raw, treated = (list_images(drive / name) for name in ("raw", "treated"))
    chosen = diverse(raw, 3, geometry=GEOMETRY)
    assert [p.name for p in chosen] == [p.name for p in diverse(treated, 3)]
    fed = read_spec(drive / "m.onnx").preprocessing
    assert equal(list(FrameFiles.of(raw, fed)), list(FrameFiles.of(treated, fed)))


# --- what is refused ---


def test_frames_treated_otherwise_are_refused(drive, tmp_path):
    other = Curation(crop=(0, 0, 140, 80), distinct=0)
    curate(drive / "drive.avi", tmp_path / "other", Span(), other, ".png")
    message = (
        r"expected frames as the camera gives them, or undistorted.*frames\.json says that these "
        r"were cropped: they are cropped to 140x80 at 0,0.*Give raw frames"
    )
    for verb in ("predict", "bench", "calibrate"):
        with pytest.raises(DataError, match=message):
            cli(verb, "--model", drive / "m.onnx", "--target", tmp_path / "other", "--out",
                tmp_path / verb)  # fmt: skip
    with pytest.raises(DataError, match=message):
        cli("run", "--model", drive / "m.onnx", "--target", tmp_path / "other", "--out",
            tmp_path / "run")  # fmt: skip


def test_frames_of_another_size_are_refused(drive, tmp_path):
    write_image(tmp_path / "wide" / "a.png", random_frames(1, 96, 320)[0])
    with pytest.raises(DataError, match=r"a\.png: expected a frame of 160x96.*found 320x96.*adapt"):
        frame_folder(tmp_path / "wide", GEOMETRY)
    # Of the treated size, and nothing says whether they are: two ways to be wrong.
    shutil.copytree(drive / "treated" / "images", tmp_path / "bare")
    with pytest.raises(DataError, match=r"found 140x80.*keep the frames\.json"):
        frame_folder(tmp_path / "bare", GEOMETRY)
    square = CameraGeometry(RAW, crop=(0, 0, 80, 48))
    image = random_frames(1, 48, 80)[0]
    write_image(tmp_path / "small" / "a.png", image)
    with pytest.raises(DataError, match=r"if it is raw, extract it by `edgeuda data frames`"):
        frame_folder(tmp_path / "small", square)
    curate(tmp_path / "small", tmp_path / "told", Span(), Curation(), ".png")
    assert read_frame(list_images(tmp_path / "told")[0], square).shape == (24, 40, 3)
    assert as_shown(image, Path("camera0"), square).shape == (24, 40, 3)  # a camera is raw


def test_a_model_without_takes_frames_as_they_are_and_says_so(drive, tmp_path, caplog):
    (tmp_path / "plain.onnx").write_bytes(exported("labels"))
    cli("predict", "--model", tmp_path / "plain.onnx", "--target", drive / "treated", "--out",
        tmp_path / "out")  # fmt: skip
    assert "were undistorted and cropped by `edgeuda data frames`" in caplog.text
    assert "geometry" not in read_json(tmp_path / "out" / "predictions.json")
    assert label_maps(tmp_path / "out")[0].shape == (80, 140)


def test_a_lens_that_is_none_is_named():
    with pytest.raises(ConfigError, match="4 or 5 or 8 or 12 or 14 finite distortion"):
        Lens(LENS.matrix, (0.1, 0.2), RAW, fisheye=False)
