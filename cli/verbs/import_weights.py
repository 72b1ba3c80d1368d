"""Convert a checkpoint of another project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import parse_size, say, space_or_none, wrote
from edgeuda.errors import ConfigError, require
from edgeuda.files import require_absent


def import_weights(
    weights: Annotated[
        Path,
        typer.Option(
            "--weights", help="Weights of another project: a .pth, .pt or .safetensors file."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Model file to write, a .safetensors file.", **options.WRITTEN),
    ],
    label_space: Annotated[
        str | None,
        typer.Option(
            help="Label space it was trained on; by default cityscapes-19 where it has 19 classes."
        ),
    ] = None,
    weights_key: Annotated[
        str | None,
        typer.Option(
            help="Where in the file the network lies if it holds several, for example ema."
        ),
    ] = None,
    size: Annotated[
        str, typer.Option("--input", help="Input size of the network in pixels, HEIGHTxWIDTH.")
    ] = "512x1024",
) -> None:
    """Convert a segmentation network trained elsewhere, so that every verb takes it."""
    for package in ("torch", "safetensors"):
        require(package, "train")
    require_absent(out)
    if out.suffix != ".safetensors":
        msg = f"{out}: expected the name of a .safetensors file"
        raise ConfigError(msg)
    rows, columns = parse_size("--input", size)
    from edgeuda.models.checkpoint import save_model
    from edgeuda.models.foreign import import_checkpoint

    space = space_or_none(label_space)
    found = import_checkpoint(weights, space, (rows, columns), weights_key)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(found.model, found.spec, out)
    pre = found.spec.preprocessing
    lines = [
        f"{weights}: {found.origin.name}, as {found.spec.architecture}",
        f"  classes: {len(found.spec.label_space)}, {found.spec.label_space.name}",
        f"  input: mean {_triple(pre.mean)}, std {_triple(pre.std)} (RGB, 0 to 1)",
        f"  matched: {len(found.matched)} tensors",
        f"  left out: {_some(found.left_out)}",
        f"  not in the file, left new: {', '.join(found.new) or 'none'}",
    ]
    if found.origin.remark:
        lines.append(f"  {found.origin.remark}")
    for line in lines:
        say(line)
    wrote(
        out,
        then=options.command("adapt", model=out, source="SOURCE", target="FRAMES", out="ADAPTED"),
    )


def _some(keys: tuple[str, ...]) -> str:
    """Return some of many keys: an optimiser's state holds thousands."""
    more = f" and {len(keys) - 20} more" if len(keys) > 20 else ""
    return (", ".join(keys[:20]) or "none") + more


def _triple(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
