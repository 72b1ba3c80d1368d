"""Building a TensorRT engine: one path for TensorRT 8.6 to 11 and TensorRT-RTX.

What a version offers is asked of the module, not of its number; only strong typing, which 10.0 had
before it worked, goes by number.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeuda.errors import ConfigError, ModelError, require
from edgeuda.files import now_utc, sha256, write_bytes
from edgeuda.records.build import BuildOptions, BuildRecord, DlaLayers, EngineLayer, EngineTensor
from edgeuda.records.names import Precision
from engines.onnx.float_input import float_input
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.label_cast import cast_by_float
from engines.onnx.metadata import export_of, identity_in, made_from, spec_of
from engines.onnx.opset import lower_opset
from engines.tensorrt.engine import load_engine
from engines.tensorrt.library import Library, Log

STRONGLY_TYPED_FROM = (10, 12)


@dataclass(frozen=True, eq=False)
class Built:
    """An engine and how it was built.

    Attributes:
        plan: The serialised engine.
        record: How.
    """

    plan: bytes
    record: BuildRecord


def build_engine(
    library: Library, model: Path, options: BuildOptions, calibrator: Any = None
) -> Built:
    """Build an engine.

    Args:
        library: The TensorRT to build with.
        model: An ONNX file of this project: FP32, FP16 or Q/DQ.
        options: What it is built for.
        calibrator: Of TensorRT 8.6 to 10, for a graph without Q/DQ. The engine takes images as
            float32 then, which is what calibrators feed.

    Raises:
        ConfigError: If this TensorRT lacks what ``options`` ask for; the message says what to use.
        ModelError: If the graph is not of this project, or cannot be parsed or built; every parser
            error is named.
    """
    graph = _Graph.read(model)
    spec_of(graph.metadata, str(model))
    trt = library.module
    logger, log = library.logger()
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(library, graph))
    with tempfile.TemporaryDirectory() as folder:
        # Models that were exported before `cast_by_float` was part of it get it here.
        prepared = cast_by_float(copy.deepcopy(graph.proto))
        if calibrator is not None:
            prepared = float_input(prepared)
        if library.name == "tensorrt" and library.version[0] < 10:
            prepared = lower_opset(prepared)
        source = Path(folder) / model.name
        source.write_bytes(prepared.SerializeToString())
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(source)):
            raise ModelError(_parser_errors(library, model, parser, log))
        config = builder.create_builder_config()
        _configure(library, config, graph, options, calibrator)
        profile = _add_profile(builder, config, network, options, model)
        if profile is not None and calibrator is not None:
            config.set_calibration_profile(profile)
        on_dla = _layers_on_dla(library, config, network, model, options)
        cache = _open_timing_cache(config, options)
        start = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
    if calibrator is not None and getattr(calibrator, "error", None) is not None:
        raise calibrator.error
    if plan is None:
        reasons = log.of("ERROR") or ["it gave no reason"]
        msg = f"{model}: {library.title} could not build an engine: {'; '.join(reasons[:5])}"
        raise ModelError(msg)
    if cache is not None and options.timing_cache is not None:
        content = bytes(config.get_timing_cache().serialize())
        write_bytes(options.timing_cache, content)
    content = bytes(plan)
    record = _record(
        library, model, options, graph, network, log, content, seconds, calibrator is not None
    )
    return Built(content, replace(record, dla_layers=on_dla))


@dataclass(frozen=True, eq=False)
class _Graph:
    """What of an ONNX graph decides how it is built."""

    proto: Any
    metadata: dict[str, str]
    quantized: bool
    half: bool

    @classmethod
    def read(cls, model: Path) -> _Graph:
        onnx = require("onnx", "build")
        proto = load_graph(model, "build")
        quantized = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
        half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in proto.graph.initializer)
        return cls(proto, metadata_of(proto), quantized, half)


def engine_layers(library: Library, plan: bytes, options: BuildOptions) -> list[dict[str, Any]]:
    """Return what became of the layers: names, which show fusions, tactics and formats.

    Args:
        library: The TensorRT that built the engine; there has to be a device.
        plan: The engine, built on this machine in this process.
        options: What it was built for.

    Raises:
        ModelError: If TensorRT cannot load what it built.
    """
    trt = library.module
    _runtime, engine = load_engine(library, plan, options, "the engine that was just built")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return [layer if isinstance(layer, dict) else {"Name": layer} for layer in layers]


def strongly_typed(library: Library) -> bool:
    """Whether this TensorRT takes every precision from the graph."""
    flags = library.module.NetworkDefinitionCreationFlag
    return library.name == "tensorrt_rtx" or (
        hasattr(flags, "STRONGLY_TYPED") and library.version >= STRONGLY_TYPED_FROM
    )


def _network_flags(library: Library, graph: _Graph) -> int:
    flags = library.module.NetworkDefinitionCreationFlag
    chosen = 0
    if library.version[0] < 10 and hasattr(flags, "EXPLICIT_BATCH"):
        chosen |= 1 << int(flags.EXPLICIT_BATCH)
    if library.name == "tensorrt" and strongly_typed(library):
        chosen |= 1 << int(flags.STRONGLY_TYPED)
    elif library.name == "tensorrt" and graph.half:
        msg = (
            f"{library.title} takes no FP16 graph. Build the FP32 or Q/DQ model with `half`, "
            "which asks for FP16 by flag"
        )
        raise ConfigError(msg)
    return chosen


def _configure(
    library: Library, config: Any, graph: _Graph, options: BuildOptions, calibrator: Any
) -> None:
    trt = library.module
    flags = trt.BuilderFlag
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise ConfigError(_lacks(library, "optimisation levels"))
        config.builder_optimization_level = options.level
    if hasattr(config, "profiling_verbosity"):  # so that the engine can say what became of layers
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    typed = strongly_typed(library)
    if options.half:
        if typed or not hasattr(flags, "FP16"):
            msg = (
                f"{library.title} takes precision from the graph, not from a flag. Build the model "
                "that `edgeuda half` writes"
            )
            raise ConfigError(msg)
        config.set_flag(flags.FP16)
    if calibrator is not None:
        if typed or not hasattr(config, "int8_calibrator"):
            msg = f"{_lacks(library, 'calibrators')}. Build a Q/DQ model instead"
            raise ConfigError(msg)
        if graph.quantized:
            msg = "The graph has Q/DQ pairs, which need no calibrator. Give the FP32 model"
            raise ConfigError(msg)
        config.int8_calibrator = calibrator
    if (graph.quantized or calibrator is not None) and not typed:
        config.set_flag(flags.INT8)
    for wanted, flag in (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.dla_core is not None, "GPU_FALLBACK"),
    ):
        if wanted:
            if not hasattr(flags, flag):
                raise ConfigError(_lacks(library, flag))
            config.set_flag(getattr(flags, flag))
    if options.hardware_compatible:
        if not hasattr(trt, "HardwareCompatibilityLevel"):
            raise ConfigError(_lacks(library, "hardware compatibility"))
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.dla_core is not None:
        _require_for_dla(library, graph, options, calibrator)
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
    if library.version[0] < 10:
        # Before 10 a profile is of one context, and there is one context for each batch size.
        preview: Any = getattr(trt, "PreviewFeature", None)
        if hasattr(preview, "PROFILE_SHARING_0806"):
            config.set_preview_feature(preview.PROFILE_SHARING_0806, True)
    if options.compute_capabilities:
        if not hasattr(config, "set_compute_capability"):
            raise ConfigError(
                _lacks(library, "targets to choose: it builds for the GPU that is there")
            )
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, name in enumerate(options.compute_capabilities):
            if not hasattr(trt.ComputeCapability, name):
                known = [n for n in dir(trt.ComputeCapability) if n.startswith("SM")]
                msg = f"{library.title} knows no {name!r}, only {', '.join(known)}"
                raise ConfigError(msg)
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _require_for_dla(
    library: Library, graph: _Graph, options: BuildOptions, calibrator: Any
) -> None:
    """Refuse what the accelerator would leave to the GPU, which TensorRT does without a word.

    Raises:
        ConfigError: Unless precision is INT8 by a calibrator, or FP16, and the batch is fixed.
    """
    if strongly_typed(library):
        msg = (
            f"{library.title} takes precision from the graph, which it cannot do on the deep "
            "learning accelerator. Leave `dla_core` out, or use TensorRT 8.6 to 10.11"
        )
        raise ConfigError(msg)
    if graph.quantized:
        msg = (
            "Q/DQ graphs do not run on the deep learning accelerator. Give the FP32 model with "
            "frames to calibrate on: `calibrate` FRAMES"
        )
        raise ConfigError(msg)
    if calibrator is None and not options.half:
        msg = (
            "The deep learning accelerator has no FP32: all would run on the GPU. Give frames to "
            "calibrate INT8 on, `calibrate` FRAMES, or take FP16, `half`"
        )
        raise ConfigError(msg)
    if options.shapes is None and options.batch[0] != options.batch[2]:
        msg = (
            "The deep learning accelerator takes one batch size, found "
            f"{options.batch[0]} to {options.batch[2]}. Give `batch` one number"
        )
        raise ConfigError(msg)


def _lacks(library: Library, what: str) -> str:
    return f"{library.title} has no {what}"


def _add_profile(
    builder: Any, config: Any, network: Any, options: BuildOptions, model: Path
) -> Any:
    """Add the profile of the input's shapes; returns it, or None where none is open."""
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)
    if -1 not in shape:
        return None
    if options.shapes is None and -1 in shape[1:]:
        msg = f"{model}: input {tensor.name!r} is {list(shape)}; say which shapes to build for"
        raise ConfigError(msg)
    low, usual, high = options.shapes or ((size, *shape[1:]) for size in options.batch)
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, low, usual, high)
    config.add_optimization_profile(profile)
    return profile


def _layers_on_dla(
    library: Library, config: Any, network: Any, model: Path, options: BuildOptions
) -> DlaLayers | None:
    """Return which layers the accelerator can run; None where it was not asked for.

    Raises:
        ModelError: If it can run none, so that the whole engine would be the GPU's.
    """
    if options.dla_core is None:
        return None
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    names = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    found = len(layers) - len(names)
    if not found:
        msg = (
            f"{model}: {library.title} can run none of its {len(layers)} layers on the deep "
            "learning accelerator. Build for the GPU, without `dla_core`"
        )
        raise ModelError(msg)
    return DlaLayers(found, len(layers), names)


def _open_timing_cache(config: Any, options: BuildOptions) -> Any:
    if options.timing_cache is None or not hasattr(config, "create_timing_cache"):
        return None
    known = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
    cache = config.create_timing_cache(known)
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _parser_errors(library: Library, model: Path, parser: Any, log: Log) -> str:
    errors = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        where = f"node {error.node()}"
        if hasattr(error, "node_name"):
            where = f"node {error.node_name()!r} ({error.node_operator()})"
        errors.append(f"{where}: {error.desc()}")
    errors = errors or log.of("ERROR") or ["it gave no reason"]
    return f"{model}: {library.title} cannot parse it. " + "; ".join(errors)


def _record(
    library: Library,
    model: Path,
    options: BuildOptions,
    graph: _Graph,
    network: Any,
    log: Log,
    plan: bytes,
    seconds: float,
    calibrated: bool,
) -> BuildRecord:
    layers = []
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        output = layer.get_output(0)
        kind = None if output is None else _name(output.dtype)
        layers.append(EngineLayer(layer.name, _name(layer.type), kind))
    precision = _precision(graph, options, calibrated)
    origin = made_from(graph.metadata)
    if origin is None and precision != "fp32" and not (graph.quantized or graph.half):
        origin = sha256(model)  # the builder itself took FP32 to fewer bits
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return BuildRecord(
        library=library.name,
        version=library.module.__version__,
        model=model.name,
        model_sha256=sha256(model),
        spec=spec_of(graph.metadata, str(model)).to_json(),
        head=export_of(graph.metadata, str(model)).head,
        graph="int8" if graph.quantized else "fp16" if graph.half else "fp32",
        precision=precision,
        rest="fp16" if graph.half or options.half else "fp32",
        strongly_typed=strongly_typed(library),
        options=options,
        tensors=[EngineTensor(t.name, _name(t.dtype), list(t.shape)) for t in tensors],
        layers=layers,
        messages=[message for message in log.messages if message[0] != "INFO"],
        seconds=round(seconds, 3),
        plan_bytes=len(plan),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        created=now_utc(),
        identity=identity_in(graph.metadata, str(model)),
        made_from_sha256=origin,
    )


def _precision(graph: _Graph, options: BuildOptions, calibrated: bool) -> Precision:
    if graph.quantized or calibrated:
        return "int8"
    return "fp16" if graph.half or options.half else "fp32"


def _name(value: Any) -> str:
    """Return the last part of an enumerator's name."""
    return str(getattr(value, "name", value)).split(".")[-1]
