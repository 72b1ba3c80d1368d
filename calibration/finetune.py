"""Short fine-tuning of a quantized graph, with its own FP32 form as teacher; no labels.

Rounding passes gradients straight through, also to the ends of the ranges, which are trained with
the weights. Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; Esser et al., "Learned Step Size Quantization", ICLR
2020 (the gradient of a step).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from calibration.torch_graph import OnnxGraph
from edgeuda.errors import Interrupted, ModelError, TrainingError
from edgeuda.files import sha256_of, write_atomic
from edgeuda.interrupts import stop_requests
from edgeuda.records.calibration import Range

if TYPE_CHECKING:
    import onnx

    from calibration.options import Report
    from calibration.pipeline import Tune, TuningTask

SAVE_STEPS = 50
TINY = 1e-30


@dataclass(frozen=True)
class Rounding:
    """What is rounded in a graph, and how.

    Attributes:
        inputs: The range that each rounded input has, by the reading node's first output and the
            input's position. Inputs with one range share one scale.
        ranges: Lowest and highest value represented by each range.
        weights: First outputs of the convolutions whose weights are rounded, per output channel to
            int8.
        unsigned: Whether activations are uint8 with a zero point; else int8 without one.
    """

    inputs: Mapping[tuple[str, int], str]
    ranges: Mapping[str, tuple[float, float]]
    weights: frozenset[str]
    unsigned: bool


@dataclass(frozen=True)
class Tuning:
    """How long and how fast.

    Attributes:
        steps: Optimiser steps.
        batch: Frames per step.
        lr: Of weights and biases, relative to their mean magnitude.
        range_lr: Of the ranges' ends, relative to the range.
        seed: Of the order of the frames and of mirroring.
    """

    steps: int = 200
    batch: int = 4
    lr: float = 1e-4
    range_lr: float = 3e-4
    seed: int = 0


class TuningFrames(Protocol):
    """Frames, uint8 ``[1, H, W, 3]`` each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False)
class Tuned:
    """What training made of a graph.

    Attributes:
        constants: Weights and biases of the convolutions by name.
        ranges: Ends of the ranges.
        losses: Of every step: KL divergence of the class probabilities from the teacher's, nats.
    """

    constants: dict[str, npt.NDArray[np.float32]]
    ranges: dict[str, tuple[float, float]]
    losses: list[float]


class RoundedGraph(nn.Module):
    """A graph that rounds where ONNX's Q/DQ pairs will.

    Args:
        graph: The network; it is trained.
        rounding: What is rounded.
    """

    def __init__(self, graph: OnnxGraph, rounding: Rounding) -> None:
        super().__init__()
        self.graph, self.rounding = graph, rounding
        self.names = {name: f"range{i}" for i, name in enumerate(rounding.ranges)}
        self.stretch = nn.ParameterDict(
            {place: nn.Parameter(torch.zeros(2)) for place in self.names.values()}
        )

    def limits(self, name: str) -> tuple[Tensor, Tensor]:
        """Return both ends of a range; they keep their signs."""
        low, high = self.rounding.ranges[name]
        factors = self.stretch[self.names[name]].exp()
        return min(low, 0.0) * factors[0], max(high, 0.0) * factors[1]

    def forward(self, image: Tensor) -> Tensor:
        """Return the graph's output with rounded inputs and weights."""
        scores: Tensor = self.graph(image, self._hook)
        return scores

    def _hook(self, node: str, position: int, _name: str, value: Tensor) -> Tensor:
        if position == 1 and node in self.rounding.weights:
            return round_weight(value)
        name = self.rounding.inputs.get((node, position))
        return value if name is None else self._round(name, value)

    def _round(self, name: str, value: Tensor) -> Tensor:
        low, high = self.limits(name)
        if not self.rounding.unsigned:
            scale = torch.maximum(-low, high).clamp_min(TINY) / 127
            return _straight(value / scale).clamp(-128, 127) * scale
        scale = (high - low).clamp_min(TINY) / 255
        zero = _straight(-low / scale)
        return ((_straight(value / scale) + zero).clamp(0, 255) - zero) * scale


def round_weight(weight: Tensor) -> Tensor:
    """Round ``[outputs, ...]`` to 255 steps per output channel, gradients passing through."""
    scale = weight.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(TINY) / 127
    return _straight(weight / scale) * scale


def _straight(value: Tensor) -> Tensor:
    return value + (value.round() - value).detach()


def tune(
    model: onnx.ModelProto,
    scores: str,
    rounding: Rounding,
    frames: TuningFrames,
    tuning: Tuning,
    state: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tuned:
    """Train a rounded graph to say what it says unrounded.

    Args:
        model: The FP32 graph.
        scores: Name of its class scores, ``[N, K, h, w]``.
        rounding: What is rounded.
        frames: Unlabelled frames of the target domain.
        tuning: How long and how fast.
        state: Where an interrupted training is kept; the file is removed at the end.
        progress: Called with steps done and steps to do.

    Raises:
        ModelError: If the graph cannot be trained.
        TrainingError: If the loss is not finite.
        Interrupted: On Ctrl-C or SIGTERM, at the end of the step, after the state was written.
    """
    teacher = OnnxGraph(model, scores).requires_grad_(False)
    student = RoundedGraph(copy.deepcopy(teacher).requires_grad_(True), rounding)
    groups = [
        {"params": [p], "lr": tuning.lr * max(float(p.detach().abs().mean()), TINY)}
        for p in student.graph.parameters()
    ]
    groups.append({"params": list(student.stretch.parameters()), "lr": tuning.range_lr})
    optimiser = torch.optim.Adam(groups)
    base = [group["lr"] for group in optimiser.param_groups]
    key = sha256_of(
        [
            str(sorted(asdict(tuning).items())),
            str(sorted(rounding.ranges.items())),
            str(sorted(rounding.inputs.items())),
            str(sorted(rounding.weights)),
            str(len(frames)),
            str([float(value.double().sum()) for value in teacher.trained().values()]),
        ]
    )
    losses: list[float] = []
    if state.exists():
        try:
            saved = torch.load(state, weights_only=True)
            if saved["key"] == key:
                student.load_state_dict(saved["student"])
                optimiser.load_state_dict(saved["optimiser"])
                losses = saved["losses"]
        except Exception as err:  # zip, pickle and more: all mean one thing
            what = str(err).splitlines()[0] if str(err) else type(err).__name__
            msg = (
                f"{state}: expected the state of a fine-tuning, found a file that cannot be read "
                f"as one ({what}). Remove it to begin again"
            )
            raise ModelError(msg) from err

    def save() -> None:
        content = {
            "key": key,
            "student": student.state_dict(),
            "optimiser": optimiser.state_dict(),
            "losses": losses,
        }
        write_atomic(state, lambda name: torch.save(content, name))

    with stop_requests() as received:
        for step in range(len(losses), tuning.steps):
            for group, lr in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / tuning.steps))
            images = batch_of(frames, tuning, step)
            with torch.no_grad():
                expected = teacher(images).log_softmax(1)
            found = student(images).log_softmax(1)
            loss = (expected.exp() * (expected - found)).sum(1).mean()
            if not torch.isfinite(loss):
                msg = f"Fine-tuning: the loss is not finite at step {step}. Lower the learning rate"
                raise TrainingError(msg)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            progress(step + 1, tuning.steps)
            if received or len(losses) % SAVE_STEPS == 0:
                save()
            if received:
                msg = (
                    f"Interrupted after step {len(losses)}; {state} keeps it. The same command "
                    "goes on"
                )
                raise Interrupted(msg)
    state.unlink(missing_ok=True)
    with torch.no_grad():
        ranges = {}
        for name in student.names:
            low, high = student.limits(name)
            ranges[name] = float(low), float(high)
    constants = {name: value.numpy() for name, value in student.graph.trained().items()}
    return Tuned(constants, ranges, losses)


def batch_of(frames: TuningFrames, tuning: Tuning, step: int) -> Tensor:
    """Return the frames of a step, ``[batch, H, W, 3]`` uint8, some of them mirrored."""
    rng = np.random.default_rng([tuning.seed, step])
    chosen: Sequence[int] = rng.integers(len(frames), size=tuning.batch).tolist()
    images = np.concatenate([frames[index] for index in chosen])
    mirrored = rng.random(len(images)) < 0.5
    images[mirrored] = images[mirrored][:, :, ::-1]
    return torch.from_numpy(images)


def tuner(steps: int, seed: int, state: Path, report: Report) -> Tune:
    """Return what fine-tunes a graph on its way to INT8, see `calibration.pipeline.Work.tune`.

    Args:
        steps: How long.
        seed: Of the order of the frames and of mirroring.
        state: File from which interrupted training goes on.
        report: Called with what is being done, the steps done and the steps to do.
    """

    def run(task: TuningTask) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, Range]]:
        rounding = Rounding(task.inputs, task.limits, frozenset(task.convs), task.unsigned)
        tuned = tune(
            task.model, task.scores, rounding, task.frames, Tuning(steps=steps, seed=seed), state,
            partial(report, "fine-tuning"),
        )  # fmt: skip
        return tuned.constants, {name: Range(*ends) for name, ends in tuned.ranges.items()}

    return run
