"""Trackers: TensorBoard, CSV, MLflow and W&B beside a stage's own log, which stays the record.

A tracker takes what it is given and changes nothing: no random number is drawn, and one that fails
is let go while training goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from lightning_fabric.utilities import rank_zero_only
from torch import Tensor

from edgeuda.data.images import Image, paint
from edgeuda.errors import ConfigError, DataError, Interrupted, did_you_mean
from edgeuda.files import write_atomic
from edgeuda.labels import LabelSpace
from edgeuda.methods.base import Losses
from edgeuda.records.form import entries
from edgeuda.records.names import TrackerName
from edgeuda.records.tracking import TRACKERS_FILE, TrackedRun, TrackersRecord
from edgeuda.training.tracker_kinds import (
    Tracker,
    first_line,
    open_tracker,
    place_of,
    require_tracker,
    wandb_mode,
    without_secrets,
)
from edgeuda.training.watch import Watch

logger = logging.getLogger(__name__)

PICTURES = 20
"""Times in a stage, at most, that pictures are given to trackers."""
SHOWN = 3
"""Pictures of each kind."""


@dataclass(frozen=True)
class Tracking:
    """Which trackers follow a run.

    Attributes:
        names: The trackers; none by default.
        out: Folder of the run or of the comparison: logs lie in its folder ``logs``.
        base: Folder below which stages have their names, by default ``out``.
    """

    names: tuple[TrackerName, ...] = ()
    out: Path = Path()
    base: Path | None = None

    @classmethod
    def of(cls, names: Sequence[str], out: Path, base: Path | None = None) -> Tracking:
        """Check that trackers can be used, before anything is made.

        Raises:
            ConfigError: If a name is unknown, or the MLflow server does not answer.
            DependencyError: If a package is missing; the message names the extra.
        """
        known = get_args(TrackerName)
        for name in names:
            if name not in known:
                msg = f"Unknown tracker {name!r} in `log`{did_you_mean(name, known)}: expected one "
                msg += f"of {', '.join(known)}"
                raise ConfigError(msg)
        chosen: tuple[TrackerName, ...] = tuple(dict.fromkeys(names))  # type: ignore[arg-type]
        for each in chosen:
            require_tracker(each)
        return cls(chosen, out, base)

    def stage(self, folder: Path) -> str:
        """Return what trackers call a stage: its folder below the run's."""
        name = folder.relative_to(self.base or self.out).as_posix()
        return "source" if name == "." else name

    @rank_zero_only
    def announce(self) -> None:
        """Say in a line for each tracker where it keeps the run."""
        logs = self.out / "logs"
        for name in self.names:
            if name == "tensorboard":
                how = f"in {logs / name}; look at it with: tensorboard --logdir {logs / name}"
            elif name == "csv":
                how = f"in {logs / name}, one metrics.csv for each stage"
            elif name == "mlflow":
                place = place_of(name, "")
                database = (logs / name / "mlflow.db").resolve()
                how = (
                    f"at {place}"
                    if place != "logs/mlflow"
                    else f"in {logs / name}, as MLFLOW_TRACKING_URI is not set; look at it with: "
                    f"mlflow ui --backend-store-uri sqlite:///{database}"
                )
            else:
                how = f"{wandb_mode()}, in {logs / name}"
                if wandb_mode() == "offline":
                    how += f"; send it with: wandb sync {logs / name}/offline-run-*"
            logger.info("Tracker %s: %s", name, how)


@dataclass
class _Open:
    """A tracker that takes a stage, and what it took before this process."""

    tracker: Tracker
    run: TrackedRun
    known: int


@dataclass
class StageTrackers:
    """The trackers of a stage while it trains; without any, every call does nothing.

    Attributes:
        folder: Folder of the stage.
        space: Names and colours of the classes.
        steps: Length of the stage.
        start: Steps already done.
    """

    folder: Path
    space: LabelSpace
    steps: int
    start: int
    _open: list[_Open] = field(default_factory=list)
    _ended: list[TrackedRun] = field(default_factory=list)
    _shown: dict[str, int] = field(default_factory=dict)

    def log(self, line: Mapping[str, Any], losses: Losses, rate: float) -> None:
        """Take a line of the log, and pictures of the step if they are due.

        Args:
            line: As it stands in the stage's log.
            losses: Of the step: tells terms from figures, and has the pictures.
            rate: Images per second.
        """
        if not self._open:
            return
        step = int(line["step"])
        figures = scalars(line, losses.terms, self.space.classes)
        self._give(step, lambda to: to.log_metrics({**figures, "images_per_second": rate}, step))
        for key, (images, labels) in losses.pictures.items():
            if self._due(key, step):
                pictures = mixed_pictures(images[:SHOWN], labels[:SHOWN], self.space.colors())
                self._images(step, key, pictures)

    def measured(self, watch: Watch) -> None:
        """Take the watch's last measurement, and its example frames if they are due."""
        if not self._open:
            return
        last = watch.history[-1]
        values = {
            **{f"signals/{k}": v for k, v in entries(last.signals).items() if k != "histogram"},
            "signals/alarm": float(last.alarm is not None),
            **{
                f"histogram/{name}": share
                for name, share in zip(self.space.classes, last.signals.histogram, strict=True)
            },
        }
        self._give(last.step, lambda to: to.log_metrics(values, last.step))
        if self._due("examples", last.step):
            colors = self.space.colors()
            painted = [paint(image, label, colors) for image, label in watch.probe.examples()]
            self._images(last.step, "examples", painted)

    def _due(self, key: str, step: int) -> bool:
        """Whether pictures of a kind are to be shown: at most `PICTURES` times in a stage."""

        def part(at: int) -> int:
            return at * PICTURES // self.steps

        before = self._shown.get(key, part(self.start) if self.start else -1)
        self._shown[key] = part(step)
        return part(step) > before

    def _images(self, step: int, key: str, images: Sequence[Image]) -> None:
        self._give(step, lambda to: to.log_images(key, images, step))

    def _give(self, step: int, act: Callable[[Tracker], None]) -> None:
        for one in [one for one in self._open if step > one.known]:
            if step > one.run.step:
                # Written before it is given: who is killed between loses a point, none is doubled.
                one.run = replace(one.run, step=step)
                self._write()
            self._try(one, act)

    def _try(self, one: _Open, act: Callable[[Tracker], None]) -> None:
        try:
            act(one.tracker)
            one.tracker.save()
        except Exception as err:  # whatever a server, a disk or a library says
            self._failed(one.run, err)
            self._open.remove(one)
            self._write()

    def _failed(self, run: TrackedRun, err: Exception) -> None:
        why = f"step {max(0, run.step)}: {without_secrets(first_line(err))}"
        logger.warning(
            "%s: tracker %s takes nothing more (%s); training goes on, and %s has all of it",
            self.folder.name, run.tracker, why, self.folder / "log.jsonl",
        )  # fmt: skip
        self._ended.append(replace(run, failed=[*run.failed, why]))

    def _write(self) -> None:
        record = TrackersRecord([*self._ended, *(one.run for one in self._open)]).to_record()
        text = json.dumps(record, indent=2) + "\n"
        # Lost in a power cut it costs points of a tracker, and waiting for the disk costs steps.
        write_atomic(
            self.folder / TRACKERS_FILE,
            lambda path: path.write_text(text, encoding="utf-8"),
            durable=False,
        )

    def _begin(self, tracking: Tracking, params: Mapping[str, Any]) -> None:
        """Open the trackers; what was in them before goes on."""
        before = _read(self.folder)
        stage = tracking.stage(self.folder)
        self._ended = list(before.values())
        for name in tracking.names:
            old = before.get((name, place_of(name, stage)))
            run = old or TrackedRun(name, "", place_of(name, stage), -1)
            if old is not None:
                self._ended.remove(old)
            elif self.start:
                logger.warning(
                    "%s: tracker %s has nothing of the first %d steps, which are in the log alone",
                    self.folder.name, name, self.start,
                )  # fmt: skip
            try:
                tracker = open_tracker(
                    name, tracking.out / "logs", tracking.out.resolve().name, stage,
                    None if old is None else old.run,
                )  # fmt: skip
            except Exception as err:
                self._failed(run, err)
                continue
            called = str(tracker.version) if name in ("mlflow", "wandb") else stage
            one = _Open(tracker, replace(run, run=called), run.step)
            self._open.append(one)
            if old is None:
                self._try(one, lambda to: to.log_hyperparams(flat(params)))
        if tracking.names:
            self._write()

    def _end(self, status: str) -> None:
        for one in list(self._open):
            self._try(one, lambda to: to.finalize(status))


@contextmanager
def stage_trackers(
    tracking: Tracking,
    folder: Path,
    space: LabelSpace,
    steps: int,
    start: int,
    params: Mapping[str, Any],
    writes: bool,
) -> Iterator[StageTrackers]:
    """Open the trackers of a stage on the rank that writes.

    Args:
        tracking: Which.
        folder: Folder of the stage.
        space: Names and colours of the classes.
        steps: Length of the stage.
        start: Steps already done.
        params: The recipe, nested, for a run that begins.
        writes: Whether this rank writes files.
    """
    trackers = StageTrackers(folder, space, steps, start)
    if writes and tracking.names:
        trackers._begin(tracking, params)
    status = "failed"
    try:
        yield trackers
        status = "success"
    except (Interrupted, KeyboardInterrupt):
        status = "stopped"
        raise
    finally:
        trackers._end(status)


def scalars(
    line: Mapping[str, Any], terms: Mapping[str, object], classes: Sequence[str]
) -> dict[str, float]:
    """Return a line of the log under the names that trackers group: what is before a ``/``.

    Args:
        line: As it stands in the log.
        terms: Names of the loss terms.
        classes: Names of the K classes; figures of as many entries are theirs.

    Example:
        >>> scalars({"step": 1, "loss": 2.0, "mix": 2.0, "thresholds": [0.5]}, {"mix": 0}, ["road"])
        {'loss/total': 2.0, 'loss/mix': 2.0, 'thresholds/road': 0.5}
    """
    found: dict[str, float] = {}
    for key, value in line.items():
        if key in ("step", "seconds"):
            continue
        if isinstance(value, list):
            names = classes if len(value) == len(classes) else range(len(value))
            found |= {f"{key}/{name}": v for name, v in zip(names, value, strict=True)}
        elif key == "loss":
            found["loss/total"] = value
        else:
            found[f"loss/{key}" if key in terms else key] = value
    return found


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings under the names that ``--set`` takes, lists as JSON."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        else:
            plain = value is None or isinstance(value, str | bool | int | float)
            found[f"{before}{key}"] = value if plain else json.dumps(value)
    return found


def mixed_pictures(images: Tensor, labels: Tensor, colors: npt.NDArray[np.uint8]) -> list[Image]:
    """Return images of a batch, each with its labels painted over it at its right.

    Args:
        images: ``[N, 3, H, W]`` in [0, 1].
        labels: ``[N, H, W]`` class ids, 255 not painted.
        colors: ``[256, 3]`` uint8 RGB by id.
    """
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
    frames = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    maps = labels.detach().byte().cpu().numpy()
    return [
        np.concatenate([frame, paint(frame, label, colors)], 1)
        for frame, label in zip(frames, maps, strict=True)
    ]


def _read(folder: Path) -> dict[tuple[str, str], TrackedRun]:
    path = folder / TRACKERS_FILE
    if not path.exists():
        return {}
    try:
        return {(run.tracker, run.place): run for run in TrackersRecord.read(path).runs}
    except DataError as err:
        logger.warning("%s", err)
        return {}
