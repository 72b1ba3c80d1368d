"""Deployable variants of networks: size, arithmetic, head, runtime, and how each is made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibration.half_precision import write_half
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda import schemas
from edgeuda.data.folders import LabelledFolder
from edgeuda.errors import ConfigError, ModelError
from edgeuda.files import sha256, sha256_of
from edgeuda.records.build import BuildOptions
from edgeuda.records.identity import Identity
from edgeuda.records.names import DeviceName, Head, Precision, RuntimeName, SweepRuntime
from engines.bench.load import Load

PLAN = schemas.TRADEOFF_PLAN
ALIKE: tuple[Head, ...] = ("labels", "scores")
"""Heads of which the labels are the same."""
ON_CPU: tuple[SweepRuntime, ...] = ("cpu", "openvino")
Export = Callable[[Path, tuple[int, int], Head], None]
"""Writes a network's FP32 graph: file, input size, head."""


@dataclass(frozen=True)
class SweptNetwork:
    """A trained network.

    Attributes:
        name: What tables call it.
        width: Width multiplier of its channels.
        sha256: Checksum of its weights.
        size: Input size it was trained for.
        export: Writes its graph.
        identity: Which network it is, by its training run; None if that is not known.
    """

    name: str
    width: float
    sha256: str
    size: tuple[int, int]
    export: Export
    identity: Identity | None = None


@dataclass(frozen=True)
class Variant:
    """One deployable form of a network."""

    network: str
    size: tuple[int, int]
    precision: Precision
    head: Head
    runtime: SweepRuntime
    says_head: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        rows, columns = self.size
        extra = [self.head] * self.says_head + [self.runtime] * (self.runtime != "cpu")
        return " ".join([self.network, f"{rows}x{columns}", self.precision.upper(), *extra])

    @property
    def stem(self) -> str:
        """Its files' name."""
        return "-".join(
            [_plain(self.network), "x".join(map(str, self.size)), self.head, self.precision]
        )

    @property
    def device(self) -> DeviceName:
        """Where ONNX Runtime runs it."""
        return "cpu" if self.runtime == "engine" else self.runtime


@dataclass(frozen=True)
class Sweep:
    """What to measure.

    Attributes:
        networks: Trained networks.
        sizes: Input sizes, rows and columns; empty takes each network's own.
        precisions: Arithmetics.
        heads: What graphs return.
        runtimes: What runs them; ``engine`` builds TensorRT engines here.
        calibration: Frames that ranges come from.
        frames: Frames to time on.
        labelled: Labelled target images; None compares with FP32 instead.
        load: How to time.
        repeats: Repeated runs.
        threads: Threads of ONNX Runtime; None takes every usable core.
        rows: Variants at most, so that a product does not run for days unseen.
        skipped: Frames that could not be read, for the record.
    """

    networks: Sequence[SweptNetwork]
    sizes: Sequence[tuple[int, int]]
    precisions: Sequence[Precision]
    heads: Sequence[Head]
    runtimes: Sequence[SweepRuntime]
    calibration: Sequence[Path]
    frames: Sequence[Path]
    labelled: LabelledFolder | None = None
    load: Load = field(default_factory=Load)
    repeats: int = 3
    threads: int | None = None
    rows: int = 64
    skipped: Sequence[str] = ()

    def variants(self) -> list[Variant]:
        """Return the product of everything, FP32 first.

        Raises:
            ConfigError: If it is empty, or names are ambiguous, or there are too many.
        """
        found = [
            Variant(
                network.name,
                size,
                precision,
                head,
                runtime,
                says_head=len(self.heads) > 1 or head not in ALIKE,
            )
            for network in self.networks
            for size in (self.sizes or (network.size,))
            for head, runtime, precision in itertools.product(
                self.heads, self.runtimes, self.precisions
            )
        ]
        names = [network.name for network in self.networks]
        if not found or len(set(names)) < len(names) or len(found) > self.rows:
            msg = (
                f"Sweep: expected 1 to {self.rows} variants of networks with names of their own, "
                f"found {len(found)} of {', '.join(names) or 'no network'}"
            )
            raise ConfigError(msg)
        if self.labelled is None and len(names) > 1:
            msg = (
                f"Sweep: expected labelled images to tell the networks {', '.join(names)} apart: "
                "without them each is held against itself. Give labels, or one network"
            )
            raise ConfigError(msg)
        return found

    def plan(self) -> dict[str, Any]:
        """Return what the products depend on; two sweeps of one plan make the same files."""
        labelled = None if self.labelled is None else self.labelled.labels_sha256()
        return {
            "schema": PLAN,
            "networks": {one.name: one.sha256 for one in self.networks},
            "calibration_sha256": sha256_of(sha256(path) for path in self.calibration),
            "frames_sha256": sha256_of(sha256(path) for path in self.frames),
            "labels_sha256": labelled,
            "threads": self.threads,
        }


def make(variant: Variant, what: Sweep, out: Path) -> Path:
    """Return a variant's file, made unless it is there.

    FP16 for an engine is a graph or, before TensorRT 10.12, a flag, which also lets what INT8
    leaves be FP16; the engine's record says which.

    Raises:
        EdgeudaError: If it cannot be exported, quantized or built.
    """
    models = out / "models"
    fp32 = models / f"{replace(variant, precision='fp32').stem}.onnx"
    network = next(one for one in what.networks if one.name == variant.network)
    if not fp32.exists():
        models.mkdir(parents=True, exist_ok=True)
        network.export(fp32, variant.size, variant.head)
    path = fp32
    library = None
    if variant.runtime == "engine":
        from engines.tensorrt.builder import strongly_typed
        from engines.tensorrt.library import load_tensorrt

        library = load_tensorrt("tensorrt")
    # Before 10.12 TensorRT refuses FP16 graphs and takes FP16 by a flag.
    by_flag = library is not None and not strongly_typed(library) and variant.precision != "fp32"
    if variant.precision == "fp16" and not by_flag:
        path = models / f"{variant.stem}.onnx"
        if not path.exists():
            write_half(fp32, list(what.calibration)[:8], path, threads=what.threads)
    if variant.precision == "int8":
        runtime: RuntimeName = "ort-x86" if variant.runtime in ON_CPU else "tensorrt"
        path = models / f"{variant.stem}-{runtime}.onnx"
        if not path.exists():
            ranges = fp32.with_name(f"{fp32.stem}.ranges.npz")  # serves every runtime
            options = Options(runtime, threads=what.threads)
            calibrate(fp32, what.calibration, path, options, ranges=ranges)
    if library is not None:
        from engines.tensorrt.cache import cached_engine

        engine = cached_engine(library, path, BuildOptions(half=by_flag), out / "engines")
        found = engine.record.precision
        if found != variant.precision:
            msg = f"{variant.name}: expected an engine in {variant.precision}, found {found}"
            raise ModelError(msg)
        path = engine.path
    return path


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name)
