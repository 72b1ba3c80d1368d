"""Where a vehicle keeps the engines that ONNX Runtime's TensorRT builds of its networks."""

from __future__ import annotations

from pathlib import Path

from edgeuda.files import sha256_of
from edgeuda.records.names import DeviceName
from engines.bundle_model import folder_of
from engines.machine.hardware import identity
from engines.trust import required_keys

FOLDER = "engines"
"""Of them, in a folder of `engines.installation`."""
_MADE_FOR = ("gpu", "gpu_driver", "cuda_driver", "l4t", "onnxruntime")
"""What of `identity` an engine is made for."""


def kept_engines(model: Path, device: DeviceName, public_key: Path | None = None) -> Path | None:
    """Return the folder that the engines of a vehicle's current network are kept in.

    Engines are native code that no signature covers. Where a signature is demanded none is kept:
    each process builds its own.

    Args:
        model: What is opened.
        device: Where it will run.
        public_key: As in `engines.bundle_model.model_file`.

    Returns:
        The folder, which may not be there yet; None if the model is no current one, or if nothing
        is kept.
    """
    if folder_of(model) is None:
        return None
    return engines_of(model.resolve(), device, public_key)


def engines_of(slot: Path, device: DeviceName, public_key: Path | None = None) -> Path | None:
    """Return the folder for a bundle that lies in a vehicle's folder under its checksum."""
    if device != "tensorrt" or required_keys(public_key):
        return None
    machine = identity()
    made_for = sha256_of([machine[name] for name in _MADE_FOR])[:12]
    return slot.parent / FOLDER / f"{slot.stem}-{made_for}"
