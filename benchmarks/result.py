"""What stands around every result: where, when, how and on what it was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeuda.files import read_json
from engines.machine.hardware import git_commit, identity

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "edgeuda.benchmark-result/1"
LIBRARIES = (
    "torch", "timm", "kornia", "lightning-fabric", "onnx", "onnxruntime", "openvino", "nncf",
    "nvidia-modelopt", "cityscapesscripts", "numpy", "opencv-python", "pillow",
)  # fmt: skip
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_MAX_CPU_ISA")
"""Variables on which a time depends, kept where they are set."""


def enveloped(
    name: str, call: Callable[[], dict[str, Any]], arguments: Sequence[str], quick: bool
) -> dict[str, Any]:
    """Measure, and return the result with all that it depends on around it.

    Args:
        name: Of the benchmark.
        call: Returns the payload, which has a schema of its own.
        arguments: Of the command line; of absolute paths only the last part is kept.
        quick: Whether this was the short form, whose figures say nothing.
    """
    commit, dirty, why = _commit()
    began, load = datetime.now(timezone.utc), _load()
    start = time.perf_counter(), time.process_time()
    payload = call()
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    machine = identity()
    for key in ("git_commit", "load_average"):
        machine.pop(key, None)
    words = [Path(word).name if word.startswith("/") else word for word in arguments]
    return {
        "schema": SCHEMA,
        "benchmark": name,
        "quick": quick,
        "command": " ".join(["python -m benchmarks", name, *words]),
        "date": began.isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        **({"commit_unknown": why} if why else {}),
        "seconds": round(seconds[0], 2),
        "cpu_seconds": round(seconds[1], 2),
        "load_average": {"before": load, "after": _load()},
        "environment": {key: os.environ[key] for key in ENVIRONMENT if key in os.environ},
        "machine": machine,
        "versions": {key: found for key in LIBRARIES if (found := _version(key))},
        "result": payload,
    }


def payload_of(path: Path, schema: str | None = None) -> dict[str, Any]:
    """Return what a file of results holds, with or without an envelope around it."""
    record = read_json(path)
    found = record["result"] if record["schema"] == SCHEMA else record
    if schema is not None and found["schema"] != schema:
        msg = f"{path}: expected a result of schema {schema}, found {found['schema']}"
        raise ValueError(msg)
    return dict(found)


def _commit() -> tuple[str | None, bool | None, str]:
    """Return the commit, whether files differ from it, and why that is not known."""
    said = git_commit(ROOT)
    if not said[:40].isalnum():
        return None, None, said
    return said[:40], said.endswith("-dirty"), ""


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
