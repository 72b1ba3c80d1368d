"""The forms of a network that another bundle has of its own: the same heads, bits and runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from calibration.half_precision import write_half
from calibration.options import Options, Report, silent
from calibration.quantize import calibrate
from calibration.reference import write_reference
from edgeuda.data.frames import FrameFolder
from edgeuda.data.treatment import read_frame
from edgeuda.errors import BundleError
from edgeuda.records.names import Head, Precision
from edgeuda.records.reference import reference_path
from engines.api import export
from engines.bundle import Bundle
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.metadata import (
    HALF_KEY,
    export_of,
    identity_in,
    precision_of,
    runtime_of,
    spec_of,
)
from engines.reference import reference_member

if TYPE_CHECKING:
    from edgeuda.records.names import RuntimeName

PARITY = 8
"""Frames on which an export is compared with torch, and half precision with single."""


@dataclass(frozen=True)
class Form:
    """A model of a bundle.

    Attributes:
        name: Of its file.
        head: What it returns.
        precision: Its arithmetic.
        runtime: What it was quantized for; None if it was not.
        half: Whether it, or the rest of it, is in half precision.
        reference: Whether the bundle says what is normal for it.
    """

    name: str
    head: Head
    precision: Precision
    runtime: str | None
    half: bool
    reference: bool


def forms_of(bundle: Bundle) -> tuple[list[Form], str]:
    """Return the models of a bundle, and the SHA-256 of the checkpoint that all are forms of.

    Raises:
        BundleError: If a model does not say which network it is, or they are of several.
        ModelError: If what a model says of itself is damaged.
    """
    forms, networks = [], {}
    for member in bundle.of("model"):
        origin = f"{bundle.path}: {member.name}"
        graph = load_graph(Path(origin), "quantize", content=bundle.read(member.name))
        metadata = metadata_of(graph)
        known = identity_in(metadata, origin)
        if known is None:
            msg = (
                f"{origin}: expected a model that says which network it is, found one that was "
                "exported from no run folder. Export the run's network again, and bundle that"
            )
            raise BundleError(msg)
        networks[known.network] = member.name
        spec_of(metadata, origin)
        runtime = runtime_of(metadata)
        forms.append(
            Form(
                Path(member.name).name, export_of(metadata, origin).head, precision_of(metadata),
                runtime, HALF_KEY in metadata, reference_member(member) in bundle.members,
            )
        )  # fmt: skip
    if len(networks) != 1:
        found = " and ".join(networks.values()) or "no model"
        msg = f"{bundle.path}: expected forms of one network, found {found}"
        raise BundleError(msg)
    return forms, next(iter(networks))


def make_forms(
    run: Path,
    forms: Sequence[Form],
    footage: FrameFolder,
    folder: Path,
    *,
    frames: int,
    threads: int | None = None,
    report: Report = silent,
) -> list[Path]:
    """Export, quantize and halve a network; what is there is not made again.

    All forms say how sure they are. INT8 takes the defaults of `edgeuda calibrate`.

    Args:
        run: Run folder of the network.
        forms: What to make.
        footage: Frames of the vehicle, on which forms are compared and calibrated.
        folder: Where their files go.
        frames: Frames to calibrate on, and to remember what is normal.
        threads: Threads of one operator.
        report: See `calibration.options.Report`.

    Returns:
        The files, in the order of the forms.

    Raises:
        ParityError: If an export or a form in half precision is not the same network.
        EdgeudaError: See `engines.export`, `calibrate` and `write_reference`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {one.head: one.name for one in forms if one.precision == "fp32"}

    def single(head: Head, name: str | None = None) -> Path:
        path = folder / (name or named.get(head, f"fp32-{head}.onnx"))
        if not path.exists():
            report(f"exporting {path.name}", 0, 1)
            images = [read_frame(one, footage.geometry) for one in footage.sample(PARITY)]
            export(run, images, path, head=head, confidence=True)
        return path

    def quantized(form: Form, path: Path) -> Path:
        if not path.exists():
            options = Options(cast("RuntimeName", form.runtime), threads=threads)
            chosen = footage.sample(frames)
            calibrate(single(form.head), chosen, path, options, report=report,
                      skipped=footage.skipped())  # fmt: skip
        return path

    found = []
    for form in forms:
        path = folder / form.name
        if form.half and not path.exists():
            whole = single(form.head)
            if form.precision == "int8":
                whole = quantized(form, folder / f"single-{form.name}")
            write_half(whole, footage.sample(PARITY), path, threads=threads)
        elif form.precision == "int8":
            quantized(form, path)
        elif not form.half:
            single(form.head, form.name)
        wanted = form.reference or form.precision == "int8"
        if wanted and not reference_path(path).exists():
            write_reference(path, footage, frames, threads=threads, report=report)
        found.append(path)
    return found
