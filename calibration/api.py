"""INT8 from Python: `calibration.calibrate`, `half`, `sweep`.

Each takes paths and returns a record. The verbs of the command line call the same functions
beneath.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from calibration import frame_choice
from calibration.half_precision import LEAST_AGREEMENT, write_half
from calibration.observe import class_shares
from calibration.options import Options, Report, silent
from calibration.pipeline import Cache
from calibration.quantize import calibrate as quantize
from calibration.reference import write_reference
from calibration.source import load_fp32
from calibration.tradeoff import sweep as run_sweep
from calibration.variants import ON_CPU, Sweep, SweptNetwork
from edgeuda.data.folders import LabelledFolder, labelled_folder
from edgeuda.data.frames import FrameFolder, frame_folder, sampled
from edgeuda.data.treatment import read_frame
from edgeuda.errors import ConfigError
from edgeuda.labels import LabelSpace, label_space
from edgeuda.records.calibration import CalibrationRecord
from edgeuda.records.names import FrameRule, Head, Precision, RuntimeName, SweepRuntime
from edgeuda.records.tradeoff import Budget, TradeoffRecord
from edgeuda.spec import ModelSpec
from engines.api import AnyPath
from engines.bench.load import Load
from engines.onnx.confidence import confidence_of
from engines.onnx.metadata import read_metadata, read_spec, spec_of


def calibrate(
    model: AnyPath,
    target: AnyPath,
    out: AnyPath,
    *,
    runtime: RuntimeName = "ort-x86",
    options: Options | None = None,
    frames: int = 128,
    choose: FrameRule = "uniform",
    on: Sequence[AnyPath] = (),
    data: AnyPath | None = None,
    stored: str | LabelSpace | None = None,
    ignore_unmapped: bool = False,
    finetune: int = 0,
    seed: int = 0,
    ranges: AnyPath | None = None,
    cache: Cache | None = None,
    reference_frames: int | None = None,
    report: Report = silent,
) -> CalibrationRecord:
    """Collect ranges on target frames, write an INT8 model, and judge it without labels.

    Args:
        model: An FP32 ONNX file that `engines.export` wrote.
        target: Footage by which INT8 is compared with FP32, and calibrated on.
        out: The INT8 ONNX file to write; its record and ranges go beside it.
        runtime: What will run it.
        options: Everything else about the quantization; its runtime counts if it is given.
        frames: Frames to calibrate on.
        choose: Which of them: evenly in time, the most different, or those that show all classes.
        on: Other footage to calibrate on instead.
        data: Labelled images, by which the drop is one of mIoU.
        stored: Label space of their files, where the folder does not say it.
        ignore_unmapped: Whether classes that the model lacks may be ignored.
        finetune: Steps of fine-tuning against the FP32 form; 0 trains nothing and needs no torch.
        seed: Of the fine-tuning.
        ranges: File of ranges; by default beside ``out``.
        cache: TensorRT's calibration cache whose scales are taken.
        reference_frames: Frames of ``target`` whose signals the INT8 model's reference is made of,
            see `calibration.reference`; by default as many as ``frames``, where the model was
            exported with confidence; 0 makes none.
        report: Called with what is being done, the steps done and the steps to do.

    Returns:
        The record; ``record.acceptance.accepted`` says whether INT8 may replace FP32. The model is
        written either way.

    Raises:
        EdgeudaError: See `calibration.quantize.calibrate`.

    Example:
        >>> import calibration
        >>> record = calibration.calibrate("adapted.onnx", "frames", "int8.onnx", frames=4)
        >>> 0 <= record.agreement <= 1
        True
    """
    model, out = Path(model), Path(out)
    metadata = read_metadata(model)
    spec = spec_of(metadata, str(model))
    geometry = spec.preprocessing.geometry
    settings = options or Options(runtime)
    sure = confidence_of(metadata, str(model)) is not None
    if reference_frames and not sure:
        msg = (
            f"{model}: gives no confidence, of which a reference is made. Export it with "
            "`confidence`, or leave `reference_frames` out"
        )
        raise ConfigError(msg)
    footage = frame_folder(Path(target), geometry)
    pool = [frame_folder(Path(folder), geometry) for folder in on] or [footage]
    labelled = _labelled(data, spec, stored, ignore_unmapped)
    chosen = chosen_frames(choose, model, pool, frames, settings.threads, report)
    tune = None
    if finetune:
        from calibration.finetune import tuner

        tune = tuner(finetune, seed, out.with_name(f"{out.name}.tuning.pt"), report)
    judged = footage.sample(frames)
    skipped = [name for one in {footage, *pool} for name in one.skipped()]
    record = quantize(
        model, chosen, out, settings, judged=judged, labelled=labelled,
        ranges=None if ranges is None else Path(ranges), cache=cache, tune=tune, report=report,
        skipped=sorted(skipped),
    )  # fmt: skip
    remembered = frames if reference_frames is None else reference_frames
    if sure and remembered:
        write_reference(out, footage, remembered, threads=settings.threads, report=report)
    return record


def chosen_frames(
    choose: FrameRule,
    model: Path,
    pool: Sequence[FrameFolder],
    count: int,
    threads: int | None = None,
    report: Report = silent,
) -> list[Path]:
    """Choose calibration frames, by the network's predictions where the rule needs them.

    Args:
        choose: The rule, see `calibration.frame_choice`.
        model: The FP32 model.
        pool: Footage to choose from, in proportion to its frames.
        count: How many.
        threads: Threads of ONNX Runtime.
        report: See `calibrate`.
    """
    proto, spec = load_fp32(model)
    looked = sampled(pool, count * (1 if choose == "uniform" else frame_choice.CANDIDATES))
    if choose != "classes":
        return frame_choice.choose(choose, looked, count, spec.preprocessing.geometry)
    shares = class_shares(proto, spec, looked, threads, report)
    return [looked[index] for index in frame_choice.covering(shares, count)]


def half(
    model: AnyPath,
    target: AnyPath,
    out: AnyPath,
    *,
    frames: int = 16,
    min_agreement: float = LEAST_AGREEMENT,
    threads: int | None = None,
) -> float:
    """Write a model's FP16 form as TensorRT 11 takes it, after comparing both on frames.

    Args:
        model: An exported FP32 model, or its Q/DQ form for TensorRT.
        target: Footage.
        out: The file to write.
        frames: Frames to compare on.
        min_agreement: Share of equal pixels, 0 to 1, below which nothing is written.
        threads: Threads of ONNX Runtime.

    Returns:
        Share of the pixels that keep their class.

    Raises:
        EdgeudaError: See `calibration.half_precision.write_half`.

    Example:
        >>> import calibration
        >>> calibration.half("adapted.onnx", "frames", "half.onnx", min_agreement=0.9) > 0.9
        True
    """
    geometry = read_spec(Path(model)).preprocessing.geometry
    chosen = frame_folder(Path(target), geometry).sample(frames)
    return write_half(
        Path(model), chosen, Path(out), least_agreement=min_agreement, threads=threads
    )


def sweep(
    models: Sequence[AnyPath],
    target: AnyPath,
    out: AnyPath,
    *,
    names: Sequence[str] | None = None,
    data: AnyPath | None = None,
    stored: str | LabelSpace | None = None,
    ignore_unmapped: bool = False,
    sizes: Sequence[tuple[int, int]] = (),
    precisions: Sequence[Precision] = ("fp32", "int8"),
    heads: Sequence[Head] = (),
    runtimes: Sequence[SweepRuntime] = ("cpu",),
    budget: Budget | None = None,
    frames: int = 128,
    samples: int = 700,
    repeats: int = 3,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TradeoffRecord:
    """Make, score and time deployable variants on the same images; name the one to take.

    Args:
        models: Run folders or model files, of one label space.
        target: Footage to calibrate, time and, without labels, compare on.
        out: Folder for everything made; what lies there already is not made again.
        names: What tables call the networks; by default their folders' names.
        data: Labelled images to score on; without them variants are held against FP32.
        stored: Label space of their files, where the folder does not say it.
        ignore_unmapped: Whether classes that the networks lack may be ignored.
        sizes: Rows and columns of inputs; by default each network's own.
        precisions: Arithmetics.
        heads: What the graphs return; by default ``scores`` where every network has them at an
            eighth of its size and all run on the CPU, which takes less time than ``labels`` there,
            and is labelled alike; else ``labels``.
        runtimes: Where they run.
        budget: Largest latency and least mIoU; None is none.
        frames: Frames to calibrate on.
        samples: Frames timed per variant.
        repeats: Runs of the timing.
        threads: Threads of one operator.
        say: Called with what is being done.

    Returns:
        The record ``tradeoff.json``.

    Raises:
        EdgeudaError: See `calibration.tradeoff.sweep`.

    Example:
        >>> import calibration
        >>> record = calibration.sweep(["adapted"], "frames", "sweep", data="labelled", frames=4,
        ...                            samples=33, repeats=1)
        >>> len(record.variants)
        2
    """
    from engines.onnx_export import exporter

    paths = [Path(model) for model in models]
    titles = [path.stem for path in paths] if names is None else list(names)
    if not paths or len(titles) != len(paths):
        msg = f"Expected at least one model, and a name for each, found {len(paths)} and {titles}"
        raise ConfigError(msg)
    loaded = [exporter(path) for path in paths]
    first = loaded[0].spec
    geometry = first.preprocessing.geometry
    for path, one in zip(paths, loaded, strict=True):
        if one.spec.label_space.classes != first.label_space.classes:
            msg = f"{path}: has other classes than {paths[0]}; networks of a sweep share theirs"
            raise ConfigError(msg)
        if one.spec.preprocessing.geometry != geometry:
            msg = (
                f"{path}: undistorts and crops frames otherwise than {paths[0]}; networks of a "
                "sweep are scored on the same part of the frame. Sweep them one at a time"
            )
            raise ConfigError(msg)
    footage = frame_folder(Path(target), geometry)
    parity = [read_frame(path, geometry) for path in footage.sample(4)]
    networks = [
        SweptNetwork(
            title, one.spec.width, one.sha256,
            (one.spec.preprocessing.height, one.spec.preprocessing.width),
            one.writes(parity), one.identity,
        )
        for title, one in zip(titles, loaded, strict=True)
    ]  # fmt: skip
    small = all(one.spec.architecture.startswith("bisenet") for one in loaded)
    usual: Head = "scores" if small and set(runtimes) <= set(ON_CPU) else "labels"
    what = Sweep(
        networks, list(sizes), list(precisions), list(heads) or [usual], list(runtimes),
        calibration=footage.sample(frames),
        frames=footage.sample(32),
        labelled=_labelled(data, first, stored, ignore_unmapped),
        load=replace(Load(), samples=samples),
        repeats=repeats,
        threads=threads,
        skipped=footage.skipped(),
    )  # fmt: skip
    return run_sweep(what, Path(out), budget or Budget(), say=say)


def _labelled(
    data: AnyPath | None, spec: ModelSpec, stored: str | LabelSpace | None, ignore_unmapped: bool
) -> LabelledFolder | None:
    if data is None:
        return None
    return labelled_folder(
        Path(data), spec.label_space,
        label_space(stored) if isinstance(stored, str) else stored,
        ignore_unmapped=ignore_unmapped, geometry=spec.preprocessing.geometry,
    )  # fmt: skip
