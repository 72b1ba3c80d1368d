"""ONNX export, runners, latency and the report: what happens between checkpoint and decision.

What a notebook or a vehicle's own program needs is here; importing it costs nothing yet.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.api import (
        benchmark,
        evaluate,
        export,
        open_bundle,
        open_model,
        segment,
        write_bundle,
    )
    from engines.bundle import Bundle
    from engines.prediction import predict
    from engines.runner import Runner

__all__ = [
    "Bundle",
    "Runner",
    "benchmark",
    "evaluate",
    "export",
    "open_bundle",
    "open_model",
    "predict",
    "segment",
    "write_bundle",
]
_HOMES = {
    "Bundle": "engines.bundle",
    "Runner": "engines.runner",
    "predict": "engines.prediction",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module 'engines' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES.get(name, "engines.api")), name)


def __dir__() -> list[str]:
    return list(__all__)
