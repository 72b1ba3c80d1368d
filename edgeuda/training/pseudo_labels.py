"""Pseudo-labels of target frames as files: PNG label maps and a JSON index.

They are written as they are made, and an interrupted pass goes on where it stopped. In the index
(``edgeuda.pseudo-labels/1``) are the model's checksum, the thresholds, the mean confidence of each
class and its pixels in each frame.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from edgeuda.cluster import Cluster, discard, shards_folder
from edgeuda.data.folders import ahead
from edgeuda.data.footage import require_still
from edgeuda.data.frames import FrameFolder, frame_folder
from edgeuda.data.lists import is_list, write_list
from edgeuda.data.stores import located, relative
from edgeuda.data.treatment import applied_to, say_treated
from edgeuda.errors import DataError, OutputExistsError
from edgeuda.files import (
    alone,
    require_absent,
    sha256,
    sha256_of,
    short_name,
    write_text,
)
from edgeuda.methods.selection import (
    SelectorSettings,
)
from edgeuda.methods.teacher import Teacher
from edgeuda.models.checkpoint import load_model
from edgeuda.models.subject import usual_device
from edgeuda.records.dataset import DatasetRecord
from edgeuda.records.identity import model_file
from edgeuda.records.labelling import LabelledFrame, PseudoLabelsRecord
from edgeuda.spec import ModelSpec, Preprocessing
from edgeuda.training.label_batches import (
    Followed,
    Labeller,
    Predicted,
    Read,
    Selected,
    as_read,
    empty_histogram,
    grouped,
)
from edgeuda.training.label_shards import Place, Work, label_on
from edgeuda.training.loader import Images

INDEX_FILE = PseudoLabelsRecord.FILE
PROGRESS_FILE = "pseudo-labels.jsonl"
Line = dict[str, Any]
"""What is noted of a batch: its frames, the pixels of each class in them, and `Followed.line`."""


@dataclass(frozen=True)
class PseudoLabels:
    """What a finished pass has written.

    Attributes:
        labels: Label file of each frame.
        pixels: ``[M, K]`` int64 labelled pixels of each class in each frame.
        mean_confidence: Per class; 0 where nothing was selected.
    """

    labels: tuple[Path, ...]
    pixels: npt.NDArray[np.int64]
    mean_confidence: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> PseudoLabels:
        """Read the index of a finished pass.

        Raises:
            DataError: If there is none, or it is damaged.
        """
        record = PseudoLabelsRecord.read(folder / INDEX_FILE)
        return cls(
            tuple(folder / frame.label for frame in record.frames),
            np.array([frame.pixels for frame in record.frames], np.int64),
            tuple(record.mean_confidence),
        )


class Shown(Images):
    """Frames as a model is shown them, each decoded when it is labelled, and broken ones left out.

    Args:
        frames: The frames.
        labels: Names of their label files.
        fed: What is done to them.
        written: Folder to which they are written as the model is shown them, or None.
    """

    def __init__(
        self, frames: FrameFolder, labels: Sequence[str], fed: Preprocessing, written: Path | None
    ) -> None:
        self.footage: FrameFolder = frames
        self._fed, self._cache = fed, None
        self.files = frames if written is None else [written / name for name in labels]
        self._written = written is not None
        self.names = [str(path) for path in self.files]

    def identity(self) -> Iterator[str]:
        """Yield what tells the files that are read from others."""
        yield from map(str, self.footage)
        yield self.footage.stamp

    def written(self, index: int) -> Path | None:
        """Return the file that a frame is written to, or None."""
        return self.files[index] if self._written else None

    def read(self, index: int) -> Read | None:
        """Return a frame, its label map to be of its own size; None if it is broken.

        Raises:
            DataError: See `FrameFolder.read`.
        """
        image = self.footage.read(index, instead=False)
        if image is None:
            return None
        return as_read(index, image, self.footage[index], self._fed, self.written(index))


def generate(
    teacher: Teacher,
    spec: ModelSpec,
    frames: Images,
    settings: SelectorSettings,
    folder: Path,
    *,
    model_sha256: str,
    seed: int,
    device: torch.device,
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    soft: bool = False,
) -> PseudoLabels:
    """Label all frames in an order drawn from the seed, and write labels and index.

    Each frame is read once, ahead in threads; once more for thresholds that take all of them.

    Args:
        teacher: The network that labels.
        spec: Its spec.
        frames: At network size.
        settings: Which pixels get a label.
        folder: Where ``labels/`` and the index go; a pass that was interrupted there goes on.
        model_sha256: Identity of the network.
        seed: Of the order.
        device: Where to compute.
        names: Label file of each frame under ``labels``; by default its number.
        size: Rows and columns of the label maps; by default the network's, or the frame's own if
            the frames are `Shown`.
        soft: Whether the probabilities of all classes are written too, to ``soft/``.

    Raises:
        DataError: If too many frames are broken.
        OutputExistsError: If the folder holds labels of another network or other settings.
    """
    names = names or [f"{index:06d}.png" for index in range(len(frames))]
    one = _Pass(frames, names, spec, settings, model_sha256, seed, soft)
    identity = one.identity()
    done = _resume(folder, identity)
    if (folder / INDEX_FILE).exists():
        (folder / PROGRESS_FILE).unlink(missing_ok=True)  # killed after the index was written
        return PseudoLabels.read(folder)
    groups = grouped(len(frames), seed, settings.batch)

    if isinstance(frames, Shown):
        frames.footage.saw(chain.from_iterable(groups[: len(done)]))

    def read(index: int) -> Read | None:
        if isinstance(frames, Shown):
            return frames.read(index)
        return Read(index, frames[index][0], size)

    labeller = Labeller(teacher, spec, folder, device, soft)

    def predictions(start: int) -> Iterator[Predicted]:
        reading = ahead(read, list(chain.from_iterable(groups[start:])))
        for group in track(groups[start:], "pseudo-labels", transient=True):
            yield labeller.predict([one for one in islice(reading, len(group)) if one])

    state = Followed.start(settings, len(spec.label_space), device)
    if done:
        state.go_on(done[-1])
    elif state.by_all:
        total = empty_histogram(len(spec.label_space), device)
        for found in predictions(0):
            total += labeller.histogram(found)
        state.balance(total)

    def labelled() -> Iterator[tuple[Selected, Line]]:
        for found in predictions(len(done)):
            if state.by_batch:
                state.move(labeller.histogram(found))
            chosen = labeller.select(found, state.thresholds)
            state.follow(chosen.count, chosen.total)
            yield chosen, state.line()

    def write(batch: tuple[Selected, Line]) -> Line:
        chosen, line = batch
        group = [frame.index for frame in chosen.frames]
        pixels = labeller.write(chosen, [names[index] for index in group])
        return {"frames": group, "pixels": pixels, **line}

    folder.mkdir(parents=True, exist_ok=True)
    with (
        alone(folder),
        (folder / PROGRESS_FILE).open("a", encoding="utf-8", buffering=1) as log,
    ):
        if not done:
            print(json.dumps({"identity": identity}), file=log)
        for line in ahead(write, labelled(), 1):  # while the next batch is predicted
            print(json.dumps(line), file=log)
            done.append(line)
    one.index(done).write(folder / INDEX_FILE)
    (folder / PROGRESS_FILE).unlink()
    return PseudoLabels.read(folder)


@dataclass(frozen=True)
class _Pass:
    """All that a pass depends on; see `generate`."""

    frames: Images
    names: Sequence[str]
    spec: ModelSpec
    settings: SelectorSettings
    model_sha256: str
    seed: int
    soft: bool

    def identity(self) -> str:
        """Return its checksum."""
        settings = json.dumps(self.settings.to_record())
        return sha256_of(
            chain(
                (self.model_sha256, settings, str(self.seed), self.spec.to_json()),
                ("soft",) if self.soft else (),
                self.frames.identity(),
            )
        )

    def index(self, lines: Sequence[Line]) -> PseudoLabelsRecord:
        """Return the index of a finished pass from what was noted of its batches, in order."""
        counts = {
            frame: row
            for line in lines
            for frame, row in zip(line["frames"], line["pixels"], strict=True)
        }
        pixels = len(counts) * self.spec.preprocessing.height * self.spec.preprocessing.width
        footage, names = self.frames.footage, self.names
        return PseudoLabelsRecord(
            model_sha256=self.model_sha256,
            label_space=self.spec.label_space,
            selection=self.settings.to_record(),
            seed=self.seed,
            thresholds=lines[-1]["thresholds"],
            mean_confidence=lines[-1]["mean_confidence"],
            labelled_share=sum(map(sum, counts.values())) / pixels,
            frames=[
                LabelledFrame(
                    self.frames.names[i],
                    f"labels/{names[i]}",
                    counts[i],
                    f"soft/{names[i]}" if self.soft else None,
                )
                for i in sorted(counts)
            ],
            **(footage.noted() if footage is not None else {}),
        )


def label_footage(
    model: Path,
    target: Path,
    out: Path,
    settings: SelectorSettings,
    *,
    seed: int = 0,
    soft: bool = False,
    resume: bool = False,
    threads: int | None = None,
    cluster: Cluster | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Write pseudo-labels of a folder of frames, at the frames' size; returns the index.

    The folder written is a labelled folder for every other verb: its ``dataset.json`` says where
    the frames are. Labels are named as the frames. For frames from a list it is ``pairs.csv``. Raw
    frames for a model with a geometry are written, too, as the model is shown them: to ``images``.

    Args:
        model: Model file or run folder.
        target: Folder of frames, list, video or recording.
        out: Folder to write.
        settings: Which pixels get a label.
        seed: Of the order in which frames are seen.
        soft: Whether the probabilities of all classes are written too.
        resume: Go on with an interrupted pass in ``out``.
        threads: Threads of an operator in this process; None takes every usable core.
        cluster: Workers among which the frames of a folder or list are divided; None labels them in
            this process. What was stopped goes on.
        progress: Called with the frames done and those to do, by a cluster.

    Raises:
        EdgeudaError: See `load_model`, `frame_folder` and `generate`; if two frames differ only
            in their suffix, or footage is to be divided that is one stream.
    """
    begun = shards_folder(out).exists()
    if not resume and (cluster is None or not begun):
        require_absent(out)
    if begun != (cluster is not None) and (begun or (out / PROGRESS_FILE).exists()):
        how = "on a cluster: go on with `ray`" if begun else "without a cluster: leave out `ray`"
        msg = f"{out}: this pass was begun {how}, or choose another `out`"
        raise OutputExistsError(msg)
    if threads is not None:
        torch.set_num_threads(threads)
    network, spec = load_model(model)
    pre = spec.preprocessing
    target = located(target)
    if cluster is not None:
        require_still(target)
    frames = frame_folder(target, pre.geometry)
    root = frames.folder
    if is_list(target):
        names = [f"{index:06d}_{short_name(path.stem)}.png" for index, path in enumerate(frames)]
    else:
        names = [str(path.relative_to(root).with_suffix(".png")) for path in frames]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        msg = f"{target}: two frames would both have the label file {twice!r}; rename one"
        raise DataError(msg)
    frames.keep(out)
    if written := bool(applied_to(frames, pre.geometry).get("geometry", {}).get("applied")):
        root = out / "images"
        assert pre.geometry is not None
        say_treated(out, pre.geometry)
    shown = Shown(frames, names, pre, root if written else None)
    identity = sha256(model_file(model))
    if cluster is None:
        device = usual_device()
        generate(
            Teacher(network.to(device)), spec, shown, settings, out, model_sha256=identity,
            seed=seed, device=device, names=names, soft=soft,
        )  # fmt: skip
    elif not (out / INDEX_FILE).exists():
        one = _Pass(shown, names, spec, settings, identity, seed, soft)
        frames.saw(range(len(frames)))

        def place(index: int) -> Place:
            into = shown.written(index)
            seen = None if into is None else into.absolute()
            return Place(index, frames[index].absolute(), names[index], seen)

        lines = label_on(
            cluster, one.identity(), Work(model.absolute(), out.absolute(), soft), place,
            len(frames), settings, seed, len(spec.label_space), frames.note, progress,
        )  # fmt: skip
        frames.judge(say=False)
        one.index(lines).write(out / INDEX_FILE)
    frames.judge()
    if is_list(target):
        whole = [index for index in range(len(frames)) if index not in frames.broken]
        pairs = [(shown.files[index], out / "labels" / names[index]) for index in whole]
        write_list(out / "pairs.csv", ("image", "label"), pairs)
    else:
        skipped = None
        if frames.broken and not written:
            skipped = [frames[n].relative_to(root).as_posix() for n in sorted(frames.broken)]
        DatasetRecord(spec.label_space.to_record(), relative(root, out), skipped).write(
            out / DatasetRecord.FILE
        )
    discard(out)
    return out / INDEX_FILE


def _resume(folder: Path, identity: str) -> list[dict[str, Any]]:
    """Return the lines of an interrupted pass, and drop one that was cut short.

    Raises:
        OutputExistsError: If they belong to another pass.
    """
    path = folder / PROGRESS_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text[: text.rfind("\n") + 1]
    if not lines:
        return []
    header, *done = [json.loads(line) for line in lines.splitlines()]
    if header["identity"] != identity:
        msg = (
            f"{path}: belongs to pseudo-labels of another network, other frames or settings. "
            "Choose another --out, or delete it"
        )
        raise OutputExistsError(msg)
    write_text(path, lines)
    return done
