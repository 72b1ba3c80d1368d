"""What is asked of each TensorRT, and what TensorRT-RTX makes of our graphs without a GPU."""

import ctypes
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

import tensorrt_modules
from calibration.half_precision import to_half, write_half
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.errors import ConfigError, DependencyError, DeviceError, ModelError
from edgeuda.labels import SPACES
from edgeuda.models.checkpoint import ARCHITECTURES, build
from edgeuda.records.build import BuildOptions, DlaLayers, EngineTensor
from edgeuda.spec import ModelSpec, Preprocessing
from engines.onnx.heads import with_head
from engines.onnx.opset import lower_opset
from engines.onnx.session import open_session
from engines.onnx_export import export_onnx
from engines.tensorrt import library as tensorrt_library
from engines.tensorrt.builder import build_engine
from engines.tensorrt.library import Library, load_tensorrt
from places import ROOT
from tiny_models import SPEC, exported, quick_first, random_frames, write_frames

VERSIONS = list(tensorrt_modules.API)
OLD = [v for v in VERSIONS if v.startswith("8.")]
FRAMES = [frame[None] for frame in random_frames(3, 64, 128, seed=6)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same network in every form that TensorRT is given."""
    folder = tmp_path_factory.mktemp("models")
    paths = {
        name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8", "int8-fp16", "mixed")
    }
    paths["fp32"].write_bytes(exported("labels"))
    frames = write_frames(folder, [frame[0] for frame in FRAMES])
    write_half(paths["fp32"], frames, paths["fp16"], threads=1)
    calibrate(paths["fp32"], frames, paths["int8"], Options("tensorrt", threads=1))
    calibrate(
        paths["fp32"], frames, paths["mixed"],
        Options("tensorrt", threads=1, keep_float=("*spatial*", "*layer3*")),
    )  # fmt: skip
    write_half(paths["int8"], frames, paths["int8-fp16"], threads=1, least_agreement=0.5)
    return paths


def library(version, **how):
    module = tensorrt_modules.module(version, **how)
    return Library("tensorrt", module, tuple(int(n) for n in version.split(".")[:3]))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_asked_for_what_it_has(models, version):
    trt = library(version)
    built = build_engine(
        trt, models["int8"], BuildOptions(batch=(1, 2, 4), workspace_mib=64, level=3)
    )
    seen, major = trt.module.seen, trt.version[0]
    assert built.plan == b"plan"
    assert seen.profile == ("image", (1, 64, 128, 3), (2, 64, 128, 3), (4, 64, 128, 3))
    assert seen.pools == {"WORKSPACE": 64 * 2**20}
    assert seen.config.builder_optimization_level == 3
    assert seen.config.profiling_verbosity.name == "DETAILED"
    assert seen.opset == (17 if major == 8 else 18)
    typed = trt.version >= (10, 12)
    assert seen.flags == (set() if typed else {"INT8"})
    flags = trt.module.NetworkDefinitionCreationFlag
    expected = (
        1 << flags.EXPLICIT_BATCH if major == 8 else 1 << flags.STRONGLY_TYPED if typed else 0
    )
    assert seen.network_flags == expected
    record = json.loads(built.record.to_json())
    assert record["strongly_typed"] == typed
    assert record["graph"] == "int8"
    assert record["tensors"][0] == {"name": "image", "dtype": "UINT8", "shape": [-1, 64, 128, 3]}
    assert record["layers"] == [{"name": "layer", "type": "CONV", "output": "UINT8"}] * 2


@pytest.mark.parametrize("version", VERSIONS)
def test_half_is_a_flag_or_a_graph(models, version):
    trt = library(version)
    if trt.version >= (10, 12):
        build_engine(trt, models["fp16"], BuildOptions())
        with pytest.raises(ConfigError, match=r"precision from the graph.*edgeuda half"):
            build_engine(trt, models["fp32"], BuildOptions(half=True))
    else:
        built = build_engine(trt, models["fp32"], BuildOptions(half=True))
        assert trt.module.seen.flags == {"FP16"}
        assert built.record.precision == "fp16"
        assert built.record.rest == "fp16"
        built = build_engine(trt, models["int8"], BuildOptions(half=True))
        assert (built.record.precision, built.record.rest) == ("int8", "fp16")
        with pytest.raises(ConfigError, match="takes no FP16 graph"):
            build_engine(trt, models["fp16"], BuildOptions())


@pytest.mark.parametrize("version", VERSIONS)
def test_calibrators_where_there_are_any(models, version):
    trt, calibrator = library(version), SimpleNamespace(error=None)
    if trt.version >= (10, 12):
        with pytest.raises(ConfigError, match=r"no calibrators\. Build a Q/DQ model"):
            build_engine(trt, models["fp32"], BuildOptions(), calibrator)
        return
    built = build_engine(trt, models["fp32"], BuildOptions(batch=(1, 1, 4)), calibrator)
    assert trt.module.seen.config.int8_calibrator is calibrator
    # every export leaves the batch open, and calibration needs its shapes
    assert trt.module.seen.calibration_profile is trt.module.seen.profiles[-1]
    assert built.record.precision == "int8"
    assert trt.module.seen.flags == {"INT8"}
    with pytest.raises(ConfigError, match="need no calibrator"):
        build_engine(trt, models["int8"], BuildOptions(), calibrator)
    calibrator.error = DeviceError("memory")
    with pytest.raises(DeviceError, match="memory"):
        build_engine(trt, models["fp32"], BuildOptions(), calibrator)


@pytest.mark.parametrize("version", VERSIONS)
def test_portability(models, version, tmp_path):
    trt = library(version)
    cache = tmp_path / "timings.cache"
    options = BuildOptions(version_compatible=True, hardware_compatible=True, timing_cache=cache)
    built = build_engine(trt, models["fp32"], options)
    seen = trt.module.seen
    assert seen.flags == {"VERSION_COMPATIBLE"}
    assert seen.config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert seen.timings == b""
    assert cache.read_bytes() == b"timings"
    assert "timing_cache" not in built.record.to_record()["options"]
    build_engine(trt, models["fp32"], options)
    assert seen.timings == b"timings"
    with pytest.raises(ConfigError, match="has no targets to choose"):
        build_engine(trt, models["fp32"], BuildOptions(compute_capabilities=("SM86",)))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_accelerator_works_or_is_refused(models, version):
    """TensorRT itself runs on the GPU, without a word, what it cannot run there."""
    trt, calibrator = library(version), SimpleNamespace(error=None)
    half = BuildOptions(half=True, dla_core=1)
    if trt.version >= (10, 12):
        for options in (BuildOptions(dla_core=1), half):
            with pytest.raises(ConfigError, match="takes precision from the graph"):
                build_engine(trt, models["fp32"], options)
        return
    with pytest.raises(ConfigError, match="has no FP32: all would run on the GPU"):
        build_engine(trt, models["fp32"], BuildOptions(dla_core=1))
    with pytest.raises(ConfigError, match=r"Q/DQ graphs do not run.*`calibrate`"):
        build_engine(trt, models["int8"], half)
    with pytest.raises(ConfigError, match="takes one batch size, found 1 to 4"):
        build_engine(trt, models["fp32"], BuildOptions(half=True, dla_core=1, batch=(1, 1, 4)))
    for options, how in ((half, None), (BuildOptions(dla_core=1), calibrator)):
        built = build_engine(trt, models["fp32"], options, how)
        seen = trt.module.seen
        assert (seen.config.default_device_type.name, seen.config.DLA_core) == ("DLA", 1)
        assert "GPU_FALLBACK" in seen.flags
        assert built.record.dla_layers == DlaLayers(1, 2, ["layer"])
    trt.module.seen.dla = iter([False, False])
    with pytest.raises(ModelError, match="can run none of its 2 layers"):
        build_engine(trt, models["fp32"], half)
    assert build_engine(trt, models["fp32"], BuildOptions()).record.dla_layers is None


@pytest.mark.parametrize("version", VERSIONS)
def test_before_10_a_profile_is_shared_by_contexts(models, version):
    trt = library(version)
    build_engine(trt, models["fp32"], BuildOptions(batch=(1, 1, 4)))
    shared = {"PROFILE_SHARING_0806": True} if trt.version[0] < 10 else {}
    assert trt.module.seen.preview == shared


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("head", ["labels", "labels_low"])
def test_labels_become_uint8_by_way_of_float(version, head, tmp_path):
    """TensorRT converts no index to uint8; what was exported before is mended as it is built."""
    onnx_types = onnx.TensorProto
    today = onnx.load_from_string(exported("labels"))
    if head != "labels":
        today = with_head(today, head)
    earlier = onnx.ModelProto()
    earlier.CopyFrom(today)
    *_, between, cast = earlier.graph.node
    assert (between.op_type, cast.op_type) == ("Cast", "Cast")
    cast.input[0] = between.input[0]
    earlier.graph.node.remove(between)
    for name, model in (("today", today), ("earlier", earlier)):
        trt, path = library(version), tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        build_engine(trt, path, BuildOptions())
        *_, index, between, cast = trt.module.seen.model.graph.node
        kinds = [n.attribute[0].i for n in (between, cast)]
        assert [n.op_type for n in (index, between, cast)] == ["ArgMax", "Cast", "Cast"]
        assert kinds == [onnx_types.FLOAT, onnx_types.UINT8]
        assert cast.input[0] == between.output[0]
    image = {"image": FRAMES[0]}
    one, two = (open_session(m.SerializeToString(), threads=1) for m in (today, earlier))
    np.testing.assert_array_equal(one.run(None, image)[0], two.run(None, image)[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_all_parser_errors_are_named(models, version):
    trt = library(version, errors=("no such operator", "type mismatch"))
    with pytest.raises(ModelError) as caught:
        build_engine(trt, models["fp32"], BuildOptions())
    text = str(caught.value)
    assert "fp32.onnx" in text
    assert "no such operator" in text
    assert "type mismatch" in text
    assert ("node 'conv' (Conv)" if trt.version[0] >= 10 else "node 7") in text


def test_a_build_that_fails_says_why(models):
    with pytest.raises(ModelError, match=r"fp32\.onnx: tensorrt 11\.4\.0 could not build"):
        build_engine(library("11.4.0.106", plan=None), models["fp32"], BuildOptions())


def test_a_name_that_a_version_lacks_would_be_noticed():
    """The check of these tests themselves."""
    config = tensorrt_modules.strict(tensorrt_modules.API["11.4.0.106"], "IBuilderConfig")()
    with pytest.raises(AttributeError, match="has no int8_calibrator"):
        config.int8_calibrator = 1
    with pytest.raises(AssertionError, match="max_workspace_size"):
        tensorrt_modules.strict(
            tensorrt_modules.API["11.4.0.106"], "IBuilderConfig", max_workspace_size=1
        )


@pytest.mark.parametrize("wrong", [{"batch": (2, 1, 4)}, {"batch": (0, 1, 1)}, {"level": 6}])
def test_options_are_checked(wrong):
    with pytest.raises(ConfigError, match="Expected"):
        BuildOptions(**wrong)


# --- TensorRT-RTX: a real parser and compiler, without a GPU


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return load_tensorrt("tensorrt_rtx", device=False)


TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", ["fp32", "fp16", "int8", "int8-fp16", "mixed"])
def test_every_form_compiles_for_every_gpu(rtx, models, form, target):
    built = build_engine(
        rtx, models[form], BuildOptions(batch=(1, 1, 4), compute_capabilities=(target,))
    )
    assert built.record.graph == {"mixed": "int8", "int8-fp16": "int8"}.get(form, form)
    assert built.record.tensors == [
        EngineTensor("image", "UINT8", [-1, 64, 128, 3]),
        EngineTensor("labels", "UINT8", [-1, 64, 128]),
    ]
    assert len(built.plan) == built.record.plan_bytes > 1000
    assert not [m for m in built.record.messages if m[0] == "ERROR"]


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_graphs_that_say_how_sure_they_are_compile(rtx, form, tmp_path):
    fp32, other = tmp_path / "fp32.onnx", tmp_path / f"{form}.onnx"
    fp32.write_bytes(exported("labels", confidence=True))
    if form == "fp16":
        onnx.save(to_half(onnx.load(fp32)), other)
    elif form == "int8":
        frames = write_frames(tmp_path, [frame[0] for frame in FRAMES])
        calibrate(fp32, frames, other, Options("tensorrt", threads=1))
    built = build_engine(
        rtx, other, BuildOptions(batch=(1, 1, 4), compute_capabilities=("SM75", "SM120"))
    )
    assert built.record.tensors == [
        EngineTensor("image", "UINT8", [-1, 64, 128, 3]),
        EngineTensor("labels", "UINT8", [-1, 64, 128]),
        EngineTensor("confidence", "UINT8", [-1, 8, 16]),
        EngineTensor("features", "FLOAT", [-1, 64]),
    ]
    assert not [m for m in built.record.messages if m[0] == "ERROR"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_given_all_outputs(tmp_path, version):
    path = tmp_path / "sure.onnx"
    path.write_bytes(exported("labels", confidence=True))
    built = build_engine(library(version), path, BuildOptions())
    assert [t.name for t in built.record.tensors] == ["image", "labels", "confidence", "features"]


@pytest.mark.parametrize("head", ["labels", "logits"])
@pytest.mark.parametrize("architecture", quick_first(ARCHITECTURES, ["bisenet", "fcn8s-vgg16"]))
def test_every_network_compiles(rtx, architecture, head, tmp_path):
    torch.manual_seed(0)
    spec = ModelSpec(architecture, 0.125, SPACES["camvid-11"], Preprocessing(64, 96))
    path = tmp_path / "model.onnx"
    frames = random_frames(1, 64, 96)
    export_onnx(build(spec).eval(), spec, path, head=head, frames=frames)
    half = tmp_path / "half.onnx"
    onnx.save(to_half(onnx.load(path)), half)
    for each in (path, half):
        options = BuildOptions(compute_capabilities=("SM86", "SM89"))
        assert build_engine(rtx, each, options).plan


def test_a_static_batch_needs_no_profile(rtx, models, tmp_path):
    model = onnx.load(models["fp32"])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.ClearField("value_info")
    path = tmp_path / "static.onnx"
    onnx.save(model, path)
    built = build_engine(rtx, path, BuildOptions(compute_capabilities=("SM86",)))
    assert built.record.tensors[0].shape == [1, 64, 128, 3]


def refused(rtx, model, path):
    onnx.save(model, path)
    with pytest.raises(ModelError) as caught:
        build_engine(rtx, path, BuildOptions(compute_capabilities=("SM86",)))
    return str(caught.value)


def test_what_tensorrt_refuses_is_named(rtx, models, tmp_path):
    """The verdicts that shaped our graphs; each would be a vehicle without a network."""
    path = tmp_path / "bad.onnx"
    model = onnx.load(models["fp32"])
    cast, transpose = model.graph.node[:2]
    assert (cast.op_type, transpose.op_type) == ("Cast", "Transpose")
    swapped = onnx.load(models["fp32"])
    one, two = swapped.graph.node[:2]
    one.op_type, two.op_type = "Transpose", "Cast"
    one.attribute.extend(two.attribute)
    del one.attribute[0]
    del two.attribute[:]
    two.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
    text = refused(rtx, swapped, path)
    assert "type UInt8 but must have type" in text
    assert "bad.onnx: tensorrt_rtx" in text

    frames = sorted(models["fp32"].parent.glob("*.png"))
    x86 = tmp_path / "x86.onnx"
    calibrate(models["fp32"], frames, x86, Options("ort-x86", threads=1))
    assert "image_even (Slice)" in refused(rtx, onnx.load(x86), path).replace("'", "")

    shifted = onnx.load(models["int8"])
    for tensor in shifted.graph.initializer:
        if tensor.name.endswith("_zero_point") and not tensor.dims:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.int8), tensor.name))
    assert "zero point" in refused(rtx, shifted, path).lower()

    unknown = onnx.load(models["fp32"])
    node = next(n for n in unknown.graph.node if n.op_type == "Sigmoid")
    node.op_type, node.domain = "Mystery", "nowhere"
    unknown.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    text = refused(rtx, unknown, path)
    assert "Mystery" in text


def test_an_unknown_gpu_names_those_there_are(rtx, models):
    with pytest.raises(ConfigError, match=r"knows no 'SM33', only .*SM86"):
        build_engine(rtx, models["fp32"], BuildOptions(compute_capabilities=("SM33",)))


# --- the driver, and lowering


def test_no_driver_is_an_error_and_not_a_crash():
    """In a process of its own, which is what a crash would end."""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from engines.tensorrt.library import load_tensorrt\n"
        "import types; sys.modules['tensorrt'] = types.SimpleNamespace(__version__='10.3.0')\n"
        "load_tensorrt()"
    )
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 1
        assert "DeviceError: No NVIDIA driver" in done.stderr
    else:
        pytest.skip("this machine has a driver")


TENSORRT_8 = "EDGEUDA_TENSORRT_8_PYTHON"
"""Names a Python 3.10 with TensorRT 8.6 (`pip install tensorrt==8.6.0`, cuDNN 8, cuBLAS 12), NumPy,
OpenCV 4, Pillow, onnx and onnxruntime."""


@pytest.mark.skipif(TENSORRT_8 not in os.environ, reason=f"{TENSORRT_8} names no Python")
def test_tensorrt_8_itself(tmp_path):
    """Without a driver: imported, probed, a calibrator driven, its names those of our list."""
    code = """
import json, sys
from pathlib import Path
import numpy as np
import tensorrt as trt
from calibration.range_file import Origin
from calibration.tensorrt_calibrator import tensorrt_calibrator
from edgeuda.errors import DeviceError
from engines.tensorrt.library import Library, load_tensorrt

class Memory:
    def alloc(self, size): return 4096
    def free(self, address): pass
    def upload(self, address, array): self.seen = array.shape

try:
    load_tensorrt()
except DeviceError as err:
    print("refused:", err)
library = Library("tensorrt", trt, (8, 6, 0))
logger, log = library.logger()
logger.log(trt.ILogger.WARNING, "hello")
frames = [np.zeros((1, 4, 6, 3), np.uint8)] * 2
origin = Origin("a", ("b", "c"), 4, 6)
made = tensorrt_calibrator(trt, frames, Path(sys.argv[1]), origin, Memory())
batches = [made.get_batch(["image"]) for _ in range(3)]
names = json.load(open("tests/support/data/tensorrt_api.json"))["8.6.1"]
lacks = [f"{kind}.{name}" for kind, members in names.items() if hasattr(trt, kind)
         for name in members if not hasattr(getattr(trt, kind), name)]
print(json.dumps([trt.__version__, log.messages, batches, str(made.get_algorithm()), lacks]))
"""
    done = subprocess.run(
        [os.environ[TENSORRT_8], "-c", code, str(tmp_path / "cache")], capture_output=True,
        text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("refused: No NVIDIA driver")
    version, messages, batches, algorithm, lacks = json.loads(last)
    assert version.startswith("8.6")
    assert messages == [["WARNING", "hello"]]
    assert batches == [[4096], [4096], None]
    assert "ENTROPY_CALIBRATION_2" in algorithm
    flags = ("clear_flag", "flags", "get_flag", "set_flag")  # came with 8.6.1; we use none
    assert set(lacks) <= {f"OnnxParser.{name}" for name in flags}


def test_absent_and_broken_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DependencyError, match="JetPack or DRIVE OS"):
        load_tensorrt()
    monkeypatch.setattr(tensorrt_library, "cuda_devices", lambda: 1)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.2.0.19"))
    with pytest.raises(ModelError, match="known to be broken"):
        load_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.1.11"))
    assert load_tensorrt().title == "tensorrt 10.16.1"


@pytest.mark.parametrize("form", ["fp32", "int8", "mixed"])
def test_lowering_changes_no_result(models, form):
    model = onnx.load(models[form])
    lowered = lower_opset(model)
    assert {(e.domain, e.version) for e in lowered.opset_import} == {("", 17)}
    assert not any(n.op_type == "ReduceMean" for n in lowered.graph.node)
    assert model.opset_import[0].version == 18

    def run(proto):
        session = open_session(proto.SerializeToString(), threads=1)
        return session.run(None, {"image": FRAMES[0]})[0]

    assert (run(lowered) == run(model)).mean() > 0.999


def test_what_cannot_be_lowered_is_refused(models):
    model = onnx.load(models["fp32"])
    resize = next(n for n in model.graph.node if n.op_type == "Resize")
    kept = [a for a in resize.attribute if a.name != "antialias"]
    del resize.attribute[:]
    resize.attribute.extend([*kept, onnx.helper.make_attribute("antialias", 1)])
    with pytest.raises(ModelError, match="antialias=1 has no counterpart"):
        lower_opset(model)
    assert SPEC.preprocessing.height == 64
