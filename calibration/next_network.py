"""The next network of a vehicle: adapted to new frames beside old ones, compared, and packed.

Every product is a file that appears whole, so an interrupted update goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.comparison import diff
from calibration.options import Report, silent
from calibration.same_forms import Form, forms_of, make_forms
from edgeuda import schemas
from edgeuda.accuracy.uncertainty import miou_difference, miou_interval
from edgeuda.data.folders import LabelledFolder, labelled_folder
from edgeuda.data.frames import FrameFolder, frame_folder
from edgeuda.data.images import list_images
from edgeuda.data.lists import write_list
from edgeuda.data.replay import SHARE, Replay, ReplayedFrames
from edgeuda.data.walk import Files
from edgeuda.decision import MOST_FORGOTTEN, judge_update
from edgeuda.errors import BundleError, ConfigError, DataError
from edgeuda.files import (
    alone,
    now_utc,
    require_absent,
    require_same_plan,
    sha256,
    sha256_of,
    write_json,
    write_npz,
    write_text,
)
from edgeuda.labels import LabelSpace, label_space
from edgeuda.records.bundle import FOLDERS, FrameList, Learned, Lineage
from edgeuda.records.calibration import CalibrationRecord, record_path
from edgeuda.records.diff import DiffRecord
from edgeuda.records.identity import model_file
from edgeuda.records.predictions import ModelFile
from edgeuda.records.run import RUN_FILE, RunRecord
from edgeuda.records.tradeoff import Figure, ScoredImages
from edgeuda.records.update import (
    Compared,
    Part,
    QuantizedForm,
    SaidAlike,
    Scored,
    UpdateRecord,
)
from edgeuda.spec import ModelSpec
from engines.api import AnyPath
from engines.bundle import SUFFIX, Bundle
from engines.bundle_model import choose_member, trusted_bundle
from engines.packing import pack
from engines.scoring import score_exported

ADAPTED, RECIPE, BUNDLE = "adapted", "recipe.toml", f"next{SUFFIX}"
"""In the folder of an update: the run of the next network, its recipe therein, its bundle."""
COMPARED = 64
"""Frames of each part on which both networks are compared without labels."""
Adapt = Callable[[Path, Replay, Path], object]
"""Adapts the network of a run to new footage, beside old, into a run folder; one that is there is
gone on with."""
Say = Callable[[str], None]


def update(
    bundle: AnyPath,
    model: AnyPath,
    old: AnyPath,
    new: AnyPath,
    out: AnyPath,
    *,
    adapt: Adapt,
    sources: Sequence[AnyPath] = (),
    old_labels: AnyPath | None = None,
    new_labels: AnyPath | None = None,
    stored: str | LabelSpace | None = None,
    ignore_unmapped: bool = False,
    replay_share: float = SHARE,
    most_forgotten: float = MOST_FORGOTTEN,
    pack_anyway: bool = False,
    frames: int = 128,
    resume: bool = False,
    private_key: Path | None = None,
    public_key: Path | None = None,
    threads: int | None = None,
    say: Say = lambda _: None,
    report: Report = silent,
) -> UpdateRecord:
    """Adapt a vehicle's network to new frames, hold it against the last one, and pack it.

    The next bundle has the forms of the last one, its licences, acceptance frames of both footages,
    and its lineage. It is not written where the verdict refuses it, see
    `edgeuda.decision.judge_update`.

    Args:
        bundle: Of the last network.
        model: The run folder that made it.
        old: Footage that it was made for.
        new: Footage that the next network is made for beside it.
        out: Folder for everything made; the bundle is ``next.edgeuda`` therein.
        adapt: Called with the new footage, a `edgeuda.data.replay.Replay` of the old one, and the
            run folder to make: `edgeuda.adapt` with everything else that it needs, and ``resume``.
        sources: Labelled folders that ``adapt`` learns from: to say how many of the images that
            networks are scored on are among them.
        old_labels: Labelled images like ``old``. Frames of ``old`` among them, by their bytes, are
            kept out of the adaptation.
        new_labels: The same of ``new``.
        stored: Label space of their files, where the folders do not say it.
        ignore_unmapped: Whether classes that the network lacks may be ignored in them.
        replay_share: Of what is learned from frames, that is of ``old``, between 0 and 1.
        most_forgotten: mIoU, 0 to 1, that may be lost on ``old_labels``.
        pack_anyway: Whether the bundle is written even if the verdict refuses it; that is recorded.
        frames: Frames to calibrate on, and to remember what is normal, of both in their shares.
        resume: Whether to go on in ``out``; limits and ``pack_anyway`` may then be others.
        private_key: Ed25519 key to sign with.
        public_key: Ed25519 key that must have signed the last bundle, beside those that this
            machine demands.
        threads: Threads of one operator.
        say: Called with what is being done.
        report: Called with what is being done, the steps done and the steps to do.

    Returns:
        The record, which was written as ``update.json``; without ``bundle`` it was refused.

    Raises:
        BundleError: If the last bundle is damaged, lacks a signature that is demanded, or its
            network was not made by the run.
        OutputExistsError: If ``out`` exists, or holds an update of other things.
        ParityError: If a form of the next network is not the same network.
        EdgeudaError: Others of its kinds, see `edgeuda.adapt`.

    Example:
        >>> import calibration, edgeuda
        >>> def adapt(new, replay, out):
        ...     return edgeuda.adapt(
        ...         "adapted", "simulator", new, out, recipe="small", settings=brief, resume=True,
        ...         replay=replay.footage, replay_share=replay.share,
        ...     )
        >>> record = calibration.update("vehicle.edgeuda", "adapted", "frames", "labelled", "next",
        ...                             adapt=adapt, frames=4)
        >>> record.verdict.status
        'not judged'
    """
    given = Path(bundle)
    checkpoint = sha256(model_file(Path(model)))
    last = trusted_bundle(given, public_key)
    forms, network = forms_of(last)
    if network != checkpoint:
        msg = (
            f"{given}: holds the network {network[:12]}, and {model} is {checkpoint[:12]}. Name "
            "the run that the bundle was exported from"
        )
        raise BundleError(msg)
    if not 0 <= most_forgotten <= 1:
        msg = f"Expected to lose between 0 and 1 of mIoU at most, found {most_forgotten:g}"
        raise ConfigError(msg)
    replay = Replay(Path(old), replay_share)
    spec = ModelSpec.from_json(json.dumps(last.manifest.spec), str(given))
    space = label_space(stored) if isinstance(stored, str) else stored
    out = Path(out)
    if not resume:
        require_absent(out)
    learned_from = [image for one in sources for image in list_images(Path(one))]
    parts: dict[Part, _Part] = {}
    named: tuple[tuple[Part, AnyPath, AnyPath | None], ...] = (
        ("old", old, old_labels), ("new", new, new_labels),
    )  # fmt: skip
    for name, footage, labels in named:
        labelled = None
        if labels is not None:
            labelled = labelled_folder(
                Path(labels), spec.label_space, space, ignore_unmapped=ignore_unmapped,
                geometry=spec.preprocessing.geometry,
            )  # fmt: skip
        parts[name] = _part(name, Path(footage), labelled, learned_from, spec, out)
    both = ReplayedFrames(
        parts["new"].frames, parts["old"].frames, replay.share, spec.preprocessing.geometry
    )
    checksum = sha256(given)
    plan = {
        "schema": schemas.UPDATE_PLAN,
        "last_sha256": checksum,
        "network_sha256": network,
        "footage_sha256": sha256_of(both.identity()),
        "labels_sha256": {
            name: None if one.labelled is None else one.labelled.labels_sha256()
            for name, one in parts.items()
        },
        "frames": frames,
    }
    require_same_plan(out, plan, "an update")
    with alone(out):
        for name, one in parts.items():
            one.write(out, name)
        say("adapting to new frames beside old ones")
        adapt(parts["new"].taught, replace(replay, footage=parts["old"].taught), out / ADAPTED)
        say("exporting and quantizing what the last bundle has")
        models = make_forms(
            out / ADAPTED, forms, both, out / "models", frames=frames, threads=threads,
            report=report,
        )  # fmt: skip
        path = out / UpdateRecord.FILE
        if path.exists():
            record = UpdateRecord.read(path)
        else:
            say("holding the next network against the last one")
            record = _compared(last, checksum, network, models, parts, replay, out, threads, forms)
        if record.bundle is not None and _is(out / BUNDLE, record.bundle.sha256):
            return record
        figures = (_figure(record.old), _figure(record.new))
        verdict = judge_update(
            *figures, most_forgotten, int8_accepted=all(one.accepted for one in record.int8)
        )
        refused = verdict.status == "refused"
        record = replace(record, verdict=verdict, overridden=refused and pack_anyway)
        record.write(path)
        if refused and not pack_anyway:
            return record
        say("packing")
        (out / BUNDLE).unlink(missing_ok=True)  # of an update that was killed before it said so
        pack(
            models, out / BUNDLE,
            records=[*sorted((out / "results").glob("next-*.json"))],
            recipe=_existing(out / ADAPTED / RECIPE),
            licences=last.unpack("licence", out / "licences"),
            private_key=private_key,
            acceptance=both,
            others=[(_list_path(out, name), {}) for name in parts],
            lineage=record.lineage,
        )  # fmt: skip
        record = replace(record, bundle=ModelFile(BUNDLE, sha256(out / BUNDLE)))
        record.write(path)
    return record


@dataclass(frozen=True)
class _Part:
    """Frames of one part.

    Attributes:
        footage: As it was given.
        frames: Those to adapt to.
        names: What they are called in the footage.
        taught: The same as `frame_folder` takes them: the footage, or a list of what is left.
        left_out: Frames that have labels.
        labelled: Labelled images; None without.
        in_source: How many of these are learned from with their labels.
    """

    footage: Path
    frames: FrameFolder
    names: tuple[str, ...]
    taught: Path
    left_out: int
    labelled: LabelledFolder | None
    in_source: int

    def write(self, out: Path, name: Part) -> None:
        """Write which frames these are."""
        if self.left_out:
            write_list(self.taught, ("image",), [(path,) for path in self.frames])
        write_text(_list_path(out, name), "".join(f"{one}\n" for one in self.names))


def _part(
    name: Part,
    footage: Path,
    labelled: LabelledFolder | None,
    learned_from: Sequence[Path],
    spec: ModelSpec,
    out: Path,
) -> _Part:
    """Take apart what is adapted to and what is scored on.

    Raises:
        DataError: If nothing is left to adapt to.
    """
    geometry = spec.preprocessing.geometry
    frames = frame_folder(footage, geometry)
    names = tuple(map(frames.name_of, frames))
    if labelled is None:
        return _Part(footage, frames, names, footage, 0, None, 0)
    images = [pair.image for pair in labelled.pairs]
    in_source = len(_same_files(images, learned_from))
    scored = _same_files(frames, images)
    if not scored:
        return _Part(footage, frames, names, footage, 0, labelled, in_source)
    left = [place for place in range(len(frames)) if place not in scored]
    if not left:
        msg = (
            f"{footage}: all {len(frames)} frames are among the labelled images of "
            f"{labelled.root}, which the next network must not adapt to. Give further footage, or "
            f"fewer labels as `{name}_labels`"
        )
        raise DataError(msg)
    files = Files(Path(), (str(frames[place].absolute()) for place in left))
    return _Part(
        footage, FrameFolder(footage, geometry, files), tuple(names[place] for place in left),
        out / f"{name}-frames.csv", len(scored), labelled, in_source,
    )  # fmt: skip


def _same_files(files: Sequence[Path], known: Sequence[Path]) -> set[int]:
    """Return the places of files that are known ones, by their bytes."""
    sizes, sums = {path.stat().st_size for path in known}, set[str]()
    found = set()
    for place, path in enumerate(files):
        if not path.exists() or path.stat().st_size not in sizes:
            continue
        sums = sums or set(map(sha256, known))
        if sha256(path) in sums:
            found.add(place)
    return found


def _list_path(out: Path, name: Part) -> Path:
    return out / f"frames-{name}.txt"


def _compared(
    last: Bundle,
    checksum: str,
    network: str,
    models: Sequence[Path],
    parts: dict[Part, _Part],
    replay: Replay,
    out: Path,
    threads: int | None,
    forms: Sequence[Form],
) -> UpdateRecord:
    """Return the record before a verdict: what both networks say of both parts."""
    member = choose_member(last, "cpu").name
    name = Path(member).name
    chosen = next(path for path in models if path.name == name)
    found = {}
    for part, one in parts.items():
        alike = _alike(last.path / member, chosen, one, out / "results" / f"{part}.diff.json",
                       threads)  # fmt: skip
        scored = None
        if one.labelled is not None:
            files = {"last": last.path, "next": chosen}
            images = {
                which: _counts(file, which, part, one.labelled, out / "results", threads)
                for which, file in files.items()
            }
            scored = Scored(
                ScoredImages(str(one.labelled.root), len(one.labelled)),
                miou_interval(images["last"]),
                miou_interval(images["next"]),
                miou_difference(images["next"], images["last"]),
                one.in_source,
            )
        found[part] = Compared(str(one.footage), len(one.names), one.left_out, alike, scored)
    int8 = []
    for form, path in zip(forms, models, strict=True):
        record = record_path(path)
        if form.precision == "int8" and record.exists():
            judged = CalibrationRecord.read(record).acceptance
            assert judged is not None
            int8.append(QuantizedForm(path.name, judged.agreement, judged.accepted, judged.reasons))
    lineage = _lineage(last, checksum, network, parts, replay, out)
    return UpdateRecord(
        created=now_utc(),
        last=ModelFile(last.path.name, checksum),
        bundle=None,
        networks=(network, sha256(model_file(out / ADAPTED))),
        member=name,
        models=tuple(path.name for path in models),
        int8=tuple(int8),
        old=found["old"],
        new=found["new"],
        verdict=judge_update(None, None),
        overridden=False,
        lineage=lineage,
    )


def _alike(last: Path, chosen: Path, part: _Part, path: Path, threads: int | None) -> SaidAlike:
    """Return what both networks say of frames, without labels."""
    if not path.exists():
        diff(last, chosen, part.taught, frames=COMPARED, threads=threads).write(path)
    found = DiffRecord.read(path)
    return SaidAlike(
        len(found.frames),
        found.agreement,
        (found.confidence, found.confidence + found.confidence_shift),
        {name: (one.share, one.now or 0.0) for name, one in found.classes.items()},
    )


def _counts(
    model: Path, which: str, part: Part, labelled: LabelledFolder, folder: Path,
    threads: int | None,
) -> npt.NDArray[np.int64]:  # fmt: skip
    """Return ``[N, K, K]`` confusion matrices of the labelled images, counted once."""
    record = folder / f"{which}-{part}.json"
    path = record.with_suffix(".images.npz")
    if not path.exists():
        title = f"{which} network on {part} frames"
        scored = score_exported(model, labelled, title, threads=threads, trusted=which == "next")
        write_json(record, scored.to_record())
        write_npz(path, {"images": np.stack([counts for _, counts in scored.images])})
    with np.load(path, allow_pickle=False) as saved:
        return np.asarray(saved["images"], np.int64)


def _lineage(
    last: Bundle,
    checksum: str,
    network: str,
    parts: dict[Part, _Part],
    replay: Replay,
    out: Path,
) -> Lineage:
    run = RunRecord.read(out / ADAPTED / RUN_FILE)
    lists = {
        name: FrameList(
            f"{FOLDERS['other']}/{_list_path(out, name).name}",
            len(one.names),
            sha256_of((*one.names, one.frames.stamp)),
        )
        for name, one in parts.items()
    }
    return Lineage(
        parent=checksum,
        network=sha256(model_file(out / ADAPTED)),
        ancestors=last.manifest.descent(checksum, network),
        learned=Learned(lists["old"], lists["new"], replay.share, run.recipe_sha256, run.versions),
    )


def _figure(part: Compared) -> Figure | None:
    return None if part.with_labels is None else Figure.of(part.with_labels.change)


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _is(path: Path, checksum: str) -> bool:
    return path.exists() and sha256(path) == checksum
