"""A terminal shows one live panel, everything else a plain line."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from edgeuda.labels import SPACES
from edgeuda.records.adaptation import Signals
from edgeuda.street import write_dataset
from edgeuda.training.panel import Progressing, memory
from edgeuda.training.watch import Measurement
from places import ROOT

SIGNALS = Signals(0.21, 0.81, 0.93, 0.8, 0.97, 6.1, 0.02, (0.5, 0.5))
LINE = {"supervised": 1.2, "mix": 0.4, "lr": 0.0035, "waiting": 0.03, "keep": 0.42, "trust": 0.6}
TERMS = {"supervised": 0, "mix": 0}
CPU = torch.device("cpu")


def drawn(panel):
    console = Console(file=io.StringIO(), width=120)
    console.print(panel)
    return console.file.getvalue()


def test_the_panel_shows_the_state_of_a_stage():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    panel = Progressing("stage 2", 40, 10, console, True, ("csv", "mlflow"))
    assert panel.live
    panel.advance(1.6)
    panel.log(LINE, TERMS, 35.24, CPU)
    panel.measured(Measurement(10, SIGNALS, "class 'pole' has vanished"))
    panel.measured(Measurement(20, SIGNALS))
    text = drawn(panel)
    for wanted in (
        "stage 2", "11/40", "elapsed", "left", "1.6000", "supervised 1.2000, mix 0.4000",
        "keep 42.0%, trust 60.0%", "0.0035", "35.2, 3% of the time waiting", memory(CPU)[:2],
        "step 20: entropy 21.0%", "flip agreement 93.0%", "step 10: class 'pole' has vanished",
        "csv, mlflow",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "step 10: entropy" not in text


def test_brackets_in_what_is_shown_are_no_markup():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    panel = Progressing("stage 1", 4, 0, console)
    panel.measured(Measurement(2, SIGNALS, "class '[red]' has vanished"))
    assert "'[red]'" in drawn(panel)


@pytest.mark.parametrize("terminal", [True, False])
def test_without_a_terminal_there_is_one_plain_line(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with Progressing("stage 1", 3, 0, console).running() as panel:
        panel.measured(Measurement(0, SIGNALS))
        for _ in range(3):
            panel.advance(0.5)
        panel.log(LINE, TERMS, 1.0, CPU)
    if terminal:
        assert "learning rate" in out.getvalue()
        return
    (line,) = out.getvalue().splitlines()
    assert line.startswith("stage 1 ")
    assert line.endswith("loss 0.500")
    assert "3/3" in line


def test_other_ranks_and_dumb_terminals_have_no_panel(monkeypatch):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with Progressing("stage 1", 3, 0, console, False).running() as panel:
        panel.advance(0.5)
    assert out.getvalue() == ""
    monkeypatch.setenv("TERM", "dumb")
    assert not Progressing("stage 1", 3, 0, Console(file=out, force_terminal=True)).live


def test_memory_is_that_of_this_process():
    assert float(re.match(r"([\d.]+) GiB", memory(CPU))[1]) > 0.1  # torch alone needs more


def test_a_training_in_a_terminal_shows_the_panel_and_warnings_above_it(tmp_path):
    """The real program on a pseudo-terminal; a tracker fails, and its warning stays whole."""
    write_dataset(tmp_path / "source", "simulator", 4, 0, 32, 64, SPACES["camvid-11"])
    settings = (
        "model.width=0.125", "model.input=[32,64]", "geometry.crop=[32,64]", "source.steps=3",
        "precision=32-true", "source.batch=2", "source.log_every=1",
    )  # fmt: skip
    program = (
        "from edgeuda.training.tracker_kinds import Csv\n"
        "def full(*_): raise OSError('no room on the disk')\n"
        "Csv.log_metrics = full\n"
        "from cli import main; raise SystemExit(main())"
    )
    ours, theirs = pty.openpty()
    with (tmp_path / "stdout").open("w") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-c", program, "train", "--source", str(tmp_path / "source"),
                "--recipe", "small", "--out", str(tmp_path / "run"), "--log", "csv",
                *(part for setting in settings for part in ("--set", setting)),
            ],
            cwd=ROOT, stdin=theirs, stdout=out, stderr=theirs,
            env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the program has ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "╭─ source-only ─" in text
    assert "3/3" in text
    assert re.search(r"learning rate +[\d.e-]+ ", text)
    assert re.search(r"images/s +[\d.]+, ", text)
    (said,) = [line for line in text.split("\n") if "takes nothing more" in line]
    assert re.match(r".*WARNING: run: tracker csv takes nothing more \(step 1: no room", said)
    assert "wrote" in (tmp_path / "stdout").read_text()
