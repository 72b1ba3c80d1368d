"""The label-free watch over a stage: measurements, the choice of a network, the collapse alarm."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from edgeuda.errors import TrainingError
from edgeuda.files import write_text
from edgeuda.models.checkpoint import save_model
from edgeuda.models.network import Network
from edgeuda.records.adaptation import Signals
from edgeuda.records.form import entries
from edgeuda.spec import ModelSpec
from edgeuda.training.monitor import RANKED, Probe, choose, collapse
from edgeuda.training.recipe import MonitorSection

logger = logging.getLogger(__name__)

SIGNALS_FILE = "signals.jsonl"
SNAPSHOTS = "snapshots"


@dataclass
class Measurement:
    """One network of a stage.

    Attributes:
        step: Steps done.
        signals: What it says of itself.
        alarm: What is wrong if it has collapsed.
        chosen: Whether it is the stage's result.
        refused: Why the stage's own result was not taken, in the line of the network it began with.
    """

    step: int
    signals: Signals
    alarm: str | None = None
    chosen: bool = False
    refused: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "step": self.step,
            **entries(self.signals),
            "alarm": self.alarm,
            "chosen": self.chosen,
            **({"refused": self.refused} if self.refused else {}),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Measurement:
        """Read `to_record`'s form."""
        own = ("step", "alarm", "chosen", "refused")
        fields = {key: value for key, value in record.items() if key not in own}
        signals = Signals(**{**fields, "histogram": tuple(fields["histogram"])})
        return cls(record["step"], signals, record["alarm"], record["chosen"])


@dataclass
class Watch:
    """Measures a stage's network on unlabelled target frames as it trains.

    Attributes:
        probe: Frames and reference of the measurements.
        settings: What to do with them.
        spec: Spec of the network.
        frequencies: ``[K]`` share of each class in the source labels.
        folder: Folder of the stage.
        writes: Whether this rank writes files.
        reference: ``[K]`` share of the pixels by class that alarms compare to; by default that of
            the network the stage begins with.
        history: Measurements so far.
    """

    probe: Probe
    settings: MonitorSection
    spec: ModelSpec
    frequencies: Sequence[float]
    folder: Path
    writes: bool = True
    reference: Sequence[float] | None = None
    history: list[Measurement] = field(default_factory=list)

    def begin(self, model: Network, start: int) -> None:
        """Measure the network a stage begins with; on resume, take back what was measured.

        Args:
            model: The network before the stage's first step.
            start: Steps already done.
        """
        earlier = [Measurement.from_record(line) for line in read_signals(self.folder)]
        self.history = [Measurement(0, self.probe.start(model))]
        self.history += [found for found in earlier if 0 < found.step <= start]
        if start == 0:
            self._save(model, 0)
        self._write()

    def due(self, step: int, last: int) -> bool:
        """Whether to measure after a step."""
        return step % self.settings.every == 0 or step == last

    def measure(self, model: Network, step: int) -> bool:
        """Measure the network and keep it if it is healthy; returns whether the stage ends here.

        One alarm is only noted, for rare classes come and go; two in a row are a collapse.

        Raises:
            TrainingError: If it has collapsed and the recipe says to stop.
        """
        signals = self.probe.measure(model)
        first = self.reference or self.history[0].signals.histogram
        names = self.spec.label_space.classes
        alarm = collapse(first, signals.histogram, self.frequencies, names)
        self.history.append(Measurement(step, signals, alarm))
        self._write()
        reaction = self.settings.on_collapse
        if alarm is None or reaction == "continue":
            self._save(model, step)
        if alarm is None:
            return False
        logger.warning("%s, step %d: %s", self.folder.name, step, alarm)
        if reaction == "continue" or self.history[-2].alarm is None:
            return False
        if reaction == "stop":
            msg = (
                f"{self.folder.name}: collapsed by step {step}: {alarm}. The last healthy network "
                f"is in {self.folder / SNAPSHOTS}. Lower the learning rate or the weights of the "
                "target terms, or look at the footage"
            )
            raise TrainingError(msg)
        logger.warning("%s: rolled back to the last healthy network", self.folder.name)
        return True

    def choose(self, model: Network) -> None:
        """Load the chosen network into ``model``: the start's, if that is to be kept."""
        best = self._best()
        why = self._refusal(best)
        if why is not None:  # logged with the stage's other remarks, when it ends
            best = self.history[0]
            best.refused = why
        best.chosen = True
        self._write()
        model.load_state_dict(load_file(self._snapshot(best.step)))

    def close(self) -> None:
        """Drop the kept networks, unless all are wanted; call it when the result is written."""
        if self.writes:
            drop_snapshots(self.folder, self.settings)

    def _best(self) -> Measurement:
        healthy = [
            found
            for found in self.history
            if found.alarm is None or self.settings.on_collapse == "continue"
        ]
        if self.settings.select == "last":
            return healthy[-1]
        return healthy[choose([found.signals for found in healthy], self.settings.select)]

    def _refusal(self, best: Measurement) -> str | None:
        """Say why the network that a stage began with is better than its result, if it seems so."""
        by = self.settings.guard
        if by == "none":
            return None
        before, after = (float(getattr(m.signals, by)) for m in (self.history[0], best))
        if (after >= before) if RANKED[by] else (after <= before):
            return None
        return (
            f"{by} went from {before:.1%} to {after:.1%}, so the network that the stage began with "
            'is kept. Set monitor.guard = "none" to take the result all the same'
        )

    def _save(self, model: Network, step: int) -> None:
        """Keep a network, and of the earlier ones the best and the first unless all are wanted."""
        if not self.writes:
            return
        save_model(model, self.spec, self._snapshot(step))
        if not self.settings.keep_all:
            keep = {self._snapshot(at) for at in (0, step, self._best().step)}
            for path in (self.folder / SNAPSHOTS).glob("step-*.safetensors"):
                if path not in keep:
                    path.unlink()

    def _snapshot(self, step: int) -> Path:
        return self.folder / SNAPSHOTS / f"step-{step:06d}.safetensors"

    def _write(self) -> None:
        if self.writes:
            lines = [json.dumps(found.to_record()) for found in self.history]
            write_text(self.folder / SIGNALS_FILE, "".join(f"{line}\n" for line in lines))


def drop_snapshots(folder: Path, settings: MonitorSection) -> None:
    """Drop the kept networks of a stage that is complete, unless all are wanted."""
    if not settings.keep_all and (folder / SNAPSHOTS).exists():
        shutil.rmtree(folder / SNAPSHOTS)


def read_signals(folder: Path) -> list[dict[str, Any]]:
    """Return a stage's measurements in their JSON form; empty if there are none."""
    path = folder / SIGNALS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
