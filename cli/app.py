"""The typer application."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console

from cli.options import Verb, as_options
from cli.verbs.adapt import adapt
from cli.verbs.bench import bench
from cli.verbs.build import build
from cli.verbs.bundles import bundle, inspect, verify
from cli.verbs.calibrate import calibrate
from cli.verbs.compare import compare
from cli.verbs.data import app as data_app
from cli.verbs.demo import demo
from cli.verbs.diff import diff
from cli.verbs.doctor import doctor
from cli.verbs.evaluate import evaluate
from cli.verbs.export import export
from cli.verbs.gpu_check import gpu_check
from cli.verbs.half import half
from cli.verbs.import_weights import import_weights
from cli.verbs.install import fallback, install, installed
from cli.verbs.labels import labels
from cli.verbs.predict import predict
from cli.verbs.pseudo_label import pseudo_label
from cli.verbs.recipes import recipes
from cli.verbs.report import report
from cli.verbs.run import run as run_verb
from cli.verbs.tradeoff import tradeoff
from cli.verbs.train import train
from cli.verbs.update import update
from edgeuda import __version__
from edgeuda.errors import EdgeudaError, OutputError, printable

DATA, ADAPT, DEPLOY = "Data", "Adapt", "Deploy"
VEHICLE, EVERYTHING = "On the vehicle", "Everything"


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt a lightweight segmentation network to unlabelled footage and deploy it in INT8.",
)
app.add_typer(data_app, name="data", rich_help_panel=DATA)
VERBS: dict[str, dict[str, Callable[..., None]]] = {
    DATA: {"labels": labels, "import": import_weights},
    ADAPT: {
        "recipes": recipes, "train": train, "adapt": adapt, "compare": compare,
        "pseudo-label": pseudo_label, "evaluate": evaluate,
    },
    DEPLOY: {
        "export": export, "half": half, "calibrate": calibrate, "diff": diff, "tradeoff": tradeoff,
        "bundle": bundle, "inspect": inspect, "update": update,
    },
    VEHICLE: {
        "doctor": doctor, "gpu-check": gpu_check, "verify": verify, "build": build,
        "run": run_verb, "bench": bench, "predict": predict,
        "install": install, "fallback": fallback, "installed": installed,
    },
    EVERYTHING: {"report": report, "demo": demo},
}  # fmt: skip


for panel, verbs in VERBS.items():
    for name, verb in verbs.items():
        app.command(name, rich_help_panel=panel, cls=Verb)(verb)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeuda {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def run() -> int:
    """Run the application; returns the exit code."""
    errors = Console(stderr=True)
    # Plain lines: a terminal's line breaks would cut file names in two.
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
    # How labels are mapped, and whose settings count, is said before it is used.
    for name in (
        "edgeuda.data.folders",
        "edgeuda.data.treatment",
        "edgeuda.data.walk",
        "edgeuda.training.pipeline",
        "edgeuda.training.confidence",
        "edgeuda.training.trackers",
    ):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        app()
    except EdgeudaError as err:
        errors.print(f"[bold red]Error:[/] {_plain(str(err))}", soft_wrap=True, highlight=False)
        return err.exit_code
    except OSError as err:
        from edgeuda.files import UNWRITABLE, unwritable

        if err.errno not in UNWRITABLE - {errno.EACCES, errno.EPERM}:  # those may be of reading
            return _fault(errors, err)
        where = Path(err.filename) if err.filename else Path("A file")
        errors.print(f"[bold red]Error:[/] {_plain(unwritable(where, err))}", soft_wrap=True)
        return OutputError.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as err:  # whatever else escapes is our fault
        return _fault(errors, err)
    return 0


def _fault(errors: Console, err: Exception) -> int:
    from cli.crash import EXIT_CODE, describe

    errors.print(f"[bold red]Error:[/] {_plain(describe(err))}", soft_wrap=True)
    return EXIT_CODE


class _Printable(logging.Formatter):
    """Keeps passwords and control characters of names out of the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(as_options(super().format(record)))


def _plain(text: str) -> str:
    return printable(as_options(text)).replace("[", r"\[")
