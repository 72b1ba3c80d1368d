"""Ctrl-C at every line of a piece of code, one run for each."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class _Interrupts:
    """Counts the lines that run in some files, and interrupts at the one wanted."""

    def __init__(self, files: tuple[str, ...], at: int | None) -> None:
        self.files, self.at, self.lines = files, at, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self


def lines_run(work: Callable[[], object], files: tuple[str, ...], at: int | None = None) -> int:
    """Run some work and return how many lines of the files it ran.

    Args:
        work: What to run.
        files: Ends of the paths of the files that count.
        at: Line, from 1, at which Ctrl-C is pressed; None lets it run.
    """
    counter = _Interrupts(files, at)
    before = sys.gettrace()
    sys.settrace(counter)
    try:
        work()
    finally:
        sys.settrace(before)
    return counter.lines
