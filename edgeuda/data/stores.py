"""Frames in object stores and in shards, as paths: fetched when they are opened, kept in bounds.

A place such as ``s3://bucket/drive`` or ``shards-{0000..0099}.tar`` becomes a `StorePath`, a path
like any other to those who list, name and open frames. What is opened is fetched first, to a cache
whose least recently used files go when a limit is reached. What is listed is noted in an index on
disk, by which sizes, versions and what does not exist are known without asking again.

Frames are paths everywhere, so it is the path that knows where it lies: consumers stay as they are,
records and errors name the place in the store, and a reader that is handed to another process needs
nothing but the path. Only where a library is given a name as text is `local` called.

Stores are fsspec's. Shards are those of WebDataset: tar files whose members ``KEY.jpg``,
``KEY.json`` form a sample; Python's ``tarfile`` reads them.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import sqlite3
import stat
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PosixPath, PurePosixPath
from typing import IO, Any, TypeVar

from edgeuda.errors import (
    ConfigError,
    DataError,
    EdgeudaError,
    OutputError,
    StoreError,
    require,
    without_passwords,
)
from edgeuda.files import CACHE_VARIABLE, cache_folder, parse_bytes, sha256_of, write_atomic

T = TypeVar("T")

SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "memory": "fsspec"}
"""Stores, and the package that reads each."""
LIMIT_VARIABLE = "EDGEUDA_CACHE_LIMIT"
"""Environment variable: size of the cache of fetched files at most, such as ``20GB``."""
LIMIT = "20GB"
INDEX = "index.db"
DELAYS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before another attempt at what could not be read."""
SHARD = ".tar"
OWN = "__edgeuda__/"
"""Folder of a shard for what is no sample; WebDataset skips names of this form."""
LABEL = ".seg.png"
"""How the name of a member that is a label map ends."""
END = 1024
"""Zero bytes with which a tar file ends."""
HELD = 32
"""Files that were handed out last and are kept for that, beside any byte limit."""
LEFT = 3600.0
"""Seconds after which a file that was being fetched counts as given up."""
FORGOTTEN = 30 * 86400.0
"""Seconds after which what is known of a store is no longer kept."""
_LOCATION = re.compile(r"(\w+):/{1,2}(?=[^/])(.*)", re.DOTALL)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SINCE = time.time()


@dataclass(frozen=True)
class Entry:
    """What is known of a place.

    Attributes:
        kind: ``file``, ``folder`` or ``none``.
        size: Bytes.
        version: Changes when the content does: the store's ETag, or the time of change.
        changed: Time of change in nanoseconds; 0 where nobody knows.
        start: Of a member, where its bytes begin in the shard.
    """

    kind: str
    size: int = 0
    version: str = ""
    changed: int = 0
    start: int = 0


NONE, FOLDER = Entry("none"), Entry("folder")


def located(path: Path | str) -> Path:
    """Return the path that a text or path means: a `StorePath` if it lies in a store or a shard.

    This is the one place where that is decided.

    Args:
        path: ``s3://``, ``gs://``, ``az://`` and ``memory://`` with bucket and name (a path that
            lost one of the slashes is understood); anything in or of a ``.tar``, where
            ``{0000..0099}`` stands for several; or a path on disk, which is returned as it is.

    Raises:
        ConfigError: If it carries a user, a key or a signature, which is not repeated.

    Example:
        >>> located("s3://bucket/drive/000012.jpg").name
        '000012.jpg'
    """
    if isinstance(path, StorePath):
        return path
    text = str(path)
    found = _LOCATION.match(text)
    if found is not None and found[1] in SCHEMES:
        bucket = found[2].partition("/")[0]
        if {":", "@"} & set(bucket) or re.search(r"\?.*=", found[2]):
            msg = (
                f"{found[1]}://***: expected {found[1]}://BUCKET/NAME, found an address with a "
                "user, a key or a signature in it. Keys are taken from where the store's own tools "
                "look for them, such as AWS_PROFILE, and never from an address"
            )
            raise ConfigError(msg)
        if ".." in PurePosixPath(found[2]).parts:
            msg = f"{text}: expected a name in a store, which has no '..'"
            raise ConfigError(msg)
        return StorePath(text)
    if SHARD in text.lower() and any(_is_shard(part) for part in Path(text).parts):
        shard = _split(Path(text))[0]
        return Path(text) if shard.is_dir() else StorePath(Path(text).absolute())
    return Path(path)


def local(path: Path) -> Path:
    """Return where a file, or each file of a folder, lies on this disk, fetched if need be.

    Raises:
        StoreError: If it cannot be fetched, or not all of it fits into the cache.
    """
    if not isinstance(path, StorePath):
        return path
    if not path.is_dir():
        return Path(os.fspath(path))
    files = [Path(os.fspath(one)) for one in path.iterdir() if one.is_file()]
    if not files or not all(file.exists() for file in files):
        msg = f"{path}: its {len(files)} files do not fit into the cache together, and are needed "
        msg += f"together. Set {LIMIT_VARIABLE} to more"
        raise StoreError(msg)
    return files[0].parent


def located_in(folder: Path, name: str) -> Path:
    """Return the path that a name in a file means: in a store, or below the file's folder."""
    found = located(name)
    return found if isinstance(found, StorePath) and "://" in name else located(folder / name)


def relative(path: Path, folder: Path) -> str:
    """Return the name for a path that `located_in` understands in a file of some folder."""
    if isinstance(path, StorePath):
        return str(path)
    return os.path.relpath(path.resolve(), folder.resolve())


class StorePath(PosixPath):
    """A path in an object store, or of a member of a shard; opening it fetches it.

    Made by `located`. It can be listed, asked for its size and read, and not be written to.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return re.sub(r"^(\w+):/(?=[^/])", r"\1://", super().__str__())

    def __fspath__(self) -> str:
        return str(_cache().fetch(self))

    @property
    def entry(self) -> Entry:
        """What is known of it."""
        return _cache().entry(self)

    @property
    def version(self) -> str:
        """What changes when the content does."""
        return self.entry.version

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return size and time of change, as the store says."""
        found = self.entry
        if found.kind == "none":
            raise FileNotFoundError(errno.ENOENT, "it is not in the store", str(self))
        mode = (stat.S_IFDIR if found.kind == "folder" else stat.S_IFREG) | 0o444
        seconds = found.changed / 1e9
        plain = (mode, 0, 0, 1, 0, 0, found.size, int(seconds), int(seconds), int(seconds))
        return os.stat_result(plain, {"st_mtime_ns": found.changed, "st_mtime": seconds})

    def exists(self, **_more: Any) -> bool:
        """Return whether there is such a file or folder."""
        return self.entry.kind != "none"

    def is_file(self, **_more: Any) -> bool:
        """Return whether it is a file."""
        return self.entry.kind == "file"

    def is_dir(self, **_more: Any) -> bool:
        """Return whether it is a folder, or shards."""
        return self.entry.kind == "folder"

    def resolve(self, strict: bool = False) -> StorePath:
        """Return itself: there are no links."""
        return self

    def absolute(self) -> StorePath:
        """Return itself."""
        return self

    def relative_to(self, *other: Any, **more: Any) -> Path:  # type: ignore[override]
        """Return the rest of the name below a folder, as a plain path."""
        return Path(
            PurePosixPath(self).relative_to(*map(PurePosixPath, map(_plain, other)), **more)
        )

    def iterdir(self) -> Generator[StorePath, None, None]:
        """Yield the files that lie right in it, sorted."""
        for name in sorted(name for name in self.names() if "/" not in name):
            yield self / name

    def names(self) -> Iterator[str]:
        """Yield the names of all files under it, as the store has them, and note what they are.

        Raises:
            StoreError: If it cannot be listed.
        """
        return _cache().listed(self)

    def read_bytes(self) -> bytes:
        """Return the content; that of a member comes straight from its shard."""
        if _split(self)[1]:
            return _member(self, self.entry)
        return Path(os.fspath(self)).read_bytes()

    def open(  # type: ignore[override]
        self, mode: str = "r", *args: Any, **more: Any
    ) -> IO[Any]:
        """Open it for reading.

        Raises:
            OutputError: If it is to be written to.
        """
        if not set(mode) <= set("rbt"):
            msg = f"{self}: nothing is written to a store or into a shard. Choose a folder here"
            raise OutputError(msg)
        if mode == "rb" and _split(self)[1]:
            return io.BytesIO(self.read_bytes())
        return Path(os.fspath(self)).open(mode, *args, **more)


class _Whole(StorePath):
    """A tar file in a store as one object, not as the folder of its members."""

    __slots__ = ()


def names_in(folder: StorePath, suffixes: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Yield the files under a folder of a store with some suffixes, and whether each is hidden.

    Label maps in shards are no frames, and left out.
    """
    for name in folder.names():
        last = name[name.rfind("/") + 1 :]
        if last[last.rfind(".") :].lower() in suffixes and not last.endswith(LABEL):
            yield name, last.startswith(".")


def _plain(path: object) -> str:
    """Return a path as text with single slashes, without fetching it."""
    return str(PurePosixPath(path) if isinstance(path, StorePath) else path)


def _is_shard(part: str) -> bool:
    return part.lower().endswith(SHARD) and len(part) > len(SHARD)


def _split(path: Path) -> tuple[Path, str | None]:
    """Return the shard (or pattern of shards) that a path lies in, and the name in it.

    The name is empty for the shard itself, and None for a path without a shard.
    """
    for at, part in enumerate(() if isinstance(path, _Whole) else path.parts):
        if _is_shard(part):
            outer = PurePosixPath(*path.parts[: at + 1])
            return Path(outer), "/".join(path.parts[at + 1 :])
    return path, None


def expanded(pattern: str) -> list[str]:
    """Return the names that a name with ``{0000..0099}`` stands for; itself without one.

    Raises:
        ConfigError: If the range runs backwards.

    Example:
        >>> expanded("shards-{08..10}.tar")
        ['shards-08.tar', 'shards-09.tar', 'shards-10.tar']
    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if last < first:
        msg = f"{pattern}: expected a range that runs forwards, such as {{0000..0099}}"
        raise ConfigError(msg)
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = (f"{number:0{len(found[1])}d}" for number in range(first, last + 1))
    return [name for number in numbers for name in expanded(before + number + after)]


def shards_of(path: Path) -> list[Path]:
    """Return the tar files that a path means as footage, in their order; none of anything else."""
    outer, name = _split(path)
    if name != "" or not isinstance(path, StorePath):
        return []
    return [_place(outer.with_name(shard)) for shard in expanded(outer.name)]


def tail(shard: Path, count: int) -> bytes:
    """Return the last bytes of a tar file, which is not fetched for that.

    Args:
        shard: One of `shards_of`.
        count: How many bytes at most.

    Raises:
        DataError: If there is no such file.
        StoreError: If it cannot be read from a store.
    """
    try:
        size = shard.stat().st_size
        first = max(0, size - count)
        if isinstance(shard, StorePath):
            store = _filesystem(shard)
            read = _tried(shard, lambda: store.cat_file(str(shard), start=first, end=size))
            return bytes(read)
        with shard.open("rb") as file:
            file.seek(first)
            return file.read(count)
    except FileNotFoundError as err:
        msg = f"{shard}: expected a shard, found no file"
        raise DataError(msg) from err


def _shard_of(path: StorePath) -> Path:
    """Return the tar file that a member lies in.

    Below ``shards-{0000..0099}.tar`` stand the shards by their stems, with the members in them.
    """
    outer, name = _split(path)
    if len(shards := expanded(outer.name)) == 1:
        return _place(outer.with_name(shards[0]))
    return _place(outer.with_name((name or "").partition("/")[0] + SHARD))


def _place(path: Path) -> Path:
    """Return the path of a tar file as a file: in a store, or on disk."""
    text = str(path)
    found = _LOCATION.match(text)
    return _Whole(text) if found is not None and found[1] in SCHEMES else Path(text)


# --- stores ---


def _filesystem(path: StorePath) -> Any:
    scheme = path.parts[0].removesuffix(":")
    extra = "s3" if scheme == "memory" else scheme
    require("fsspec", extra)
    require(SCHEMES[scheme], extra)
    import fsspec

    # One instance for each process and thread, which fsspec sees to.
    return fsspec.filesystem(scheme, use_listings_cache=False)


def _tried(path: object, call: Callable[[], T]) -> T:
    """Call what reads from a store, again after delays where it fails.

    Raises:
        FileNotFoundError: If the store says that there is no such thing.
        StoreError: If the store does not let us, or still fails after the last delay.
    """
    for attempt, delay in enumerate((*DELAYS, None), 1):
        try:
            return call()
        except (FileNotFoundError, EdgeudaError):
            raise
        except Exception as err:  # each store has errors of its own
            name = type(err).__name__
            why = without_passwords(f"{name}: {err}").splitlines()[0]
            if isinstance(err, PermissionError) or "Credential" in name:
                msg = (
                    f"{path}: the store does not let this user read it ({why}). Are the keys set "
                    "that its own tools use, such as AWS_PROFILE?"
                )
                raise StoreError(msg) from err
            if delay is None:
                msg = f"{path}: cannot be read from the store after {attempt} attempts ({why})"
                raise StoreError(msg) from err
        time.sleep(delay)
    raise AssertionError


def _known(info: dict[str, Any]) -> Entry:
    """Return what a store says of an object."""
    if info["type"] == "directory":
        return FOLDER
    keys = ("LastModified", "last_modified", "updated", "mtime", "created")
    when = next((info[key] for key in keys if info.get(key)), 0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    seconds = when.timestamp() if isinstance(when, datetime) else float(when)
    size = int(info.get("size") or 0)
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or seconds
    return Entry("file", size, sha256_of([str(tag), str(size)])[:32], int(seconds * 1e9))


def _look(path: StorePath) -> Entry:
    """Ask a store for an object."""
    filesystem = _filesystem(path)
    try:
        return _known(_tried(path, lambda: filesystem.info(str(path))))
    except FileNotFoundError:
        return NONE


def _objects(folder: StorePath) -> Iterator[tuple[str, Entry]]:
    """Yield the objects under a folder of a store; one folder's listing is held at a time."""
    filesystem = _filesystem(folder)
    waiting = [str(folder)]
    base = len(filesystem._strip_protocol(str(folder)).strip("/")) + 1
    while waiting:
        at = waiting.pop()
        below = filesystem._strip_protocol(at).strip("/")
        try:
            found = _tried(at, lambda at=at: filesystem.ls(at, detail=True))  # type: ignore[misc]
        except FileNotFoundError:
            found = []
        for info in found:
            name = info["name"].strip("/")
            if name == below:  # an empty object that stands for the folder
                continue
            entry = _known(info)
            if entry.kind == "folder":
                waiting.append(f"{folder.parts[0]}//{name}")
            yield name[base:], entry


def _members(shard: Path, prefix: str) -> Iterator[tuple[str, Entry]]:
    """Yield the members of a tar file by their names, with ``prefix`` before them."""
    try:
        fact = shard.stat()
        version = getattr(shard, "version", f"{fact.st_size}-{fact.st_mtime_ns}")
        with (
            Path(os.fspath(shard)).open("rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            file.seek(max(0, fact.st_size - END))
            if file.read() != bytes(END):
                msg = f"{shard}: expected a shard, found a file that does not end as tar files do; "
                raise DataError(msg + "it is cut off, compressed or something else")
            file.seek(0)
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it holds them all
                if not member.isfile():
                    continue
                name = member.name.removeprefix("./").removeprefix(OWN)
                tag = sha256_of([version, str(member.offset_data)])[:32]
                start = member.offset_data
                yield prefix + name, Entry("file", member.size, tag, fact.st_mtime_ns, start)
    except FileNotFoundError as err:
        msg = f"{shard}: expected a shard, found no file"
        raise DataError(msg) from err
    except (tarfile.TarError, OSError) as err:
        msg = f"{shard}: expected a shard (a tar file that is not compressed), found: {err}"
        raise DataError(msg) from err


def _member(path: StorePath, entry: Entry) -> bytes:
    """Return the bytes of a member."""
    shard = _shard_of(path)
    if entry.kind != "file":
        raise FileNotFoundError(errno.ENOENT, "it is not in the shard", str(path))
    with Path(os.fspath(shard)).open("rb") as file:
        file.seek(entry.start)
        data = file.read(entry.size)
    if len(data) < entry.size:
        msg = f"{path}: expected {entry.size} bytes in {shard}, found {len(data)}: it is cut off"
        raise DataError(msg)
    return data


# --- the cache ---

_TABLE = """
create table if not exists objects (
    location text primary key, kind text, size integer, version text, changed integer,
    start integer, seen real, cached text, bytes integer default 0, used real default 0
) without rowid;
create index if not exists kept on objects (used, bytes) where bytes > 0;
create table if not exists listings (location text primary key, seen real) without rowid;
"""
_NOTE = """
insert into objects (location, kind, size, version, changed, start, seen)
values (?, ?, ?, ?, ?, ?, ?) on conflict (location) do update set kind = excluded.kind,
size = excluded.size, version = excluded.version, changed = excluded.changed,
start = excluded.start, seen = excluded.seen
"""


class Cache:
    """Fetched files, of bounded size, and an index of what is known of stores.

    Several processes may use one. What this process learned since it began counts, and what others
    learned since; older knowledge is asked for again.

    Args:
        folder: Where it lies, on a local disk.
        limit: Bytes of all fetched files at most.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._own = threading.local()
        self._inherited: list[Any] = []
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forked)
        self._held: deque[tuple[int, int]] = deque()

    def _forked(self) -> None:
        self._lock = threading.Lock()  # another thread may have had it

    def entry(self, path: StorePath) -> Entry:
        """Return what is known of a path; what is not known is asked for.

        Raises:
            StoreError: If the store cannot be asked.
        """
        outer, name = _split(path)
        if name == "":
            names = expanded(outer.name)
            return FOLDER if len(names) > 1 or _place(outer).is_file() else NONE
        location = str(path)
        asked, last = getattr(self._own, "last", (None, NONE))
        if asked == (location, _SINCE):  # whether it exists, its size and version, in a row
            return last
        row = self._rows(
            "select kind, size, version, changed, start from objects where location = ? and "
            "seen >= ?", location, _SINCE,
        )  # fmt: skip
        if row:
            found = Entry(*row[0])
            self._own.last = (location, _SINCE), found
            return found
        if name is not None:
            shards = StorePath(str(outer))
            if len(expanded(outer.name)) > 1:  # of many, the one that it would lie in
                shards = shards / name.partition("/")[0]
                if path == shards:
                    return FOLDER if _shard_of(path).is_file() else NONE
            if self._is_listed(shards) or self._is_listed(StorePath(str(outer))):
                return NONE
            deque(self.listed(shards), 0)
            return self.entry(path)
        if any(self._is_listed(above) for above in path.parents if len(above.parts) > 1):
            return NONE
        found = _look(path)
        self._note([(location, found)])
        return found

    def listed(self, folder: StorePath) -> Iterator[str]:
        """Yield the names of files under a folder, and note what they are."""
        part: list[tuple[str, Entry]] = []
        base, folders = str(folder), set()
        for name, entry in _all(folder):
            above = name[: max(0, name.rfind("/"))]
            while above and above not in folders:
                folders.add(above)
                part.append((f"{base}/{above}", FOLDER))
                above = above[: max(0, above.rfind("/"))]
            part.append((f"{base}/{name}", entry))
            if len(part) > 1000:
                self._note(part)
                part = []
            if entry.kind == "file":
                yield name
        self._note(part)
        old = time.time() - FORGOTTEN
        self._write("delete from objects where bytes = 0 and seen < ?", old)
        self._write("insert or replace into listings values (?, ?)", base, time.time())

    def fetch(self, path: StorePath) -> Path:
        """Return where a file lies on this disk, after fetching it if it does not.

        Raises:
            FileNotFoundError: If there never was such a file; likewise IsADirectoryError.
            StoreError: If it is gone, cannot be read, or does not fit into the cache.
        """
        entry = self.entry(path)
        if entry.kind == "folder":
            raise IsADirectoryError(errno.EISDIR, "it is a folder of a store", str(path))
        if entry.kind != "file":
            raise FileNotFoundError(errno.ENOENT, "it is not in the store", str(path))
        location = str(path)
        at = self._at(path)
        row = self._rows("select cached from objects where location = ?", location)
        if row and row[0][0] == entry.version and self._hold(at, entry.size):
            self._write("update objects set used = ? where location = ?", time.time(), location)
            return at
        self._reserve(path, entry)
        try:
            write_atomic(at, lambda to: self._get(path, entry, to), durable=False)
        except BaseException:
            self._write("update objects set bytes = 0, cached = null where location = ?", location)
            raise
        self._hold(at, entry.size)
        self._write(
            "update objects set cached = ?, bytes = ?, used = ? where location = ?",
            entry.version, at.stat().st_size, time.time(), location,
        )  # fmt: skip
        return at

    def _at(self, path: StorePath) -> Path:
        """Return where a file lies on this disk; those of one folder lie together."""
        return self._folder / "files" / sha256_of([str(path.parent)])[:16] / path.name

    def _get(self, path: StorePath, entry: Entry, to: Path) -> None:
        if _split(path)[1]:
            to.write_bytes(_member(path, entry))
            return
        filesystem = _filesystem(path)

        def once() -> None:
            filesystem.get_file(str(path), str(to))
            found = to.stat().st_size
            if found != entry.size:
                msg = f"expected {entry.size} bytes, as listed, found {found}; did it change?"
                raise OSError(msg)

        try:
            _tried(path, once)
        except FileNotFoundError as err:
            msg = f"{path}: it was in the store when it was listed, and is gone now"
            raise StoreError(msg) from err

    def _reserve(self, path: StorePath, entry: Entry) -> None:
        """Make room for a file by removing those that nobody used for the longest time."""
        if entry.size > self._limit:
            raise StoreError(self._too_large(path, entry))
        database = self._database()
        if not self._rows("select 1 from objects where location = ?", str(path)):
            self._note([(str(path), entry)])
        with database:
            database.execute("begin immediate")
            now = time.time()
            kept = "select total(bytes) from objects where bytes > 0 and location != ?"
            total = database.execute(kept, (str(path),)).fetchone()[0]
            oldest = database.execute(
                "select location, bytes from objects where bytes > 0 and location != ? and "
                "(cached is not null or used < ?) order by used",
                (str(path), now - LEFT),
            )
            for location, size in oldest.fetchall() if total + entry.size > self._limit else ():
                if total + entry.size <= self._limit:
                    break
                if self._remove(location):
                    drop = "update objects set bytes = 0, cached = null where location = ?"
                    database.execute(drop, (location,))
                    total -= size
            if total + entry.size > self._limit:
                raise StoreError(self._too_large(path, entry))
            reserve = "update objects set bytes = ?, cached = null, used = ? where location = ?"
            database.execute(reserve, (entry.size, now, str(path)))

    def _too_large(self, path: StorePath, entry: Entry) -> str:
        return (
            f"{path}: its {entry.size:,} bytes do not fit into the cache {self._folder} of "
            f"{self._limit:,} bytes beside what is in use. Set {LIMIT_VARIABLE} to more, "
            f"such as {LIMIT_VARIABLE}={(entry.size + self._limit) // 10**9 + 1}GB"
        )

    def _remove(self, location: str) -> bool:
        """Remove a fetched file, unless a process holds it."""
        import fcntl

        at = self._at(StorePath(location))
        try:
            with at.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                at.unlink()
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    def _hold(self, at: Path, size: int) -> bool:
        """Keep a file from being removed while it is among the last that were handed out."""
        import fcntl

        try:
            handle = os.open(at, os.O_RDONLY)
        except FileNotFoundError:
            return False
        fcntl.flock(handle, fcntl.LOCK_SH)
        if not os.fstat(handle).st_nlink:  # removed in between
            os.close(handle)
            return False
        with self._lock:
            self._held.append((handle, size))
            total = sum(one for _, one in self._held)
            while len(self._held) > 1 and (len(self._held) > HELD or total > self._limit // 4):
                old, less = self._held.popleft()
                os.close(old)
                total -= less
        return True

    def _is_listed(self, folder: Path) -> bool:
        return bool(
            self._rows(
                "select 1 from listings where location = ? and seen >= ?", str(folder), _SINCE
            )
        )

    def _note(self, found: Iterable[tuple[str, Entry]]) -> None:
        now = time.time()
        rows = [
            (location, one.kind, one.size, one.version, one.changed, one.start, now)
            for location, one in found
        ]
        database = self._database()
        with database:
            database.executemany(_NOTE, rows)

    def _rows(self, query: str, *values: object) -> list[Any]:
        return self._database().execute(query, values).fetchall()

    def _write(self, query: str, *values: object) -> None:
        database = self._database()
        with database:
            database.execute(query, values)

    def _database(self) -> sqlite3.Connection:
        """Return this thread's connection; one from before a fork is left alone."""
        pid = os.getpid()
        if getattr(self._own, "pid", None) != pid:
            if hasattr(self._own, "database"):
                self._inherited.append(self._own.database)
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not (self._folder / INDEX).exists():  # nobody would know of them
                shutil.rmtree(self._folder / "files", ignore_errors=True)
            database = sqlite3.connect(self._folder / INDEX, timeout=60)
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = off")  # it can be made again
            database.executescript(_TABLE)
            self._own.pid, self._own.database = pid, database
        connection: sqlite3.Connection = self._own.database
        return connection


def _all(folder: StorePath) -> Iterator[tuple[str, Entry]]:
    """Yield what lies under a folder of a store, a shard, or a pattern of shards."""
    outer, name = _split(folder)
    if name is None:
        yield from _objects(folder)
        return
    shards = expanded(outer.name)
    for one in shards:
        place = _place(outer.with_name(one))
        below = "" if len(shards) == 1 else place.stem + "/"
        if below and name and name.partition("/")[0] != place.stem:
            continue
        for member, entry in _members(place, below):
            if not name or member.startswith(name + "/"):
                yield member.removeprefix(name + "/") if name else member, entry


@lru_cache(maxsize=16)
def _opened(limit: str, *_places: str | None) -> Cache:
    return Cache(cache_folder() / "stores", parse_bytes(LIMIT_VARIABLE, limit))


def _cache() -> Cache:
    """Return the cache that the environment asks for."""
    told = os.environ.get
    return _opened(told(LIMIT_VARIABLE) or LIMIT, told(CACHE_VARIABLE), told("XDG_CACHE_HOME"))
