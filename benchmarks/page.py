"""Makes docs/benchmarks.md: every figure of benchmarks/results, its peer, its limit, by processor.

python -m benchmarks --page
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.__main__ import catalogue
from benchmarks.figures import FIGURES, Figure
from benchmarks.result import ROOT, SCHEMA
from edgeuda.files import read_json

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Every figure of `benchmarks/results`, each cell with a link to its record: what was measured, with which commit, versions and
command, on what, and how busy the machine was. Nothing here was typed: `python -m benchmarks --page` makes this page, and a test
says when it is stale. `python -m benchmarks` lists the benchmarks and what each needs, `python -m benchmarks NAME --out
benchmarks/results/FILE.json` runs one.

Whoever is compared takes turns in one process, so ratios are worth more than milliseconds: these machines were shared with other
work. A ratio is ours to the peer's, unless it says "times as fast". A **missed** limit is a goal that was not reached; where no
limit stands, none was set. Records from before the common envelope tell of versions and commit what their benchmark kept then.
"""  # noqa: E501
OLD = {
    "edgeuda.comparison/1": "adaptation_tracks",
    "edgeuda.demos/1": "demo",
    "edgeuda.label-free/1": "label_free_ranking",
    "edgeuda.benchmark.int8-accuracy/1": "int8_accuracy",
    "edgeuda.benchmark.int8-openvino/1": "int8",
    "edgeuda.benchmark.batch-norm/1": "batch_norm_on_graph",
}
"""Schemas of records without an envelope whose file is not called as their benchmark."""


@dataclass(frozen=True)
class Result:
    """One file of results.

    Attributes:
        path: The file.
        benchmark: Which wrote it.
        processor: On what it was measured.
        date: When, empty where it was not kept.
        payload: What was found.
    """

    path: Path
    benchmark: str
    processor: str
    date: str
    payload: dict[str, Any]


def results() -> Iterator[Result]:
    """Read all files; those that verbs wrote (evaluations, sweeps) are no benchmark's."""
    for path in sorted(RESULTS.glob("*.json")):
        record = read_json(path)
        if record["schema"] == SCHEMA:
            if record["quick"]:
                msg = f"{path}: expected a full result, found the short form, which says nothing"
                raise ValueError(msg)
            yield Result(
                path, record["benchmark"], processor(record["machine"]), record["date"],
                record["result"],
            )  # fmt: skip
            continue
        stem = path.stem.replace("-", "_")
        named = [name for name in FIGURES if stem.startswith(name)]
        name = OLD.get(record["schema"], named[0] if named else None)
        if name is not None:
            machine = record.get("machine") or record["demos"][0]["machine"]
            yield Result(path, name, processor(machine), "", record)


def processor(machine: Any) -> str:
    """Return the heading of a processor's column."""
    if not isinstance(machine, dict):
        return f"{machine}, not told further"
    flags = machine["cpu_flags"].replace("_", "-")
    return f"{machine['cpu']}, {machine['cores_usable']} cores, {flags}"


def page() -> str:
    """Return the page."""
    found: dict[str, list[Result]] = {}
    for result in results():
        found.setdefault(result.benchmark, []).append(result)
    about = catalogue()
    known = (name for name in FIGURES if name in found)
    parts = (f"## {name}\n\n{about[name][0]}\n\n{table(found[name])}\n" for name in known)
    return "\n".join([HEAD, *parts])


def table(found: list[Result]) -> str:
    """Return one row per figure and peer, one column per processor; the newest result counts."""
    processors = sorted({result.processor for result in found})
    rows: dict[tuple[str, str], dict[str, tuple[Figure, Path]]] = {}
    for result in sorted(found, key=lambda one: (one.date, one.path.name)):
        for figure in FIGURES[result.benchmark](result.payload | {"file": result.path.stem}):
            row = rows.setdefault((figure.what, figure.peer), {})
            row[result.processor] = figure, result.path
    lines = [
        f"| | against | limit | {' | '.join(processors)} |", "|---" * (3 + len(processors)) + "|"
    ]  # fmt: skip
    for (what, peer), cells in rows.items():
        (first, _), *_ = cells.values()
        shown = [cell(*cells[name]) if name in cells else "" for name in processors]
        lines.append(f"| {what} | {peer} | {limit(first)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def cell(figure: Figure, path: Path) -> str:
    """Return a figure with its link."""
    link = f"[{figure.shown}](../benchmarks/results/{path.name})"
    return f"{link}, **missed**" if figure.missed else link


def limit(figure: Figure) -> str:
    """Return a limit in words."""
    if figure.limit is None:
        return ""
    return f"{'at least' if figure.least else 'at most'} {figure.limit:g}"
