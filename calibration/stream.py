"""A network adapted on the vehicle to what a drive showed: made, judged, packed and installed.

New batch-norm statistics are estimated on half of a sample of the drive (`engines.live.sample`), as
Schneider et al. do, "Improving robustness against common corruptions by covariate shift
adaptation", NeurIPS 2020: blended with those of the network that runs. The other half, and the
acceptance frames of the bundle, judge it without labels by `edgeuda.decision.judge_stream`. What
passes goes the way of every network, through `engines.installation.install`. There is no torch in
it.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from calibration.frames import Frames
from calibration.observe import Observer
from calibration.options import Options, Report, silent
from calibration.quantize import calibrate
from calibration.reference import write_reference
from calibration.source import renewed
from edgeuda.accuracy.evaluation import confusion
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import (
    Image,
    LabelMap,
    resize_image,
    write_image,
    write_label,
)
from edgeuda.data.treatment import say_treated
from edgeuda.decision import StreamDemands, enough_seen, judge_stream
from edgeuda.errors import BundleError, EdgeudaError, ModelError, require
from edgeuda.files import sha256, sha256_of, write_bytes
from edgeuda.records.bundle import FOLDERS, Driven, Lineage, Member
from edgeuda.records.calibration import CalibrationRecord, Limits, record_path
from edgeuda.records.names import DeviceName, RuleName
from edgeuda.records.stream_adaptation import (
    StreamAdaptation,
    StreamDecision,
    StreamReason,
    StreamShift,
)
from edgeuda.spec import ModelSpec, Preprocessing
from engines.bundle import SUFFIX, Bundle, open_bundle
from engines.bundle_model import CURRENT, choose_member, folder_of
from engines.installation import (
    accepted_frames,
    current_in,
    demanded,
    install,
    left_for,
    refuse,
)
from engines.live.sample import Sample
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.metadata import identity_in, made_from, norms_of, precision_of, spec_of
from engines.packing import pack
from engines.reference import reference_in
from engines.signals import class_distance
from engines.trust import required_keys

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

PRIOR = 256.0
"""Frames that the statistics of the network that runs count for."""
DETAIL = ("network.spatial.*",)
"""The detail path of BiSeNet: what it normalises are edges and colours within a few pixels, which
follow the light. Deeper layers normalise what is in the scene, and the next street has another."""
ORIGIN = "origin"
"""What members say that are label maps of the network which was installed first."""
REDONE = ("weights equalized across layers", "biases corrected")
"""What may have been done to a graph before it was rounded that is done again here."""


@dataclass(frozen=True, eq=False)
class Base:
    """The network that is to be adapted, as its bundle holds it.

    Attributes:
        bundle: The bundle, checked.
        running: The model that runs.
        fp32: The FP32 model that it was made from; the same where FP32 runs.
        graph: That graph.
        running_graph: Of the model that runs.
        spec: What both are.
        record: How the model that runs was rounded; None where FP32 runs.
        frames: Acceptance frames by name, ``[H, W, 3]`` uint8 RGB at the network's input size.
        expected: ``[H, W]`` uint8 labels of each by the network that was installed first.
    """

    bundle: Bundle
    running: Member
    fp32: Member
    graph: onnx.ModelProto
    running_graph: onnx.ModelProto
    spec: ModelSpec
    record: CalibrationRecord | None
    frames: dict[str, Image]
    expected: dict[str, LabelMap]


def base_of(model: Path, device: DeviceName) -> Base:
    """Return what is there to adapt, or say why it cannot be adapted here.

    Args:
        model: The link ``current.edgeuda`` of a folder of `engines.installation`, or a bundle in
            it.
        device: Where it runs.

    Raises:
        BundleError: If this machine demands a signature, which a vehicle cannot give; if the bundle
            is damaged, or lacks acceptance frames, the FP32 form or the record of its INT8 form.
        ModelError: If the model that runs is in half precision, was fine-tuned or rounded by
            others, or the FP32 form does not say which batch norms it has.
        DependencyError: If ``onnx`` is not installed.
    """
    require("onnx", "quantize")
    keys = required_keys()
    if keys:
        msg = (
            f"{model}: expected a machine that opens unsigned bundles, and {keys[0].said_by} "
            f"demands the signature of the owner of {keys[0].file}. A vehicle has no key to sign "
            "what it adapts with. Leave `adapt_bn` out; `keep` brings frames home to adapt to there"
        )
        raise BundleError(msg)
    bundle = open_bundle(model)
    running = choose_member(bundle, device)
    graph = _graph(bundle, running)
    metadata = metadata_of(graph)
    precision, fp32, record = precision_of(metadata), running, None
    if precision == "fp16":
        msg = (
            f"{model}: {running.name} runs in half precision, whose statistics are not estimated "
            "anew here. Run its FP32 or INT8 form, or leave `adapt_bn` out"
        )
        raise ModelError(msg)
    if precision == "int8":
        fp32 = _made_from(bundle, running, made_from(metadata))
        record = _record(bundle, running)
    source = _graph(bundle, fp32)
    norms_of(metadata_of(source), f"{model}: {fp32.name}")
    frames, expected = _acceptance(bundle, running)
    spec = spec_of(metadata, str(model))
    return Base(bundle, running, fp32, source, graph, spec, record, frames, expected)


def layers_of(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Return patterns of the layers whose statistics are estimated: `DETAIL`, else all."""
    names = norms_of(metadata_of(graph), "the model")
    found = any(fnmatch(name, one) for name in names for one in DETAIL)
    return DETAIL if found else ("*",)


def require_adaptable(model: Path, device: DeviceName) -> None:
    """Say before a drive why its network could not be adapted afterwards.

    Args:
        model: What is run.
        device: Where.

    Raises:
        BundleError: If it is not the current network of a vehicle's folder, or see `base_of`.
        ModelError: See `base_of`.
    """
    into = folder_of(model)
    if into is None:
        msg = (
            f"{model}: expected the network of a vehicle's folder, {CURRENT}, which can go back to "
            "the one before, found another file. Take it there with edgeuda install, or leave "
            "`adapt_bn` out"
        )
        raise BundleError(msg)
    base = base_of(model.resolve(), device)
    left = left_for(into, Path(base.bundle.path).stem)
    if left is not None:
        msg = (
            f"{model}: was adapted on this vehicle before, and fallen back to on {left.at} "
            f"({left.reason}). Adapting it again would end alike. Leave `adapt_bn` out, or install "
            "another network"
        )
        raise BundleError(msg)


def adapt_installed(
    into: Path,
    ran: str,
    sample: Sample,
    *,
    device: DeviceName = "cpu",
    threads: int | None = None,
    prior: float = PRIOR,
    demands: StreamDemands | None = None,
    report: Report = silent,
) -> StreamAdaptation:
    """Adapt a vehicle's network to a drive, and make it the next one if it passes.

    Whenever the process ends, one of both networks is current. Nothing of the frames stays on the
    disk, but while INT8 or the reference is made they lie in a temporary folder.

    Args:
        into: The vehicle's folder.
        ran: Checksum of the bundle that ran the drive.
        sample: Frames of the drive.
        device: Where the network runs.
        threads: Threads of ONNX Runtime.
        prior: Frames that the statistics of the network that ran count for.
        demands: What the drive and the candidate have to keep.
        report: Called with what is being done, the steps done and the steps to do.

    Returns:
        What came of it. An error is in it, and the network that ran stays.
    """
    demands = demands or StreamDemands()
    begin = time.perf_counter()
    short = enough_seen(sample.about, demands)
    if current_in(into) != ran:  # the watch went back, or somebody installed another one
        short = (*short, "replaced")
    found = StreamAdaptation("nothing made", short, sample.about, prior)
    if not short:
        try:
            with tempfile.TemporaryDirectory(prefix="edgeuda-") as folder:
                found = _adapted(
                    into, ran, sample, found, Path(folder), device, threads, demands, report
                )
        except (EdgeudaError, OSError) as err:
            found = replace(found, decision="failed", error=str(err))
    found = replace(found, seconds=round(time.perf_counter() - begin, 3))
    (logger.info if found.decision == "installed" else logger.warning)("%s: %s", into, found)
    return found


def _adapted(
    into: Path,
    ran: str,
    sample: Sample,
    found: StreamAdaptation,
    folder: Path,
    device: DeviceName,
    threads: int | None,
    demands: StreamDemands,
    report: Report,
) -> StreamAdaptation:
    slot = into / f"{ran}{SUFFIX}"
    base = base_of(slot, device)
    adapted, kept = renewed(
        base.graph, sample.estimating, f"{slot}: {base.fp32.name}",
        _origin(base, sample.estimating, found.prior), prior=found.prior,
        layers=layers_of(base.graph), threads=threads,
        progress=partial(report, "estimating batch-norm statistics"),
    )  # fmt: skip
    if kept:
        logger.warning("Statistics kept, as these frames hardly vary: %s", ", ".join(kept))
    model = folder / Path(base.fp32.name).name
    write_bytes(model, adapted.SerializeToString())
    models = [model]
    pair = None
    running, candidate = Observer(base.running_graph, threads), Observer(adapted, threads)
    if base.record is not None:
        _int8(base, base.record, model, sample, folder, threads, report)
        models.append(folder / Path(base.running.name).name)
        rounded = Observer(load_graph(models[-1], "quantize"), threads)
        pair = (
            _alike(Observer(base.graph, threads), running, sample.judging),
            _alike(candidate, rounded, sample.judging),
        )
        candidate = rounded
    shift = shift_of(
        running, candidate, sample.judging, len(base.spec.label_space), base.frames, base.expected,
        partial(report, "judging the adapted network"),
    )  # fmt: skip
    reasons = judge_stream(shift, demands, pair)
    if reference_in(base.bundle, base.running) is not None:
        _reference(models[-1], sample, base.spec.preprocessing, folder, threads, report)
    bundle = _packed(base, ran, sample, found, kept, models, folder)
    found = replace(
        found, reasons=reasons, shift=shift, int8_agreement=pair, kept=tuple(kept),
        sha256=sha256(bundle),
    )  # fmt: skip
    decision: StreamDecision = "refused" if reasons else "installed"
    if reasons:
        refuse(into, bundle, _why(reasons, shift, demands, pair))
    else:
        kept_before = demanded(into, ran)  # the frame budget, say
        install(bundle, into, device=device, threads=threads, demands=kept_before, replacing=ran)
    return replace(found, decision=decision)


def shift_of(
    before: Observer,
    after: Observer,
    frames: Frames,
    classes: int,
    acceptance: Mapping[str, Image],
    expected: Mapping[str, LabelMap],
    progress: Any = lambda _done, _total: None,
) -> StreamShift:
    """Hold a candidate beside the network that runs.

    Args:
        before: The network that runs.
        after: The candidate.
        frames: To judge on, at least one.
        classes: Number of classes, K.
        acceptance: Frames by name, ``[H, W, 3]`` uint8 RGB at the network's input size, at least
            one.
        expected: ``[H, W]`` uint8 class ids of each.
        progress: Called with frames done and frames to do.
    """
    joint = np.zeros((classes, classes), np.int64)
    sure, unsure = np.zeros(2), np.zeros(2)
    for position in range(len(frames)):
        seen = [observe(frames[position]) for observe in (before, after)]
        joint += confusion(seen[0].labels, seen[1].labels, classes)
        sure += [one.confidence for one in seen]
        unsure += [_entropy(one.log_probabilities) for one in seen]
        progress(position + 1, len(frames))
    shares = [joint.sum(axis) / joint.sum() for axis in (1, 0)]
    alike = [
        float((after(acceptance[name][None]).labels == labels).mean())
        for name, labels in expected.items()
    ]
    sure, unsure = sure / len(frames), unsure / len(frames)
    return StreamShift(
        float(np.trace(joint) / joint.sum()),
        (float(sure[0]), float(sure[1])),
        (float(unsure[0]), float(unsure[1])),
        (tuple(shares[0].tolist()), tuple(shares[1].tolist())),
        class_distance(shares[1][None], shares[0][None]),
        float(np.mean(alike)),
    )


def _alike(one: Observer, other: Observer, frames: Frames) -> float:
    """Return the share of the frames' pixels that two graphs call the same."""
    places = range(len(frames))
    return float(
        np.mean([(one(frames[n]).labels == other(frames[n]).labels).mean() for n in places])
    )


def _entropy(log_probabilities: Any) -> float:
    return float(-(np.exp(log_probabilities) * log_probabilities).sum(0).mean())


def _why(
    reasons: Sequence[StreamReason],
    shift: StreamShift,
    demands: StreamDemands,
    int8: tuple[float, float] | None,
) -> str:
    """Return a sentence for the history."""
    said: dict[StreamReason, str] = {
        "less alike": f"calls {100 * shift.agreement:.1f} % of the drive's pixels what the network "
        f"that ran calls them, and {100 * demands.agreement:g} % have to be",
        "forgets": f"calls {100 * shift.acceptance:.1f} % of the acceptance frames' pixels as they "
        f"were called when it was installed, and {100 * demands.acceptance:g} % have to be",
    }
    if int8 is not None:
        said["INT8 differs"] = (
            f"in INT8 calls {100 * int8[1]:.1f} % of the drive's pixels what it calls them in "
            f"FP32, and the network that ran {100 * int8[0]:.1f} %"
        )
    return "the adapted network " + "; ".join(said[one] for one in reasons)


def _origin(base: Base, frames: Sequence[Image], prior: float) -> str:
    """Return what an adapted model says that it was made from."""
    import hashlib

    sums = [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames]
    return json.dumps(
        {"model_sha256": base.fp32.sha256, "frames_sha256": sha256_of(sums), "prior": prior}
    )


def _graph(bundle: Bundle, member: Member) -> onnx.ModelProto:
    origin = Path(f"{bundle.path}: {member.name}")
    return load_graph(origin, "quantize", content=bundle.read(member.name))


def _made_from(bundle: Bundle, running: Member, checksum: str | None) -> Member:
    for member in bundle.of("model"):
        if member.sha256 == checksum:
            return member
    msg = (
        f"{bundle.path}: expected the FP32 model that {running.name} was made from, whose "
        "statistics are estimated anew, found no such file. Pack both: edgeuda bundle --model FP32 "
        "--model INT8 --acceptance FOOTAGE"
    )
    raise BundleError(msg)


def _record(bundle: Bundle, running: Member) -> CalibrationRecord:
    name = f"{FOLDERS['calibration']}/{record_path(Path(running.name)).name}"
    if name not in bundle.members:
        msg = (
            f"{bundle.path}: expected the record of how {running.name} was calibrated, found no "
            f"{name}. Pack the bundle again with the record beside the model"
        )
        raise BundleError(msg)
    record = CalibrationRecord.from_record(json.loads(bundle.read(name)), f"{bundle.path}: {name}")
    odd = [done for done in record.transforms if done not in (*REDONE, *_STATISTICS)]
    if record.quantizer != "edgeuda" or record.rule not in get_args(RuleName) or odd:
        how = odd[0] if odd else f"quantizer {record.quantizer}, rule {record.rule}"
        msg = (
            f"{bundle.path}: {running.name} was made in a way that cannot be repeated on the "
            f"vehicle ({how}). Calibrate it without, or leave `adapt_bn` out"
        )
        raise ModelError(msg)
    return record


_STATISTICS = ("batch-norm statistics of the frames",)


def _acceptance(bundle: Bundle, running: Member) -> tuple[dict[str, Image], dict[str, LabelMap]]:
    """Return the acceptance frames, and what the network that was installed first calls them."""
    origins = [one for one in bundle.of("other") if one.about.get(ORIGIN)]
    model = Path(running.name).name
    members = origins or [one for one in bundle.of("acceptance") if one.about.get("model") == model]
    if not members:
        msg = (
            f"{bundle.path}: expected acceptance frames of {running.name}, by which one sees "
            "whether an adapted network still knows what it knew, found none. Pack some: edgeuda "
            "bundle --acceptance FOOTAGE"
        )
        raise BundleError(msg)
    found = list(accepted_frames(bundle, members))
    return {name: image for name, image, _ in found}, {name: said for name, _, said in found}


def _int8(
    base: Base,
    record: CalibrationRecord,
    model: Path,
    sample: Sample,
    folder: Path,
    threads: int | None,
    report: Report,
) -> CalibrationRecord:
    """Round the adapted network as the one that runs was, by the frames it is adapted to."""
    size = base.spec.preprocessing
    assert record.rule != "tensorrt-cache"
    options = Options(
        record.runtime, record.rule, record.percentile,
        equalize=REDONE[0] in record.transforms, correct_biases=REDONE[1] in record.transforms,
        # Exactly what stays float: the same placement takes the same time.
        keep_float=tuple(escape(layer.weight) for layer in record.layers if not layer.int8),
        limits=Limits() if record.acceptance is None else record.acceptance.limits,
        threads=threads,
    )  # fmt: skip
    return calibrate(
        model,
        _files(folder / "estimating", sample.estimating, size),
        folder / Path(base.running.name).name,
        options,
        judged=_files(folder / "judging", sample.judging, size),
        report=report,
    )


def _reference(
    model: Path,
    sample: Sample,
    size: Preprocessing,
    folder: Path,
    threads: int | None,
    report: Report,
) -> None:
    """Write what is normal for the adapted network beside it: what it says of the drive."""
    frames = [*sample.estimating, *sample.judging]
    _files(folder / "normal", frames, size)
    footage = frame_folder(folder / "normal", size.geometry)
    write_reference(model, footage, len(frames), apart=True, threads=threads, report=report)


def _files(folder: Path, frames: Sequence[Image], size: Preprocessing) -> list[Path]:
    """Write frames as files that count as treated as the model's geometry says."""
    paths = []
    for number, frame in enumerate(frames):
        image = frame[0]
        if size.geometry is not None:  # whose aspect is not that of the network's input
            width, height = size.geometry.size
            image = resize_image(image, height, width)
        paths.append(folder / f"{number:04d}.png")
        write_image(paths[-1], image)
    if size.geometry is not None:
        say_treated(folder, size.geometry)
    return paths


def _packed(
    base: Base,
    ran: str,
    sample: Sample,
    found: StreamAdaptation,
    kept: Sequence[str],
    models: Sequence[Path],
    folder: Path,
) -> Path:
    """Write the candidate's bundle: what the one before held, and where it comes from."""
    before = base.bundle.manifest.lineage
    driven = None if before is None else before.driven
    about, made = sample.about, load_graph(models[0], "quantize")
    lineage = Lineage(
        ran, _network(made), base.bundle.manifest.descent(ran, _network(base.graph)),
        driven=Driven(
            ran if driven is None else driven.origin,
            1 if driven is None else driven.generation + 1, len(sample.estimating), about.began,
            about.ended, found.prior, layers_of(base.graph), tuple(kept),
        ),
    )  # fmt: skip
    beside = folder / "beside"
    others: list[tuple[Path, dict[str, Any]]] = []
    for name, labels in base.expected.items():
        path = beside / f"{ORIGIN}-{name}"
        write_label(path, labels)
        others.append((path, {ORIGIN: True, "frame": name}))
    out = folder / f"adapted-{ran[:12]}{SUFFIX}"
    pack(
        models, out, licences=base.bundle.unpack("licence", beside / "licence"),
        recipe=next(iter(base.bundle.unpack("recipe", beside / "recipe")), None),
        acceptance=base.frames, others=others, lineage=lineage,
    )  # fmt: skip
    return out


def _network(graph: onnx.ModelProto) -> str | None:
    known = identity_in(metadata_of(graph), "the model")
    return None if known is None else known.network
