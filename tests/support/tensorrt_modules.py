"""Modules with exactly the names of NVIDIA's real ones, to drive what uses them.

The names are those of data/tensorrt_api.json, read from the binding wheels by read_tensorrt_api.py.
A class here cannot offer, and its user cannot read or set, anything that version lacks. What the
methods do is made up: this tests what is asked of a version, not what TensorRT makes of it.
"""

import hashlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx

from edgeuda.errors import ModelError
from edgeuda.files import now_utc
from edgeuda.records.build import BuildOptions, BuildRecord
from engines.onnx.heads import upsample_argmax
from engines.onnx.metadata import export_of, spec_of
from engines.onnx.session import open_session
from engines.tensorrt.cache import record_path
from places import DATA

API = json.loads((DATA / "tensorrt_api.json").read_text())
ENUMS = (
    "BuilderFlag", "DataType", "DeviceType", "HardwareCompatibilityLevel", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "PreviewFeature", "ProfilingVerbosity", "TensorIOMode",
    "LayerInformationFormat",
)  # fmt: skip


MODEL = "the model itself"
CACHE = b"TRT-8601-EntropyCalibration2\nimage: 3c008912\n"


class Named(int):
    """An enumerator."""

    def __new__(cls, value, name):
        self = super().__new__(cls, value)
        self.name = name
        return self


def strict(api, kind, /, **members):
    """A class that has the members of the real one, those given with what they do."""
    known = set(api[kind])
    assert members.keys() <= known, f"{kind} has no {sorted(members.keys() - known)}"

    class Strict:
        def __getattr__(self, attribute):
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            if attribute not in known:
                msg = f"{kind} of this version has no {attribute}"
                raise AttributeError(msg)
            return None

        def __setattr__(self, attribute, value):
            if not attribute.startswith("_") and attribute not in known:
                msg = f"{kind} of this version has no {attribute}"
                raise AttributeError(msg)
            object.__setattr__(self, attribute, value)

    Strict.__name__ = kind
    for key, value in members.items():
        setattr(Strict, key, value)
    return Strict


class HostDevice:
    """A device whose memory is the host's; its streams and graphs run at once."""

    name, graphs = "host", True

    def __init__(self):
        self.memory, self.streams, self.arrays, self.launches = {}, set(), [], 0
        self.events, self.recorded, self.kernels = [], 0, 0
        self.numbers = itertools.count()

    def alloc(self, size):
        address = 2**40 + 2**20 * next(self.numbers)
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def free(self, address):
        del self.memory[address]

    def upload(self, address, array):
        self.memory[address][:] = array.reshape(-1).view(np.uint8)

    def stream(self):
        self.streams.add(stream := 77 + next(self.numbers))
        return stream

    def close_stream(self, stream):
        self.streams.remove(stream)

    def synchronize(self, stream):
        assert stream in self.streams

    def pinned(self, shape, dtype):
        self.arrays.append(np.zeros(shape, dtype))
        return self.arrays[-1]

    def release(self, array):
        self.arrays = [one for one in self.arrays if one is not array]

    def upload_async(self, address, array, stream):
        self.synchronize(stream)
        self.upload(address, array)

    def download_async(self, array, address, stream):
        self.synchronize(stream)
        array.reshape(-1).view(np.uint8)[:] = self.memory[address]

    def mapped(self, array):
        raise NotImplementedError  # test_device.py has a stub that can

    def runtime_version(self):
        return "12.6"

    def integrated(self):
        return False

    def view(self, address, shape, dtype):
        return self.memory[address].view(dtype).reshape(shape)

    def enqueue(self, stream, function):
        self.synchronize(stream)
        function()

    def load_kernel(self):
        self.kernels += 1

    def unload_kernel(self):
        self.kernels = 0

    def upsample_argmax(self, scores, labels, shape, height, width, stream):
        self.synchronize(stream)
        values = self.memory[scores].view(np.float32).reshape(shape)
        self.upload(labels, np.stack([upsample_argmax(one, height, width) for one in values]))

    def capture(self, stream, enqueue):
        self.synchronize(stream)
        return enqueue

    def launch(self, graph, stream):
        self.launches += 1
        graph()

    def close_graph(self, graph):
        pass

    def event(self):
        self.events.append([])
        return self.events[-1]

    def record(self, event, stream):
        self.synchronize(stream)
        self.recorded += 1
        event[:] = [self.recorded]  # a millisecond passes from event to event

    def elapsed_ns(self, start, end):
        return 1_000_000 * (end[0] - start[0])

    def close_event(self, event):
        self.events = [one for one in self.events if one is not event]


def running(version, device, largest=4, contexts=9, hosted=False):
    """A module whose engines are ONNX files, run by ONNX Runtime on ``device``'s memory.

    ``module.seen`` tells what was asked of its runtime. An engine gives so many ``contexts``; with
    ``hosted``, one is loaded only where its own runtime is allowed.
    """
    api = API[version]
    made = module(version, MODEL)
    made.seen.contexts = contexts
    mode = made.TensorIOMode

    def context(session):
        state = {"addresses": {}}
        (entry,), results = session.get_inputs(), session.get_outputs()

        def set_shape(_, name, shape):
            assert name == entry.name
            state["shape"] = tuple(shape)
            return 1 <= shape[0] <= largest

        def shape_of(_, name):
            shapes = {one.name: (state["shape"][0], *one.shape[1:]) for one in results}
            return (shapes | {entry.name: state["shape"]})[name]

        def work():
            kind = np.float32 if entry.type == "tensor(float)" else np.uint8
            image = device.view(state["addresses"][entry.name], state["shape"], kind)
            outputs = session.run(None, {entry.name: image})
            for result, output in zip(results, outputs, strict=True):
                if made.seen.wrong:
                    output = np.roll(output, output.shape[-1] // 2, -1)
                device.view(state["addresses"][result.name], output.shape, output.dtype)[:] = output

        def execute(_, stream):
            device.enqueue(stream, work)
            return True

        return strict(
            api, "IExecutionContext", set_input_shape=set_shape, get_tensor_shape=shape_of,
            set_tensor_address=lambda _, n, a: state["addresses"].update({n: a}) or True,
            execute_async_v3=execute,
        )()  # fmt: skip

    def deserialize(own, plan):
        made.seen.runtime = vars(own)
        if hosted and not made.seen.runtime.get("engine_host_code_allowed"):
            return None
        try:
            session = open_session(plan, threads=1)
        except ModelError:
            return None
        (entry,), results = session.get_inputs(), session.get_outputs()
        names, left = (
            [entry.name, *(one.name for one in results)],
            iter(range(1, made.seen.contexts + 1)),
        )
        shape = tuple(entry.shape[1:])
        return strict(
            api, "ICudaEngine", num_io_tensors=len(names), get_tensor_name=lambda _, i: names[i],
            get_tensor_mode=lambda _, n: mode.INPUT if n == entry.name else mode.OUTPUT,
            get_tensor_shape=lambda *_: (-1, *shape),
            get_tensor_dtype=lambda *_: (
                made.DataType.FLOAT if entry.type == "tensor(float)" else made.DataType.UINT8
            ),
            get_tensor_profile_shape=lambda *_: [(n, *shape) for n in (1, 1, largest)],
            create_execution_context=lambda _: next(left, None) and context(session),
            create_engine_inspector=lambda _: made.seen.inspector(),
        )()  # fmt: skip

    runtime = strict(api, "Runtime", deserialize_cuda_engine=deserialize)
    made.Runtime = lambda _: runtime()
    return made


def module(version, plan=b"plan", errors=()):
    """A module of a version; ``module.seen`` is what was asked of it.

    What it builds is ``plan``, or, with `MODEL`, the ONNX file it was given.
    """
    api = API[version]
    seen = SimpleNamespace(
        flags=set(),
        network_flags=None,
        profile=None,
        opset=None,
        pools={},
        preview={},
        profiles=[],
        dla_cores=0,
        wrong=[],
        calibration_profile=None,
        dla=itertools.cycle([True, False]),
    )
    enums = {
        name: type(name, (), {key: Named(i, key) for i, key in enumerate(api[name])})
        for name in ENUMS
        if name in api
    }
    logger = strict(api, "ILogger")
    for level, name in enumerate(("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")):
        setattr(logger, name, level)
    types = enums["DataType"]

    tensor = strict(api, "ITensor")
    layer = strict(
        api, "ILayer", get_output=lambda self, _: self._output, name="layer", type=Named(0, "CONV")
    )
    profile = strict(
        api, "IOptimizationProfile",
        set_shape=lambda _, name, *shapes: setattr(seen, "profile", (name, *shapes)),
    )  # fmt: skip
    cache = strict(api, "ITimingCache", serialize=lambda _: b"timings")

    def network():
        made = strict(
            api, "INetworkDefinition",
            get_input=lambda _, i: seen.inputs[i], get_output=lambda _, i: seen.outputs[i],
            get_layer=lambda *_: layer_of(), num_inputs=1,
            num_outputs=property(lambda _: len(seen.outputs)), num_layers=2,
        )  # fmt: skip
        return made()

    def layer_of():
        one = layer()
        one._output = seen.outputs[0]
        return one

    def parse(_, path):
        model = onnx.load(path)
        seen.opset, seen.model = model.opset_import[0].version, model
        seen.content = Path(path).read_bytes()

        def values(group):
            found = []
            for value in group:
                one = tensor()
                one.name = value.name
                one.shape = tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)
                one.dtype = types.UINT8
                found.append(one)
            return found

        seen.inputs, seen.outputs = values(model.graph.input), values(model.graph.output)
        return not errors

    error_members = {"desc": lambda self: self._text, "node": lambda _: 7}
    if "node_name" in api["ParserError"]:
        error_members |= {"node_name": lambda _: "conv", "node_operator": lambda _: "Conv"}
    error = strict(api, "ParserError", **error_members)

    def error_of(_, index):
        one = error()
        one._text = errors[index]
        return one

    parser = strict(
        api, "OnnxParser", parse_from_file=parse, num_errors=len(errors), get_error=error_of
    )
    config_members = {
        "set_flag": lambda _, flag: seen.flags.add(flag.name),
        "set_memory_pool_limit": lambda _, pool, size: seen.pools.update({pool.name: size}),
        "add_optimization_profile": lambda *_: 0,
        "set_preview_feature": lambda _, feature, on: seen.preview.update({feature.name: on}),
        "can_run_on_DLA": lambda *_: next(seen.dla),
        "create_timing_cache": lambda _, content: setattr(seen, "timings", content) or cache(),
        "set_timing_cache": lambda *_, ignore_mismatch: not ignore_mismatch,
        "get_timing_cache": lambda _: cache(),
    }
    if "set_calibration_profile" in api["IBuilderConfig"]:
        config_members["set_calibration_profile"] = lambda _, one: setattr(
            seen, "calibration_profile", one
        )
    config = strict(api, "IBuilderConfig", **config_members)

    def make_config(_):
        seen.config = config()
        return seen.config

    def make_network(_, flags):
        seen.network_flags = flags
        return network()

    def build(*_):
        calibrator = getattr(seen.config, "int8_calibrator", None)
        if hasattr(calibrator, "get_batch"):  # as TensorRT calls one
            seen.calibrated = calibrator.read_calibration_cache() is None
            while seen.calibrated and calibrator.get_batch(["image"]) is not None:
                pass
            if seen.calibrated:
                calibrator.write_calibration_cache(CACHE)
        return seen.content if plan == MODEL else plan

    builder = strict(
        api, "Builder", create_network=make_network, create_builder_config=make_config,
        num_DLA_cores=property(lambda _: seen.dla_cores),
        create_optimization_profile=lambda _: seen.profiles.append(profile()) or seen.profiles[-1],
        build_serialized_network=build,
    )  # fmt: skip
    classes = {
        "ILogger": logger,
        "Builder": lambda _: builder(),
        "OnnxParser": lambda *_: parser(),
        **{
            name: type(name, (), {})
            for name in ("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator")
            if name in api
        },
    }
    seen.layers = [{"Name": "conv + relu", "LayerType": "CaskConvolution"}, "reformat"]
    inspector = strict(
        api, "EngineInspector",
        get_engine_information=lambda *_: json.dumps({"Layers": seen.layers}),
    )  # fmt: skip
    seen.inspector = inspector
    engine = strict(api, "ICudaEngine", create_engine_inspector=lambda _: inspector())
    runtime = strict(api, "Runtime", deserialize_cuda_engine=lambda *_: engine())
    classes["Runtime"] = lambda _: runtime()
    numbers = itertools.islice(version.split("."), 3)
    return SimpleNamespace(__version__=".".join(numbers), seen=seen, **enums, **classes)


def engine(path, model=None):
    """Make an engine of an ONNX file, with the record that `build` would write."""
    content = path.read_bytes()
    metadata = {e.key: e.value for e in onnx.load_from_string(content).metadata_props}
    out = path.with_suffix(".engine")
    out.write_bytes(content)
    BuildRecord(
        library="tensorrt",
        version="10.3.0",
        model=path.name,
        model_sha256="0" * 64,
        spec=spec_of(metadata, str(path)).to_json(),
        head=model or export_of(metadata, str(path)).head,
        graph="fp32",
        precision="fp32",
        rest="fp32",
        strongly_typed=False,
        options=BuildOptions(),
        tensors=[],
        layers=[],
        messages=[],
        seconds=1.0,
        plan_bytes=len(content),
        plan_sha256=hashlib.sha256(content).hexdigest(),
        created=now_utc(),
    ).write(record_path(out))
    return out
