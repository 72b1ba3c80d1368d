"""What escapes becomes one sentence and a file for a bug report."""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import traceback
from importlib.metadata import PackageNotFoundError, version

from edgeuda import __version__
from edgeuda.errors import without_passwords
from edgeuda.files import now_utc

EXIT_CODE = 70
"""Of an error inside the program, as in BSD's sysexits."""
DEBUG = "EDGEUDA_DEBUG"
PACKAGES = ("numpy", "opencv-python", "torch", "timm", "onnx", "onnxruntime", "onnxruntime-gpu",
            "tensorrt", "cuda-python", "typer")  # fmt: skip


def describe(error: BaseException) -> str:
    """Write the traceback to a file of its own and return the sentence for the terminal.

    With ``EDGEUDA_DEBUG`` set to anything but 0, the traceback is printed too. Passwords in
    addresses are left out of both.
    """
    text = without_passwords("".join(traceback.format_exception(error)))
    if os.environ.get(DEBUG, "0") != "0":
        sys.stderr.write(text)
    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    lines = [
        f"edgeuda {__version__}, {now_utc()}",
        f"python {platform.python_version()}, {platform.platform()}",
        ", ".join(versions),
        "command: " + without_passwords(" ".join(_without_tokens(sys.argv))),
        "",
        text,
    ]
    what = without_passwords(f"{type(error).__name__}: {error}").strip().splitlines()[0]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="edgeuda-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write("\n".join(lines))
        where = f"Traceback and versions are in {file.name}"
    except OSError as err:
        where = f"Its log could not be written ({err.strerror}); set {DEBUG}=1 to see it"
    return f"a fault in EdgeUDA itself, not in what you gave it ({what}). {where}; please report it"


def _without_tokens(words: list[str]) -> list[str]:
    """Leave out the values of options whose names end in ``-token``."""
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        name, sign, _ = word.partition("=")
        if re.fullmatch(r"--[\w-]+-token", before):
            word = "***"
        elif sign and re.fullmatch(r"--[\w-]+-token", name):
            word = f"{name}=***"
        kept.append(word)
    return kept


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
