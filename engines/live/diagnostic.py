"""What a watch says as a diagnostic of ROS: for a node's monitors, and in recordings.

Source: REP 107, "Diagnostic System for Robots Running ROS", and ``diagnostic_msgs`` of ROS 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engines.live.watch import WatchState

ARRAY = "diagnostic_msgs/msg/DiagnosticArray"
STATUS = "diagnostic_msgs/msg/DiagnosticStatus"
KEY_VALUE = "diagnostic_msgs/msg/KeyValue"
TOPIC = "/diagnostics"
NAME = "edgeuda: watch"
OK, WARN, STALE = 0, 1, 3
"""Levels of `DiagnosticStatus`."""


def status(
    state: WatchState | None,
    hardware: str,
    make_status: Callable[..., Any],
    make_value: Callable[..., Any],
    level: Callable[[int], Any] = int,
) -> Any:
    """Return a ``diagnostic_msgs/msg/DiagnosticStatus``.

    It is at WARN while an alarm goes on, STALE before the first test, else OK.

    Args:
        state: What the newest test found.
        hardware: What runs the model.
        make_status: Makes the message of keyword arguments.
        make_value: Makes a ``KeyValue`` of keyword arguments.
        level: Turns a level into what the message takes for a byte.
    """
    values = {}
    if state is None:
        at, words = STALE, "no window was tested yet"
    else:
        values = {"ratio": f"{state.ratio:.3f}", "column": state.column}
        at, words = OK, f"normal, {state.column} is farthest"
        if state.alarm is not None:
            at, words = WARN, str(state.alarm)
            values["kind"] = state.alarm.kind
            values |= {f"apart/{name}": f"{far:+.2f}" for name, far in state.alarm.apart.items()}
    return make_status(
        level=level(at), name=NAME, message=words, hardware_id=hardware,
        values=[make_value(key=key, value=value) for key, value in values.items()],
    )  # fmt: skip
