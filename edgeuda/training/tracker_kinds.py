"""The four trackers as loggers of lightning-fabric.

TensorBoard and CSV are the library's own. Those of MLflow and Weights & Biases belong to
pytorch-lightning, a second trainer with dependencies of its own; the few calls that they come to
are made here, so that a run goes on under its id and no account is asked for.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import time
import uuid
from argparse import Namespace
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from edgeuda.data.images import Image
from edgeuda.errors import ConfigError, require, without_passwords
from edgeuda.records.names import TrackerName

NAME = "edgeuda"
"""Of the experiment in MLflow and of the project in W&B, unless the environment names another."""
PARAMETERS = 100
"""That MLflow takes at once."""
LONGEST = 6000
"""Letters of a parameter's value in MLflow."""
MLFLOW = {
    # A server that has gone must not hold up the training for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment of the library, unless it is set already."""


class Tracker(Protocol):
    """What is asked of a tracker: the calls of fabric's `Logger`, and pictures."""

    @property
    def version(self) -> int | str | None:
        """What the tracker calls the run."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Take figures of a step."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Take the settings of the run, flat."""

    def log_images(self, key: str, images: Sequence[Image], step: int) -> None:
        """Take pictures of a step, ``[H, W, 3]`` uint8 RGB each."""

    def save(self) -> None:
        """Let nothing wait in memory."""

    def finalize(self, status: str) -> None:
        """End the run: ``"success"``, ``"stopped"`` or ``"failed"``."""


def require_tracker(name: TrackerName) -> None:
    """Make sure that a tracker can be used, before anything is trained.

    Raises:
        DependencyError: If its package is not installed.
        ConfigError: If the MLflow server of ``MLFLOW_TRACKING_URI`` does not answer.
    """
    if name == "tensorboard":
        require("tensorboard", "tensorboard")
    elif name == "wandb":
        require("wandb", "wandb")
    elif name == "mlflow":
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        mlflow = _mlflow()
        if not uri or uri.startswith("sqlite"):
            require("sqlalchemy", "mlflow")
            require("alembic", "mlflow")
        if uri:
            try:
                mlflow.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
            except Exception as err:  # its own and those of requests, urllib3 and databases
                msg = (
                    f"MLFLOW_TRACKING_URI: expected an MLflow server that answers at "
                    f"{without_secrets(uri)}, found none ({without_secrets(first_line(err))}). "
                    "Start it, unset the variable for a store in the run folder, or leave out "
                    "mlflow of `log`"
                )
                raise ConfigError(msg) from None
    # csv needs nothing


def open_tracker(
    name: TrackerName, logs: Path, title: str, stage: str, earlier: str | None
) -> Tracker:
    """Begin a stage's run in a tracker, or go on with an earlier one.

    Args:
        name: Which.
        logs: Folder of the run's logs.
        title: Name of the run folder.
        stage: Name of the stage, with ``/`` for rounds.
        earlier: What the tracker called the run, to go on with it.
    """
    if name == "tensorboard":
        return TensorBoard(logs / name / stage)
    if name == "csv":
        return Csv(logs / name / stage)
    if name == "mlflow":
        return Mlflow(logs / name, title, stage, earlier)
    return Wandb(logs, title, stage, earlier)


def place_of(name: TrackerName, stage: str) -> str:
    """Return where a tracker keeps a stage: an address, or a folder below the run's."""
    if name == "mlflow":
        return without_secrets(os.environ.get("MLFLOW_TRACKING_URI", "")) or "logs/mlflow"
    return "logs/wandb" if name == "wandb" else f"logs/{name}/{stage}"


class TensorBoard(TensorBoardLogger):
    """Event files of a stage, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, folder.name, "")
        self._folder = folder

    @property
    def log_dir(self) -> str:
        """The folder as it is: the library would replace ``$`` and ``~`` in it."""
        return str(self._folder)

    def log_hyperparams(self, params: dict[str, Any], *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Show the settings in the tab HPARAMS beside the run's own loss."""
        from torch.utils.tensorboard.summary import hparams

        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in params.items()}
        writer = self.experiment._get_file_writer()
        for summary in hparams(plain, {"loss/total": 0.0}):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)

    def log_images(self, key: str, images: Sequence[Image], step: int) -> None:
        """Take pictures."""
        for number, image in enumerate(images):
            self.experiment.add_image(f"{key}/{number}", image, step, dataformats="HWC")


class Csv(CSVLogger):
    """The figures of a stage as ``metrics.csv``, a column for each name."""

    def __init__(self, folder: Path) -> None:
        path = folder / "metrics.csv"
        rows: list[dict[str, str]] = []
        if path.exists():  # the library would begin it again
            text = path.read_text(encoding="utf-8")
            complete = text[: text.rfind("\n") + 1]  # a kill may cut the last line short
            rows = list(csv.DictReader(complete.splitlines()))
            path.unlink()
        super().__init__(folder.parent, folder.name, "", flush_logs_every_n_steps=1)
        for row in rows:
            step = int(row.pop("step"))
            self.experiment.log_metrics({k: float(v) for k, v in row.items() if v}, step)
        if rows:
            self.save()

    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        """Leave them out: ``recipe.toml`` lies in the run folder."""

    def log_images(self, key: str, images: Sequence[Image], step: int) -> None:
        """Leave them out: a table has none."""


class Mlflow(Logger):
    """A run of an MLflow server, or of a database in the run folder.

    Args:
        folder: Of the database, where ``MLFLOW_TRACKING_URI`` is not set.
        title: Name of the run folder.
        stage: Name of the stage.
        earlier: Id of the run to go on with.
    """

    def __init__(self, folder: Path, title: str, stage: str, earlier: str | None) -> None:
        mlflow = _mlflow()
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
            artifacts = (folder.resolve() / "artifacts").as_uri()
        self._entities = mlflow.entities
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self._name = os.environ.get("MLFLOW_EXPERIMENT_NAME", NAME)
        if earlier is not None:
            self._id = earlier
            self.client.update_run(earlier, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self._name)
        experiment = (
            self.client.create_experiment(self._name, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        tags = {"edgeuda.run": title, "edgeuda.stage": stage}
        run = self.client.create_run(experiment, tags=tags, run_name=f"{title}/{stage}")
        self._id = str(run.info.run_id)

    @property
    def name(self) -> str:
        """The experiment."""
        return self._name

    @property
    def version(self) -> str:
        """The run's id."""
        return self._id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take figures in one call."""
        now = int(time.time() * 1000)
        entries = [self._entities.Metric(k, v, now, step or 0) for k, v in metrics.items()]
        self.client.log_batch(self._id, metrics=entries)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Take the settings as parameters."""
        entries = iter(self._entities.Param(k, str(v)[:LONGEST]) for k, v in dict(params).items())
        while part := list(islice(entries, PARAMETERS)):
            self.client.log_batch(self._id, params=part)

    def log_images(self, key: str, images: Sequence[Image], step: int) -> None:
        """Take pictures."""
        for number, image in enumerate(images):
            self.client.log_image(
                self._id, image, key=f"{key}/{number}", step=step, synchronous=True
            )

    def finalize(self, status: str) -> None:
        """End the run."""
        ends = {"success": "FINISHED", "stopped": "KILLED"}
        self.client.set_terminated(self._id, ends.get(status, "FAILED"))


class Wandb(Logger):
    """A run of Weights & Biases; offline unless ``WANDB_MODE`` says otherwise.

    Neither the command line nor the repository, host or paths are sent along.

    Args:
        logs: Folder in which the library makes its folder ``wandb``.
        title: Name of the run folder.
        stage: Name of the stage.
        earlier: Id of the run to go on with.
    """

    def __init__(self, logs: Path, title: str, stage: str, earlier: str | None) -> None:
        self._library = require("wandb", "wandb")
        logs.mkdir(parents=True, exist_ok=True)
        self._id = earlier or uuid.uuid4().hex[:12]
        self._name = os.environ.get("WANDB_PROJECT", NAME)
        self.run = self._library.init(
            project=self._name,
            id=self._id,
            name=f"{title}/{stage}",
            group=title,
            dir=str(logs),
            mode=wandb_mode(),
            resume="allow",
            reinit="create_new",
            settings=self._library.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
                x_disable_meta=True, x_disable_machine_info=True, host="withheld",
            ),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The project."""
        return self._name

    @property
    def version(self) -> str:
        """The run's id."""
        return self._id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take figures."""
        self.run.log(metrics, step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Take the settings as the run's configuration."""
        self.run.config.update(params, allow_val_change=True)

    def log_images(self, key: str, images: Sequence[Image], step: int) -> None:
        """Take pictures."""
        self.run.log({key: [self._library.Image(image) for image in images]}, step=step)

    def finalize(self, status: str) -> None:
        """End the run."""
        self.run.finish(exit_code=0 if status == "success" else 1)


def wandb_mode() -> str:
    """Return how W&B runs: what ``WANDB_MODE`` says, else offline."""
    return os.environ.get("WANDB_MODE") or "offline"


def without_secrets(text: str) -> str:
    """Leave out passwords and queries of addresses, and what the environment says of keys."""
    text = re.sub(r"([?&][^=\s&]+=)[^&\s)'\"]+", r"\1***", without_passwords(text))
    for name, value in os.environ.items():
        if value and re.match(r"(MLFLOW|WANDB)_.*(TOKEN|PASSWORD|KEY)", name):
            text = text.replace(value, "***")
    return text


def first_line(err: Exception) -> str:
    """Return what an error says in its first line, or its type if it says nothing."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0]


def _mlflow() -> Any:
    for variable, value in MLFLOW.items():
        os.environ.setdefault(variable, value)
    mlflow = require("mlflow", "mlflow")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow
