"""The reference that belongs to a model: beside its file, or in its bundle."""

from __future__ import annotations

import json
from pathlib import Path

from edgeuda.errors import BundleError, DataError
from edgeuda.files import sha256
from edgeuda.records.bundle import FOLDERS, Member
from edgeuda.records.reference import SUFFIX, Reference, reference_path
from engines.bundle import Bundle


def reference_of(model: Path) -> Reference:
    """Return what was normal for a model, from the file beside it.

    Args:
        model: An ONNX file.

    Raises:
        DataError: If there is none, it is damaged, or it is of another model.
    """
    path = reference_path(model)
    if not path.exists():
        msg = (
            f"{path}: expected what is normal for {model.name}, found no such file. Export with "
            "`confidence`, and calibrate that"
        )
        raise DataError(msg)
    found = Reference.read(path)
    _require_its(found, str(path), model.name, sha256(model))
    return found


def reference_member(model: Member) -> str:
    """Return what the reference of a bundle's model is called there."""
    return f"{FOLDERS['reference']}/{Path(model.name).name}{SUFFIX}"


def reference_in(bundle: Bundle, model: Member) -> Reference | None:
    """Return what was normal for a model of a bundle; None where the bundle does not say.

    Args:
        bundle: A bundle whose bytes have been checked.
        model: One of its models.

    Raises:
        BundleError: If it is no reference, or that of another model, though the manifest lists it.
    """
    name = reference_member(model)
    if name not in bundle.members:
        return None
    origin = f"{bundle.path}: {name}"
    try:
        found = Reference.from_record(json.loads(bundle.read(name)), origin)
        _require_its(found, origin, model.name, model.sha256)
    except (AttributeError, DataError, ValueError, RecursionError) as err:
        msg = f"{err}. Do not use the bundle; get it again from where it was made"
        raise BundleError(msg) from err
    return found


def _require_its(found: Reference, origin: str, name: str, checksum: str) -> None:
    if found.model.sha256 != checksum:
        msg = (
            f"{origin}: is of {found.model.file} ({found.model.sha256[:12]}), and {name} is "
            f"another model ({checksum[:12]}). {Reference.AGAIN}"
        )
        raise DataError(msg)
