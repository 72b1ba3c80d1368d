"""The command line: one module per verb, imported with its libraries only when it runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("edgeuda", "engines", "calibration", "cli")


def main() -> None:
    """Run the command line; our errors become one message and an exit code."""
    root = Path(__file__).resolve().parents[1]
    shadow = shadowing(root)
    if shadow:
        sys.exit(f"Error: {shadow}")
    from cli.app import run

    sys.exit(run())


def shadowing(root: Path) -> str | None:
    """Return a message if one of the four packages would be imported from elsewhere.

    Args:
        root: The folder this ``cli`` was imported from.
    """
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        places = [] if found is None else [Path(p) for p in found.submodule_search_locations or []]
        if (root / name) not in [place.resolve() for place in places]:
            where = ", ".join(map(str, places)) or "nowhere"
            return (
                f"expected package {name!r} in {root}, found it in {where}. Remove that "
                "folder from the working directory or PYTHONPATH; it shadows EdgeUDA's own"
            )
    return None
