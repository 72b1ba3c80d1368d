"""Take the next network on a vehicle, go back to the one before, say which one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.verbs.shared import console, say
from edgeuda.errors import DataError

Into = Annotated[Path, typer.Option(help="Folder of the vehicle in which networks are kept.")]


def install(
    bundle: Annotated[Path, typer.Argument(help="Bundle of the next network, an .edgeuda file.")],
    into: Into,
    device: options.RunDevice = "cpu",
    threads: options.Threads = None,
    public_key: options.PublicKey = None,
    budget_ms: Annotated[
        float | None,
        typer.Option(help="Milliseconds that 95 of 100 frames may take at most; by default any."),
    ] = None,
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="Least share of pixels that must be as when the bundle was packed, in percent, "
            "where this machine rounds otherwise than that one; else all must be.",
        ),
    ] = 99,
    require_acceptance: Annotated[
        bool,
        typer.Option("--require-acceptance", help="Refuse a bundle without acceptance frames."),
    ] = False,
) -> None:
    """Check a bundle on this machine and make it current; the network before is kept."""
    from edgeuda.records.installation import Demands
    from engines.bundle_model import CURRENT
    from engines.installation import install

    done = install(
        bundle, into, device=device, threads=threads, public_key=public_key,
        demands=Demands(budget_ms, min_agreement / 100, require_acceptance),
    )  # fmt: skip
    told, taken = done.acceptance, done.milliseconds
    assert told is not None
    assert taken is not None
    if told.agreement is not None:
        must = "all have to be" if told.exact else f"{min_agreement:g} % have to be"
        say(
            f"{told.frames} acceptance frames: at least {100 * told.agreement:.3f} % of the pixels "
            f"of each are as expected; {must}"
        )
    budget = "no budget was given" if budget_ms is None else f"the budget is {budget_ms:g} ms"
    say(f"median {taken['50']:.1f} ms, 95th percentile {taken['95']:.1f} ms; {budget}")
    say(f"current: {bundle.name} ({done.sha256[:12]})")
    model = options.typed(into / CURRENT)
    say(f"next: edgeuda run --model {model} --target 0 --out DRIVE")


def fallback(
    into: Into,
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "asked for",
) -> None:
    """Make the network current again that ran before the last one was installed."""
    from engines.installation import fall_back

    done = fall_back(into, reason)
    say(f"current: {done.bundle} ({done.sha256[:12]})")


def installed(
    into: Annotated[Path, typer.Argument(help="Folder of the vehicle.")],
) -> None:
    """Say which network runs, which one ran before, and what happened so far."""
    from rich.table import Table

    from engines.bundle_model import CURRENT
    from engines.installation import PREVIOUS, read

    state = read(into)
    if not (into / CURRENT).is_symlink() and not state.history:
        msg = f"{into}: expected a folder that `install` was told of, found none"
        raise DataError(msg)
    for name in (CURRENT, PREVIOUS):
        link = into / name
        checksum = link.readlink().stem if link.is_symlink() else "none"
        come = [
            f"adapted on vehicle from {(one.parent or '')[:12]} with {one.driven}"
            for one in state.history
            if one.driven and one.sha256 == checksum
        ]
        say(f"{link.stem}: {', '.join([checksum[:12], *come[-1:]])}")
    for one in state.watched:
        say(
            f"{one.sha256[:12]}: {one.alarms} alarms in {one.hours:.2f} h of {one.drives} drives, "
            f"{one.per_hour:g} false ones in an hour accepted"
        )
    table = Table("when", "what", "bundle", "checksum", "made from", "why")
    for event in state.history:
        table.add_row(
            event.at, event.action, event.bundle, event.sha256[:12], (event.parent or "")[:12],
            event.reason,
        )  # fmt: skip
    if state.history:
        console.print(table)
