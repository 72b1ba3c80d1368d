"""The report: the JSON records of one project, merged into one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeuda import __version__
from edgeuda.errors import DataError, OutputExistsError
from edgeuda.files import now_utc, read_json, require_html, write_json, write_text
from engines.report.choice import choice_figures, choice_verdicts
from engines.report.findings import SIGNS, Finding, evidence, unknowns, verdicts
from engines.report.parts import Chapter, Strip
from engines.report.records import DAMAGE, REPORT_SCHEMA, Records, read_records
from engines.report.sections import before_and_after, sections_of
from engines.report.table import as_csv
from engines.report.text import as_time, printable
from engines.report.trust import went_wrong
from engines.report.updates import update_verdicts


def build_report(
    inputs: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Merge records into an HTML page, with JSON, Markdown and a CSV table beside it.

    Args:
        inputs: JSON records, or folders that are searched for them.
        out: Name of the page, ending in ``.html``. An earlier report is replaced.
        title: Heading of the page.
        say: Told, in a sentence each, what was left out.

    Returns:
        The files written: HTML, JSON, Markdown, CSV.

    Raises:
        ConfigError: If ``out`` does not end in ``.html``.
        DataError: If an input is missing, a record that was named is damaged, or there is no
            record to report on.
        OutputExistsError: If a file of that name exists that is not an earlier report.
    """
    paths = [out, out.with_suffix(".json"), out.with_suffix(".md")]
    require_html(out)
    _require_replaceable([*paths, out.with_suffix(".csv")])
    records, content = _usable(inputs, paths[1])
    page = Page(
        title or "EdgeUDA report",
        "Every figure comes from the records listed under Artefacts.",
        content.decisions,
        content.sections,
        content.figures,
        content.unknown,
        records.notes,
        wrong=went_wrong(records),
        pair=before_and_after(content.sections),
        table=content.table,
    )
    for note in records.notes:
        say(note)
    merged = {
        "schema": REPORT_SCHEMA,
        "title": page.title,
        "created": page.created,
        "edgeuda": __version__,
        "verdicts": [asdict(finding) for finding in page.verdicts],
        "evidence": [asdict(finding) for finding in page.evidence],
        "unknown": page.unknown,
        "wrong": page.wrong,
        "notes": records.notes,
        "records": records.raw,
    }
    return write_page(page, merged, paths)


@dataclass(frozen=True)
class Content:
    """What records have to say."""

    decisions: Sequence[Finding]
    figures: Sequence[Finding]
    unknown: Sequence[str]
    sections: Sequence[Chapter]
    table: str


def _usable(inputs: Sequence[Path], skip: Path) -> tuple[Records, Content]:
    """Read records and make of them what a page shows, without those that spoil it.

    What reading checks is the frame of a record. A damage within shows where a chapter is made of
    it, and then each record is tried by itself to find the one.
    """
    records = read_records(inputs, skip)
    try:
        return records, _content(records)
    except DAMAGE:
        tried = {path.resolve(): _fault(path) for path in records.files}
        unusable = {path: fault for path, fault in tried.items() if fault is not None}
        if not unusable:  # a fault of ours
            raise
    records = read_records(inputs, skip, unusable)
    return records, _content(records)


def _fault(path: Path) -> BaseException | None:
    """Return what goes wrong with a record alone."""
    try:
        _content(read_records([path]))
    except DAMAGE as err:
        return err
    return None


def _content(records: Records) -> Content:
    decisions = [*update_verdicts(records), *choice_verdicts(records), *verdicts(records)]
    figures = [*choice_figures(records), *evidence(records)]
    unknown, sections, table = unknowns(records), sections_of(records), as_csv(records)
    _ = went_wrong(records)
    for grid in (grid for section in sections for grid in [*section.lead, *section.grids]):
        if not all(isinstance(cell, str) for row in grid.rows for cell in row):
            msg = f"a cell of {grid.caption!r} is no text"
            raise TypeError(msg)
    return Content(decisions, figures, unknown, sections, table)


FIRST = 4
"""Lines of what is uncertain, and of what went wrong, on the first screen; the rest is below."""
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Page:
    """What a page shows, whatever it is about.

    ``wrong`` is None where nothing was measured that could go wrong; ``pair`` is one frame before
    and after, with the colours of its classes.
    """

    title: str
    source: str
    verdicts: Sequence[Finding]
    sections: Sequence[Chapter]
    evidence: Sequence[Finding] = ()
    unknown: Sequence[str] = ()
    notes: Sequence[str] = ()
    wrong: Sequence[str] | None = None
    pair: tuple[Strip, Sequence[tuple[str, str]]] | None = None
    table: str = ""
    created: str = field(default_factory=now_utc)


def write_page(page: Page, merged: dict[str, Any], paths: Sequence[Path]) -> list[Path]:
    """Write a page as HTML, its data as JSON and a Markdown form to ``paths``, and its table.

    Returns:
        The files written.
    """
    script = ""
    if any(section.slider for section in page.sections):
        script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    table = paths[0].with_suffix(".csv")
    context = {
        "title": page.title,
        "source": page.source,
        "created": as_time(page.created),
        "version": __version__,
        "verdicts": page.verdicts,
        "evidence": page.evidence,
        "signs": SIGNS,
        "unknown": page.unknown,
        "wrong": page.wrong,
        "pair": page.pair,
        "first": FIRST,
        "sections": page.sections,
        "notes": page.notes,
        "data_file": paths[1].name,
        "data": _embedded(merged),
        "hero": [svg for section in page.sections for svg in section.hero],
        "table_file": table.name if page.table else "",
        "script": script,
        "script_hash": f"sha256-{digest}",
    }
    write_json(paths[1], merged)
    for path, template in ((paths[0], "report.html.j2"), (paths[2], "report.md.j2")):
        write_text(path, printable(_render(template, context)))
    if page.table:
        write_text(table, page.table)
    return [*paths, *([table] if page.table else [])]


def _require_replaceable(paths: Sequence[Path]) -> None:
    """Refuse to overwrite anything but an earlier report; ``paths[1]`` is the report's JSON."""
    existing = [path for path in paths if path.exists()]
    try:
        earlier = not existing or read_json(paths[1])["schema"] == REPORT_SCHEMA
    except DataError:
        earlier = False
    if not earlier:
        msg = f"{existing[0]}: exists and is not an earlier report; choose another name"
        raise OutputExistsError(msg)


def _embedded(merged: dict[str, Any]) -> str:
    """Return the data as JSON that is safe inside a script element."""
    text = json.dumps(merged)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _render(template: str, context: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = _markdown
    return environment.get_template(template).render(context)


def _markdown(text: str) -> str:
    """Escape text for a Markdown paragraph or table cell."""
    return re.sub(r"([\\`*_\[\]<>|#!&])", r"\\\1", " ".join(text.split()))
