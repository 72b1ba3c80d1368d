"""The loop: optimiser, schedule, log, checkpoints, orderly stops."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import nn

from edgeuda.errors import ConfigError, Interrupted, ModelError, TrainingError
from edgeuda.files import write_atomic, write_text
from edgeuda.interrupts import stop_requests
from edgeuda.methods.base import Losses, Method
from edgeuda.methods.schedules import decayed
from edgeuda.methods.settings import Optimisation
from edgeuda.models.checkpoint import save_model
from edgeuda.models.network import Network
from edgeuda.records.identity import MODEL_FILE
from edgeuda.spec import ModelSpec
from edgeuda.training.loader import StepData, batches
from edgeuda.training.panel import progressing
from edgeuda.training.trackers import Tracking, stage_trackers
from edgeuda.training.watch import Watch

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.jsonl"

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the library sets INFO itself


@dataclass(frozen=True)
class TrainingRun:
    """Where and how a stage runs.

    Attributes:
        folder: Folder of the log, the checkpoint and the final model.
        title: Shown beside the progress bar.
        digest: Identity of the resolved recipe and data; a checkpoint of another is refused.
        workers: Processes that load images.
        compile: Whether the network is compiled.
        tracking: Trackers that follow the stage.
        params: The recipe, nested, as trackers show it.
    """

    folder: Path
    title: str
    digest: str
    workers: int = 0
    compile: bool = False
    tracking: Tracking = field(default_factory=Tracking)
    params: Mapping[str, Any] = field(default_factory=dict)


def rank_of_ranks() -> tuple[int, int]:
    """Return which of how many ranks of ``torchrun`` this process is; 0 and 1 without."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def make_fabric(precision: str) -> Fabric:
    """Return the library's view of this process: device, precision, ranks.

    Under ``torchrun`` the ranks are those it started, joined by gloo on CPUs and NCCL on GPUs.

    Args:
        precision: ``"auto"``, ``"32-true"`` or ``"bf16-mixed"``.
    """
    _, ranks = rank_of_ranks()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator="auto",
        devices=here,
        num_nodes=ranks // here,
        strategy="ddp" if ranks > 1 else "auto",
        precision="bf16-mixed" if in_half(precision) else "32-true",
    )
    fabric.launch()
    return fabric


def fit(
    model: Network,
    spec: ModelSpec,
    method: Method,
    data: StepData,
    optimisation: Optimisation,
    run: TrainingRun,
    fabric: Fabric,
    watch: Watch | None = None,
    finish: Callable[[], None] | None = None,
) -> None:
    """Train a network in place and write it to ``run.folder``.

    Continues from the folder's checkpoint if there is one. The network's file says that all is
    done, so it is written last: ``finish`` writes what comes with it, on the rank that writes.

    Raises:
        TrainingError: If a loss is not finite; step, term and images are named. If the network
            collapses and the recipe says to stop.
        Interrupted: On SIGINT or SIGTERM, after a checkpoint was written.
        ModelError: If the checkpoint belongs to another recipe or data.
    """
    keep_freed_memory()
    data.rank, data.ranks = fabric.global_rank, fabric.world_size
    # Forward and backward are a tenth to a quarter faster with channels last (docs/benchmarks.md).
    model.to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, optimisation)
    module = cast("nn.Module", torch.compile(model)) if run.compile else model
    wrapped, wrapped_optimizer = fabric.setup(module, optimizer)
    checkpoint = _read_checkpoint(run)
    if watch is not None:
        watch.begin(model, int(checkpoint["step"]) if checkpoint else 0)
    start = _restore(checkpoint, run, model, optimizer, method, fabric)
    # What the watch had ended before the last step does not go on.
    steps = start if checkpoint and checkpoint.get("ended") else optimisation.steps
    schedule = [
        (group, float(group["lr"]) if start == 0 else float(group["initial_lr"]))
        for group in optimizer.param_groups
    ]
    for group, lr in schedule:
        group["initial_lr"] = lr
    model.train(not method.freezes_batch_norm)

    with (
        stop_requests() as stop,
        _log(run, fabric.is_global_zero) as write,
        stage_trackers(
            run.tracking, run.folder, spec.label_space, optimisation.steps, start, run.params,
            fabric.is_global_zero,
        ) as track,
        progressing(
            run.title, optimisation.steps, start, fabric.is_global_zero, run.tracking.names
        ) as panel,
    ):  # fmt: skip
        if watch is not None and start == 0:
            track.measured(watch)
            panel.measured(watch.history[0])
        began = then = time.perf_counter()
        waited = 0.0
        images = 0
        stream = batches(data, start * data.accumulate, fabric.device, run.workers)
        for done in range(start + 1, steps + 1):
            factor = schedule_factor(done - 1, optimisation)
            for group, lr in schedule:
                group["lr"] = lr * factor
            wrapped_optimizer.zero_grad()
            for part in range(data.accumulate):
                asked = time.perf_counter()
                batch = next(stream)
                waited += time.perf_counter() - asked
                images += batch.images * fabric.world_size
                with _batch_norm_needs_two(data.batch):
                    losses = method.step(wrapped, batch, spec.preprocessing)
                total = losses.total() / data.accumulate
                _require_finite(total, losses, done, batch.names)
                with fabric.no_backward_sync(wrapped, enabled=part + 1 < data.accumulate):
                    fabric.backward(total)
            wrapped_optimizer.step()
            method.after_step(model)

            last = done == optimisation.steps
            loss = _mean(losses.total(), fabric)
            if done % optimisation.log_every == 0 or last:
                now = time.perf_counter()
                seconds, rate = now - began, images / (now - then)
                then, images = now, 0
                line = {
                    "step": done,
                    "loss": loss,
                    **{name: _mean(term, fabric) for name, term in losses.terms.items()},
                    **{name: value.tolist() for name, value in losses.figures.items()},
                    "lr": factor * optimisation.lr,
                    "seconds": round(seconds, 3),
                    "waiting": round(waited / seconds, 4),
                }
                write(line)
                track.log(line, losses, rate)
                panel.log(line, losses.terms, rate, fabric.device)
            ends = False
            if watch is not None and watch.due(done, optimisation.steps):
                ends = watch.measure(model, done)
                model.train(not method.freezes_batch_norm)
                track.measured(watch)
                panel.measured(watch.history[-1])
            stopped = _any_rank(bool(stop), fabric)
            if stopped or last or ends or done % optimisation.checkpoint_every == 0:
                _save(run, model, optimizer, method, done, ends, fabric)
            panel.advance(loss)
            if ends:
                break
            if stopped and not last:
                msg = (
                    f"{run.title}: stopped by {' '.join(stop) or 'another rank'} after step {done} "
                    f"of {optimisation.steps}; the state is in {run.folder / CHECKPOINT_FILE}. "
                    "Continue with `resume`"
                )
                raise Interrupted(msg)
    model.eval()
    fabric.barrier()
    if watch is not None:
        watch.choose(model)
    if fabric.is_global_zero:
        if finish is not None:
            finish()
        save_model(model, spec, run.folder / MODEL_FILE)
    if watch is not None:
        watch.close()
    fabric.barrier()


def make_optimizer(model: Network, optimisation: Optimisation) -> torch.optim.Optimizer:
    """Return SGD or Adam without weight decay on batch norm and biases, heads at their factor."""
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = not name.startswith(model.base_rate)
            bias = name.endswith(".bias") and id(parameter) not in norms
            # A group of its own only where the rate differs: checkpoints keep their groups.
            key = head, parameter.ndim > 1, bias and optimisation.bias_factor != 1
            groups.setdefault(key, []).append(parameter)
    parts = [
        {
            "params": parameters,
            "lr": optimisation.lr
            * (optimisation.head_factor if head else 1.0)
            * (optimisation.bias_factor if bias else 1.0),
            "weight_decay": optimisation.weight_decay if decays else 0.0,
        }
        for (head, decays, bias), parameters in groups.items()
    ]
    if optimisation.optimizer == "adam":
        return torch.optim.Adam(parts, betas=optimisation.betas)
    return torch.optim.SGD(parts, momentum=optimisation.momentum)


def schedule_factor(step: int, optimisation: Optimisation) -> float:
    """Return the learning-rate factor of a step: exponential warm-up from 0.1, then the decay."""
    warmup, end = optimisation.warmup, optimisation.decay_steps or optimisation.steps
    if step < warmup:
        return float(0.1 ** (1 - step / warmup))
    done = (step - warmup) / max(1, end - warmup)
    return decayed(done, optimisation.schedule, optimisation.power)


def in_half(precision: str) -> bool:
    """Whether a recipe's precision means bfloat16 on this machine."""
    return precision == "bf16-mixed" or (precision == "auto" and has_bf16())


def has_bf16() -> bool:
    """Whether this machine computes in bfloat16 natively (GPU, AVX512-BF16 or AMX)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(
        flag in cpuinfo.read_text(encoding="utf-8") for flag in ("avx512_bf16", "amx_bf16")
    )


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; a line cut short by a crash is left out."""
    path = folder / LOG_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    complete = text[: text.rfind("\n") + 1].splitlines()
    return [json.loads(line) for line in complete]


def _save(
    run: TrainingRun,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    step: int,
    ended: bool,
    fabric: Fabric,
) -> None:
    if not fabric.is_global_zero:
        return
    state = {
        "digest": run.digest,
        "step": step,
        "ended": ended,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "method": method.state(),
    }
    write_atomic(run.folder / CHECKPOINT_FILE, lambda path: torch.save(state, path))


@contextmanager
def _batch_norm_needs_two(batch: int) -> Iterator[None]:
    """Say in words of the recipe what torch says of a batch of one."""
    try:
        yield
    except ValueError as err:
        if "more than 1 value per channel" not in str(err):
            raise
        msg = (
            f"A batch of {batch} image(s) is too small here: a batch norm behind global pooling "
            "sees one value of each channel. Set batch = 2 or more in this stage's section, or "
            "its batch_norm = frozen"
        )
        raise ConfigError(msg) from err


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them to the system.

    Every step frees and asks again for the same hundreds of megabytes, and faults on fresh pages.
    """
    with suppress(OSError, AttributeError):  # another C library: nothing to tell
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Return what a stage's last checkpoint holds; nothing in it is executed.

    Raises:
        ModelError: If it is damaged, or is no checkpoint of ours.
    """
    path = folder / CHECKPOINT_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"digest", "step", "model", "optimizer", "method"} - state.keys()
        if missing:
            raise KeyError(*missing)
    except Exception as err:  # zip, pickle and more: all mean one thing
        what = str(err).splitlines()[0] if str(err) else type(err).__name__
        msg = (
            f"{path}: expected a checkpoint, found a file that cannot be read as one ({what}). "
            "Remove it, and `resume` begins this stage again"
        )
        raise ModelError(msg) from err
    return dict(state)


def _read_checkpoint(run: TrainingRun) -> dict[str, Any] | None:
    """Return the run's checkpoint, None if there is none."""
    path = run.folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    state = read_checkpoint(run.folder)
    if state["digest"] != run.digest:
        msg = (
            f"{path}: belongs to another recipe, seed or data. Resume with the settings it was "
            "started with (recipe.toml beside it), or choose another `out`"
        )
        raise ModelError(msg)
    return state


def _restore(
    state: dict[str, Any] | None,
    run: TrainingRun,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    fabric: Fabric,
) -> int:
    """Take the checkpoint, cut the log back to it, and return the number of steps done."""
    start = 0
    if state is not None:
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            method.load_state(state["method"])
        except (RuntimeError, KeyError, ValueError) as err:
            msg = (
                f"{run.folder / CHECKPOINT_FILE}: does not fit this network and method "
                f"({str(err).splitlines()[0]}). It may be of another version of EdgeUDA; remove "
                "it, and `resume` begins this stage again"
            )
            raise ModelError(msg) from err
        start = int(state["step"])
    if fabric.is_global_zero:
        kept = [json.dumps(line) for line in read_log(run.folder) if line["step"] <= start]
        write_text(run.folder / LOG_FILE, "".join(f"{line}\n" for line in kept))
    return start


def _mean(value: torch.Tensor, fabric: Fabric) -> float:
    """Return a scalar's mean over ranks."""
    mean = fabric.all_reduce(value.detach())
    assert isinstance(mean, torch.Tensor)
    return mean.item()


def _any_rank(stop: bool, fabric: Fabric) -> bool:
    """Whether a rank wants to stop: all must, after the same step."""
    if fabric.world_size == 1:
        return stop
    wish = torch.tensor(float(stop), device=fabric.device)
    return bool(fabric.all_reduce(wish, reduce_op="sum") > 0)  # type: ignore[operator]


def _require_finite(total: torch.Tensor, losses: Losses, step: int, names: tuple[str, ...]) -> None:
    if math.isfinite(total.item()):
        return
    bad = next(name for name, term in losses.terms.items() if not math.isfinite(term.item()))
    msg = (
        f"Step {step}: loss term {bad!r} is {losses.terms[bad].item()}. "
        f"Lower the learning rate, or look at the images of the batch: {', '.join(names)}"
    )
    raise TrainingError(msg)


@contextmanager
def _log(run: TrainingRun, writes: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open the run's log on the rank that writes."""
    if not writes:
        yield lambda _: None
        return
    with (run.folder / LOG_FILE).open("a", encoding="utf-8", buffering=1) as log:
        yield lambda line: print(json.dumps(line), file=log)
