"""Cost of a training step of every stage against the networks' passes in it, and of its arithmetic.

A step of a stage takes turns with the same forward and backward passes: every image that goes
through a network in the step goes through it again, with cross-entropy on the heads that the step
asked for. `ratio` is to the passes that learn, of the small network and of a large one beside it;
`ratio_to_all` to those of frozen teachers, too. Views, warps, losses, discriminators and moving
averages are the step's own. `arithmetic` is one such pass by precision and memory format.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.networks import spec_of
from benchmarks.turns import in_turns, peak_kib, say
from edgeuda.methods.base import Batch, Method
from edgeuda.methods.hiast import Hiast
from edgeuda.methods.losses import cross_entropy_map
from edgeuda.methods.lse import Lse
from edgeuda.methods.registry import METHODS
from edgeuda.methods.settings import Optimisation
from edgeuda.methods.teacher import LargeSettings, Teacher, TeacherSettings
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.network import Network, upsample
from edgeuda.spec import ModelSpec
from edgeuda.training.loader import position_generator
from edgeuda.training.trainer import keep_freed_memory, make_fabric, make_optimizer

STAGES = ("source", "entropy", "stage1", "stage2", "adversarial", "ass", "hiast", "lse", "distil")
NEEDS = "extra train"
QUICK = {"width": 0.125, "size": [64, 128], "batch": 2, "runs": 1, "stages": ["stage2", "distil"]}


@dataclass
class Stage:
    """What a stage offers to its method: random networks, and nothing from files."""

    network: Network
    spec: ModelSpec
    device: torch.device
    half: bool
    teacher_encoder: str
    seed: int = 0

    @property
    def weights(self) -> Tensor:
        """One weight per class."""
        return torch.ones(len(self.spec.label_space))

    def teacher(
        self, settings: TeacherSettings | None = None, network: Network | None = None
    ) -> Teacher:
        """Return a copy that labels."""
        settings = settings or TeacherSettings()
        model = network or self.network
        return Teacher(model, settings.decay, settings.scales, settings.flip, self.half)

    def large_network(self, _: LargeSettings) -> tuple[Network, ModelSpec]:
        """Return the network of the recipes: full width, over its own encoder."""
        large = BiSeNet(len(self.spec.label_space), 1.0, self.teacher_encoder).eval()
        large.to(device=self.device, memory_format=torch.channels_last)
        return large, self.spec

    def learner(
        self, network: Network, settings: Optimisation
    ) -> tuple[Network, torch.optim.Optimizer]:
        """Return a copy that learns."""
        learner = copy.deepcopy(network).requires_grad_(True)
        return learner, make_optimizer(learner, settings)

    def use_labelled(self, _: object) -> None:
        """The batches hold some in any case."""


def batch_of(
    stage: str, n: int, height: int, width: int, classes: int, device: torch.device
) -> Batch:
    """Return smooth images and blocky labels, as many as the batches of a stage hold."""
    coarse = torch.rand(3 * n, 3, 8, 16)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    labels = torch.nn.functional.interpolate(
        torch.randint(classes, (3 * n, 1, 8, 16)).float(), (height, width)
    )[:, 0].long()
    images, labels = images.to(device), labels.to(device)
    source, target, labelled = images.split(n)
    return Batch(
        step=0,
        source=source,
        source_label=labels[:n],
        target=target,
        pseudo_label=labels[n : 2 * n] if stage == "lse" else None,
        pseudo_confidence=None,
        generators=[position_generator(0, place) for place in range(n)],
        names=(),
        labelled=(labelled, labels[2 * n :]) if stage == "ass" else None,
    )


def method_of(name: str, stage: Stage) -> Method:
    """Build a stage's method with the defaults of its section."""
    kind = METHODS[name]
    settings = kind.settings(steps=100, batch=2, lr=1e-3)
    if name == "hiast":
        return Hiast(settings, Teacher(stage.network, settings.teacher_decay, half=stage.half))
    if name == "lse":
        return Lse(settings, stage.weights)
    assert kind.build is not None
    return kind.build(settings, stage)


@dataclass(frozen=True)
class Pass:
    """One call of a network within a step."""

    network: Network
    shape: tuple[int, ...]
    learns: bool
    how: dict[str, Any]


def passes_of(step: Callable[[], None]) -> list[Pass]:
    """Run a step and return the calls of networks in it."""
    found: list[Pass] = []
    plain = BiSeNet.forward

    def watched(self: BiSeNet, x: Tensor, **how: Any) -> Any:
        found.append(Pass(self, tuple(x.shape), torch.is_grad_enabled(), how))
        return plain(self, x, **how)

    with patch.object(BiSeNet, "forward", watched):
        step()
    return found


def replay(passes: list[Pass], half: bool, device: torch.device) -> Callable[[], None]:
    """Return a caller of the same passes with cross-entropy as their loss."""
    ready = []
    for one in passes:
        n, _, height, width = one.shape
        x = torch.rand(one.shape, device=device).contiguous(memory_format=torch.channels_last)
        y = torch.randint(2, (n, height, width), device=device)
        ready.append((one, x, y))

    def run() -> None:
        for one, x, y in ready:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                if not one.learns:
                    with torch.no_grad():
                        one.network(x, **one.how)
                    continue
                heads = one.network(x, **one.how).heads()
            full = [upsample(head.float().contiguous(), y.shape[1:]) for head in heads]
            one.network.zero_grad()
            torch.stack([cross_entropy_map(head, y).mean() for head in full]).sum().backward()
        _wait(device)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def of_stage(name: str, encoder: str, given: argparse.Namespace) -> dict:
    """Measure one stage over one encoder."""
    torch.manual_seed(0)
    fabric = make_fabric("auto")
    half = fabric.device.type == "cuda" or fabric._precision.precision == "bf16-mixed"
    spec = spec_of(*given.size, given.width, "camvid-11", encoder)
    raw = BiSeNet(len(spec.label_space), given.width, encoder).eval()
    raw.to(device=fabric.device, memory_format=torch.channels_last)
    model = fabric.setup_module(raw)
    model.mark_forward_method("weigh")
    method = method_of(name, Stage(raw, spec, fabric.device, half, given.teacher_encoder))
    raw.train(not method.freezes_batch_norm)
    batch = batch_of(name, given.batch, *given.size, len(spec.label_space), fabric.device)

    def step() -> None:
        raw.zero_grad()
        fabric.backward(method.step(model, batch, spec.preprocessing).total())
        method.after_step(raw)
        _wait(fabric.device)

    passes = passes_of(step)
    learning = [one for one in passes if one.learns]
    turns = in_turns(
        {"step": step, "learning": replay(learning, half, fabric.device),
         "all": replay(passes, half, fabric.device)}, given.runs, warm_up=2,
    )  # fmt: skip
    clock = "cpu" if given.threads == 1 and fabric.device.type == "cpu" else "wall"
    images = sum(one.shape[0] for one in learning)
    row = {
        "stage": name,
        "encoder": encoder,
        "ratios_of": clock,
        "images_that_learn": images,
        "images_labelled": sum(one.shape[0] for one in passes) - images,
        "ratio": turns.ratio("step", "learning", clock),
        "ratio_to_all": turns.ratio("step", "all", clock),
        "median_ms": turns.ms(),
        "median_cpu_ms": turns.ms("cpu"),
        "images_per_s": round(2 * given.batch / turns.ms()["step"] * 1e3, 1),
    }
    say(row)
    return row


def arithmetic(encoder: str, given: argparse.Namespace) -> dict:
    """Time forward and backward by precision and memory format, in turns."""
    torch.manual_seed(0)
    plain = BiSeNet(11, given.width, encoder)
    x = torch.rand(2 * given.batch, 3, *given.size)
    y = torch.randint(11, (2 * given.batch, *given.size))
    ways = {}
    for half, last in itertools.product((False, True), repeat=2):
        layout = torch.channels_last if last else torch.contiguous_format
        net, images = (one.to(memory_format=layout) for one in (copy.deepcopy(plain), x))

        def run(net: Network = net, half: bool = half, x: Tensor = images) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                heads = net(x, aux=True, upsample=False).heads()
            full = [upsample(head.float().contiguous(), y.shape[1:]) for head in heads]
            net.zero_grad()
            torch.stack([cross_entropy_map(head, y).mean() for head in full]).sum().backward()

        name = ("bfloat16" if half else "float32") + (", channels last" if last else "")
        ways[name] = run
    turns = in_turns(ways, given.runs, warm_up=2)
    clock = "cpu" if given.threads == 1 else "wall"
    row = {
        "encoder": encoder,
        "ratios_of": clock,
        "median_ms": turns.ms(),
        "median_cpu_ms": turns.ms("cpu"),
        "to_float32": {name: turns.ratio(name, "float32", clock) for name in ways},
    }
    say(row)
    return row


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--size", type=int, nargs=2, default=[160, 320])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--encoders", nargs="+", default=["resnet18"])
    parser.add_argument("--teacher-encoder", default="resnet18", help="of the large network")


def measure(given: argparse.Namespace) -> dict:
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as in training
    keys = ("width", "size", "batch", "threads", "runs", "teacher_encoder")
    return {
        "schema": "edgeuda.training-step/2",
        "settings": {key: getattr(given, key) for key in keys},
        "steps": [
            of_stage(stage, encoder, given) for encoder in given.encoders for stage in given.stages
        ],
        "arithmetic": [arithmetic(encoder, given) for encoder in given.encoders],
        "peak_mib": peak_kib() // 1024,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
