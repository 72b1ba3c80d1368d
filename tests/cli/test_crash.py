"""Whatever escapes is one sentence, a log file and an exit code of its own."""

import re
import tempfile
from pathlib import Path

import pytest

from cli import app
from cli.crash import DEBUG, EXIT_CODE, without_passwords


@pytest.fixture
def broken(monkeypatch, tmp_path):
    def fail():
        msg = "rtsp://me:secret@camera/1 went away\nsecond line"
        raise RuntimeError(msg)

    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(DEBUG, raising=False)
    monkeypatch.setattr("sys.argv", ["edgeuda", "run", "--target", "rtsp://me:secret@camera/1"])


def test_a_fault_is_one_sentence_and_a_log(broken, capsys):
    assert app.run() == EXIT_CODE == 70
    text = capsys.readouterr().err
    assert len(text.strip().splitlines()) == 1
    assert "RuntimeError: rtsp://***@camera/1 went away" in text
    log = Path(re.search(r"are in (\S+\.log)", text)[1]).read_text()
    assert "Traceback" in log
    assert "in fail" in log
    assert "second line" in log
    assert re.search(r"numpy \d", log)
    assert "secret" not in text + log
    assert "command: edgeuda run --target rtsp://***@camera/1" in log


def test_the_traceback_is_printed_where_it_is_asked_for(broken, capsys, monkeypatch):
    monkeypatch.setenv(DEBUG, "1")
    app.run()
    assert "Traceback" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_said(broken, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    assert app.run() == EXIT_CODE
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["http://host/path@2x", "plain", "a@b"])
def test_what_holds_no_password_stays(text):
    assert without_passwords(text) == text
