"""Compare what two forms of a model say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.verbs.shared import console, wrote
from edgeuda.errors import ModelError
from edgeuda.files import require_absent, sha256, write_json
from edgeuda.records import schemas

if TYPE_CHECKING:
    import onnx

    from edgeuda.spec import ModelSpec


def diff(
    first: Annotated[
        Path, typer.Argument(help="ONNX file, or BUNDLE.edgeuda/models/NAME.onnx inside a bundle.")
    ],
    second: Annotated[Path, typer.Argument(help="The other one, likewise.")],
    target: options.Target,
    out: options.Out,
    frames: options.Frames = 32,
    threads: options.Threads = None,
) -> None:
    """Compare two models or bundles on frames: classes, confidence, and the scores behind them."""
    require_absent(out)
    from calibration.acceptance import judge
    from calibration.frames import FrameFiles
    from calibration.observe import Observer
    from edgeuda.data.folders import readable_frames, spread
    from edgeuda.data.treatment import applied_to
    from edgeuda.records.calibration import Limits

    (one, spec, one_sum), (two, other, two_sum) = _load(first), _load(second)
    if spec.label_space != other.label_space or spec.preprocessing != other.preprocessing:
        msg = f"{second}: has other classes or another input than {first}"
        raise ModelError(msg)
    size = spec.preprocessing
    chosen = spread(readable_frames(target, size.geometry), frames)
    found = judge(
        Observer(one, threads),
        Observer(two, threads),
        FrameFiles.of(chosen, size),
        [path.name for path in chosen],
        spec.label_space,
        Limits(0, 0),
    )
    record = found.to_record()
    for key in ("accepted", "limits", "reasons"):
        del record[key]
    write_json(
        out,
        {
            "schema": schemas.DIFF,
            "models": [
                {"file": str(path), "sha256": digest}
                for path, digest in ((first, one_sum), (second, two_sum))
            ],
            **applied_to(chosen, size.geometry),
            **record,
        },
    )
    console.print(
        f"{found.agreement:.3%} of the pixels of {len(chosen)} frames have the same class, in the "
        f"worst frame {min(found.frame_agreement):.3%}; class probabilities diverge by "
        f"{found.divergence:.5f} nats, confidence by {100 * found.confidence_shift:+.2f} points"
    )
    wrote(out)


def _load(path: Path) -> tuple[onnx.ModelProto, ModelSpec, str]:
    """Return graph, spec and checksum of a file or of a bundle's member."""
    from engines.bundle import SUFFIX, open_bundle
    from engines.onnx.graphs import load_graph, metadata_of
    from engines.onnx.metadata import spec_of

    inside = next((p for p in path.parents if p.suffix == SUFFIX), None)
    if inside is None:
        proto, digest = load_graph(path, "quantize"), sha256(path)
    else:
        bundle = open_bundle(inside)
        name = path.relative_to(inside).as_posix()
        proto = load_graph(path, "quantize", content=bundle.read(name))
        digest = bundle.members[name].sha256
    return proto, spec_of(metadata_of(proto), str(path)), digest
