"""The FP32 model that is quantized: as exported, or with statistics of new footage."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.batch_norm import adapt_batch_norm
from calibration.frames import FrameFiles, Frames
from calibration.observe import Observer
from calibration.options import Options, Report
from calibration.range_file import RangeOrigin
from edgeuda.accuracy.evaluation import Confusion, evaluate, miou_of
from edgeuda.data.images import resize_image, resize_label
from edgeuda.errors import ModelError, OutputExistsError, require
from edgeuda.files import sha256, sha256_of, write_bytes
from edgeuda.records.identity import Identity
from edgeuda.records.names import ProviderName
from edgeuda.spec import ModelSpec, Preprocessing
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.metadata import IDENTITY_KEY, identity_in, precision_of, spec_of

if TYPE_CHECKING:
    import onnx

    from edgeuda.data.folders import LabelledFolder
    from edgeuda.data.images import Image, LabelMap

logger = logging.getLogger(__name__)

ADAPTED_KEY = "edgeuda.adapted"
"""From what an FP32 model was made whose statistics were estimated anew."""


def load_fp32(path: Path) -> tuple[onnx.ModelProto, ModelSpec]:
    """Read an FP32 model of this project.

    Raises:
        ModelError: If it is missing, broken, not of this project, or quantized.
        DependencyError: If ``onnx`` is not installed.
    """
    proto = load_graph(path, "quantize")
    metadata = metadata_of(proto)
    spec = spec_of(metadata, str(path))
    operators = {node.op_type for node in proto.graph.node}
    if precision_of(metadata) != "fp32" or "QuantizeLinear" in operators:
        msg = f"{path}: expected an FP32 model, found a quantized one. Calibrate the exported file"
        raise ModelError(msg)
    return proto, spec


def origin_of(model: onnx.ModelProto, sums: Sequence[str], size: Preprocessing) -> RangeOrigin:
    """Return what ranges or a cache of a graph on frames, given by checksum, are made from."""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return RangeOrigin(digest, tuple(sums), size.height, size.width)


def adapted_path(out: Path) -> Path:
    """Return where the FP32 model with new batch-norm statistics lies."""
    return out.with_name(f"{out.stem}.fp32.onnx")


def adapted_model(
    model: Path,
    proto: onnx.ModelProto,
    frames: Sequence[Path],
    sums: Sequence[str],
    out: Path,
    size: Preprocessing,
    options: Options,
    report: Report,
) -> tuple[Path, onnx.ModelProto]:
    """Write the FP32 model with the frames' statistics, or take the one an earlier call wrote."""
    path = adapted_path(out)
    origin = json.dumps({"model_sha256": sha256(model), "frames_sha256": sha256_of(sums)})
    if path.exists():
        written, _ = load_fp32(path)
        if metadata_of(written).get(ADAPTED_KEY) != origin:
            msg = (
                f"{path}: exists, made from another model or other frames; nothing was overwritten"
            )
            raise OutputExistsError(msg)
        return path, written
    adapted, kept = renewed(
        proto,
        FrameFiles.of(frames, size),
        str(model),
        origin,
        threads=options.threads,
        device=options.device,
        progress=partial(report, "estimating batch-norm statistics"),
    )
    if kept:
        logger.warning("Statistics kept, as these frames hardly vary: %s", ", ".join(kept))
    write_bytes(path, adapted.SerializeToString())
    return path, adapted


def renewed(
    proto: onnx.ModelProto,
    frames: Frames,
    name: str,
    origin: str,
    *,
    prior: float = 0.0,
    layers: Sequence[str] = ("*",),
    threads: int | None = None,
    device: ProviderName = "cpu",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[onnx.ModelProto, list[str]]:
    """Return an FP32 graph with the frames' statistics, which says that it is another network.

    Args:
        proto: The graph.
        frames: See `adapt_batch_norm`, as are the rest and what is returned.
        name: Names the file in errors.
        origin: What it says that it was made from, JSON.
        prior: Frames that the old statistics count for.
        layers: Patterns of the weights whose statistics are estimated.
        threads: Threads of ONNX Runtime.
        device: Where it executes.
        progress: Called with batches done and batches to do.
    """
    onnx = require("onnx", "quantize")
    adapted, kept = adapt_batch_norm(
        proto, frames, name, prior=prior, layers=layers, threads=threads, device=device,
        progress=progress,
    )  # fmt: skip
    properties = {**metadata_of(adapted), ADAPTED_KEY: origin}
    known = identity_in(properties, name)
    if known is not None:
        properties[IDENTITY_KEY] = _renewed(known, origin).to_json()
    onnx.helper.set_model_props(adapted, properties)
    return adapted, kept


def _renewed(known: Identity, origin: str) -> Identity:
    """Return which network one with statistics of target frames is: another, and an adapted one."""
    return Identity(
        "adapted",
        sha256_of([known.network, origin]),  # there is no checkpoint of it
        (*known.methods, "adabn on the graph"),
        (known.network, *known.ancestors),
        known.recipe,
    )


def confusion_of(
    model: onnx.ModelProto, labelled: LabelledFolder, spec: ModelSpec, threads: int | None = None
) -> Confusion:
    """Count what a graph predicts as deployed; returns ``[K, K]``, rows truth."""
    observe, size = Observer(model, threads), spec.preprocessing

    def predict(image: Image) -> LabelMap:
        labels = observe(resize_image(image, size.height, size.width)[None]).labels
        return resize_label(labels, *image.shape[:2])

    return evaluate(predict, labelled, len(labelled.space))


def miou(
    model: onnx.ModelProto, labelled: LabelledFolder, spec: ModelSpec, threads: int | None = None
) -> float:
    """Score a graph as deployed; returns mIoU, 0 to 1."""
    return miou_of(confusion_of(model, labelled, spec, threads))
