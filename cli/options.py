"""Options that several verbs share: one name, one meaning."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    list[Path],
    typer.Option(
        "--source", help="Folder of labelled images: images/ and labels/. Repeatable: several "
        "sources are learned from together, in the label space of the first."
    ),
]  # fmt: skip
SourceWeights = Annotated[
    list[float] | None,
    typer.Option(
        "--source-weight", help="How often images of a source are drawn, relative to the others: "
        "once for each --source, in their order. By default all alike."
    ),
]  # fmt: skip
Target = Annotated[
    Path,
    typer.Option(
        "--target",
        help="Folder of target frames, a video, an MCAP file or a ROS bag; labels are never read.",
    ),
]
Footage = Annotated[
    Path,
    typer.Option(
        "--target",
        help="Folder or list of frames, a video, an MCAP file or ROS bag, or a camera's number.",
    ),
]
Data = Annotated[Path, typer.Option("--data", help="Folder of labelled images to score on.")]
RunModel = Annotated[Path, typer.Option("--model", help="Run folder or .safetensors file.")]
Init = Annotated[
    Path,
    typer.Option(
        "--model",
        "--init",
        help="Run folder or .safetensors file to start from; an adapted one starts a combination.",
    ),
]
OnnxModel = Annotated[Path, typer.Option("--model", help="ONNX file written by 'export'.")]
DeployedModel = Annotated[Path, typer.Option("--model", help="ONNX file, or .engine of 'build'.")]
AnyModel = Annotated[
    Path, typer.Option("--model", help="Run folder, .safetensors file or ONNX file.")
]
Out = Annotated[Path, typer.Option("--out", help="What to write; it must not exist.")]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="Built-in name (see recipes) or .toml file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override of the recipe, section.key=value; repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed; by default the recipe's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that load images.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads; by default every usable core.")
]
LabelSpaceName = Annotated[
    str | None,
    typer.Option(
        "--label-space",
        help="Label space of the label files, if the folder's dataset.json does not say.",
    ),
]
IgnoreUnmapped = Annotated[
    bool,
    typer.Option(
        "--ignore-unmapped",
        help="Ignore classes of the label files that the network's label space lacks.",
    ),
]
Frames = Annotated[int, typer.Option("--frames", min=1, help="Frames to use, evenly spread.")]
Name = Annotated[
    str | None, typer.Option("--name", help="Name in tables and plots; by default the file's.")
]


class ProviderName(str, Enum):
    """Where ONNX Runtime runs."""

    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


class DeviceName(str, Enum):
    """Where ONNX files run."""

    cpu = "cpu"
    openvino = "openvino"
    cuda = "cuda"
    tensorrt = "tensorrt"


RunDevice = Annotated[
    DeviceName,
    typer.Option(
        "--device",
        help="Where ONNX files run: cpu, cuda or tensorrt with ONNX Runtime, or openvino, which is "
        "the CPU with OpenVINO. An .engine runs on its GPU.",
    ),
]
Graphs = Annotated[
    bool, typer.Option(help="Replay CUDA graphs with an .engine; without, copies are told apart.")
]


TrainDevice = Annotated[
    str, typer.Option("--device", help="Where to compute: auto, cpu, cuda, or a GPU: cuda:1.")
]


def repeated(option: str, values: Sequence[object] | None) -> str:
    """Return a repeatable option with its values, as they are typed in a shell; None has none."""
    return " ".join(f"{option} {typed(value)}" for value in values or ())


def typed(value: object) -> str:
    """Return a value as it is typed in a shell."""
    return shlex.quote(str(value))


def given(**chosen: object) -> str:
    """Return the options that are not None or False, as they are typed in a shell."""
    parts = []
    for name, value in chosen.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            parts.append(option)
        elif value is not None and value is not False:
            parts.append(f"{option} {typed(value)}")
    return " ".join(parts)


def joined(*parts: str) -> str:
    """Return the parts of a command that are not empty, with a blank between."""
    return " ".join(filter(None, parts))


def command(verb: str, **chosen: object) -> str:
    """Return a command with its options, as it is typed in a shell."""
    return joined(f"edgeuda {verb}", given(**chosen))
