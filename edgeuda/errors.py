"""Errors that a user can act on; the command line maps each to an exit code."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Iterable
from types import ModuleType
from typing import ClassVar


class EdgeudaError(Exception):
    """Base of every error this project raises on purpose.

    The message names the file or key, what was expected, what was found and what to do.
    """

    exit_code: ClassVar[int] = 1


class DataError(EdgeudaError):
    """An image, label, folder or list is not what it has to be."""

    exit_code = 3


class ConfigError(EdgeudaError):
    """A recipe, option or label space is not valid."""

    exit_code = 4


class ModelError(EdgeudaError):
    """A checkpoint or ONNX file does not fit what it is used for."""

    exit_code = 5


class OutputExistsError(EdgeudaError):
    """Writing would overwrite something that exists."""

    exit_code = 6


class DependencyError(EdgeudaError):
    """An optional package is missing; the message names the extra that brings it."""

    exit_code = 7


class TrainingError(EdgeudaError):
    """Training cannot go on, for example because a loss is not finite."""

    exit_code = 8


class ParityError(EdgeudaError):
    """Two forms of one model disagree by more than is allowed."""

    exit_code = 9


class DeviceError(EdgeudaError):
    """A GPU, its driver or its memory cannot be used."""

    exit_code = 10


class BundleError(EdgeudaError):
    """A bundle is damaged, was changed, or is not what its manifest or signature says."""

    exit_code = 11


class OutputError(EdgeudaError):
    """A file cannot be written: the disk is full, read-only or broken, or not ours to write to."""

    exit_code = 12


class StoreError(EdgeudaError):
    """An object store cannot be read, or what was in it is gone."""

    exit_code = 13


class Interrupted(EdgeudaError):  # noqa: N818 - an orderly stop, not a failure
    """Work was stopped by a signal after its state had been saved."""

    exit_code = 130


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: Import name, for example ``"onnxruntime"``.
        extra: The extra of this distribution that installs it.

    Raises:
        DependencyError: If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        if err.name is None or err.name.split(".")[0] != module.split(".")[0]:
            raise
        choice = (
            "'edgeuda[cpu]' (or 'edgeuda[gpu]', never both)"
            if extra == "cpu"
            else (f"'edgeuda[{extra}]'")
        )
        msg = f"Package {module!r} is not installed. Install it with: pip install {choice}"
        raise DependencyError(msg) from err


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'small'?"`` for a name that is nearly a known one, else nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean {close[0]!r}?" if close else ""


_SIGNED = re.compile(
    r"([?&][\w.-]*(?:sig|signature|token|credential|secret|password|accesskeyid|key)=)[^&\s'\")]+",
    re.IGNORECASE,
)
_SECRET = re.compile(r"(?:KEY|KEY_ID|SECRET|TOKEN|PASSWORD|CONNECTION_STRING)$")


def without_passwords(text: str) -> str:
    """Leave out what lets others in.

    That is user and password of addresses such as ``rtsp://user:password@camera`` or
    ``s3://key:secret@bucket``, the signatures of signed ones, and what environment variables hold
    whose names end in KEY, SECRET, TOKEN and the like.
    """
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = text.replace(value, "***")
    text = re.sub(r"((?:s3|gs|az):/{1,2})[^\s@/]*:[^\s@]*@", r"\1***@", text)
    text = re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)
    return _SIGNED.sub(r"\1***", text)


def printable(text: str) -> str:
    """Return a text as a terminal may have it: no passwords, control characters made visible.

    A file's name may hold sequences that move the cursor or rename the window.
    """
    shown = without_passwords(text)
    return "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in shown)
