"""The report's figures as one table, for a spreadsheet."""

from __future__ import annotations

import csv
import io
import math

from engines.report.records import Records
from engines.report.text import as_size

COLUMNS = (
    "model", "sha256", "precision", "backend", "input", "machine", "measured", "arrival", "threads",
    "n", "median_ms", "median_low_ms", "median_high_ms", "p90_ms", "p95_ms", "p99_ms", "p99.9_ms",
    "max_ms", "deadline_ms", "missed_share", "frames_per_second", "energy_per_frame_j", "data",
    "images", "miou", "boundary_miou", "pixel_accuracy", "execution", "fallbacks",
)  # fmt: skip


def as_csv(records: Records) -> str:
    """Return a row per benchmarked or evaluated model; what was not measured is empty."""
    rows: list[dict[str, object]] = []
    scored = {e.model_sha256: e for e in records.evaluations}
    timed: set[str] = set()
    for bench in records.benches:
        for m in bench.models:
            t = m.end_to_end
            timed.add(m.sha256)
            rows.append(
                {
                    "model": m.name, "sha256": m.sha256, "precision": m.precision,
                    "backend": m.backend, "input": as_size(m.input), "machine": bench.machine_name,
                    "measured": bench.created, "arrival": bench.method.arrival,
                    "threads": bench.method.threads, "n": t.n, "median_ms": t.median,
                    "median_low_ms": t.interval[0] if t.interval else None,
                    "median_high_ms": t.interval[1] if t.interval else None,
                    **{
                        f"p{p}_ms": value
                        for p, value in t.percentiles.items()
                        if f"p{p}_ms" in COLUMNS
                    },
                    "max_ms": t.max,
                    "deadline_ms": m.deadline.limit_ms if m.deadline else None,
                    "missed_share": m.deadline.share if m.deadline else None,
                    "frames_per_second": m.frames_per_second,
                    "energy_per_frame_j": m.energy_per_frame_j,
                    "execution": "; ".join(f"{k}: {v}" for k, v in m.execution.items()),
                    "fallbacks": "; ".join(m.fallbacks),
                    **_score(records, m.sha256),
                }
            )  # fmt: skip
    for key, e in scored.items():
        if key not in timed:
            rows.append(
                {"model": e.name, "sha256": key, "precision": e.precision, **_score(records, key)}
            )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _plain(value: object) -> object:
    """Return a cell that spreadsheets take for text where it would be a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _score(records: Records, key: str) -> dict[str, object]:
    e = next((e for e in records.evaluations if e.model_sha256 == key), None)
    if e is None:
        return {}
    boundary = (e.boundary or {}).get("miou")
    return {
        "data": e.data_folder, "images": e.images,
        "miou": None if math.isnan(e.miou) else e.miou, "boundary_miou": boundary,
        "pixel_accuracy": None if math.isnan(e.pixel_accuracy) else e.pixel_accuracy,
    }  # fmt: skip
