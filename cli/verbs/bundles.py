"""Make, look at and check bundles for the vehicle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.verbs.shared import console, say, wrote
from edgeuda.errors import printable

if TYPE_CHECKING:
    from engines.bundle import Bundle

BundleFile = Annotated[Path, typer.Argument(help="Bundle to read, an .edgeuda file.")]


def bundle(
    model: Annotated[
        list[Path], typer.Option("--model", help="ONNX file in FP32, FP16 or INT8 (repeatable).")
    ],
    out: options.Out,
    record: Annotated[
        list[Path] | None,
        typer.Option(help="JSON record of scores or latencies to pack (repeatable)."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe.toml of the run that made the network.")
    ] = None,
    licence: Annotated[
        list[Path] | None, typer.Option(help="Licence of the network or of its data (repeatable).")
    ] = None,
    acceptance: Annotated[
        Path | None,
        typer.Option(
            help="Folder of frames: four of them go along, with what each model makes of them, so "
            "that `install` can try it on the vehicle.",
        ),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="Ed25519 private key to sign with, PEM without a password.")
    ] = None,
) -> None:
    """Pack models, their calibration, metrics and licences into one checked file."""
    from engines.packing import pack

    pack(
        model, out, records=record or (), recipe=recipe, licences=licence or (), private_key=sign,
        acceptance=acceptance,
    )  # fmt: skip
    if not licence:
        console.print("no --licence was given: say under which terms the vehicle may run it")
    wrote(out, then=f"edgeuda verify {options.typed(out)}")


def inspect(path: BundleFile) -> None:
    """Say what a bundle holds, after checking every byte of it."""
    from engines.bundle import open_bundle

    _show(open_bundle(path))


def verify(
    path: BundleFile,
    public_key: options.PublicKey = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder that the bundle is unpacked into, once it was checked.",
            **options.WRITTEN,
        ),
    ] = None,
) -> None:
    """Check a bundle's names, sizes, checksums and, with a key, its signature."""
    from engines.bundle import open_bundle

    found = open_bundle(path, public_key)
    console.print(
        f"{path}: {len(found.members)} files are what the manifest lists"
        + (", signed" if found.signed else ", signature not checked"), soft_wrap=True,
    )  # fmt: skip
    if out is not None:
        wrote(*found.extract(out))


def _show(found: Bundle) -> None:
    from rich.table import Table

    spec = found.manifest.spec
    size = spec.get("preprocessing", {})
    console.print(
        f"{spec.get('architecture')} for {spec.get('label_space', {}).get('name')}, "
        f"{size.get('height')}x{size.get('width')}, made {found.manifest.created} "
        f"by EdgeUDA {found.manifest.edgeuda}"
    )
    if (lineage := found.manifest.lineage) is not None:
        say(f"network {(lineage.network or 'unknown')[:12]}")
        if (learned := lineage.learned) is not None:
            new, old = (
                f"{one.count} {name} frame{'s' * (one.count != 1)}"
                for name, one in (("new", learned.new), ("old", learned.old))
            )
            say(
                f"  adapted to {new} beside {old}; old ones were {100 * learned.replay_share:g} % "
                f"of what it learned from frames; recipe {learned.recipe_sha256[:12]}"
            )
        if lineage.driven is not None:
            say(f"  adapted on a vehicle with {printable(str(lineage.driven))}")
        for one in lineage.ancestors:
            say(
                f"  before it: bundle {one.bundle[:12]} of {printable(one.created)}, network "
                f"{(one.network or 'unknown')[:12]}"
            )
    table = Table("file", "role", "bytes", "about")
    for member in found.members.values():
        about = ", ".join(f"{k} {v}" for k, v in member.about.items() if v is not None)
        table.add_row(member.name, member.role, str(member.size), about)
    console.print(table)
