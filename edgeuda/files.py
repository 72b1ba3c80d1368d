"""Reading and writing of small artefacts: atomic writes, JSON records, checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeuda.errors import (
    ConfigError,
    DataError,
    EdgeudaError,
    OutputError,
    OutputExistsError,
)

if TYPE_CHECKING:
    import numpy.typing as npt

HASHED = 512 << 20
"""Bytes of a data set that are read to tell it from another."""
FULL = 1 << 20
"""Free bytes below which a disk is full."""
LOCK_FILE = ".edgeuda.lock"
CACHE_VARIABLE = "EDGEUDA_CACHE"
"""Environment variable: folder for what is written once and used again."""
UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
)
"""Errors of a disk, not of a program."""
_TEMPORARY = re.compile(r"\..+\.tmp(\.|$)")
_UMASK = os.umask(0)
os.umask(_UMASK)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as stream:
        return (
            hashlib.file_digest(stream, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(stream.read()).hexdigest()
        )


def sha256_of(parts: Iterable[str]) -> str:
    """Return the SHA-256 of a sequence of strings, order and boundaries included."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def stamp(paths: Sequence[Path], limit: int = HASHED, *, missing: bool = False) -> str:
    """Return what tells files of the same names apart: a checksum of their sizes and contents.

    Args:
        paths: The files. Of those in a store (`edgeuda.data.stores`) its version counts, so that
            none is fetched for this.
        limit: Bytes in all, beyond which times of change stand for contents.
        missing: Whether files may be missing, as links that lead nowhere are.

    Raises:
        DataError: If one is missing and may not be.
    """

    def size(path: Path) -> int:
        return path.stat().st_size if not missing or path.exists() else 0

    def content(path: Path) -> str:
        told = getattr(path, "version", None)  # of a store, which knows without a look
        if told is not None:
            return str(told)
        return sha256(path) if not missing or path.exists() else ""

    def times(path: Path) -> str:
        fact = path.stat() if not missing or path.exists() else None
        return "" if fact is None else f"{fact.st_size} {fact.st_mtime_ns}"

    try:
        within = all(total <= limit for total in accumulate(map(size, paths)))
        return sha256_of(map(content if within else times, paths))
    except OSError as err:
        msg = f"{err.filename}: expected a file, found none that can be read ({err.strerror})"
        raise DataError(msg) from err


def write_atomic(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Create ``path`` by calling ``write`` on a temporary name beside it, then renaming.

    A reader sees the old file or the new one, never half of one. Temporary names begin with a dot,
    are nobody's guess, and the file under them is made first: a link that was planted is not
    followed.

    Args:
        path: The file.
        write: Writes to the path it is given.
        durable: Whether that holds after a power cut, too, for some milliseconds.

    Raises:
        OutputError: If the disk is full, or the folder cannot be written to.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(f".tmp{path.suffix}", ".", path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o666 & ~_UMASK)  # some writers let nobody else read
        if durable:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except Exception as err:
        if isinstance(err, OSError) and err.errno in UNWRITABLE:
            raise OutputError(unwritable(path, err)) from err
        if not isinstance(err, EdgeudaError) and is_full(path.parent):  # writers of other libraries
            raise OutputError(unwritable(path, OSError(errno.ENOSPC, "full"))) from err
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_full(folder: Path) -> bool:
    """Return whether a folder's disk has no room for anything more."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < FULL


def unwritable(path: Path, err: OSError) -> str:
    """Return a sentence on why a file cannot be written."""
    why = "the disk is full" if err.errno in (errno.ENOSPC, errno.EDQUOT) else err.strerror
    return (
        f"{path}: cannot be written: {why}. What was complete before is kept; make room, or choose "
        "another `out`, and do the same with `resume` where it can"
    )


@contextmanager
def alone(folder: Path, parameter: str = "out") -> Iterator[None]:
    """Keep others from writing to a folder while this process does; it ends with the process.

    Args:
        folder: The folder; it is made if need be.
        parameter: What names it, for the error.

    Raises:
        OutputExistsError: If another process is at work there.
    """
    import fcntl  # not on every system, and the others only read here

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                msg = f"{folder}: another process writes there. Wait for it, or choose another "
                msg += f"`{parameter}`"
                raise OutputExistsError(msg) from err
            except OSError:  # a file system without locks
                pass
            if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                continue  # it was removed by the one before, and another process may hold a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def cache_folder() -> Path:
    """Return the folder for what is written once and used again: `CACHE_VARIABLE` or the user's."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(home) / "edgeuda")


def parse_bytes(what: str, text: str) -> int:
    """Return the bytes that a size such as ``20GB`` or ``500 MB`` means, in powers of 1000.

    Raises:
        ConfigError: If it is none; ``what`` names the option or variable.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    size = 0 if found is None else int(float(found[1]) * 1000 ** " kmgt".index(found[2] or " "))
    if not size:
        msg = f"{what}: expected a size such as 20GB or 500MB, found {text!r}"
        raise ConfigError(msg)
    return size


def short_name(stem: str, limit: int = 150) -> str:
    """Return the beginning of a file name that is at most ``limit`` bytes long in UTF-8."""
    return stem.encode(errors="surrogateescape")[:limit].decode(errors="ignore")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda name: name.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomic(path, lambda name: name.write_bytes(content))


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays by name atomically, compressed, as ``numpy.load`` reads them."""
    import numpy as np  # the command line imports this module, and starts without NumPy

    def save(name: Path) -> None:
        with name.open("wb") as stream:  # a file, as NumPy would append a suffix to a name
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]

    write_atomic(path, save)


def now_utc() -> str:
    """Return the time in UTC as records carry it, ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record atomically; it must carry its ``schema``, for example ``edgeuda.bench/2``."""
    if "schema" not in record:
        msg = f"{path}: a JSON record needs a 'schema' key"
        raise ConfigError(msg)
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, schema: str | None = None) -> dict[str, Any]:
    """Read a record written by `write_json`.

    Raises:
        DataError: If the file is missing or cannot be read, is not JSON, is nested too deeply, or
            has another schema than ``schema``.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        msg = f"{path}: no such file"
        raise DataError(msg) from err
    except OSError as err:
        msg = f"{path}: expected a JSON record that can be read, found {err.strerror or err}"
        raise DataError(msg) from err
    except UnicodeDecodeError as err:
        msg = f"{path}: expected a JSON record in UTF-8, found other bytes at byte {err.start}"
        raise DataError(msg) from err
    except RecursionError as err:
        msg = f"{path}: expected a JSON record, found one that is nested too deeply to be read"
        raise DataError(msg) from err
    except ValueError as err:  # not JSON, or a number of thousands of digits
        msg = f"{path}: expected a JSON record, found something else ({err})"
        raise DataError(msg) from err
    found = record.get("schema") if isinstance(record, dict) else None
    if found is None or (schema is not None and found != schema):
        wanted = f"schema {schema!r}" if schema else "a record with a 'schema' key"
        msg = f"{path}: expected {wanted}, found {found!r}"
        raise DataError(msg)
    return dict(record)


def is_empty(folder: Path) -> bool:
    """Return whether nothing lies below a folder but empty folders and temporary or lock files."""
    return all(
        path.name == LOCK_FILE or is_temporary(path) or not path.is_file()
        for path in folder.rglob("*")
    )


def is_temporary(path: Path) -> bool:
    """Return whether a file is named as those that `write_atomic` is making."""
    return _TEMPORARY.match(path.name) is not None


def require_absent(path: Path) -> None:
    """Refuse to overwrite.

    Raises:
        OutputExistsError: If ``path`` exists (an empty folder does not count, see `is_empty`).
    """
    if path.is_dir() and is_empty(path):
        return
    if path.exists():
        msg = f"{path}: exists already; nothing was overwritten. Choose another `out` or remove it"
        raise OutputExistsError(msg)


def require_html(page: Path) -> None:
    """Refuse a page whose name a browser would not take for one.

    Raises:
        ConfigError: If it does not end in ``.html``.
    """
    if page.suffix != ".html":
        msg = f"{page}: expected a name that ends in .html"
        raise ConfigError(msg)


def require_same_plan(
    out: Path, plan: dict[str, Any], what: str, growing: Sequence[str] = ()
) -> None:
    """Note in a folder what its files depend on, or require that it is what it was.

    Args:
        out: Folder that an interrupted call goes on in.
        plan: What its files depend on, with its ``schema``.
        what: What the folder holds, for errors.
        growing: Keys of tables that may have further entries than before.

    Raises:
        OutputExistsError: If ``out`` holds other files, or those of another plan.
    """
    path = out / ".plan.json"
    if not path.exists():
        if out.exists() and not is_empty(out):
            msg = f"{out}: holds other files; choose another `out`"
            raise OutputExistsError(msg)
        write_json(path, plan)
        return
    earlier = read_json(path, plan["schema"])
    changed = [key for key in plan if plan[key] != earlier.get(key)]
    if changed and all(
        key in growing and earlier[key].items() <= plan[key].items() for key in changed
    ):
        write_json(path, plan)
        return
    if changed:
        msg = (
            f"{out}: holds {what} with other {', '.join(changed)}; nothing was overwritten. "
            "Choose another `out`"
        )
        raise OutputExistsError(msg)


def text_of(path: Path) -> str:
    """Return a small file of the kernel or the system, stripped; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
