"""The one entry: lists the benchmarks, runs one, or makes the page of their figures.

python -m benchmarks                                 what there is, and what each needs
python -m benchmarks NAME [--quick] [--out JSON] ... runs one; NAME --help says what it takes
python -m benchmarks --page                          makes docs/benchmarks.md of benchmarks/results
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.result import enveloped
from edgeuda.files import write_json

HERE = Path(__file__).parent


def catalogue() -> dict[str, tuple[str, str]]:
    """Return the first sentence of every benchmark and what it needs; nothing is imported."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NEEDS":
                about = (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")
                found[path.stem] = about, ast.literal_eval(node.value)
    return found


def parser_of(name: str, quick: bool = False) -> argparse.ArgumentParser:
    """Return what reads the arguments of a benchmark."""
    module = import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a form that ends in seconds")
    parser.add_argument("--out", type=Path, help="where to write the result, else it is printed")
    module.options(parser)
    if quick:
        parser.set_defaults(**module.QUICK)
    return parser


def run(name: str, arguments: Sequence[str]) -> tuple[dict, Path | None]:
    """Run a benchmark; returns its result in its envelope, and the file that was asked for."""
    given = parser_of(name, "--quick" in arguments).parse_args(arguments)
    measure = import_module(f"benchmarks.{name}").measure
    return enveloped(name, lambda: measure(given), arguments, given.quick), given.out


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    known = catalogue()
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").partition("\n\n")[2])
        for name, (about, needs) in known.items():
            print(f"{name}\n    {about}\n    Needs {needs}.")
        return 0
    if arguments[0] == "--page":
        from benchmarks.page import PAGE, page

        PAGE.write_text(page(), encoding="utf-8")
        return 0
    name = arguments[0].replace("-", "_")
    if name not in known:
        print(f"{name}: expected one of {', '.join(known)}", file=sys.stderr)
        return 2
    result, out = run(name, arguments[1:])
    if out is None:
        print(json.dumps(result, indent=1))
    else:
        write_json(out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
