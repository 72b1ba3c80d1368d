"""How a TensorRT engine was built, as `edgeuda build` writes it beside the engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgeuda import schemas
from edgeuda.errors import ConfigError
from edgeuda.records.form import OMIT, Record
from edgeuda.records.identity import Identity
from edgeuda.records.names import Head, LibraryName, Precision

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of the input."""


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for.

    Attributes:
        batch: Smallest, usual and largest batch, where the graph leaves it open.
        shapes: Shapes of the input instead, where it leaves more open.
        workspace_mib: Memory for tactics; None leaves TensorRT's own limit.
        level: Optimisation level of the builder, 0 to 5.
        half: FP16 by flag, for TensorRT before 10.12; later ones take a typed graph.
        dla_core: Core of the deep learning accelerator; what it cannot run falls back to the GPU.
        version_compatible: Whether later TensorRT may load the engine.
        hardware_compatible: Whether later GPUs may.
        timing_cache: File of timings, read if it exists and written afterwards.
        compute_capabilities: Of TensorRT-RTX: GPUs to compile for, for example ``SM86``; none takes
            the one that is there.
    """

    batch: tuple[int, int, int] = (1, 1, 1)
    shapes: Shapes | None = None
    workspace_mib: int | None = None
    level: int | None = None
    half: bool = False
    dla_core: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            msg = f"Expected batches as smallest, usual and largest, found {self.batch}"
            raise ConfigError(msg)
        if self.level is not None and not 0 <= self.level <= 5:
            msg = f"Expected an optimisation level from 0 to 5, found {self.level}"
            raise ConfigError(msg)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, without the timing cache, which changes no result."""
        record = asdict(self)
        del record["timing_cache"]
        return record


@dataclass(frozen=True)
class EngineTensor:
    """An input or output, as TensorRT calls its type; -1 stands for a side that is left open."""

    name: str
    dtype: str
    shape: list[int]


@dataclass(frozen=True)
class EngineLayer:
    """A layer before TensorRT fuses it, with the type of its first output."""

    name: str
    type: str
    output: str | None


@dataclass(frozen=True)
class DlaLayers:
    """How much of the network the deep learning accelerator can run.

    Attributes:
        layers: How many it runs.
        of: All.
        on_the_gpu: Names of the others.
    """

    layers: int
    of: int
    on_the_gpu: list[str]


@dataclass(frozen=True)
class BuildRecord(Record):
    """One engine.

    Attributes:
        library: Which TensorRT built it.
        version: Its version.
        model: Name of the ONNX file.
        model_sha256: Its checksum.
        spec: Label space and preprocessing, as text.
        head: What the engine returns.
        graph: Arithmetic of the graph.
        precision: Arithmetic of the engine: a flag or a calibrator may have taken FP32 to less.
        rest: Arithmetic of what is not quantized.
        strongly_typed: Whether every precision was taken from the graph.
        options: What it was built for.
        tensors: Inputs, then outputs.
        layers: As parsed.
        messages: Of the builder: severity and text.
        seconds: That the build took.
        plan_bytes: Size of the engine.
        plan_sha256: Its checksum.
        created: When, UTC.
        identity: Which network it is.
        made_from_sha256: The FP32 model that it was quantized or halved from.
        dla_layers: Where a core of the deep learning accelerator was asked for.
        key: SHA-256 of all that makes the engine valid, in a folder of engines.
        engine_layers: What became of the layers, as TensorRT's inspector says it; None for an
            engine that was compiled for another GPU.
    """

    SCHEMA: ClassVar[str] = schemas.BUILD
    AGAIN: ClassVar[str] = "Remove it and the engine, and build again"

    library: LibraryName
    version: str
    model: str
    model_sha256: str
    spec: str
    head: Head
    graph: Precision
    precision: Precision
    rest: Literal["fp16", "fp32"]
    strongly_typed: bool
    options: BuildOptions
    tensors: list[EngineTensor]
    layers: list[EngineLayer]
    messages: list[tuple[str, str]]
    seconds: float
    plan_bytes: int
    plan_sha256: str
    created: str
    identity: Identity | None = None
    made_from_sha256: str | None = None
    dla_layers: DlaLayers | None = None
    key: str | None = field(default=None, metadata={OMIT: True})
    engine_layers: list[dict[str, Any]] | None = field(default=None, metadata={OMIT: True})

    @classmethod
    def modern(cls, record: dict[str, Any]) -> dict[str, Any]:
        """Read earlier ones, which say their arithmetic by graph and options."""
        if "precision" in record:
            return record
        half = record["graph"] == "fp32" and record.get("options", {}).get("half", False)
        return record | {"precision": "fp16" if half else record["graph"]}
