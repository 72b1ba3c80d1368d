"""A bundle from the forms of one network: what lies beside each file goes along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeuda.errors import BundleError
from engines.bundle import MemberRole, write_bundle
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.metadata import export_of, precision_of, runtime_of, spec_of

BESIDE: tuple[tuple[str, MemberRole], ...] = (
    (".calibration.json", "calibration"),
    (".ranges.npz", "ranges"),
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
) -> dict[str, Any]:
    """Write a bundle of forms of one network; see `engines.bundle.write_bundle`.

    Args:
        models: ONNX files of this project, of the same network.
        out: The bundle to write.
        records: JSON records of their metrics.
        recipe: Recipe of the training.
        licences: Under which terms the vehicle may run it.
        private_key: Ed25519 key to sign with.

    Returns:
        The manifest.

    Raises:
        BundleError: If the models are not of one network, or see `write_bundle`.
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
        }
        files.append(("model", path, about))
        for suffix, role in BESIDE:
            beside = path.with_name(path.name + suffix)
            if beside.exists():
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
    if recipe is not None:
        files.append(("recipe", recipe, {}))
    return write_bundle(out, files, {"spec": json.loads(spec.to_json())}, private_key)
