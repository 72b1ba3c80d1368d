"""The page about data: what was found in it, how far the domains are apart, how it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeuda import __version__
from edgeuda.data.folders import spread
from edgeuda.data.images import read_image
from edgeuda.data_check import Check, DataSet, scale
from edgeuda.errors import DataError
from edgeuda.files import require_html
from edgeuda.records.data_check import CheckedData, DataCheckRecord, DomainGap
from engines.report import plots
from engines.report.findings import Finding, Status
from engines.report.page import Page, write_page
from engines.report.parts import Chapter, Grid, Picture, Strip
from engines.report.text import signed

PICTURES = 6
"""Images shown of each data set."""
STATUS: dict[str, Status] = {"error": "bad", "warning": "accepted", "note": "stated"}


def build_data_report(result: Check, out: Path) -> list[Path]:
    """Write a check as an HTML page, with its data as JSON and a Markdown form beside it.

    Args:
        result: The check.
        out: Name of the page, ending in ``.html``.

    Returns:
        The files written: HTML, JSON, Markdown.

    Raises:
        ConfigError: If ``out`` does not end in ``.html``.
    """
    require_html(out)
    checked = result.record()
    page = Page(
        "Data check",
        f"Up to {max(len(role.looks) for role in result.roles.values())} images of each data set "
        "were looked at.",
        _verdicts(result),
        [*_findings(result), *_sections(result, checked)],
    )
    record = {**checked.to_record(), "created": page.created, "edgeuda": __version__}
    return write_page(page, record, [out, out.with_suffix(".json"), out.with_suffix(".md")])


def _verdicts(result: Check) -> list[Finding]:
    if not result.findings:
        text = "Source and target are alike in brightness and colour."
        if result.gap is None:
            text = "How far source and target are apart was not measured: that needs both."
        return [Finding("Data", "good", "Nothing was found that would need attention", text)]
    return [
        Finding(
            found.role, STATUS[found.severity], f"{found.role}: {found.what}",
            f"{found.advice}." if found.advice else "",
        )
        for found in result.findings
    ]  # fmt: skip


def _findings(result: Check) -> list[Chapter]:
    if not result.findings:
        return []
    rows = [
        [found.severity, found.role, found.what, found.advice, str(found.count or "")]
        for found in result.findings
    ]
    grids = [Grid("Findings", ("severity", "data set", "what", "what to do", "files"), rows)]
    grids += [
        Grid(
            f"{found.role}: {found.what}"
            + (", the first" if found.count > len(found.files) else ""),
            ("file",),
            [[name] for name in found.files],
        )
        for found in result.findings
        if found.files
    ]
    return [Chapter("findings", "Findings", grids=grids)]


def _sections(result: Check, record: DataCheckRecord) -> list[Chapter]:
    roles = record.roles
    rows = [
        [
            name, role.folder, str(role.images), str(role.looked_at), str(role.readable),
            ", ".join(f"{s.width}x{s.height} ({s.images})" for s in role.sizes[:4]),
        ]
        for name, role in roles.items()
    ]  # fmt: skip
    columns = ("data set", "folder", "images", "looked at", "readable", "sizes")
    sections = [
        Chapter(
            "images",
            "Images",
            grids=[Grid("Counts and sizes", columns, rows)],
            strips=[strip for role in result.roles.values() if (strip := _strip(role))],
            selector=False,
        )
    ]
    labelled = {name: role for name, role in roles.items() if role.classes is not None}
    if labelled:
        sections.append(_classes(labelled))
    coloured = {name: role for name, role in roles.items() if role.colour is not None}
    if coloured:
        sections.append(_colours(coloured, record.gap))
    return sections


def _strip(role: DataSet) -> Strip | None:
    pictures = []
    for look in spread(role.readable, PICTURES):
        label, space = None, None
        if role.labelled is not None and look.label_defect is None:
            index = next(i for i, pair in enumerate(role.labelled.pairs) if pair.image == look.path)
            try:
                label, space = role.labelled.read(index)[1], role.labelled.space
            except DataError:
                label = None
        uri = plots.overlay(read_image(look.path), label, space, width=360)
        pictures.append(Picture(look.path.name, uri, f"Image of {role.name}"))
    return Strip(f"{role.name}: {role.root}", pictures) if pictures else None


def _classes(labelled: Mapping[str, CheckedData]) -> Chapter:
    svgs, grids = [], []
    counts = {name: role.classes or {} for name, role in labelled.items()}
    spaces: dict[str, list[str]] = {}
    for name, role in labelled.items():
        spaces.setdefault(role.label_space or "", []).append(name)
    for space, names in spaces.items():
        classes = list(counts[names[0]])
        shares = {name: [counts[name][found].share for found in classes] for name in names}
        svgs.append(plots.share_bars(classes, shares, f"Share of each class of {space}"))
        columns: Sequence[str] = ["class"]
        for name in names:
            columns = [*columns, f"{name}, % of pixels", f"{name}, images"]
        rows = [
            [
                found,
                *(
                    text
                    for name in names
                    for entry in (counts[name][found],)
                    for text in (f"{100 * entry.share:.3f}", str(entry.images))
                ),
            ]
            for found in classes
        ]
        grids.append(Grid(f"Classes of {space}", columns, rows))
    text = [
        f"{name}: {100 * (role.ignored_share or 0):.1f} % of the pixels are ignored."
        for name, role in labelled.items()
    ]
    return Chapter("classes", "Classes", text, svgs=svgs, grids=grids)


def _colours(coloured: Mapping[str, CheckedData], gap: DomainGap | None) -> Chapter:
    text, grids = [], []
    rows = [
        [
            name, axis, f"{found.mean:.1f}", f"{found.between_images:.1f}",
            f"{found.within_images:.1f}",
        ]
        for name, role in coloured.items()
        for axis, found in (role.colour or {}).items()
    ]  # fmt: skip
    columns = ("data set", "axis of CIELAB", "mean", "between images", "within images")
    grids.append(Grid("Brightness and colour, mean and deviations", columns, rows))
    if gap is not None:
        strongest = max(gap.standardised, key=lambda name: abs(gap.standardised[name]))
        value = signed(gap.standardised[strongest])
        text.append(
            f"The Fréchet distance between source and target over the images' means and "
            f"deviations of lightness and colour is {gap.frechet:.1f}, {scale(gap)}. They "
            f"differ most in the {strongest}: {value} standard deviations from source to target. "
            "This sees brightness, contrast and colour; it does not see geometry, textures or "
            "classes."
        )
        rows = [
            [name, signed(value, 2), f"{100 * gap.beyond[name]:.0f}"]
            for name, value in gap.standardised.items()
        ]
        heads = ("statistic", "difference", "% of target beyond the source's mean")
        grids.append(Grid("Target less source, in standard deviations", heads, rows))
    svg = plots.lightness(
        {name: role.lightness or [] for name, role in coloured.items()}, "Lightness of the images"
    )
    return Chapter("colours", "Brightness and colour", text, svgs=[svg], grids=grids)
