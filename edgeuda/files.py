"""Reading and writing of small artefacts: atomic writes, JSON records, checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeuda.errors import ConfigError, DataError, OutputExistsError

if TYPE_CHECKING:
    import numpy.typing as npt


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


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Create ``path`` by calling ``write`` on a temporary name beside it, then renaming.

    A reader sees the old file or the new one, never half of one, also after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the whole name: one of 255 bytes leaves no room.
    own = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:16]
    temporary = path.with_name(f".{own}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def short_name(stem: str, limit: int = 150) -> str:
    """Return the beginning of a file name that is at most ``limit`` bytes long in UTF-8."""
    return stem.encode(errors="surrogateescape")[:limit].decode(errors="ignore")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda name: name.write_text(text, encoding="utf-8"))


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


def require_absent(path: Path) -> None:
    """Refuse to overwrite.

    Raises:
        OutputExistsError: If ``path`` exists (an empty folder does not count).
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        msg = f"{path}: exists already; nothing was overwritten. Choose another --out or remove it"
        raise OutputExistsError(msg)
