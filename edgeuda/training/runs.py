"""Training and adaptation from Python: `edgeuda.train`, `adapt`, `evaluate`, `load_model`, `wrap`.

Each takes paths or what another of them returned, and returns an object that prints, converts and
plots itself. The verbs of the command line call the same functions beneath.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.accuracy.scoring import score
from edgeuda.data.images import Image, LabelMap
from edgeuda.data.replay import SHARE, Replay
from edgeuda.errors import ConfigError, DataError, require
from edgeuda.files import sha256
from edgeuda.labels import SPACES, LabelSpace, label_space
from edgeuda.models.checkpoint import load_model, save_model
from edgeuda.models.custom import CustomNetwork, Heads, register_network
from edgeuda.models.fused import fused
from edgeuda.models.network import Network
from edgeuda.models.predictor import Predictor, TestTime
from edgeuda.models.subject import subject_of
from edgeuda.records.adaptation import AdaptationRecord
from edgeuda.records.identity import MODEL_FILE, model_file
from edgeuda.records.names import TrackerName
from edgeuda.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocessing
from edgeuda.training.pipeline import ADAPTATION_FILE, RunOptions, train_source
from edgeuda.training.pipeline import adapt as run_adaptation
from edgeuda.training.recipe import Recipe, load_recipe
from edgeuda.training.trainer import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

EXPORTED = (".onnx", ".engine", ".edgeuda")
Folders = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class SegmentationModel:
    """A network in memory, with what its input and output mean.

    Attributes:
        network: In eval mode; called with ``[N, 3, H, W]`` normalised images.
        spec: Label space, input size, mean and standard deviation.
        file: Where its weights lie; None for a module that was wrapped and not saved.
    """

    network: Network
    spec: ModelSpec
    file: Path | None = None

    def segment(self, frame: Image) -> LabelMap:
        """Segment a camera frame as the exported model will.

        Args:
            frame: ``[H, W, 3]`` uint8 RGB of any size.

        Returns:
            ``[H, W]`` uint8 class ids of ``spec.label_space``.
        """
        return Predictor(fused(self.network), self.spec)(frame)

    def save(self, path: str | Path) -> Path:
        """Write weights and spec as one ``.safetensors`` file; returns its path.

        Raises:
            OutputError: If it cannot be written.
        """
        save_model(self.network, self.spec, Path(path))
        return Path(path)

    def __str__(self) -> str:
        size, space = self.spec.preprocessing, self.spec.label_space
        count = sum(p.numel() for p in self.network.parameters()) / 1e6
        return (
            f"{self.spec.architecture}: {size.height}x{size.width}, {len(space)} classes of "
            f"{space.name}, {count:.2f} million parameters"
        )


@dataclass(frozen=True)
class Run:
    """A run folder: a trained or adapted network, its recipe and its logs.

    Attributes:
        folder: The folder, as `train` or `adapt` was given it.
    """

    folder: Path

    @property
    def file(self) -> Path:
        """The network's weights."""
        return self.folder / MODEL_FILE

    def load(self) -> SegmentationModel:
        """Read the network."""
        return open_network(self.folder)

    def log(self) -> list[dict[str, Any]]:
        """Return what was logged: one mapping per logged step, with ``stage`` and ``step``."""
        found = []
        for folder in self._stages():
            name = folder.name if folder != self.folder else "source"
            found += [{"stage": name, **line} for line in read_log(folder)]
        return found

    def remarks(self) -> list[str]:
        """Return what the stages say of themselves: a self-training that trains nothing, say."""
        path = self.folder / ADAPTATION_FILE
        if not path.exists():
            return []
        return AdaptationRecord.read(path).said()

    def to_json(self) -> str:
        """Return folder, checksum, remarks and log as JSON."""
        record = {
            "folder": str(self.folder),
            "sha256": sha256(self.file),
            "remarks": self.remarks(),
            "log": self.log(),
        }
        return json.dumps(record)

    def to_pandas(self) -> DataFrame:
        """Return `log` as a data frame, one row per logged step.

        Raises:
            DependencyError: If pandas is not installed.
        """
        frame: DataFrame = require("pandas", "pandas").DataFrame(self.log())
        return frame

    def plot(self) -> Figure:
        """Draw the loss over the steps, one line per stage."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss", title=self.folder.name)
        lines = self.log()
        for stage in dict.fromkeys(line["stage"] for line in lines):
            mine = [x for x in lines if x["stage"] == stage and x.get("loss") is not None]
            axes.plot([x["step"] for x in mine], [x["loss"] for x in mine], label=stage)
        if lines:
            axes.legend()
        return figure

    def _stages(self) -> list[Path]:
        inside = [path.parent for path in self.folder.glob("*/log.jsonl")]
        own = [self.folder] if (self.folder / "log.jsonl").exists() else []
        return own + sorted(inside, key=lambda path: (path / "log.jsonl").stat().st_mtime)

    def __str__(self) -> str:
        return f"{self.folder}: {self.load()}"


Startable = str | Path | Run | SegmentationModel


def train(
    source: Folders,
    out: str | Path,
    *,
    recipe: str | Recipe = "edge",
    settings: Mapping[str, Any] | None = None,
    classes: str | LabelSpace | None = None,
    stored: str | LabelSpace | None = None,
    target: str | Path | None = None,
    resume: bool = False,
    workers: int = 0,
    log: Sequence[TrackerName] = (),
) -> Run:
    """Train a network on labelled source images.

    Args:
        source: Folder of labelled images, or several, see `edgeuda.data.folders.labelled_folder`.
        out: Run folder to make.
        recipe: Built-in name (``edgeuda recipes``), path of a TOML file, or a loaded one.
        settings: What differs from the recipe, for example ``{"source.steps": 500}``.
        classes: Label space that the network learns; by default that of the labels.
        stored: Label space of the label files, where the folder does not say it.
        target: Target frames whose look source images take, where the recipe says so.
        resume: Continue the run in ``out`` instead of refusing it.
        workers: Processes that load images.
        log: Trackers that follow the run, for example ``["tensorboard"]``; the logs of the run
            are written all the same.

    Returns:
        The run.

    Raises:
        EdgeudaError: One of its kinds, with what was expected, found, and what to do.

    Example:
        >>> import edgeuda
        >>> run = edgeuda.train("simulator", "source-only", recipe="small", settings=brief)
        >>> run.load().spec.label_space.name
        'camvid-11'
    """
    chosen = _recipe(recipe, settings)
    options = RunOptions(Path(out), resume, workers, trackers=tuple(log))
    folders = _paths(source)
    train_source(
        chosen, folders, _space(classes), options, _space(stored),
        None if target is None else Path(target),
    )  # fmt: skip
    return Run(Path(out))


def adapt(
    model: Startable,
    source: Folders,
    target: str | Path,
    out: str | Path,
    *,
    recipe: str | Recipe = "edge",
    settings: Mapping[str, Any] | None = None,
    stored: str | LabelSpace | None = None,
    ignore_unmapped: bool = False,
    replay: str | Path | None = None,
    replay_share: float = SHARE,
    resume: bool = False,
    workers: int = 0,
    log: Sequence[TrackerName] = (),
) -> Run:
    """Adapt a source-trained network to unlabelled target frames.

    Any network: a run, a model file, or a module of your own (`edgeuda.wrap`). Input size and
    crop of the recipe give way to the network's unless ``settings`` says otherwise.

    Args:
        model: Where to start. A module that was wrapped is saved beside ``out``, as
            ``<out>-start.safetensors``.
        source: Labelled images that it goes on learning from.
        target: Folder, list or video of target frames; labels beside them are not opened.
        out: Run folder to make.
        recipe: See `train`.
        settings: See `train`.
        stored: See `train`.
        ignore_unmapped: Whether source classes that the network lacks may be ignored.
        replay: Footage that the network knows already, which it goes on learning from beside
            ``target``, so that it does not forget it.
        replay_share: Of what it learns from target frames, that is of ``replay``, 0 to 1.
        resume: See `train`.
        workers: See `train`.
        log: See `train`.

    Returns:
        The run; ``run.remarks()`` says which stages did next to nothing.

    Raises:
        EdgeudaError: One of its kinds, with what was expected, found, and what to do.

    Example:
        >>> import edgeuda
        >>> run = edgeuda.adapt("source-only", "simulator", "frames", "adapted",
        ...                     recipe="small", settings=brief)
        >>> run.file.name
        'model.safetensors'
    """
    out = Path(out)
    start = _start(model, out)
    pre = open_network(start).spec.preprocessing
    own = {name: [pre.height, pre.width] for name in ("model.input", "geometry.crop")}
    chosen = _recipe(recipe, {**own, **(settings or {})})
    known = None if replay is None else Replay(Path(replay), replay_share)
    options = RunOptions(out, resume, workers, ignore_unmapped, trackers=tuple(log), replay=known)
    run_adaptation(chosen, start, _paths(source), Path(target), options, _space(stored))
    return Run(out)


def evaluate(
    model: Startable,
    data: str | Path,
    *,
    name: str | None = None,
    stored: str | LabelSpace | None = None,
    ignore_unmapped: bool = False,
    boundary: float | None = None,
    how: TestTime | None = None,
) -> Evaluation:
    """Score a network on labelled images, as the vehicle will run it.

    Args:
        model: Run, model file or network; `engines.evaluate` scores exported models.
        data: Labelled images.
        name: What tables call it; by default the file's or folder's name.
        stored: Label space of the label files, where the folder does not say it.
        ignore_unmapped: Whether classes that the network lacks may be ignored.
        boundary: See `edgeuda.accuracy.scoring.score`.
        how: Views that are averaged, as papers do; None is one pass.

    Returns:
        Confusion matrix, IoU and mIoU; it prints as a table.

    Raises:
        EdgeudaError: One of its kinds, with what was expected, found, and what to do.

    Example:
        >>> import edgeuda
        >>> found = edgeuda.evaluate("adapted", "labelled", name="adapted")
        >>> 0 <= found.miou <= 1
        True
    """
    if isinstance(model, SegmentationModel) and model.file is None:
        msg = "A network that lies in no file cannot be told apart later: save it first"
        raise ConfigError(msg)
    path = _file(model)
    if path.suffix in EXPORTED:
        msg = f"{path}: is an exported model, which engines.evaluate scores"
        raise ConfigError(msg)
    module = model.network if isinstance(model, SegmentationModel) else None
    subject = subject_of(path, how, module=module)
    title = name or (path.parent.name if path.name == MODEL_FILE else path.stem)
    return score(
        subject, Path(data), title, stored=_space(stored), ignore_unmapped=ignore_unmapped,
        boundary=boundary,
    ).evaluation  # fmt: skip


def open_network(path: str | Path, network: SegmentationModel | None = None) -> SegmentationModel:
    """Read a network from its file or run folder: public as `edgeuda.load_model`.

    Args:
        path: Model file or run folder.
        network: For a module of your own: what `edgeuda.wrap` returned in this process.

    Raises:
        ModelError: If the file is missing, damaged or of a module that is not known here.

    Example:
        >>> import edgeuda, numpy as np
        >>> model = edgeuda.load_model("adapted")
        >>> labels = model.segment(np.zeros((360, 480, 3), np.uint8))
        >>> labels.shape
        (360, 480)
    """
    found, spec = load_model(Path(path), None if network is None else network.network)
    return SegmentationModel(found, spec, model_file(Path(path)))


def wrap(
    module: nn.Module,
    *,
    name: str,
    size: tuple[int, int],
    classes: str | LabelSpace | Sequence[str],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    heads: Heads = None,
) -> SegmentationModel:
    """Take any torch module that gives class scores, to be adapted, scored and exported.

    The module is copied. It is known under its name from now on, in this process; a package can
    offer it to every process, the command line among them, as an entry point of group
    ``edgeuda.networks`` that returns ``edgeuda.wrap(...).network``.

    Args:
        module: Called with ``[N, 3, H, W]`` float images, normalised by ``mean`` and ``std``.
        name: What files call it: letters, digits, ``-``, ``_`` and ``.``.
        size: Rows and columns of its input, multiples of 32.
        classes: Label space, its name, or names of the classes in the order of the scores.
        mean: Per channel, RGB, in units of the [0, 1] range.
        std: Likewise.
        heads: Which of what it returns are class scores ``[N, K, h, w]``, the one that counts
            first: keys of a mapping, positions or fields of a tuple, or a function of what it
            returned. None: it returns one tensor.

    Raises:
        ConfigError: If name or size cannot be.
        ModelError: If what it returns for one image is not as said.

    Example:
        >>> import edgeuda, torch
        >>> net = torch.nn.Conv2d(3, 2, 3, padding=1)
        >>> model = edgeuda.wrap(net, name="mine", size=(32, 64), classes=["road", "other"])
        >>> print(model)
        custom:mine: 32x64, 2 classes of mine, 0.00 million parameters
    """
    space = _classes(classes, name)
    red, green, blue = mean
    one, two, three = std
    pre = Preprocessing(size[0], size[1], (red, green, blue), (one, two, three))
    network = CustomNetwork(module, heads)
    network.learn_heads(len(space), *size)
    copied = copy.deepcopy(network)
    architecture = register_network(name, lambda: copied)
    return SegmentationModel(
        copy.deepcopy(network).eval(), ModelSpec(architecture, 1.0, space, pre)
    )


def _classes(classes: str | LabelSpace | Sequence[str], name: str) -> LabelSpace:
    if isinstance(classes, str | LabelSpace):
        found = _space(classes)
        assert found is not None
        return found
    palette = SPACES["camvid-32"].palette
    names = tuple(classes)
    colours = tuple(palette[k % len(palette)] for k in range(len(names)))
    return LabelSpace(name, names, colours)


def _recipe(recipe: str | Recipe, settings: Mapping[str, Any] | None) -> Recipe:
    if isinstance(recipe, Recipe):
        if settings:
            msg = f"Recipe {recipe.name!r} is loaded already: give its settings to load_recipe"
            raise ConfigError(msg)
        return recipe
    return load_recipe(recipe, tuple(f"{k}={json.dumps(v)}" for k, v in (settings or {}).items()))


def _space(space: str | LabelSpace | None) -> LabelSpace | None:
    return label_space(space) if isinstance(space, str) else space


def _paths(folders: Folders) -> Path | list[Path]:
    if isinstance(folders, str | Path):
        return Path(folders)
    if not folders:
        msg = "Expected at least one folder of source images, found none"
        raise DataError(msg)
    return [Path(folder) for folder in folders]


def _file(model: Startable) -> Path:
    if isinstance(model, Run):
        return model.file
    if isinstance(model, SegmentationModel):
        assert model.file is not None
        return model.file
    path = Path(model)
    return path if path.suffix in EXPORTED else model_file(path)


def _start(model: Startable, out: Path) -> Path:
    """Return the file to start from; a network in memory is written beside ``out``."""
    if not isinstance(model, SegmentationModel):
        return model.folder if isinstance(model, Run) else Path(model)
    if model.file is not None:
        return model.file
    path = out.with_name(f"{out.name}-start.safetensors")
    if path.exists():
        stored, spec = load_model(path)
        mine = model.network.state_dict()
        theirs = stored.state_dict()
        if spec == model.spec and all(torch.equal(mine[k].cpu(), theirs[k]) for k in theirs):
            return path
        msg = f"{path}: holds another network to start from. Move it away, or take another out"
        raise ConfigError(msg)
    return model.save(path)
