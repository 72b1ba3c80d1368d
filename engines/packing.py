"""A bundle from the forms of one network: what lies beside each file goes along."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeuda.data.frames import FrameFolder, frame_folder
from edgeuda.data.images import Image, read_image, resize_image, write_image, write_label
from edgeuda.data.treatment import as_shown
from edgeuda.errors import BundleError
from edgeuda.records.bundle import Lineage, Manifest
from edgeuda.records.names import MemberRole
from edgeuda.records.reference import SUFFIX
from edgeuda.spec import ModelSpec
from engines.bundle import write_bundle
from engines.machine.hardware import ROUNDING, identity
from engines.onnx.confidence import CONFIDENCE_KEY
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.metadata import export_of, precision_of, runtime_of, spec_of
from engines.onnxruntime_runner import OnnxRunner
from engines.reference import reference_of

ACCEPTANCE = 4
"""Frames on which a vehicle tries a model."""
BESIDE: tuple[tuple[str, MemberRole], ...] = (
    (".calibration.json", "calibration"),
    (".ranges.npz", "ranges"),
    (SUFFIX, "reference"),
)
"""Suffixes of what belongs to a model's file."""


def pack(
    models: Sequence[Path],
    out: Path,
    *,
    records: Sequence[Path] = (),
    recipe: Path | None = None,
    licences: Sequence[Path] = (),
    private_key: Path | None = None,
    acceptance: Path | FrameFolder | Mapping[str, Image] | None = None,
    others: Sequence[tuple[Path, dict[str, Any]]] = (),
    lineage: Lineage | None = None,
) -> Manifest:
    """Write a bundle of forms of one network; see `engines.bundle.write_bundle`.

    Args:
        models: ONNX files of this project, of the same network.
        out: The bundle to write.
        records: JSON records of their metrics.
        recipe: Recipe of the training.
        licences: Under which terms the vehicle may run it.
        private_key: Ed25519 key to sign with.
        acceptance: Footage of which `ACCEPTANCE` frames are packed, with the label maps that each
            model gives of them here, for `engines.installation`; or these frames by name, at the
            network's input size; None packs none.
        others: Further files, and what to say about each.
        lineage: Where the network comes from, if that is known.

    Returns:
        The manifest.

    Raises:
        BundleError: If the models are not of one network, or see `write_bundle`.
        DataError: If a model's reference is damaged, or that of another model.
    """
    files: list[tuple[MemberRole, Path, dict[str, Any]]] = []
    specs = {}
    for path in models:
        metadata = metadata_of(load_graph(path))
        specs[path] = spec_of(metadata, str(path))
        exported = export_of(metadata, str(path))
        about = {
            "precision": precision_of(metadata),
            "head": exported.head,
            "opset": exported.opset,
            "for": runtime_of(metadata),
            **({"confidence": True} if CONFIDENCE_KEY in metadata else {}),
        }
        files.append(("model", path, about))
        for suffix, role in BESIDE:
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                if role == "reference":
                    reference_of(path)  # that of another model would be normal for nobody
                files.append((role, beside, {}))
    if not specs:
        msg = f"{out}: expected at least one model to pack, found none"
        raise BundleError(msg)
    first, spec = next(iter(specs.items()))
    for path, other in specs.items():
        if other != spec:
            msg = f"{path}: is another network than {first}; a bundle holds forms of one"
            raise BundleError(msg)
    files += [("metrics", path, {}) for path in records]
    files += [("licence", path, {}) for path in licences]
    files += [("other", path, about) for path, about in others]
    if recipe is not None:
        files.append(("recipe", recipe, {}))
    with tempfile.TemporaryDirectory(prefix="edgeuda-") as folder:
        if acceptance is not None:
            images = _frames(acceptance, spec)
            files += _accepted(images, models, Path(folder))
        return write_bundle(out, files, json.loads(spec.to_json()), private_key, lineage)


def _frames(
    acceptance: Path | FrameFolder | Mapping[str, Image], spec: ModelSpec
) -> Mapping[str, Image]:
    """Return `ACCEPTANCE` frames of footage by name, at the network's input size."""
    if isinstance(acceptance, Mapping):
        return acceptance
    frames = frame_folder(acceptance) if isinstance(acceptance, Path) else acceptance
    size = spec.preprocessing
    images = {}
    for number, path in enumerate(frames.sample(ACCEPTANCE)):
        shown = as_shown(read_image(path), path, size.geometry)
        images[f"frame-{number}.png"] = resize_image(shown, size.height, size.width)
    return images


def _accepted(
    images: Mapping[str, Image], models: Sequence[Path], folder: Path
) -> list[tuple[MemberRole, Path, dict[str, Any]]]:
    """Write frames, and what each model makes of them on this CPU."""
    files: list[tuple[MemberRole, Path, dict[str, Any]]] = []
    here = identity()
    about = {key: here[key] for key in ROUNDING}
    for name, image in images.items():
        write_image(folder / name, image)
        files.append(("acceptance", folder / name, {}))
    for model in models:
        with OnnxRunner(model, 1) as runner:
            for name, image in images.items():
                path = folder / f"{model.name}-{name}"
                write_label(path, runner(image[None])[0])
                files.append(("acceptance", path, {"model": model.name, "frame": name, **about}))
    return files
