"""What two forms of a model say of the same frames."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.acceptance import judge
from calibration.frames import FrameFiles
from calibration.observe import Observer
from edgeuda.data.frames import frame_folder
from edgeuda.data.treatment import applied_to
from edgeuda.errors import ModelError
from edgeuda.files import sha256
from edgeuda.records.calibration import Agreement, Limits
from edgeuda.records.diff import DiffRecord
from edgeuda.records.predictions import ModelFile
from engines.api import AnyPath
from engines.bundle import SUFFIX, open_bundle
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.metadata import spec_of

if TYPE_CHECKING:
    import onnx

    from edgeuda.spec import ModelSpec


def diff(
    first: AnyPath,
    second: AnyPath,
    target: AnyPath,
    *,
    frames: int = 32,
    threads: int | None = None,
) -> DiffRecord:
    """Compare two models on frames: classes, confidence, and the scores behind them.

    Args:
        first: An ONNX file, or ``BUNDLE.edgeuda/models/NAME.onnx`` inside a bundle.
        second: The other one, likewise.
        target: Footage: a folder of frames or a list.
        frames: How many of them, spread evenly.
        threads: Threads of one operator; None takes every usable core.

    Returns:
        The comparison; printed, it is a sentence, and ``write`` writes it as JSON.

    Raises:
        ModelError: If they have other classes or other inputs.
        EdgeudaError: Others of its kinds, if a model or the frames cannot be read.

    Example:
        >>> import calibration
        >>> found = calibration.diff("adapted.onnx", "int8.onnx", "frames", frames=2)
        >>> 0 <= found.agreement <= 1
        True
    """
    first, second = Path(first), Path(second)
    (one, spec, one_sum), (two, other, two_sum) = _load(first), _load(second)
    if spec.label_space != other.label_space or spec.preprocessing != other.preprocessing:
        msg = f"{second}: has other classes or another input than {first}"
        raise ModelError(msg)
    size = spec.preprocessing
    footage = frame_folder(Path(target), size.geometry)
    chosen = footage.sample(frames)
    found = judge(
        Observer(one, threads),
        Observer(two, threads),
        FrameFiles.of(chosen, size),
        [path.name for path in chosen],
        spec.label_space,
        Limits(0, 0),
    )
    return DiffRecord(
        **{part.name: getattr(found, part.name) for part in fields(Agreement)},
        models=(ModelFile(str(first), one_sum), ModelFile(str(second), two_sum)),
        **applied_to(chosen, size.geometry),
        **footage.noted(),
    )


def _load(path: Path) -> tuple[onnx.ModelProto, ModelSpec, str]:
    """Return graph, spec and checksum of a file or of a bundle's member."""
    inside = next((p for p in path.parents if p.suffix == SUFFIX), None)
    if inside is None:
        proto, digest = load_graph(path, "quantize"), sha256(path)
    else:
        bundle = open_bundle(inside)
        name = path.relative_to(inside).as_posix()
        proto = load_graph(path, "quantize", content=bundle.read(name))
        digest = bundle.members[name].sha256
    return proto, spec_of(metadata_of(proto), str(path)), digest
