"""Whose signature a model needs on this machine, whoever starts what opens it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from edgeuda.errors import ConfigError

VARIABLE = "EDGEUDA_PUBLIC_KEY"
SYSTEM = Path("/etc/edgeuda/config.toml")
USER = Path("edgeuda/config.toml")
"""Below ``$XDG_CONFIG_HOME``, by default ``~/.config``."""


@dataclass(frozen=True)
class Key:
    """A public key that must have signed every model.

    Attributes:
        file: Ed25519, PEM.
        said_by: Where that is said.
    """

    file: Path
    said_by: str


def required_keys(given: Path | None = None) -> list[Key]:
    """Return the keys that must have signed a model before it is opened here.

    The machine's configuration, the environment and the user's configuration each may name one;
    none can take back what another demands.

    Args:
        given: That of the command line.

    Raises:
        ConfigError: If a configuration cannot be read.
    """
    keys = [] if given is None else [Key(given, "`public_key`")]
    for path in (
        SYSTEM,
        Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / USER,
    ):
        if path.exists():
            named = _public_key(path)
            keys += [] if named is None else [Key(named, str(path))]
    if VARIABLE in os.environ:
        keys.append(Key(Path(os.environ[VARIABLE]), VARIABLE))
    return keys


def _public_key(path: Path) -> Path | None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        msg = f"{path}: expected a configuration, found none that can be read ({err})"
        raise ConfigError(msg) from err
    unknown = sorted(found.keys() - {"public_key"})
    named = found.get("public_key")
    if unknown or not isinstance(named, (str, type(None))):
        msg = f'{path}: expected public_key = "FILE" and nothing else, found {unknown or named!r}'
        raise ConfigError(msg)
    return None if named is None else (path.parent / named)
