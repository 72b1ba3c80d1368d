"""Ctrl-C and SIGTERM between steps: what is begun is finished first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests(ask: Callable[[], object] = lambda: None) -> Iterator[list[str]]:
    """Collect SIGINT and SIGTERM instead of dying from them; a second one kills as usual.

    Afterwards both are handled as before: a handler that stays is inherited by every process that
    is forked, which then cannot be terminated.

    Args:
        ask: Called when one comes, in the main thread between any two of its instructions.

    Yields:
        The names of those that came.
    """
    received: list[str] = []

    def note(number: int, _frame: object) -> None:
        received.append(signal.Signals(number).name)
        ask()
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, note)
    except ValueError:  # not the main thread: the program's own handling stays
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
