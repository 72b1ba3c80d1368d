"""INT8: ranges collected on target frames, rules, and where quantization goes per runtime.

What a notebook needs is here; importing it costs nothing yet.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.api import calibrate, half, sweep
    from calibration.comparison import diff
    from calibration.next_network import update
    from calibration.options import Options
    from edgeuda.records.calibration import CalibrationRecord, Limits
    from edgeuda.records.tradeoff import Budget

__all__ = [
    "Budget",
    "CalibrationRecord",
    "Limits",
    "Options",
    "calibrate",
    "diff",
    "half",
    "sweep",
    "update",
]
_HOMES = {
    "Budget": "edgeuda.records.tradeoff",
    "CalibrationRecord": "edgeuda.records.calibration",
    "Limits": "edgeuda.records.calibration",
    "Options": "calibration.options",
    "diff": "calibration.comparison",
    "update": "calibration.next_network",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module 'calibration' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES.get(name, "calibration.api")), name)


def __dir__() -> list[str]:
    return list(__all__)
