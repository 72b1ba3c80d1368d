"""Deployment from Python: `engines.export`, `open_model`, `segment`, `benchmark`, bundles.

Each takes paths, or what another of them returned. The verbs of the command line call the same
functions beneath. Torch is needed by `export` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import Image, LabelMap
from edgeuda.data.treatment import read_frame
from edgeuda.files import require_absent
from edgeuda.labels import LabelSpace, label_space
from edgeuda.records.bench import BenchRecord
from edgeuda.records.names import DeviceName, Head
from engines.bench.load import Load
from engines.bench.measure import bench
from engines.bundle import Bundle
from engines.bundle import open_bundle as read_bundle
from engines.onnx.metadata import ExportRecord
from engines.opening import open_runner
from engines.packing import pack
from engines.runner import Runner
from engines.runner import segment as run_on
from engines.scoring import score_exported

if TYPE_CHECKING:
    from edgeuda.spec import ModelSpec

AnyPath = str | Path


class Loaded(Protocol):
    """What `edgeuda.load_model` and `edgeuda.wrap` return, as far as an export needs it."""

    network: Any
    spec: ModelSpec


def export(
    model: AnyPath | Loaded,
    target: AnyPath | Sequence[Image],
    out: AnyPath,
    *,
    head: Head = "labels",
    frames: int = 8,
    confidence: bool = False,
) -> ExportRecord:
    """Export a network to ONNX, checked against torch on frames of the vehicle.

    Args:
        model: Run folder, model file, or a network in memory.
        target: Footage: a folder of frames or a list; or frames as ``[H, W, 3]`` uint8 RGB.
        out: The ONNX file to write.
        head: What the graph returns, see `engines.onnx.heads`.
        frames: Frames of the footage to compare on.
        confidence: Whether the graph says how sure it is, too, see `engines.onnx.confidence`.

    Returns:
        How it was exported, and the share of pixels that torch and ONNX Runtime agree on.

    Raises:
        ParityError: If they do not agree; nothing is written.
        EdgeudaError: Others of its kinds, see `engines.onnx_export.export_onnx`.

    Example:
        >>> import engines
        >>> found = engines.export("adapted", "frames", "adapted.onnx")
        >>> found.pixels_equal > 0.999
        True
    """
    from engines.onnx_export import export_onnx, exporter

    require_absent(Path(out))
    if isinstance(model, str | Path):
        stored = exporter(Path(model))
        network, spec, known = stored.network, stored.spec, stored.identity
        fitted = stored.temperature
    else:  # what lies in memory may have changed since it was read
        network, spec, known, fitted = model.network, model.spec, None, None
    if isinstance(target, str | Path):
        geometry = spec.preprocessing.geometry
        chosen = frame_folder(Path(target), geometry).sample(frames)
        images: Sequence[Image] = [read_frame(path, geometry) for path in chosen]
    else:
        images = target
    return export_onnx(
        network, spec, Path(out), head=head, frames=images, identity=known, confidence=confidence,
        fitted_temperature=fitted,
    )  # fmt: skip


def open_model(
    model: AnyPath,
    *,
    device: DeviceName = "cpu",
    threads: int | None = None,
    graphs: bool = True,
    confidence: bool = False,
) -> Runner:
    """Open an exported model: an ONNX file, an engine or a bundle.

    Args:
        model: The file; see `engines.opening.open_runner`.
        device: Where an ONNX file runs.
        threads: Threads of one operator; None takes every usable core.
        graphs: Whether an engine replays CUDA graphs.
        confidence: Whether it is asked how sure it is, too: ``model.signals(images)``.

    Returns:
        A runner: a context manager that is called with ``[N, height, width, 3]`` uint8 images of
        the network's input size; `segment` takes frames of any size.

    Raises:
        EdgeudaError: One of its kinds, with what was expected, found, and what to do.

    Example:
        >>> import engines, numpy as np
        >>> with engines.open_model("adapted.onnx") as model:
        ...     labels = engines.segment(model, np.zeros((360, 480, 3), np.uint8))
        >>> labels.shape
        (360, 480)
    """
    return open_runner(Path(model), threads, device, graphs=graphs, confidence=confidence)


def segment(model: Runner, frame: AnyPath | Image) -> LabelMap:
    """Segment one frame.

    Args:
        model: From `open_model`.
        frame: An image file, undistorted and cropped as the model was made for; or ``[H, W, 3]``
            uint8 RGB as the model is to see it.

    Returns:
        ``[H, W]`` uint8 class ids of ``model.spec.label_space``.

    Raises:
        DataError: If the file is no image.

    Example:
        >>> import engines
        >>> with engines.open_model("adapted.onnx") as model:
        ...     labels = engines.segment(model, "frames/images/000000.png")
        >>> labels.dtype
        dtype('uint8')
    """
    if isinstance(frame, str | Path):
        frame = read_frame(Path(frame), model.spec.preprocessing.geometry)
    return run_on(model, frame)


def benchmark(
    models: AnyPath | Sequence[AnyPath],
    target: AnyPath,
    out: AnyPath | None = None,
    *,
    samples: int = 700,
    fps: float | None = None,
    device: DeviceName | Sequence[DeviceName] = "cpu",
    threads: int | None = None,
    repeats: int = 3,
    deadline_ms: float | None = None,
) -> BenchRecord:
    """Measure the latency of models on this machine, from a frame in memory to its label map.

    Args:
        models: ONNX files or engines; the first is the baseline of the ratios.
        target: Footage to run them on.
        out: Record to write, with every sample beside it; None writes nothing.
        samples: Frames measured per model.
        fps: Frames per second of a camera; None feeds frames back to back.
        device: Where ONNX files run; one for all, or one for each.
        threads: Threads of one operator; None takes every usable core.
        repeats: Times everything is opened, warmed up and measured anew.
        deadline_ms: Longest time of a frame allowed.

    Returns:
        Percentiles with intervals, speed ratios and the machine's state.

    Raises:
        EdgeudaError: See `engines.bench.measure.bench`.

    Example:
        >>> import engines
        >>> record = engines.benchmark("adapted.onnx", "frames", samples=33, repeats=1)
        >>> record.models[0].stages["total"].percentiles["50"] > 0
        True
    """
    paths = [Path(models)] if isinstance(models, str | Path) else [Path(path) for path in models]
    arrival = Load(samples=samples) if fps is None else Load("frame rate", samples=samples, fps=fps)
    return bench(
        paths, frame_folder(Path(target), learnt=True),
        None if out is None else Path(out), load=arrival, threads=threads, device=device,
        repeats=repeats, deadline_ms=deadline_ms,
    )  # fmt: skip


def evaluate(
    model: AnyPath,
    data: AnyPath,
    *,
    name: str | None = None,
    device: DeviceName = "cpu",
    threads: int | None = None,
    stored: str | LabelSpace | None = None,
    ignore_unmapped: bool = False,
    boundary: float | None = None,
) -> Evaluation:
    """Score an exported model on labelled images, as the vehicle runs it.

    Args:
        model: ONNX file, engine or bundle; `edgeuda.evaluate` scores checkpoints.
        data: Labelled images, see `edgeuda.data.folders.labelled_folder`.
        name: What tables call it; by default the file's name.
        device: Where an ONNX file runs.
        threads: Threads of one operator; None takes every usable core.
        stored: Label space of the label files, where the folder does not say it.
        ignore_unmapped: Whether classes that the model lacks may be ignored.
        boundary: See `edgeuda.accuracy.scoring.score`.

    Raises:
        EdgeudaError: One of its kinds, with what was expected, found, and what to do.

    Example:
        >>> import engines
        >>> found = engines.evaluate("adapted.onnx", "labelled")
        >>> found.precision
        'fp32'
    """
    path = Path(model)
    return score_exported(
        path, Path(data), name or path.stem, threads=threads, device=device,
        stored=label_space(stored) if isinstance(stored, str) else stored,
        ignore_unmapped=ignore_unmapped, boundary=boundary,
    ).evaluation  # fmt: skip


def write_bundle(
    models: Sequence[AnyPath],
    out: AnyPath,
    *,
    records: Sequence[AnyPath] = (),
    recipe: AnyPath | None = None,
    licences: Sequence[AnyPath] = (),
    private_key: AnyPath | None = None,
) -> Bundle:
    """Pack forms of one network, their calibration, metrics and licences into one checked file.

    Args:
        models: ONNX files of one network.
        out: File to write, ending in ``.edgeuda``.
        records: JSON records of their metrics.
        recipe: Recipe of the training.
        licences: Terms under which the vehicle may run it.
        private_key: Ed25519 key, PEM without a password, to sign with.

    Returns:
        The bundle as `open_bundle` reads it.

    Raises:
        BundleError: If the models are not of one network, or a file cannot be read.
        OutputExistsError: If ``out`` exists.

    Example:
        >>> import engines
        >>> bundle = engines.write_bundle(["adapted.onnx"], "vehicle.edgeuda")
        >>> sorted(bundle.members)
        ['models/adapted.onnx']
    """
    pack(
        [Path(path) for path in models], Path(out),
        records=[Path(path) for path in records],
        recipe=None if recipe is None else Path(recipe),
        licences=[Path(path) for path in licences],
        private_key=None if private_key is None else Path(private_key),
    )  # fmt: skip
    return read_bundle(Path(out))


def open_bundle(path: AnyPath, public_key: AnyPath | None = None) -> Bundle:
    """Read a bundle after checking every byte of it.

    Args:
        path: The bundle.
        public_key: Ed25519 key whose signature it must have.

    Raises:
        BundleError: If anything differs from its manifest, or the signature is not by that key.

    Example:
        >>> import engines
        >>> engines.open_bundle("vehicle.edgeuda").signed
        False
    """
    return read_bundle(Path(path), None if public_key is None else Path(public_key))
