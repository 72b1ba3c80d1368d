"""Recipes as files: what is built in, what extends what. It loads in no time, without torch."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

from edgeuda.errors import ConfigError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def built_in() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("edgeuda") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``; tables are merged, all else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        result[key] = merged(old, value) if both and isinstance(old, dict) else value
    return result


def read_tables(name: str, seen: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """Return a recipe's tables, with those it extends, and what to call it in errors.

    Args:
        name: Built-in name, or path of a ``.toml`` file.
        seen: Recipes that extend it.

    Raises:
        ConfigError: If there is no such recipe, it is no TOML, or it extends itself.
    """
    if name in seen:
        msg = f"Recipe {seen[0]!r} extends itself: {' -> '.join((*seen, name))}"
        raise ConfigError(msg)
    if name in built_in():
        origin = f"{name}.toml"
        text = (resources.files("edgeuda") / "recipes" / origin).read_text(encoding="utf-8")
    elif Path(name).is_file():
        origin, text = name, Path(name).read_text(encoding="utf-8")
    else:
        known = built_in()
        msg = (
            f"Unknown recipe {name!r}{did_you_mean(name, known)}: expected a .toml file or one of "
            f"{', '.join(known)}"
        )
        raise ConfigError(msg)
    return parse_tables(text, origin, (*seen, name)), origin


def parse_tables(text: str, origin: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the tables of a recipe's text, over those of the one it extends.

    Raises:
        ConfigError: If it is no TOML.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        msg = f"{origin}: expected TOML ({err})"
        raise ConfigError(msg) from err
    base = table.pop("extends", None)
    return table if base is None else merged(read_tables(str(base), seen)[0], table)
