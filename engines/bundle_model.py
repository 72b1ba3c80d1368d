"""The model file that a bundle has for a device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeuda.errors import BundleError, ModelError
from edgeuda.records.bundle import Member
from edgeuda.records.names import DeviceName
from edgeuda.records.reference import reference_path
from engines.bundle import SUFFIX, Bundle, open_bundle
from engines.reference import reference_member
from engines.trust import Key, required_keys

CURRENT = f"current{SUFFIX}"
"""The network that runs, in a folder of `engines.installation`."""
_BEST: dict[DeviceName, tuple[tuple[str, str | None], ...]] = {
    "cpu": (("int8", "ort-x86"), ("fp32", None), ("fp16", None)),
    "openvino": (("int8", "ort-x86"), ("fp32", None), ("fp16", None)),
    "cuda": (("fp16", None), ("fp32", None), ("int8", "tensorrt")),
    "tensorrt": (("int8", "tensorrt"), ("fp16", None), ("fp32", None)),
}
"""Precision and the runtime it was quantized for, best first."""


def folder_of(model: Path) -> Path | None:
    """Return the vehicle's folder, if the model is the current one of it."""
    return model.parent if model.name == CURRENT and model.is_symlink() else None


@contextmanager
def model_file(
    path: Path, device: DeviceName, member: str | None = None, public_key: Path | None = None
) -> Iterator[Path]:
    """Give a model's file: ``path`` itself, or what a bundle holds for the device.

    Args:
        path: ONNX file, engine, or bundle (``.edgeuda``), which is checked byte by byte.
        device: Where it will run.
        member: Name of the model in the bundle; None takes the best for the device: INT8 made for
            it, then what is left.
        public_key: Ed25519 key that must have signed the bundle, beside those that this machine
            demands, see `engines.trust`.

    Yields:
        The file; one out of a bundle is gone afterwards, as is its reference beside it.

    Raises:
        BundleError: If the bundle is damaged, unsigned, or has no such model; if a signature is
            demanded and the file is no bundle, which alone can have one.
    """
    if path.is_dir():
        if (path / CURRENT).exists():
            msg = (
                f"{path}: expected a model, found a folder of installed networks. The current one "
                f"is {path / CURRENT}"
            )
            raise ModelError(msg)
        msg = (
            f"{path}: expected an ONNX file, an engine or a bundle, found a folder. Export the "
            f"network of a run: edgeuda export --model {path} --target FRAMES --out MODEL.onnx"
        )
        raise ModelError(msg)
    keys = required_keys(public_key)
    if folder_of(path) is not None:  # it may lead elsewhere while it is read
        path = path.resolve()
    if path.suffix != SUFFIX:
        if keys:
            msg = (
                f"{path}: only bundles ({SUFFIX}) signed by the owner of {keys[0].file} are opened "
                f"({keys[0].said_by} says so), and this is no bundle"
            )
            raise BundleError(msg)
        if member is not None:
            msg = f"{path}: is no bundle ({SUFFIX}); leave `member` {member} away"
            raise BundleError(msg)
        yield path
        return
    bundle = _opened(path, keys)
    chosen = choose_member(bundle, device, member)
    with tempfile.TemporaryDirectory(prefix="edgeuda-") as folder:
        file = Path(folder) / Path(chosen.name).name
        file.write_bytes(bundle.read(chosen.name))
        if (reference := reference_member(chosen)) in bundle.members:
            reference_path(file).write_bytes(bundle.read(reference))
        yield file


def trusted_bundle(path: Path, public_key: Path | None = None) -> Bundle:
    """Read a bundle that everyone has signed whose signature is demanded here.

    Args:
        path: The file.
        public_key: As in `model_file`.

    Raises:
        BundleError: See `open_bundle`.
    """
    return _opened(path, required_keys(public_key))


def _opened(path: Path, keys: Sequence[Key]) -> Bundle:
    bundle = open_bundle(path, keys[0].file if keys else None)
    for key in keys[1:]:
        open_bundle(path, key.file)
    return bundle


def choose_member(bundle: Bundle, device: DeviceName, name: str | None = None) -> Member:
    """Return the bundle's model for a device.

    Raises:
        BundleError: If it has none, or none of that name.
    """
    models = bundle.of("model")
    if name is not None:
        named = [m for m in models if name in (m.name, Path(m.name).name, Path(m.name).stem)]
        if len(named) != 1:
            msg = f"{bundle.path}: has no model {name!r}, only {_list(models)}"
            raise BundleError(msg)
        return named[0]
    for precision, runtime in _BEST[device]:
        for model in models:
            about: dict[str, Any] = model.about
            if about.get("precision") == precision and about.get("for") == runtime:
                return model
    msg = f"{bundle.path}: has no model for {device}, only {_list(models)}"
    raise BundleError(msg)


def _list(models: list[Member]) -> str:
    return ", ".join(model.name for model in models) or "none"
