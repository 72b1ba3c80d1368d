"""Options that several verbs share: one name, one meaning."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from typer.core import TyperCommand

from edgeuda.cluster import LOCAL
from edgeuda.records.names import DeviceName, TrackerName

T = TypeVar("T")
logger = logging.getLogger(__name__)


def place(text: str) -> Path:
    """Return the path that an option names, on disk, in an object store or in shards."""
    from edgeuda.data.stores import located

    return located(text)


def destination(text: str) -> Path:
    """Return the path that an option names for what is written, which is no object store."""
    from edgeuda.data.stores import SCHEMES
    from edgeuda.errors import ConfigError

    if "://" in text and text.partition("://")[0] in SCHEMES:
        msg = "--out: expected a place on this disk, found one in an object store, which is only "
        msg += "read. Copy what was written there with the store's own tools"
        raise ConfigError(msg)
    return Path(text)


READ: Any = {"parser": place, "metavar": "<path>"}
"""Of an option that names what is read, wherever it lies."""
WRITTEN: Any = {"parser": destination, "metavar": "<path>"}
"""Of an option that names what is written."""

Source = Annotated[
    list[Path],
    typer.Option(
        "--source", help="Folder of labelled images, with images/ and labels/; several sources are "
        "learned from together, in the label space of the first (repeatable).", **READ,
    ),
]  # fmt: skip
SourceWeights = Annotated[
    list[float] | None,
    typer.Option(
        "--source-weight", help="How often images of a source are drawn, relative to the others: "
        "once for each --source, in their order; by default all alike."
    ),
]  # fmt: skip
Target = Annotated[
    Path,
    typer.Option(
        "--target",
        help="Folder of target frames, a video, an MCAP file, a ROS bag or shards, on disk or in "
        "an object store (s3://BUCKET/NAME); labels are never read.",
        **READ,
    ),
]
Footage = Annotated[
    Path,
    typer.Option(
        "--target",
        help="Folder or list of frames, a video, an MCAP file, a ROS bag or shards, on disk or in "
        "an object store (s3://BUCKET/NAME), or a camera's number.",
        **READ,
    ),
]
Data = Annotated[
    Path, typer.Option("--data", help="Folder of labelled images to score on.", **READ)
]
ReplayShare = Annotated[
    float,
    typer.Option(
        "--replay-share",
        help="Share of old frames in what is learned from target frames, between 0 and 1, "
        "whatever their numbers.",
    ),
]
RunModel = Annotated[Path, typer.Option("--model", help="Run folder or .safetensors file.")]
Init = Annotated[
    Path,
    typer.Option(
        "--model",
        "--init",
        help="Run folder or .safetensors file to start from; an adapted one starts a combination.",
    ),
]
OnnxModel = Annotated[Path, typer.Option("--model", help="ONNX file that the verb export wrote.")]
DeployedModel = Annotated[
    Path, typer.Option("--model", help="ONNX file, or an .engine that the verb build wrote.")
]
AnyModel = Annotated[
    Path, typer.Option("--model", help="Run folder, .safetensors file or ONNX file.")
]
SourceOfDoubt = Annotated[
    Path,
    typer.Option(
        "--model",
        help="Run folder, .safetensors file, ONNX file or bundle: the network whose doubt counts.",
    ),
]
PublicKey = Annotated[
    Path | None,
    typer.Option(help="Ed25519 public key, PEM: refuse what is not signed by its owner."),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        help="What is written; it must not exist yet.",
        **WRITTEN,
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="The recipe: a built-in name, which the verb recipes lists, or a .toml file.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A setting of the recipe to change, section.key=value (repeatable)."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of everything random; by default that of the recipe."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", min=0, help="Processes that load images; 0 loads them in the main process."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Threads of an operator; by default one for every usable core."
    ),
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
Frames = Annotated[
    int,
    typer.Option(
        "--frames", min=1, help="Number of frames to use, spread evenly over the footage."
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="What tables and plots call it; by default the name of the file."),
]


RAY = {
    "metavar": "[ADDRESS]",
    "help": "Divide the frames among workers of a Ray cluster: without an address one worker for "
    "every core of this machine, or for every GPU if --device needs one; with an address a cluster "
    "that runs already. All its machines must see model and frames under the paths given here. If "
    "it is stopped, the same command goes on.",
}
Ray = Annotated[str | None, typer.Option("--ray", **RAY)]


RunDevice = Annotated[
    DeviceName,
    typer.Option(
        "--device",
        help="Where ONNX files run: cpu, cuda or tensorrt with ONNX Runtime, or openvino, which "
        "is the CPU with OpenVINO. An .engine runs on its GPU.",
    ),
]
Graphs = Annotated[
    bool,
    typer.Option(
        help="Whether an .engine replays CUDA graphs; without them, copies are timed apart."
    ),
]


Confidence = Annotated[
    bool,
    typer.Option(
        "--confidence",
        help="Also ask how sure the model is, which was exported with --confidence; overlays are "
        "dark where it is not.",
    ),
]


TrainDevice = Annotated[
    str,
    typer.Option(
        "--device", help="Where torch computes: auto, cpu, cuda, or one GPU such as cuda:1."
    ),
]


def with_address(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which a ``--ray`` without an address has that of a cluster made here."""
    found = []
    for index, argument in enumerate(arguments):
        found.append(argument)
        following = arguments[index + 1 : index + 2]
        if argument == "--ray" and (not following or following[0].startswith("-")):
            found.append(LOCAL)
    return found


class Verb(TyperCommand):
    """A verb whose ``--ray`` may stand alone; typer knows no option with or without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments."""
        return super().parse_args(ctx, with_address(args))


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return what lets an option take these values and no others."""

    def parse(value: str) -> str:
        if value not in names:
            msg = f"expected one of {', '.join(names)}, found {value!r}"
            raise typer.BadParameter(msg)
        return value

    return parse


def shown(names: Iterable[str]) -> str:
    """Return how help shows these values."""
    return f"[{'|'.join(names)}]"


def several(kind: Any, text: str, **more: Any) -> Any:
    """Return a repeatable option that takes the values of a type of `edgeuda.records.names`.

    Args:
        kind: The type.
        text: Its help.
        more: Further arguments of ``typer.Option``.
    """
    names = get_args(kind)
    return typer.Option(parser=one_of(names), metavar=shown(names), help=text, **more)


Log = Annotated[
    list[str] | None,
    several(
        TrackerName,
        "Tracker that follows the training, beside the run's own log (repeatable): TensorBoard, a "
        "CSV table, MLflow, or Weights & Biases.",
    ),
]


def renamed(option: str) -> Any:
    """Return an option that is still taken under its name of before, which help does not show."""
    return typer.Option(option, hidden=True)


def now(option: str, value: T, before: str, old: T | None) -> T:
    """Return an option's value, also where it was given under its name of before; that is said."""
    if old is None or old == []:
        return value
    logger.warning("%s is called %s now; write that instead", before, option)
    return old


PARAMETERS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "adapt_bn", "adapt_frames", "alarms_per_hour", "batch", "calibrate", "calibration",
        "confidence", "count", "crop", "device", "dla_core", "half", "ignore_unmapped", "keep",
        "keep_frames", "keep_megabytes", "label_space", "log", "map_class", "mcap", "measure",
        "member", "new_labels", "old_labels", "out", "public_key", "quantizer", "ray", "redact",
        "reference_frames", "replay", "replay_share", "rerun", "resume", "runtime", "serve",
        "serve_token", "skip", "target", "unchecked_cache", "watch_window", "weights_key",
        "window",
    )
} | {"source_weights": "--source-weight"}  # fmt: skip
"""What functions call their parameters, and the command line its options."""
_SETTING = re.compile(r"`([a-z]\w*(?:\.\w+)*=[^`]*)`")
_PARAMETER = re.compile(rf"`({'|'.join(PARAMETERS)})`")


def as_options(text: str) -> str:
    """Return a message that names parameters of functions with the options that stand for them.

    Functions name parameters and settings of recipes in backticks: ``choose another `out` ``.
    """
    text = _SETTING.sub(r"--set \1", text)
    return _PARAMETER.sub(lambda found: PARAMETERS[found[1]], text)


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
