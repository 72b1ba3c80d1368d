"""What several verbs do alike."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from edgeuda.errors import ConfigError, DeviceError, ParityError, printable, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from edgeuda.cluster import Cluster
    from edgeuda.labels import LabelSpace
    from edgeuda.training.recipe import Recipe

console = Console(highlight=False, markup=False, emoji=False)
"""Prints names as they are: what stands in brackets is no markup."""


def wrote(*paths: Path, then: str | None = None) -> None:
    """Say what was written, and the command that usually comes next."""
    for path in paths:
        say(f"wrote {printable(str(path))}")
    if then:
        say(f"next: {printable(then)}")


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, soft_wrap=True)


def heading(name: str, about: str) -> Text:
    """Return a name and, less loud, what it is."""
    return Text.assemble((name, "bold"), "  ", about)


def chapter(text: str) -> None:
    """Print a line across the screen: what begins now."""
    console.rule(text, align="left")


def once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file unless it is there: of what was interrupted, files appear whole."""
    if not path.exists():
        make(path)


def allowed(make: Callable[[], object]) -> bool:
    """Do what may be refused by its verdict, which the report shows; returns whether it was not."""
    try:
        make()
    except ParityError as refused:
        console.print(str(refused), style="yellow", soft_wrap=True)
        return False
    return True


def require_inputs(models: Iterable[Path] = (), data: Iterable[Path | None] = ()) -> None:
    """Refuse checkpoints and data that are not there, before torch takes its seconds to load.

    Raises:
        ModelError: See `edgeuda.records.identity.model_file`.
        DataError: See `edgeuda.data.images.list_images`.
    """
    from edgeuda.data.images import list_images
    from edgeuda.records.identity import model_file

    for model in models:
        model_file(model)
    for folder in data:
        if folder is not None and not folder.exists():
            list_images(folder)  # says what was expected


def space_or_none(name: str | None) -> LabelSpace | None:
    """Return the label space of an option that may be absent."""
    from edgeuda.labels import label_space

    return None if name is None else label_space(name)


def cluster_of(
    address: str | None, threads: int | None, model: Path | None = None, device: str = "cpu"
) -> Cluster | None:
    """Return the cluster of ``--ray``, None if it was not given; a worker has one core by default.

    Args:
        address: What stands after the option.
        threads: Of an operator, and so cores of a worker.
        model: What is run; an engine needs a GPU.
        device: Where an ONNX file runs.
    """
    if address is None:
        return None
    from edgeuda.cluster import Cluster

    gpu = device in ("cuda", "tensorrt") or (model is not None and model.suffix == ".engine")
    return Cluster(address, threads=threads or 1, gpu=gpu)


@contextmanager
def shown(what: str, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how far workers are; yields what is called with the frames done and those to do.

    Args:
        what: What they do.
        wanted: Whether anything is shown.
    """
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not wanted) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Read ``HEIGHTxWIDTH``; ``option`` names it in the error."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        msg = f"{option}: expected HEIGHTxWIDTH, for example 512x1024, found {text!r}"
        raise ConfigError(msg)
    return int(height), int(width)


def resolved_recipe(name: str, overrides: list[str] | None, seed: int | None) -> Recipe:
    """Load a recipe with its overrides; ``--seed`` wins over both."""
    from edgeuda.training.recipe_files import read_tables

    read_tables(name)  # says that there is none before torch is loaded
    for package in ("torch", "lightning_fabric", "kornia", "pydantic", "safetensors", "tomli_w"):
        require(package, "train")
    from edgeuda.training.recipe import load_recipe

    extra = () if seed is None else (f"seed={seed}",)
    return load_recipe(name, (*(overrides or ()), *extra))


def refuse_together(first: str, *others: tuple[str, object]) -> None:
    """Refuse options that contradict one: those that were given a value.

    Args:
        first: The option that was given, as it is typed.
        others: Options that it excludes, with their values; None and False were not given.

    Raises:
        ConfigError: If one was given; both are named.
    """
    given = [option for option, value in others if value is not None and value is not False]
    if given:
        msg = f"{first} and {', '.join(given)} contradict each other: leave one of them out"
        raise ConfigError(msg)


def choose_device(name: str) -> None:
    """Let torch see what ``--device`` says; it must not have been imported yet.

    Raises:
        ConfigError: If it says something else than auto, cpu, cuda or cuda:N.
        DeviceError: If there is no such GPU.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if found is None:
        msg = f"--device: expected auto, cpu, cuda or a GPU such as cuda:1, found {name!r}"
        raise ConfigError(msg)
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif found[1] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = found[1]
    if name.startswith("cuda") and not require("torch", "train").cuda.is_available():
        msg = f"--device {name}: torch finds no such GPU. Say auto or cpu, or see `edgeuda doctor`"
        raise DeviceError(msg)


def milliseconds(option: str, text: str) -> float:
    """Read a duration such as ``33ms``, ``0.1s`` or ``33``; ``option`` names it in the error."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        msg = f"{option}: expected a duration, for example 33ms, found {text!r}"
        raise ConfigError(msg)
    return float(found[1]) * (1e3 if found[2] == "s" else 1)
