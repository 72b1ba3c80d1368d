"""Draw each package as its rooms and files in floors, with arrows along the imports.

    python docs/site/pictures.py

Whatever stands on a floor imports only from floors below. An arrow that follows from others is
left out, and so are imports of other packages. A test compares the pictures with the code.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edgeuda", "engines", "calibration", "cli")
WIDTH, LINE, GAP, RISE, MARGIN = 980, 15, 18, 46, 12
STYLE = (
    "text{font:12px sans-serif;fill:#222}.room{fill:#d5ebe7;stroke:#00796b}"
    ".file{fill:#f4f4f4;stroke:#999}.name{font-weight:bold}path{fill:none;stroke:#888}"
    "rect.paper{fill:#fff}"
)


def main() -> None:
    """Write the four pictures."""
    for package in PACKAGES:
        picture_of(package).write_text(draw(package), encoding="utf-8")


def picture_of(package: str) -> Path:
    """Return the file of a package's picture."""
    return ROOT / "docs" / f"architecture-{package}.svg"


def imports(package: str) -> dict[str, set[str]]:
    """Return for each room and file of a package which others of it are imported there."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        if parts in (("__init__",), ("__main__",)):
            continue
        used = found.setdefault(parts[0], set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            used |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return {name: (used & found.keys()) - {name} for name, used in found.items()}


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the names floor by floor, the lowest first."""
    level: dict[str, int] = {}

    def height(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in level:
            below = [n for n in sorted(graph[name]) if n not in (*above, name)]
            level[name] = 1 + max((height(n, (*above, name)) for n in below), default=-1)
        return level[name]

    for name in sorted(graph):
        height(name)
    return [sorted(n for n in graph if level[n] == at) for at in range(max(level.values()) + 1)]


def reduced(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return the imports that do not follow from others."""

    def reach(name: str, seen: set[str]) -> set[str]:
        for below in graph[name] - seen:
            seen.add(below)
            reach(below, seen)
        return seen

    return {
        (name, below)
        for name, all_below in graph.items()
        for below in all_below
        if not any(below in reach(other, set()) for other in all_below - {below})
    }


def draw(package: str) -> str:
    """Return the SVG of a package."""
    graph = imports(package)
    edges = reduced(graph)
    place: dict[str, tuple[float, float, float, float]] = {}
    y, shapes = float(MARGIN), []
    for floor in reversed(floors(graph)):
        ordered = sorted(floor, key=lambda name: (_wish(name, edges, place), name))
        for row in _rows([(name, _lines(package, name)) for name in ordered]):
            total = sum(_width(lines) for _, lines in row) + GAP * (len(row) - 1)
            x, tall = (WIDTH - total) / 2, max(len(lines) for _, lines in row) * LINE + 10
            for name, lines in row:
                wide = _width(lines)
                place[name] = (x, y, wide, len(lines) * LINE + 10)
                kind = "room" if (ROOT / package / name).is_dir() else "file"
                shapes.append(_box(*place[name], kind, lines))
                x += wide + GAP
            y += tall + RISE
    arrows = [_arrow(place[above], place[below]) for above, below in sorted(edges)]
    height = y - RISE + MARGIN
    marker = (
        '<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto">'
        '<path d="M0,0 L7,3 L0,6" /></marker>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}">',
            f"<title>Rooms and files of {package}, and what imports what</title>",
            f'<style>{STYLE}</style><defs>{marker}</defs><rect class="paper" width="100%" '
            'height="100%" />',
            *arrows,
            *shapes,
            "</svg>\n",
        ]
    )


def _lines(package: str, name: str) -> list[str]:
    """A box's text: a room's name and files, in lines of some forty characters."""
    folder = ROOT / package / name
    if not folder.is_dir():
        return [name]
    files = sorted(p.stem for p in folder.iterdir() if p.suffix == ".py" and p.stem[0] != "_")
    files += sorted(p.name + "/" for p in folder.iterdir() if (p / "__init__.py").exists())
    lines, line = [f"{name}/"], ""
    for file in files:
        if line and len(line) + len(file) > 38:
            lines.append(line)
            line = ""
        line = f"{line} {file}".strip()
    return [*lines, line] if line else lines


def _width(lines: list[str]) -> float:
    return max(len(line) for line in lines) * 6.8 + 16


def _rows(boxes: list[tuple[str, list[str]]]) -> list[list[tuple[str, list[str]]]]:
    """Break a floor that is wider than the page."""
    rows: list[list[tuple[str, list[str]]]] = [[]]
    wide = 0.0
    for box in boxes:
        if rows[-1] and wide + _width(box[1]) > WIDTH - 2 * MARGIN:
            rows.append([])
            wide = 0.0
        rows[-1].append(box)
        wide += _width(box[1]) + GAP
    return rows


def _wish(
    name: str, edges: set[tuple[str, str]], place: dict[str, tuple[float, float, float, float]]
) -> float:
    """Where a box would stand: below those that import it."""
    over = [
        place[above][0] + place[above][2] / 2 for above, n in edges if n == name and above in place
    ]
    return sum(over) / len(over) if over else WIDTH / 2


def _box(x: float, y: float, wide: float, tall: float, kind: str, lines: list[str]) -> str:
    first, *rest = (escape(line) for line in lines)
    rows = f'<tspan class="name" x="{x + 8:.0f}" dy="{LINE}">{first}</tspan>'
    rows += "".join(f'<tspan x="{x + 8:.0f}" dy="{LINE}">{line}</tspan>' for line in rest)
    return (
        f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{tall:.0f}" '
        f'rx="4" /><text x="{x + 8:.0f}" y="{y + 2:.0f}">{rows}</text>'
    )


def _arrow(
    above: tuple[float, float, float, float], below: tuple[float, float, float, float]
) -> str:
    x0, y0 = above[0] + above[2] / 2, above[1] + above[3]
    x1, y1 = below[0] + below[2] / 2, below[1]
    bend = (y0 + y1) / 2
    return (
        f'<path d="M{x0:.0f},{y0:.0f} C{x0:.0f},{bend:.0f} {x1:.0f},{bend:.0f} {x1:.0f},{y1:.0f}" '
        'marker-end="url(#tip)" />'
    )


if __name__ == "__main__":
    main()
