"""What a benchmark measured, and how: the record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeuda import schemas
from edgeuda.errors import require
from edgeuda.records.form import Record
from edgeuda.records.percentiles import Drift, LatencySummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class BenchMethod:
    """How the latencies were measured.

    Attributes:
        arrival: See `engines.bench.load.Load`, as all up to ``preset``.
        fps: Frames per second of a camera.
        cameras: Cameras.
        late_frames: What becomes of a frame that waits when its camera's next one comes.
        batch: Images per inference.
        preset: The preset, or None.
        preset_met: Whether its samples and duration were reached.
        threads: Threads of one operator.
        samples: Entries per model.
        repeats: Times the models were opened, warmed up and measured.
        order: How the models followed each other.
        warmup: The rule that ended the warm-up.
        warmup_rounds: Rounds before the first measured one, of each repeat.
        warmup_seconds: Their duration.
        warmup_stable: Whether the medians had settled, as opposed to the time limit having passed.
        timer: The clocks.
        frames: Distinct frames, used in turn.
        outliers: What became of them.
        complete: Whether the run came to its end, as opposed to being stopped.
    """

    arrival: str
    fps: float | None
    cameras: int
    late_frames: str | None
    batch: int
    preset: str | None
    preset_met: bool | None
    threads: int
    samples: int
    repeats: int
    order: str
    warmup: str
    warmup_rounds: list[int]
    warmup_seconds: list[float]
    warmup_stable: bool
    timer: str
    frames: int
    outliers: str
    complete: bool


@dataclass(frozen=True)
class Deadline:
    """How often a frame took longer than allowed, from when it came to its label map.

    Attributes:
        limit_ms: What is allowed.
        misses: Frames beyond it.
        share: Of all frames, 0 to 1; a dropped frame is a miss.
    """

    limit_ms: float
    misses: int
    share: float


@dataclass(frozen=True)
class ModelLatency:
    """One model's latencies.

    Attributes:
        name: What the report calls it.
        file: Name of its file.
        sha256: Checksum of the file.
        precision: Arithmetic of the graph.
        head: What its graph returns.
        backend: Runtime, version and device.
        input: Height and width of the network's input.
        size_bytes: Size of the file.
        stages: Summaries in milliseconds by stage, see `engines.bench.frame_path.STAGES`.
        drift: ``total`` of the last third against the first.
        run_medians: Median ``total`` of each repeat.
        deadline: Misses of the deadline; None without one.
        dropped: Frames that were replaced before their turn.
        longest_queue: Most frames of a camera that waited at once.
        frames_per_second: Frames segmented per second.
        energy_per_frame_j: Joules; None if no meter is there or models took turns.
        execution: How the runtime ran it, see `engines.runner.Runner`; earlier records lack it.
        fallbacks: What came otherwise than asked; earlier records lack it.
    """

    name: str
    file: str
    sha256: str
    precision: str
    head: str
    backend: str
    input: tuple[int, int]
    size_bytes: int
    stages: dict[str, LatencySummary]
    drift: Drift | None
    run_medians: list[float]
    deadline: Deadline | None
    dropped: int
    longest_queue: int
    frames_per_second: float
    energy_per_frame_j: float | None
    execution: dict[str, str] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.stages:
            msg = f"expected at least one stage of {self.name!r}, found none"
            raise ValueError(msg)

    @property
    def end_to_end_stage(self) -> str:
        """The stage that covers a whole frame, ``total``; else inference, else the last one."""
        names = list(self.stages)
        return next((name for name in ("total", "inference") if name in self.stages), names[-1])

    @property
    def end_to_end(self) -> LatencySummary:
        """Latency of a whole frame."""
        return self.stages[self.end_to_end_stage]


@dataclass(frozen=True)
class Ratio:
    """A stage's time of the first model over that of another, round by round.

    Attributes:
        baseline: Name of the first model.
        candidate: Name of the other.
        inference_median: Median of the ratios of inference; above 1 the candidate is faster.
        low: Lower end of the median's 95 % interval.
        high: Upper end.
        total_median: Likewise of ``total``.
        total_low: Likewise.
        total_high: Likewise.
        runs: Median ratio of inference of each repeat.
    """

    baseline: str
    candidate: str
    inference_median: float
    low: float
    high: float
    total_median: float
    total_low: float
    total_high: float
    runs: list[float]


@dataclass(frozen=True)
class Channel:
    """What a sensor of the machine read while it was measured.

    Attributes:
        unit: Unit of the figures.
        n: Readings.
        mean: Their mean.
        min: The least.
        max: The greatest.
        start: The first.
        end: The last.
    """

    unit: str
    n: int
    mean: float
    min: float
    max: float
    start: float
    end: float


@dataclass(frozen=True)
class MachineState:
    """The machine while it was measured; what is empty or None is not known.

    Attributes:
        interval_s: Seconds between readings.
        sources: What was read.
        channels: By name, for example ``power.gpu``.
        not_available: What the machine does not tell, and why.
        throttled: Whether clocks were held down at any time.
        other_load_cores: Cores that other processes took on average.
    """

    interval_s: float | None = None
    sources: list[str] = field(default_factory=list)
    channels: dict[str, Channel] = field(default_factory=dict)
    not_available: dict[str, str] = field(default_factory=dict)
    throttled: bool | None = None
    other_load_cores: float | None = None


@dataclass(frozen=True)
class SamplesFile:
    """Where the samples of a benchmark are.

    Attributes:
        file: Its name; it lies beside the record.
        sha256: Its checksum.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class BenchRecord(Record):
    """One benchmark.

    Attributes:
        created: UTC time in ISO 8601.
        machine: See `engines.machine.hardware.identity`; read before the run.
        method: How it was measured.
        models: In the order given.
        ratios: Every further model against the first, where models took turns.
        noise: Largest spread of a model's median over the repeats, as a share; None below three.
        state: The machine during the run.
        warnings: What a reader must know before the figures.
        samples: The file with every sample; None if none was written.
    """

    SCHEMA: ClassVar[str] = schemas.BENCH
    AGAIN: ClassVar[str] = "Measure again with `edgeuda bench`"

    created: str
    machine: dict[str, str]
    method: BenchMethod
    models: tuple[ModelLatency, ...]
    ratios: tuple[Ratio, ...]
    noise: float | None
    state: MachineState
    warnings: tuple[str, ...]
    samples: SamplesFile | None

    def to_pandas(self) -> DataFrame:
        """Return the percentiles in milliseconds as a data frame, one row per model and stage.

        Raises:
            DependencyError: If pandas is not installed.
        """
        rows = [
            {"model": model.name, "stage": stage, **summary.percentiles}
            for model in self.models
            for stage, summary in model.stages.items()
        ]
        frame: DataFrame = require("pandas", "pandas").DataFrame(rows)
        return frame

    def plot(self) -> Figure:
        """Draw the median of a whole frame per model, with its 99th percentile where known."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.add_subplot(xlabel="ms per frame", title=self.machine.get("cpu", ""))
        totals = [model.stages["total"].percentiles for model in self.models]
        names = [model.name for model in self.models]
        axes.barh(names, [total["50"] for total in totals], label="median")
        tails = [(total["99"], name) for total, name in zip(totals, names, strict=True)
                 if "99" in total]  # fmt: skip
        if tails:
            axes.plot(*zip(*tails, strict=True), "k|", markersize=16, label="p99")
        axes.legend()
        return figure

    def __str__(self) -> str:
        lines = [
            f"{model.name}: median {model.stages['total'].percentiles['50']:.2f} ms per frame, "
            f"{model.frames_per_second:.1f} frames/s, {model.backend}"
            for model in self.models
        ]
        lines += [
            f"{ratio.candidate}: inference {ratio.inference_median:.2f} times as fast as "
            f"{ratio.baseline} ({ratio.low:.2f} to {ratio.high:.2f})"
            for ratio in self.ratios
        ]
        return "\n".join([*lines, *self.warnings])


def samples_path(out: Path) -> Path:
    """Return where a record's samples lie, an NPZ file.

    Arrays are ``MODEL.COLUMN``, MODEL counting from 0: ``start_s``, ``run``, ``camera``, and
    milliseconds by stage; ``state.time_s`` and ``state.CHANNEL``.
    """
    return out.with_suffix(".samples.npz")
