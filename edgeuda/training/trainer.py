"""The loop: optimiser, schedule, log, checkpoints, orderly stops."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from edgeuda.errors import Interrupted, ModelError, TrainingError
from edgeuda.files import write_atomic, write_text
from edgeuda.methods.base import Losses, Method
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.checkpoint import MODEL_FILE, save_model
from edgeuda.spec import ModelSpec
from edgeuda.training.loader import StepData, batches
from edgeuda.training.recipe import Optimisation

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.jsonl"

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the library sets INFO itself


@dataclass(frozen=True)
class Run:
    """Where and how a stage runs.

    Attributes:
        folder: Folder of the log, the checkpoint and the final model.
        title: Shown beside the progress bar.
        digest: Identity of the resolved recipe and data; a checkpoint of another is refused.
        precision: ``"32-true"`` or ``"bf16-mixed"``.
        workers: Processes that load images.
    """

    folder: Path
    title: str
    digest: str
    precision: str
    workers: int = 0


def fit(
    model: BiSeNet,
    spec: ModelSpec,
    method: Method,
    data: StepData,
    optimisation: Optimisation,
    run: Run,
) -> None:
    """Train a network in place and write it to ``run.folder``.

    Continues from the folder's checkpoint if there is one.

    Raises:
        TrainingError: If a loss is not finite; step, term and images are named.
        Interrupted: On SIGINT or SIGTERM, after a checkpoint was written.
        ModelError: If the checkpoint belongs to another recipe or data.
    """
    _keep_freed_memory()
    fabric = Fabric(accelerator="auto", devices=1, precision=run.precision)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, optimisation)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    start = _restore(run, model, optimizer, method)
    schedule = [
        (group, float(group["lr"]) if start == 0 else float(group["initial_lr"]))
        for group in optimizer.param_groups
    ]
    for group, lr in schedule:
        group["initial_lr"] = lr
    model.train(not method.freezes_batch_norm)

    with (
        _stop_requests() as stop,
        _progress(run.title, optimisation.steps, start) as advance,
        (run.folder / LOG_FILE).open("a", encoding="utf-8") as log,
    ):
        began = time.perf_counter()
        for step, batch in batches(data, start, fabric.device, run.workers):
            factor = schedule_factor(step, optimisation)
            for group, lr in schedule:
                group["lr"] = lr * factor
            losses = method.step(wrapped, batch, spec.preprocessing)
            _require_finite(losses, step, batch.names)
            total = losses.total()
            wrapped_optimizer.zero_grad()
            fabric.backward(total)
            wrapped_optimizer.step()

            done = step + 1
            if done % optimisation.log_every == 0 or done == optimisation.steps:
                line = {
                    "step": done,
                    "loss": total.item(),
                    **{name: term.item() for name, term in losses.terms.items()},
                    **losses.figures,
                    "lr": factor * optimisation.lr,
                    "seconds": round(time.perf_counter() - began, 3),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
            last = done == optimisation.steps
            if stop or last or done % optimisation.checkpoint_every == 0:
                _save(run, model, optimizer, method, done)
            advance(total.item())
            if stop and not last:
                msg = (
                    f"{run.title}: stopped by {stop[0]} after step {done} of {optimisation.steps}; "
                    f"the state is in {run.folder / CHECKPOINT_FILE}. Continue with --resume"
                )
                raise Interrupted(msg)
    model.eval()
    save_model(model, spec, run.folder / MODEL_FILE)


def make_optimizer(model: nn.Module, optimisation: Optimisation) -> torch.optim.SGD:
    """Return SGD without weight decay on batch norm and biases, and with a factor on the heads."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        head = not name.startswith(("context.trunk", "spatial"))
        groups.setdefault((head, parameter.ndim > 1), []).append(parameter)
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "lr": optimisation.lr * (optimisation.head_factor if head else 1.0),
                "weight_decay": optimisation.weight_decay if decays else 0.0,
            }
            for (head, decays), parameters in groups.items()
        ],
        momentum=optimisation.momentum,
    )


def schedule_factor(step: int, optimisation: Optimisation) -> float:
    """Return the learning-rate factor of a step: exponential warm-up from 0.1, then polynomial."""
    warmup, steps = optimisation.warmup, optimisation.steps
    if step < warmup:
        return float(0.1 ** (1 - step / warmup))
    return float((1 - (step - warmup) / max(1, steps - warmup)) ** optimisation.power)


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
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, method: Method, step: int
) -> None:
    state = {
        "digest": run.digest,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "method": method.state(),
    }
    write_atomic(run.folder / CHECKPOINT_FILE, lambda path: torch.save(state, path))


def _keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them to the system.

    Every step frees and asks again for the same hundreds of megabytes, and faults on fresh pages.
    """
    with suppress(OSError, AttributeError):  # another C library: nothing to tell
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _restore(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, method: Method) -> int:
    """Load the checkpoint, cut the log back to it, and return the number of steps done."""
    path = run.folder / CHECKPOINT_FILE
    start = 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["digest"] != run.digest:
            msg = (
                f"{path}: belongs to another recipe, seed or data. Resume with the settings it was "
                "started with (recipe.toml beside it), or choose another --out"
            )
            raise ModelError(msg)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        method.load_state(state["method"])
        start = int(state["step"])
    kept = [json.dumps(line) for line in read_log(run.folder) if line["step"] <= start]
    write_text(run.folder / LOG_FILE, "".join(f"{line}\n" for line in kept))
    return start


def _require_finite(losses: Losses, step: int, names: tuple[str, ...]) -> None:
    bad = [name for name, term in losses.terms.items() if not math.isfinite(term.item())]
    if bad:
        msg = (
            f"Step {step + 1}: loss term {bad[0]!r} is {losses.terms[bad[0]].item()}. "
            f"Lower the learning rate, or look at the images of the batch: {', '.join(names)}"
        )
        raise TrainingError(msg)


@contextmanager
def _stop_requests() -> Iterator[list[str]]:
    """Collect SIGINT and SIGTERM instead of dying from them; a second one kills as usual."""
    received: list[str] = []

    def note(number: int, _frame: object) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, note)
    except ValueError:  # not the main thread: the program's own handling stays
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _progress(title: str, steps: int, start: int) -> Iterator[Any]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    ) as bar:
        task = bar.add_task(title, total=steps, completed=start, loss=math.nan)
        yield lambda loss: bar.update(task, advance=1, loss=loss)
