"""One file for the vehicle: models, calibration, metrics and licences, every byte accounted for.

A bundle is a ZIP archive whose `manifest.json` names every other member with its SHA-256. Nothing
in it is executed or unpickled. An optional Ed25519 signature covers the manifest, and through it
every member. Reading trusts nothing: names, sizes and sums are checked before a member is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeuda import __version__
from edgeuda.errors import BundleError, DataError, require
from edgeuda.files import now_utc, require_absent, sha256, write_atomic, write_bytes
from edgeuda.records.bundle import FOLDERS, Lineage, Manifest, Member
from edgeuda.records.names import MemberRole

SUFFIX = ".edgeuda"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
MAX_MEMBERS = 1000
MAX_MANIFEST = 4 * 2**20
MAX_MEMBER = 4 * 2**30
MAX_TOTAL = 16 * 2**30
ANY_TOTAL = 256 * 2**20
"""Bytes that a bundle of any size may unpack to."""
RATIO = 20
"""Times of its own size that a larger one may unpack to."""
TOTAL_VARIABLE = "EDGEUDA_MAX_BUNDLE"
"""Environment variable: bytes that a bundle may unpack to, in place of these limits."""
MAX_NAME = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*")
_CHUNK = 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose every byte has been checked.

    Attributes:
        path: The file.
        manifest: Its manifest.
        members: The files it holds, by name.
        signed: Whether it carries a signature that was verified with a given public key.
    """

    path: Path
    manifest: Manifest
    members: dict[str, Member]
    signed: bool

    def of(self, role: MemberRole) -> list[Member]:
        """Return the members of a role."""
        return [member for member in self.members.values() if member.role == role]

    def read(self, name: str) -> bytes:
        """Return a member; it is checked again, as the file may have changed.

        Raises:
            BundleError: If there is no such member, or it is not what the manifest says.
        """
        if name not in self.members:
            msg = f"{self.path}: holds no {name!r}, only {', '.join(self.members)}"
            raise BundleError(msg)
        content = io.BytesIO()
        with _archive(self.path) as archive:
            _copy(self.path, archive, self.members[name], content)
        return content.getvalue()

    def unpack(self, role: MemberRole, folder: Path) -> list[Path]:
        """Write the members of a role into a folder, by their last names; returns the files.

        Raises:
            BundleError: If a member is not what the manifest says.
        """
        found = []
        for member in self.of(role):
            found.append(folder / Path(member.name).name)
            write_bytes(found[-1], self.read(member.name))
        return found

    def extract(self, folder: Path) -> list[Path]:
        """Write all members below a folder that does not exist; returns the files.

        Raises:
            OutputExistsError: If the folder exists.
            BundleError: If a member is not what the manifest says.
        """
        require_absent(folder)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for member in self.members.values():
            path = partial / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(member.name))
        partial.rename(folder)
        return [folder / name for name in self.members]


def write_bundle(
    out: Path,
    files: Sequence[tuple[MemberRole, Path, dict[str, Any]]],
    spec: dict[str, Any],
    private_key: Path | None = None,
    lineage: Lineage | None = None,
) -> Manifest:
    """Write a bundle. The same files and spec give the same bytes, but for the time in it.

    Args:
        out: The file, ending in ``.edgeuda``.
        files: Role, file and what to say about it.
        spec: Of the network; empty if there is none.
        private_key: Ed25519 key, PEM without a password, to sign with.
        lineage: Where the network comes from, if that is known.

    Returns:
        The manifest.

    Raises:
        BundleError: If a name is not allowed or occurs twice, or a file or key cannot be read.
        OutputExistsError: If ``out`` exists.
        DependencyError: If signing needs ``cryptography`` and it is not installed.
    """
    if out.suffix != SUFFIX:
        msg = f"{out}: expected a name that ends in {SUFFIX}"
        raise BundleError(msg)
    require_absent(out)
    members: dict[str, tuple[Path, Member]] = {}
    for role, path, about in files:
        name = f"{FOLDERS[role]}/{path.name}"
        _check_name(out, name)
        if name.lower() in {known.lower() for known in members}:
            msg = f"{out}: two files would be called {name!r}"
            raise BundleError(msg)
        try:
            members[name] = path, Member(name, role, path.stat().st_size, sha256(path), about)
        except OSError as err:
            msg = f"{path}: cannot be put into a bundle ({err.strerror})"
            raise BundleError(msg) from err
    listed = [member for _, member in members.values()]
    manifest = Manifest(__version__, now_utc(), listed, spec, lineage)
    text = json.dumps(manifest.to_record(), indent=1, allow_nan=False).encode()
    signature = None if private_key is None else _sign(private_key, text)

    def write(name: Path) -> None:
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_info(MANIFEST), text)
            if signature is not None:
                archive.writestr(_info(SIGNATURE), signature)
            for member_name, (path, _) in members.items():
                with path.open("rb") as source, archive.open(_info(member_name), "w") as target:
                    while chunk := source.read(_CHUNK):
                        target.write(chunk)

    write_atomic(out, write)
    return manifest


def open_bundle(path: Path, public_key: Path | None = None) -> Bundle:
    """Read a bundle and check all of it.

    Args:
        path: The file.
        public_key: Ed25519 public key, PEM; with it, a bundle that is not signed by its owner is
            refused.

    Raises:
        BundleError: If anything about it is not as it has to be; the message says what.
        DependencyError: If a signature has to be verified and ``cryptography`` is not installed.
    """
    with _archive(path) as archive:
        infos = _checked_members(path, archive)
        if MANIFEST not in infos:
            raise BundleError(_says(path, f"has no {MANIFEST}"))
        text = _read(path, archive, infos[MANIFEST], MAX_MANIFEST)
        if public_key is not None:
            if SIGNATURE not in infos:
                raise BundleError(_says(path, "is not signed, and a public key was given"))
            _verify(path, public_key, text, _read(path, archive, infos[SIGNATURE], 64))
        manifest = _manifest(path, text)
        members = {member.name: member for member in manifest.files}
        present = infos.keys() - {MANIFEST, SIGNATURE}
        if present != members.keys():
            odd = sorted(present ^ members.keys())
            raise BundleError(_says(path, f"does not hold what its manifest lists: {odd[0]!r}"))
        for member in members.values():
            if infos[member.name].file_size != member.size:
                raise BundleError(_says(path, f"{member.name!r} has another size than listed"))
            _copy(path, archive, member, None)
    return Bundle(path, manifest, members, public_key is not None)


def _says(path: Path, what: str) -> str:
    return f"{path}: {what}. Do not use it; get it again from where it was made"


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as err:
        msg = f"{path}: expected a bundle, found no such file"
        raise BundleError(msg) from err
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as err:
        raise BundleError(_says(path, f"is no bundle, or damaged ({err})")) from err


def _checked_members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name once their names and sizes were found harmless."""
    infos: dict[str, zipfile.ZipInfo] = {}
    lowered: set[str] = set()
    listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise BundleError(_says(path, f"has {len(listed)} members, at most {MAX_MEMBERS} may be"))
    for info in listed:
        # What the archive says, not what zipfile made of it: that hides a NUL and what follows.
        _check_name(path, info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.is_dir():
            raise BundleError(_says(path, f"{info.filename!r} is no plain file"))
        if info.flag_bits & 0x1 or info.compress_type not in _METHODS:
            raise BundleError(_says(path, f"{info.filename!r} is encrypted or oddly packed"))
        if info.file_size > MAX_MEMBER:
            raise BundleError(_says(path, f"{info.filename!r} is larger than {MAX_MEMBER} bytes"))
        if info.filename.lower() in lowered:
            raise BundleError(_says(path, f"{info.filename!r} occurs twice"))
        lowered.add(info.filename.lower())
        infos[info.filename] = info
    total, packed = sum(info.file_size for info in listed), max(1, path.stat().st_size)
    # Weights hardly shrink; what unpacks to many times its size was made to fill a disk.
    most = int(os.environ.get(TOTAL_VARIABLE, min(MAX_TOTAL, max(ANY_TOTAL, RATIO * packed))))
    if total > most:
        text = f"unpacks to {total} bytes, {total / packed:.0f} times its size. If that is meant, "
        raise BundleError(_says(path, f"{text}set {TOTAL_VARIABLE}={total}"))
    return infos


def _check_name(path: Path, name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        msg = f"{path}: {name[:80]!r} is no allowed name: letters, digits, . _ + - and / between"
        raise BundleError(msg)


def _manifest(path: Path, text: bytes) -> Manifest:
    try:
        return Manifest.from_record(json.loads(text), f"{path}: its manifest")
    except (DataError, ValueError, AttributeError, RecursionError) as err:
        raise BundleError(_says(path, f"its manifest is no {Manifest.SCHEMA} ({err})")) from err


def _chunks(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> Iterator[bytes]:
    """Yield a member's bytes; more than ``limit`` are refused, whatever the archive claims."""
    read = 0
    try:
        with archive.open(name) as source:
            while chunk := source.read(_CHUNK):
                read += len(chunk)
                if read > limit:
                    raise BundleError(_says(path, f"{name!r} is longer than {limit} bytes"))
                yield chunk
    except BundleError:
        raise
    except Exception as err:  # zlib.error, BadZipFile, EOFError, OSError and what else it finds
        raise BundleError(_says(path, f"{name!r} cannot be read ({err!r})")) from err


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    return b"".join(_chunks(path, archive, info.filename, limit))


def _copy(path: Path, archive: zipfile.ZipFile, member: Member, to: io.BytesIO | None) -> None:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(path, archive, member.name, member.size):
        digest.update(chunk)
        size += len(chunk)
        if to is not None:
            to.write(chunk)
    if size != member.size or digest.hexdigest() != member.sha256:
        raise BundleError(_says(path, f"{member.name!r} is not what the manifest lists"))


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _sign(key_file: Path, text: bytes) -> bytes:
    keys = require("cryptography.hazmat.primitives.serialization", "sign")
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "sign")
    try:
        key = keys.load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, TypeError, ValueError) as err:
        msg = f"{key_file}: expected an Ed25519 private key as PEM without a password ({err})"
        raise BundleError(msg) from err
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        msg = f"{key_file}: expected an Ed25519 private key, found another kind"
        raise BundleError(msg)
    return bytes(key.sign(text))


def _verify(path: Path, key_file: Path, text: bytes, signature: bytes) -> None:
    keys = require("cryptography.hazmat.primitives.serialization", "sign")
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "sign")
    exceptions = require("cryptography.exceptions", "sign")
    try:
        key = keys.load_pem_public_key(key_file.read_bytes())
    except (OSError, ValueError) as err:
        msg = f"{key_file}: expected an Ed25519 public key as PEM ({err})"
        raise BundleError(msg) from err
    if not isinstance(key, ed25519.Ed25519PublicKey):
        msg = f"{key_file}: expected an Ed25519 public key, found another kind"
        raise BundleError(msg)
    try:
        key.verify(signature, text)
    except exceptions.InvalidSignature as err:
        raise BundleError(_says(path, f"is not signed by the owner of {key_file}")) from err
