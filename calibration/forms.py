"""Every form in which a network is deployed: heads by arithmetics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from calibration.half_precision import write_half
from calibration.options import Options
from calibration.quantize import calibrate
from edgeuda.errors import ModelError, require
from edgeuda.records.names import Head
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.heads import SMALL, with_head
from engines.onnx.metadata import EXPORT_KEY, export_of, precision_of

ARITHMETICS = ("fp32", "fp16", "int8", "int8+fp16")
LEAST_AGREEMENT = 0.9
"""Of half precision with the form it is made from, below which it is not worth comparing."""


def write_forms(
    model: Path,
    frames: Sequence[Path],
    folder: Path,
    *,
    threads: int | None = None,
    least_agreement: float = LEAST_AGREEMENT,
) -> Mapping[tuple[Head, str], Path]:
    """Write an FP32 model with every head it can have, each in all `ARITHMETICS`.

    Args:
        model: An exported FP32 model with head ``labels`` or ``logits``.
        frames: Frames of the target domain that ranges come from.
        folder: Where the files go.
        threads: As in `open_session`.
        least_agreement: As in `write_half`.

    Returns:
        Files by head and arithmetic.

    Raises:
        ModelError: If the model is not FP32, or has a smaller head already.
        EdgeudaError: If a form cannot be made.
    """
    onnx = require("onnx", "quantize")
    proto = load_graph(model, "quantize")
    metadata = metadata_of(proto)
    export = export_of(metadata, str(model))
    if precision_of(metadata) != "fp32" or export.head in SMALL:
        msg = (
            f"{model}: expected an FP32 model with head labels or logits, found "
            f"{precision_of(metadata)} with {export.head}. Other forms are made from it"
        )
        raise ModelError(msg)
    files: dict[tuple[Head, str], Path] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for head in (export.head, *SMALL):
        path = folder / f"{head}-fp32.onnx"
        made = proto if head == export.head else with_head(proto, head)
        text = export.to_json().replace(f'"head": "{export.head}"', f'"head": "{head}"')
        onnx.helper.set_model_props(made, {**metadata, EXPORT_KEY: text})
        content = made.SerializeToString()
        path.write_bytes(content)
        half, int8, both = (folder / f"{head}-{name}.onnx" for name in ("fp16", "int8", "both"))
        calibrate(path, frames, int8, Options("tensorrt", threads=threads))
        for source, out in ((path, half), (int8, both)):
            write_half(source, frames[:8], out, least_agreement=least_agreement, threads=threads)
        files |= {
            (head, arithmetic): file
            for arithmetic, file in zip(ARITHMETICS, (path, half, int8, both), strict=True)
        }
    return files
