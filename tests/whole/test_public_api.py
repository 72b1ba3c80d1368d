"""What can be imported from the packages, and that every example in its docstrings runs."""

import doctest
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import calibration
import edgeuda
import engines
from edgeuda.data.images import read_image
from edgeuda.errors import ConfigError, ModelError
from edgeuda.models.custom import CustomNetwork
from edgeuda.street import write_dataset
from places import ROOT
from tiny_models import Theirs

BRIEF = {
    "model.width": 0.125, "model.input": [64, 96], "geometry.crop": [64, 96], "source.steps": 3,
    "source.batch": 2, "adabn.batches": 1, "adabn.batch": 2, "stage1.steps": 2, "stage1.batch": 2,
    "stage2.steps": 2, "stage2.batch": 2, "monitor.frames": 2,
    "stage1.lr": 1e-4, "stage2.lr": 1e-4,  # the last example goes on from a network of two steps
}  # fmt: skip
ADAPT = {key: value for key, value in BRIEF.items() if key.partition(".")[0] != "model"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with what the examples speak of."""
    root = tmp_path_factory.mktemp("python")
    space = edgeuda.label_space("camvid-11")
    for name, domain, seed in (
        ("simulator", "simulator", 0), ("frames", "camera", 50), ("labelled", "camera", 80),
    ):  # fmt: skip
        write_dataset(root / name, domain, 4, seed, 64, 96, space)
    return root


def test_names_are_these():
    """Whoever changes this list changes what users import; say so in CHANGELOG.md."""
    assert edgeuda.__all__ == [
        "EdgeudaError", "Evaluation", "LabelSpace", "Run", "SegmentationModel", "adapt",
        "evaluate", "label_space", "load_model", "load_recipe", "read_image",
        "register_method", "train", "wrap",
    ]  # fmt: skip
    assert engines.__all__ == [
        "Bundle", "Runner", "benchmark", "evaluate", "export", "open_bundle", "open_model",
        "predict", "segment", "write_bundle",
    ]  # fmt: skip
    assert calibration.__all__ == [
        "Budget", "CalibrationRecord", "Limits", "Options", "calibrate", "diff", "half", "sweep",
        "update",
    ]  # fmt: skip
    for package in (edgeuda, engines, calibration):
        assert set(package.__all__) <= set(dir(package))
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            package.nothing  # noqa: B018


def test_importing_costs_no_torch():
    code = (
        "import sys, edgeuda, engines, calibration\n"
        "heavy = {'torch', 'onnx', 'cv2', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "engines.open_model, engines.segment, engines.benchmark, calibration.calibrate\n"
        "assert not {'torch', 'kornia', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_public_function_has_an_example_that_runs(work, monkeypatch):
    monkeypatch.chdir(work)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    order = [
        (edgeuda, ("train", "adapt", "evaluate", "load_model", "wrap", "register_method")),
        (engines, ("export", "open_model", "segment", "benchmark", "evaluate", "write_bundle",
                   "open_bundle", "predict")),
        (calibration, ("calibrate", "half", "diff", "sweep", "update")),
    ]  # fmt: skip
    for package, names in order:
        functions = {n for n in package.__all__ if n[0].islower()} - {
            "label_space",
            "load_recipe",
            "read_image",
        }
        assert functions == set(names)
        for name in names:
            settings = BRIEF if name == "train" else ADAPT
            found = finder.find(getattr(package, name), name, globs={"brief": settings})
            assert found
            assert found[0].examples, name
            outcome = runner.run(found[0], out=sys.stdout.write, clear_globs=True)
            assert not outcome.failed, name


def test_results_print_convert_and_plot(work):
    run = edgeuda.Run(work / "adapted")
    assert "bisenet: 64x96, 11 classes of camvid-11" in str(run)
    assert {line["stage"] for line in run.log()} >= {"1-stage1"} or run.log()
    assert '"sha256"' in run.to_json()
    assert run.plot().axes[0].get_xlabel() == "step"
    found = edgeuda.evaluate(run, work / "labelled")
    assert "mIoU" in str(found)
    assert found.plot().axes
    assert '"schema": "edgeuda.evaluation/1"' in found.to_json()
    timed = engines.benchmark(work / "adapted.onnx", work / "frames", samples=33, repeats=1)
    assert "adapted: median" in str(timed)
    assert '"schema": "edgeuda.bench/2"' in timed.to_json()
    assert timed.plot().axes
    quantized = calibration.CalibrationRecord.read(work / "int8.onnx.calibration.json")
    assert "of the pixels keep their class" in str(quantized)
    assert '"schema": "edgeuda.calibration/2"' in quantized.to_json()
    if importlib.util.find_spec("pandas") is None:
        with pytest.raises(edgeuda.EdgeudaError, match="pandas"):
            found.to_pandas()


def test_any_module_is_adapted_scored_exported_and_calibrated(work, tmp_path):
    torch.manual_seed(0)
    module = Theirs(11)
    model = edgeuda.wrap(
        module, name="theirs", size=(64, 96), classes="camvid-11", heads=("out", "aux"),
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    assert model.network.heads == ("main", "auxiliary 1")
    run = edgeuda.adapt(
        model, work / "simulator", work / "frames", tmp_path / "adapted", recipe="small",
        settings=ADAPT,
    )  # fmt: skip
    adapted = run.load()
    assert adapted.spec.architecture == "custom:theirs"
    assert adapted.spec.preprocessing.mean == (0.5, 0.5, 0.5)
    changed = dict(adapted.network.module.named_parameters())
    assert any(not torch.equal(p, changed[n]) for n, p in module.named_parameters())
    statistics = adapted.network.module.body[1].running_mean
    assert not torch.equal(statistics, module.body[1].running_mean)
    edgeuda.evaluate(run, work / "labelled")

    exported = engines.export(run.folder, work / "frames", tmp_path / "theirs.onnx")
    assert exported.pixels_equal > 0.999
    frame = read_image(next((work / "frames/images").iterdir()))
    with engines.open_model(tmp_path / "theirs.onnx") as runner:
        assert np.mean(engines.segment(runner, frame) == adapted.segment(frame)) > 0.99
    record = calibration.calibrate(
        tmp_path / "theirs.onnx", work / "frames", tmp_path / "int8.onnx", frames=2
    )
    assert record.layers


def test_a_network_whose_code_is_elsewhere_says_so(work, tmp_path):
    model = edgeuda.wrap(
        Theirs(11), name="gone", size=(64, 96), classes="camvid-11", heads=("out",)
    )
    path = model.save(tmp_path / "gone.safetensors")
    code = f"import edgeuda; edgeuda.load_model({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "none of that name is registered" in done.stderr
    assert edgeuda.load_model(path, model).spec == model.spec


def test_an_entry_point_offers_a_network_to_every_process(work, tmp_path):
    model = edgeuda.wrap(
        Theirs(11), name="offered", size=(64, 96), classes="camvid-11", heads=("out",)
    )
    path = model.save(tmp_path / "offered.safetensors")
    info = tmp_path / "site" / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgeuda.networks]\noffered = theirs_net:make\n")
    (tmp_path / "site/theirs_net.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests/support')!r})\n"
        "import edgeuda\n"
        "def make():\n"
        "    from tiny_models import Theirs\n"
        "    return edgeuda.wrap(Theirs(11), name='offered', size=(64, 96),\n"
        "                        classes='camvid-11', heads=('out',)).network\n"
    )
    code = f"import edgeuda; print(edgeuda.load_model({str(path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert "custom:offered" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("heads", "classes", "error"),
    [
        (None, "camvid-11", "expected tensors of class scores, found dict"),
        (("features",), "camvid-11", r"expected head 0 as \[1, 11, h, w\]"),
        (("missing",), "camvid-11", "found nothing"),
        (("out",), "cityscapes-19", r"expected head 0 as \[1, 19, h, w\]"),
    ],
)
def test_what_cannot_be_wrapped_is_explained(heads, classes, error):
    with pytest.raises(ModelError, match=error):
        edgeuda.wrap(Theirs(11), name="x", size=(64, 96), classes=classes, heads=heads)


def test_a_name_that_files_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match="expected letters"):
        edgeuda.wrap(Theirs(11), name="a b", size=(64, 96), classes="camvid-11", heads=("out",))


def test_the_module_that_was_given_stays_as_it_is():
    module = Theirs(3)
    model = edgeuda.wrap(module, name="kept", size=(64, 96), classes=["a", "b", "c"],
                         heads=lambda y: [y["out"]])  # fmt: skip
    assert isinstance(model.network, CustomNetwork)
    assert model.network.module is not module
    assert model.spec.label_space.classes == ("a", "b", "c")
