"""Work that ends early: at a line of its code, or before a change of what is on the disk."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from edgeuda.data.folders import spread

TIMES = frozenset({"seconds", "waiting", "created", "waiting_for_data"})
"""What records hold that no two runs have in common, by name."""


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


_CHANGES = {
    "open": 0, "os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "shutil.rmtree": 0,
    "os.symlink": 1,
}  # fmt: skip
"""Audit events that change a disk, and which of their arguments is the path that changes."""


class _Kills:
    """Counts the changes of what lies in a folder, and lets none happen from the wanted one on."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.at: int | None = None
        self.again = False
        self.changes = 0
        self.renamed: list[tuple[int, str]] = []
        self.process = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or event not in _CHANGES or os.getpid() != self.process:
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = arguments[_CHANGES[event]]
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.folder):
            return
        if event == "os.mkdir" and Path(path).exists():
            return
        self.changes += 1
        if event == "os.rename":
            self.renamed.append((self.changes, Path(path).name))
        if self.at is not None and (
            self.changes == self.at or (self.again and self.changes > self.at)
        ):
            raise KeyboardInterrupt


_KILLS = _Kills()
sys.addaudithook(_KILLS)  # for good: hooks cannot be taken back


def changes_made(
    work: Callable[[], object], folder: Path, at: int | None = None, *, killed: bool = True
) -> int:
    """Run some work and return how often it changed what lies in a folder.

    What a process held is lost with it and only the disk stays, so a run that ends before each of
    its changes shows all that an interruption can leave.

    Args:
        work: What to run, in this thread.
        folder: The folder.
        at: Change, from 1, before which the work ends; None lets it run.
        killed: Whether nothing is cleaned up, as after SIGKILL; else as after Ctrl-C.
    """
    _KILLS.at, _KILLS.again, _KILLS.changes, _KILLS.process = at, killed, 0, os.getpid()
    _KILLS.folder, _KILLS.renamed = str(folder), []
    try:
        work()
    finally:
        _KILLS.folder = None
    return _KILLS.changes


def _without(value: Any, keys: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return [_without(item, keys) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.cpu().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def results(
    out: Path, keys: Collection[str] = TIMES, measured: Collection[str] = ()
) -> dict[str, Any]:
    """Return every file by name: its checksum, or what is in it where times or names are.

    Args:
        out: Folder; its own path is left out of records.
        keys: Of records, left out.
        measured: Patterns of files that are left out: measurements of time.
    """
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        hidden = any(part.startswith(".") for part in name.split("/"))  # nobody reads it
        if hidden or not path.is_file() or any(fnmatch(name, pattern) for pattern in measured):
            continue
        if path.suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8").replace(str(out), "OUT")
            lines = [text] if path.suffix == ".json" else text.splitlines()
            found[name] = [_without(json.loads(line), keys) for line in lines]
        elif path.suffix == ".pt":  # an archive that holds its temporary name
            found[name] = _plain(torch.load(path, weights_only=True))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def require_same(
    work: Callable[[Path], object],
    folder: Path,
    runs: int,
    keys: Collection[str] = TIMES,
    measured: Collection[str] = (),
    after: str | None = None,
) -> None:
    """Run work whole, then killed before changes of the disk and begun again: all end alike.

    Args:
        work: Takes a folder.
        folder: Where the folders lie.
        runs: How many changes, evenly chosen.
        keys: See `results`.
        measured: See `results`.
        after: Also killed right after each file of this name has appeared.
    """
    whole_at = folder / "whole"
    total = changes_made(lambda: work(whole_at), folder)
    whole = results(whole_at, keys, measured)
    assert whole
    points = {at + 1 for at, name in _KILLS.renamed if name == after and at < total}
    points |= set(spread(range(1, total + 1), runs))
    for number, at in enumerate(sorted(points)):
        out = folder / f"at{at}"
        with suppress(KeyboardInterrupt):
            changes_made(lambda out=out: work(out), folder, at, killed=number % 3 > 0)
        work(out)
        found = results(out, keys, measured)
        names = {name for name in {*whole, *found} if whole.get(name) != found.get(name)}
        assert not names, f"killed before change {at} of {total}: {sorted(names)}"
