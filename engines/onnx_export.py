"""Export of a torch network to one ONNX file that takes camera images."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeuda.data.images import Image, resize_image, resize_label
from edgeuda.errors import DataError, ModelError, ParityError, require
from edgeuda.files import sha256, write_bytes
from edgeuda.models.checkpoint import load_model, require_finite
from edgeuda.models.fused import fused
from edgeuda.models.network import Network
from edgeuda.records.confidence import LARGEST_SOFTMAX, ConfidenceNote, FeaturesNote
from edgeuda.records.identity import Identity, identity_of, model_file
from edgeuda.records.labelling import ReliabilityRecord
from edgeuda.records.names import Head
from edgeuda.spec import ModelSpec, Preprocessing
from engines.onnx.confidence import (
    CONFIDENCE,
    CONFIDENCE_KEY,
    FEATURES,
    LEVELS,
    with_confidence,
)
from engines.onnx.graphs import require_valid
from engines.onnx.heads import SMALL, labels_of, with_head
from engines.onnx.label_cast import cast_by_float
from engines.onnx.metadata import (
    BATCH_NORM_KEY,
    EXPORT_KEY,
    IDENTITY_KEY,
    SPEC_KEY,
    ExportRecord,
    FoldedNorm,
    norms_to_json,
)
from engines.onnx.session import open_session

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Later ones have operators (Resize-19) that run on the CPU in ONNX Runtime's CUDA provider."""
MIN_PIXELS_EQUAL = 0.999
"""Smallest fraction of equal pixels at which an export counts as the same network."""


def export_onnx(
    model: nn.Module,
    spec: ModelSpec,
    out: Path,
    *,
    head: Head = "labels",
    frames: Sequence[Image],
    identity: Identity | None = None,
    confidence: bool = False,
    fitted_temperature: float | None = None,
) -> ExportRecord:
    """Write a network as one ONNX file and check that ONNX Runtime reproduces it.

    The graph takes ``image``, uint8 RGB ``[batch, height, width, 3]``, and normalises it itself. It
    returns ``labels``, uint8 ``[batch, height, width]``, or ``logits``, float32
    ``[batch, K, height, width]``, of the main head, or a smaller form of either, see
    `engines.onnx.heads`. The batch is dynamic. An existing file is replaced; when anything fails,
    nothing is written.

    Args:
        model: Called as ``model(x)`` with ``[N, 3, H, W]`` float; returns a tuple whose ``main`` is
            ``[N, K, H, W]``. It is copied, not changed.
        spec: Goes into the file's metadata.
        out: The file to write.
        head: What the graph returns.
        frames: Frames of the deployment domain, uint8 RGB of any size, on which torch and ONNX
            Runtime are compared.
        identity: Which network it is, for the file's metadata; None if that is not known.
        confidence: Whether the graph returns how sure it is, too, see `with_confidence`; and its
            pooled features, where the network has them.
        fitted_temperature: Of the run, for the file's metadata: confidence is the bare softmax's.

    Raises:
        DataError: If there are no frames.
        ModelError: If the network cannot be exported as described, or does not fit ``spec``.
        ParityError: If fewer than `MIN_PIXELS_EQUAL` of the pixels get the same class, or of the
            places the same confidence up to one level.
        DependencyError: If ``onnx``, ``onnxscript`` or ``onnxruntime`` is not installed.
    """
    onnx = require("onnx", "train")
    if not frames:
        msg = f"{out}: expected at least one frame to compare torch with ONNX Runtime, found none"
        raise DataError(msg)
    network = copy.deepcopy(model).cpu().float().eval()
    require_finite(network.state_dict(), str(out))
    run = fused(network)  # compared below with what was trained
    proto = _trace(run, spec, "logits" if head in SMALL else head)
    _strip_traces(proto)
    proto = with_head(proto, head) if head in SMALL else cast_by_float(proto)
    if confidence:
        pooled = network.pooled if isinstance(network, Network) else None
        proto = with_confidence(proto, None if pooled is None else f"network.{pooled}.0.weight")
    _check(proto, spec, head, out)
    exported = proto.SerializeToString()
    pixels_equal, logit_difference = _compare(network, exported, spec, head, frames)
    if pixels_equal < MIN_PIXELS_EQUAL:
        msg = (
            f"{out}: torch and ONNX Runtime agree on {pixels_equal:.4%} of the pixels of "
            f"{len(frames)} frame(s), expected at least {MIN_PIXELS_EQUAL:.1%}. Nothing was written"
        )
        raise ParityError(msg)
    record = ExportRecord(
        head=head,
        opset=OPSET,
        torch_version=torch.__version__,
        onnx_version=onnx.__version__,
        frames=len(frames),
        pixels_equal=pixels_equal,
        logit_difference=logit_difference,
    )
    properties = {SPEC_KEY: spec.to_json(), EXPORT_KEY: record.to_json()}
    if identity is not None:
        properties[IDENTITY_KEY] = identity.to_json()
    if confidence:
        note = _compare_confidence(network, exported, spec, frames, fitted_temperature)
        if note.within_one < MIN_PIXELS_EQUAL:
            msg = (
                f"{out}: torch and ONNX Runtime agree, up to one level, on the confidence of "
                f"{note.within_one:.4%} of the places of {len(frames)} frame(s), expected at least "
                f"{MIN_PIXELS_EQUAL:.1%}. Nothing was written"
            )
            raise ParityError(msg)
        properties[CONFIDENCE_KEY] = note.to_json()
    if norms := _folded_norms(run, spec.preprocessing):
        properties[BATCH_NORM_KEY] = norms_to_json(norms)
    onnx.helper.set_model_props(proto, properties)
    write_bytes(out, proto.SerializeToString())
    return record


@dataclass(frozen=True)
class Exporter:
    """A stored network that can be exported at several sizes and with several heads.

    Attributes:
        network: The network, in eval mode.
        spec: As it was stored.
        sha256: Checksum of its file.
        identity: Which network it is, by its training run; None if that is not known.
        temperature: By which its run divides logits where it labels; None if none was fitted.
    """

    network: nn.Module
    spec: ModelSpec
    sha256: str
    identity: Identity | None = None
    temperature: float | None = None

    def writes(self, frames: Sequence[Image]) -> Callable[[Path, tuple[int, int], Head], None]:
        """Return what writes its graph: file, rows and columns of the input, head.

        Args:
            frames: Frames on which each graph is compared with torch, see `export_onnx`.
        """

        def write(out: Path, size: tuple[int, int], head: Head) -> None:
            fed = replace(self.spec.preprocessing, height=size[0], width=size[1])
            resized = replace(self.spec, preprocessing=fed)
            export_onnx(
                self.network, resized, out, head=head, frames=frames, identity=self.identity
            )

        return write


def exporter(path: Path) -> Exporter:
    """Read a network to be exported from its file or run folder.

    Raises:
        ModelError: See `edgeuda.models.checkpoint.load_model`.
        DataError: If the run's temperature is in a damaged file.
    """
    network, spec = load_model(path)
    file = model_file(path)
    reliability = file.with_name(ReliabilityRecord.FILE)
    fitted = ReliabilityRecord.read(reliability).temperature if reliability.exists() else None
    return Exporter(network, spec, sha256(file), identity_of(file), fitted)


def _folded_norms(network: nn.Module, size: Preprocessing) -> dict[str, FoldedNorm]:
    """Find the batch norm behind each convolution by watching one image pass."""
    made: dict[int, tuple[str, Tensor]] = {}
    norms: dict[str, FoldedNorm] = {}

    def after_conv(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        made[id(output)] = name, output  # held, so that no other tensor gets its id

    def before_norm(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        name, _ = made.get(id(inputs[0]), (None, None))
        if name is not None and module.running_var is not None and module.affine:
            norms[name] = FoldedNorm(
                module.weight.detach().numpy(),
                module.bias.detach().numpy(),
                module.running_var.numpy(),
                module.eps,
            )

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = f"network.{name}.weight"
            hooks.append(module.register_forward_hook(partial(after_conv, weight)))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, size.height, size.width))
    finally:
        for hook in hooks:
            hook.remove()
    return norms


class _Deployed(nn.Module):
    """Camera images to labels or logits, as the vehicle runs it."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, head: Head) -> None:
        super().__init__()
        self.network = network
        self.head = head
        # In double precision: (x / 255 - mean) / std as one multiply-add loses nothing.
        mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
        for name, values in (("scale", 1 / (255 * std)), ("shift", -mean / std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        # TensorRT accepts uint8 only as a network's input, with a Cast as its first consumer.
        x = image.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
        # Without `contiguous` the exporter turns every global pool into shape arithmetic.
        logits: Tensor = self.network(x.contiguous()).main
        return logits.argmax(1).to(torch.uint8) if self.head == "labels" else logits


def _trace(network: nn.Module, spec: ModelSpec, head: Head) -> onnx.ModelProto:
    require("onnxscript", "train")
    size = spec.preprocessing
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                _Deployed(network, size, head).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=[head],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except RuntimeError as err:  # OnnxExporterError is one
        msg = f"The network {spec.architecture!r} cannot be exported to ONNX: {err}"
        raise ModelError(msg) from err
    assert program is not None  # the dynamo exporter always returns its program
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's talk about packages and operators that play no part here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces: they name the exporting machine's source paths."""
    graph = proto.graph
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in items:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
    graph.ClearField("metadata_props")


def _check(proto: onnx.ModelProto, spec: ModelSpec, head: Head, out: Path) -> None:
    """Check what was really written: the exporter changes the opset without an error."""
    onnx = require("onnx", "train")
    require_valid(proto, f"{out}: the exporter wrote a graph that the ONNX checker refuses")
    size, types = spec.preprocessing, onnx.TensorProto
    image = ("image", types.UINT8, ["batch", size.height, size.width, 3])
    rows, columns = size.height, size.width
    if head in SMALL:  # an eighth for BiSeNet; the network says
        stride = max(1, round(size.height / _signature(proto.graph.output[0])[2][-2]))  # type: ignore[operator]
        rows, columns = size.height // stride, size.width // stride
    kind, planes = (
        (types.FLOAT, [len(spec.label_space)])
        if head in ("logits", "scores")
        else (types.UINT8, [])
    )
    # What is beside it follows from the scores' size, which only the graph says.
    ends = {CONFIDENCE: types.UINT8, FEATURES: types.FLOAT}
    outputs: list[tuple[str, Any, Sequence[object]]] = [
        (head, kind, ["batch", *planes, rows, columns])
    ]
    for name, _, shape in map(_signature, proto.graph.output[1:]):
        outputs.append((name, ends.get(name), shape))
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    for subject, expected, found in (
        ("opset", {"": OPSET}, opsets),
        ("inputs", [image], [_signature(value) for value in proto.graph.input]),
        (
            "outputs",
            outputs,
            [_signature(value) for value in proto.graph.output],
        ),
        ("batch norms", 0, sum(node.op_type == "BatchNormalization" for node in proto.graph.node)),
        ("external tensors", 0, sum(t.data_location != 0 for t in proto.graph.initializer)),
    ):
        if found != expected:
            msg = f"{out}: expected {subject} {expected}, found {found}"
            raise ModelError(msg)


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


def _compare(
    network: nn.Module, exported: bytes, spec: ModelSpec, head: Head, frames: Sequence[Image]
) -> tuple[float, float | None]:
    """Return the fraction of equal pixels and, for logits, their largest absolute difference."""
    session = open_session(exported)
    size = spec.preprocessing
    equal, difference = 0.0, 0.0
    for frame in frames:
        image, x = _fed(frame, size)
        with torch.inference_mode():
            reference = network(x).main.numpy()
        if not np.isfinite(reference).all():
            msg = "The network's scores of a frame are not finite: its weights are too large"
            raise ModelError(msg)
        if reference.shape[1] != len(spec.label_space):
            msg = (
                f"Expected {len(spec.label_space)} classes ({spec.label_space.name}), "
                f"found a network with {reference.shape[1]}"
            )
            raise ModelError(msg)
        result = session.run([head], {"image": image})[0]
        labels = labels_of(head, result[0], size.height, size.width)
        expected = reference[0].argmax(0).astype(np.uint8)
        if head == "labels_low":
            with torch.inference_mode():
                small = network(x, upsample=False).main[0].argmax(0).numpy().astype(np.uint8)
            expected = resize_label(small, size.height, size.width)
        equal += float(np.mean(labels == expected))
        if head == "logits":
            difference = max(difference, float(np.abs(result - reference).max()))
    return equal / len(frames), difference if head == "logits" else None


def _fed(frame: Image, size: Preprocessing) -> tuple[npt.NDArray[np.uint8], Tensor]:
    """Return a frame as the graph and as the network take it.

    By the textbook formula, not the exported one: folding it wrongly must show.
    """
    image = resize_image(frame, size.height, size.width)[None]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (size.mean, size.std))
    return image, (torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255 - mean) / std


def _compare_confidence(
    network: nn.Module,
    exported: bytes,
    spec: ModelSpec,
    frames: Sequence[Image],
    fitted_temperature: float | None,
) -> ConfidenceNote:
    """Hold what is beside the head against torch, and return what the file says of it."""
    session = open_session(exported)
    names = [one.name for one in session.get_outputs()[1:]]
    size = spec.preprocessing
    within, worst, off, largest = 0.0, 0, 0.0, 0.0
    pooled: list[Tensor] = []
    hook = None
    if FEATURES in names:
        part = network.get_submodule(str(network.pooled))
        hook = part.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    for frame in frames:
        image, x = _fed(frame, size)
        found = dict(zip(names, session.run(names, {"image": image}), strict=True))
        levels = found[CONFIDENCE][0].astype(int)
        full = levels.shape == (size.height, size.width)
        pooled.clear()
        with torch.inference_mode():
            scores = network(x).main if full else network(x, upsample=False).main
            expected = (LEVELS * scores[0].softmax(0).amax(0)).round().int().numpy()
        apart = np.abs(levels - expected)
        within += float(np.mean(apart <= 1))
        worst = max(worst, int(apart.max()))
        if pooled:
            theirs = pooled[0].flatten(1).numpy()
            off = max(off, float(np.abs(found[FEATURES] - theirs).max()))
            largest = max(largest, float(np.abs(theirs).max()))
    if hook is not None:
        hook.remove()
    rows, columns = levels.shape
    features = None
    if FEATURES in names:
        of = f"global mean of what {network.pooled} reads"
        relative = float(f"{off / max(largest, 1e-12):.3g}")
        features = FeaturesNote(found[FEATURES].shape[1], of, relative)
    return ConfidenceNote(
        LARGEST_SOFTMAX, rows, columns, 1.0, fitted_temperature,
        len(frames), within / len(frames), worst, features,
    )  # fmt: skip
