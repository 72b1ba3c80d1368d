"""The report's chapter on the next network of a vehicle, beside the last one."""

from __future__ import annotations

from collections.abc import Sequence

from edgeuda.records.tradeoff import Estimate
from edgeuda.records.update import Compared, UpdateRecord, UpdateStatus
from engines.report.findings import Finding, Status
from engines.report.parts import Chapter, Grid
from engines.report.records import Records
from engines.report.text import DASH, as_estimate, as_percent, as_points
from engines.report.words import said_of_update

STATUS: dict[UpdateStatus, Status] = {"taken": "good", "refused": "bad", "not judged": "unknown"}


def update_verdicts(records: Records) -> list[Finding]:
    """Return whether to take the next networks."""
    found = []
    for _, record in records.updates:
        headline, why = said_of_update(record)
        found.append(Finding("Next network", STATUS[record.verdict.status], headline, why))
    return found


def updates(records: Records) -> Chapter | None:
    """Return the chapter on the next networks."""
    if not records.updates:
        return None
    text = [
        "The next network was adapted to new frames while it went on learning from old ones, the "
        "frames that the last network was made for. Both were run in the form named below on the "
        "same frames. Without labels this says where they differ, not who is right.",
        "Labelled frames were kept out of the adaptation. Changes are of the same images for both "
        "networks, with a 95 % interval over the choice of images; it covers neither another drive "
        "nor another training.",
    ]
    grids = []
    for name, record in records.updates:
        grids += [_parts(name, record), _classes(name, record), _descent(name, record)]
        grids += [_int8(name, record)] if record.int8 else []
    return Chapter("update", "The next network", text, grids=grids)


def _parts(name: str, record: UpdateRecord) -> Grid:
    columns = [
        "frames", "adapted to", "kept out", "same class, %", "confidence last, %", "next, %",
        "labelled images", "mIoU last, %", "next, %", "change, points",
    ]  # fmt: skip
    rows = [["old", *_part(record.old)], ["new", *_part(record.new)]]
    return Grid(f"{record.member} of both networks, {name}", columns, rows)


def _part(part: Compared) -> list[str]:
    said, scored = part.without_labels, part.with_labels
    row = [
        str(part.frames), str(part.left_out), as_percent(said.agreement, ""),
        *(as_percent(one, "") for one in said.confidence),
    ]  # fmt: skip
    if scored is None:
        return [*row, "0", DASH, DASH, DASH]
    count = str(scored.data.images)
    if scored.in_source:
        count += f", {scored.in_source} of them learned from"
    return [*row, count, as_estimate(scored.last), as_estimate(scored.next), _points(scored.change)]


def _points(one: Estimate) -> str:
    return f"{as_points(one.value)} [{as_points(one.low)}, {as_points(one.high)}]"


def _classes(name: str, record: UpdateRecord) -> Grid:
    columns = ["class", "old frames, last", "old frames, next", "new frames, last",
               "new frames, next"]  # fmt: skip
    old, new = (part.without_labels.classes for part in (record.old, record.new))
    rows = [[one, *_shares(old[one]), *_shares(new.get(one, (float("nan"),) * 2))] for one in old]
    return Grid(f"Share of the pixels of each class in percent, {name}", columns, rows)


def _shares(shares: Sequence[float]) -> list[str]:
    return [as_percent(one, "") for one in shares]


def _descent(name: str, record: UpdateRecord) -> Grid:
    lineage, learned = record.lineage, record.lineage.learned
    rows = [
        ["bundle", DASH if record.bundle is None else record.bundle.sha256[:12]],
        ["network", _short(lineage.network)],
        ["recipe", DASH if learned is None else learned.recipe_sha256[:12]],
        [
            "share of old frames in what was learned",
            DASH if learned is None else as_percent(learned.replay_share),
        ],
        *(
            [f"{depth} before: bundle, network", f"{one.bundle[:12]}, {_short(one.network)}"]
            for depth, one in enumerate(lineage.ancestors, 1)
        ),
    ]
    return Grid(f"Where the next network comes from, {name}", ["fact", "value"], rows)


def _short(checksum: str | None) -> str:
    return DASH if checksum is None else checksum[:12]


def _int8(name: str, record: UpdateRecord) -> Grid:
    rows = [
        [one.file, as_percent(one.agreement, ""), "yes" if one.accepted else "no",
         ". ".join(one.reasons)]
        for one in record.int8
    ]  # fmt: skip
    columns = ["model", "agreement with FP32, %", "accepted", "why not"]
    return Grid(f"INT8 of the next network, {name}", columns, rows)
