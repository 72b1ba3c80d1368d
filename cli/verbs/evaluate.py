"""Score a model on labelled images."""

from __future__ import annotations

import csv
import io
import re
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import options
from cli.verbs.shared import console, parse_size, space_or_none, wrote
from edgeuda.errors import ConfigError, require
from edgeuda.files import require_absent, sha256, write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeuda.accuracy.evaluation import Confusion
    from edgeuda.data.images import Image, LabelMap
    from edgeuda.models.predictor import TestTime
    from edgeuda.spec import ModelSpec


def evaluate(
    model: options.AnyModel,
    data: options.Data,
    out: options.Out,
    name: options.Name = None,
    label_space: options.LabelSpaceName = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    native: Annotated[
        bool, typer.Option("--native", help="Resize scores, not labels, to the frame.")
    ] = False,
    scales: Annotated[
        str, typer.Option(help="Sizes to look at, relative to the input: 0.75,1,1.25.")
    ] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Look at the mirror image too.")] = False,
    window: Annotated[
        bool, typer.Option("--window", help="Slide a window over frames at native resolution.")
    ] = False,
    window_size: Annotated[
        str | None,
        typer.Option(help="Rows and columns of the window: 1024x1024; by default the input's."),
    ] = None,
    stride: Annotated[
        float, typer.Option(help="From a window to the next, as a share of its side.")
    ] = 5 / 6,
    boundary: Annotated[
        float | None,
        typer.Option(help="Boundary IoU too; width as a share of the diagonal, Cityscapes 0.005."),
    ] = None,
    tables: Annotated[
        bool, typer.Option("--csv", help="Write CSV beside --out: per class and per image.")
    ] = False,
    threads: options.Threads = None,
    device: options.RunDevice = options.DeviceName.cpu,
    graphs: options.Graphs = True,
) -> None:
    """Score a checkpoint or an ONNX file: per-class IoU, mIoU, pixel accuracy."""
    written = [out]
    if tables:
        written += [out.with_suffix(f".{what}.csv") for what in ("classes", "images")]
    for path in written:
        require_absent(path)
    from edgeuda.accuracy.boundary import BoundaryCounts
    from edgeuda.accuracy.evaluation import DEPLOYED, Evaluation, class_rows, image_row, table
    from edgeuda.accuracy.evaluation import evaluate as count
    from edgeuda.data.folders import labelled_folder
    from edgeuda.data.treatment import applied_to

    title, protocol = name or model.stem, DEPLOYED
    passes: list[dict[str, Any]] | None = None
    deployed = model.suffix in (".onnx", ".engine", ".edgeuda")
    predict: Callable[[Image], LabelMap]
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    with ExitStack() as stack:
        if deployed:
            from engines.opening import open_runner
            from engines.runner import segment

            if native or flip or window or window_size or scales != "1":
                msg = (
                    f"{model}: an exported model gives labels, not scores. --native, --scales, "
                    "--flip, --window and --window-size need the checkpoint"
                )
                raise ConfigError(msg)
            runner = stack.enter_context(open_runner(model, threads, device.value, graphs=graphs))
            predict, spec, precision = partial(segment, runner), runner.spec, runner.precision
            file = model
        else:
            if device is not options.DeviceName.cpu:
                msg = (
                    f"{model}: a checkpoint is scored on the CPU, found --device {device.value}. "
                    "Export it, or leave --device out"
                )
                raise ConfigError(msg)
            require("torch", "train")
            from edgeuda.models.predictor import ScorePredictor, TestTime

            how = TestTime(
                _scales(scales),
                flip,
                window,
                native,
                None if window_size is None else parse_size("--window-size", window_size),
                stride,
            )
            predict, spec, file = _network(model, threads, how)
            protocol = how.protocol
        folder = labelled_folder(
            data, spec.label_space, space_or_none(label_space), ignore_unmapped=ignore_unmapped,
            geometry=spec.preprocessing.geometry,
        )  # fmt: skip
        outlines = None if boundary is None else BoundaryCounts(len(folder.space), boundary)
        images: list[Confusion] = []
        counts = count(predict, folder, len(folder.space), each=images.append, outlines=outlines)
        if not deployed and isinstance(predict, ScorePredictor):
            passes = predict.passes_record()
    evaluation = Evaluation(
        # The vehicle will not see a score of several passes: the name says so wherever it goes.
        title if protocol == DEPLOYED else f"{title} ({protocol})",
        str(file), sha256(file), "onnx" if deployed else "checkpoint", precision,
        str(data), len(folder), folder.labels_sha256(), folder.space, counts, protocol,
        None if outlines is None else outlines.to_record(folder.space), passes,
    )  # fmt: skip
    shown = applied_to([pair.image for pair in folder.pairs], spec.preprocessing.geometry)
    write_json(out, {**evaluation.to_record(), **shown})
    if tables:
        _write_csv(written[1], class_rows(evaluation))
        named = zip(folder.pairs, images, strict=True)
        rows = [image_row(str(pair.image), found, folder.space) for pair, found in named]
        _write_csv(written[2], rows)
    console.print(table([evaluation]))
    if outlines is not None:
        console.print(f"boundary mIoU, {boundary:g} of the diagonal: {100 * outlines.miou:.1f}")
    wrote(*written, then=f"edgeuda report {options.typed(out)} --out report.html")


def _network(
    model: Path, threads: int | None, how: TestTime
) -> tuple[Callable[[Image], LabelMap], ModelSpec, Path]:
    """Return how a checkpoint predicts, its spec and its file."""
    torch = require("torch", "train")
    from edgeuda.accuracy.evaluation import DEPLOYED
    from edgeuda.models.checkpoint import load_model, model_file
    from edgeuda.models.fused import fused
    from edgeuda.models.predictor import Predictor, ScorePredictor

    if threads is not None:
        torch.set_num_threads(threads)
    network, spec = load_model(model)
    network = fused(network)
    plain = how.protocol == DEPLOYED
    predict = Predictor(network, spec) if plain else ScorePredictor(network, spec, how)
    return predict, spec, model_file(model)


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(scale) for scale in text.split(","))
    except ValueError as err:
        msg = f"--scales: expected numbers between commas, found {text!r}"
        raise ConfigError(msg) from err


def _cell(text: str) -> str:
    """Return a cell that a spreadsheet takes for text, whatever a file is called."""
    number = re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", text)
    return text if number or not text.startswith(("=", "+", "-", "@", "\t", "\r")) else f"'{text}"


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())
