"""Ctrl-C and SIGTERM between steps: what is begun is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_BOTH = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def same_handlers() -> Iterator[dict[int, Any]]:
    """Handle SIGINT and SIGTERM afterwards as before, whatever is set within.

    A handler that stays is inherited by every process that is forked later, which then may never
    end.

    Yields:
        How each was handled before, where that can be set again; nothing elsewhere than in the main
        thread, which alone can set a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    found = {number: signal.getsignal(number) for number in _BOTH}
    # One that was not set from Python cannot be set again.
    previous: dict[int, Any] = {one: how for one, how in found.items() if how is not None}
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def stop_requests(ask: Callable[[], object] = lambda: None) -> Iterator[list[str]]:
    """Collect SIGINT and SIGTERM instead of dying from them; a second one kills as usual.

    Elsewhere than in the main thread nothing is collected.

    Args:
        ask: Called when one comes, in the main thread between any two of its instructions.

    Yields:
        The names of those that came.
    """
    received: list[str] = []
    with same_handlers() as previous:

        def note(number: int, _frame: object) -> None:
            received.append(signal.Signals(number).name)
            signal.signal(number, previous[number])
            ask()

        for number in previous:
            signal.signal(number, note)
        yield received
