"""Frozen dataclasses as JSON and back: the one reader and the one writer of all records."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeuda.errors import DataError, EdgeudaError
from edgeuda.files import read_json, write_json

R = TypeVar("R", bound="Record")
T = TypeVar("T")
SPELT = "spelt"
"""Metadata of a field whose name in JSON is another, for example ``from``."""
OMIT = "omit"
"""Metadata of a field that JSON has no entry for where it is None."""


class Record:
    """A frozen dataclass that is a JSON file of its own.

    Entries of JSON that a class does not know are passed over: a later version may add some. What
    it knows has to be there, unless the field has a default, and to be of the field's type.

    Attributes:
        SCHEMA: What it is called in JSON.
        OLDER: Schemas of earlier forms, which `modern` translates.
        AGAIN: What to do about a damaged one.
    """

    SCHEMA: ClassVar[str]
    OLDER: ClassVar[tuple[str, ...]] = ()
    AGAIN: ClassVar[str]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"schema": self.SCHEMA, **entries(self)}

    def to_json(self) -> str:
        """Return `to_record` as text."""
        return json.dumps(self.to_record())

    def write(self, path: Path) -> None:
        """Write the JSON form to a file, which appears whole.

        Raises:
            OutputError: If it cannot be written.
        """
        write_json(path, self.to_record())

    @classmethod
    def modern(cls, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of an earlier form with the entries of today's.

        Raises:
            KeyError: If it is damaged; likewise TypeError, AttributeError and ValueError.
        """
        return record

    @classmethod
    def from_record(cls: type[R], record: Mapping[str, Any], origin: str) -> R:
        """Read `to_record`'s form.

        Args:
            record: The parsed JSON.
            origin: Names the file in errors.

        Raises:
            DataError: If it has another schema, or is damaged.
        """
        schema = record.get("schema")
        if schema not in (cls.SCHEMA, *cls.OLDER):
            msg = (
                f"{origin}: expected schema {cls.SCHEMA!r}, found {schema!r}, which this version "
                f"does not read. {cls.AGAIN}"
            )
            raise DataError(msg)
        try:
            return _read_class(cls, cls.modern(dict(record)), "")
        except _DAMAGE as err:
            why = f"found no {err}" if isinstance(err, KeyError) else err
            msg = f"{origin}: its {schema!r} record is damaged: {why}. {cls.AGAIN}"
            raise DataError(msg) from err

    @classmethod
    def read(cls: type[R], path: Path) -> R:
        """Read what `write` wrote.

        Raises:
            DataError: If the file is missing, or is not such a record.
        """
        return cls.from_record(read_json(path), str(path))


def parse(kind: type[T], value: Any, origin: str) -> T:
    """Read the JSON form of a dataclass that is a part of a record.

    Args:
        kind: The dataclass.
        value: The parsed JSON.
        origin: Names the file in errors.

    Raises:
        DataError: If it is damaged.
    """
    try:
        return _read_class(kind, value, "")
    except _DAMAGE as err:
        msg = f"{origin}: is damaged: {err}"
        raise DataError(msg) from err


_DAMAGE = (EdgeudaError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError)


def entries(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields as JSON has them."""
    return {
        _key(field): _written(held)
        for field in fields(value)
        if (held := getattr(value, field.name)) is not None or not field.metadata.get(OMIT)
    }


def _written(value: Any) -> Any:
    if hasattr(value, "to_record"):
        return value.to_record()
    if is_dataclass(value):
        return entries(value)
    if isinstance(value, Mapping):
        return {key: _written(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_written(held) for held in value]
    return sorted(value) if isinstance(value, frozenset) else value


def _key(field: Field[Any]) -> str:
    return str(field.metadata.get(SPELT, field.name))


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _read_class(kind: type[T], value: Any, place: str) -> T:
    """Return an instance of a dataclass; ``place`` is its dotted name within the record."""
    if not isinstance(value, Mapping):
        raise _misfit(place, "entries", value)
    found = {}
    known: dict[str, Any] = _types(kind)  # type: ignore[arg-type]
    for field in fields(kind):  # type: ignore[arg-type]
        key = _key(field)
        inner = f"{place}.{key}" if place else key
        if key in value:
            found[field.name] = _read(known[field.name], value[key], inner)
        elif field.default is MISSING and field.default_factory is MISSING:
            msg = f"expected {inner!r}, found no such entry"
            raise ValueError(msg)
    return kind(**found)


def _read(kind: Any, value: Any, place: str) -> Any:
    """Return a value of a field's type from its JSON form."""
    outer, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if outer in (Union, types.UnionType):  # of one kind and None, or of literals
        rest = [one for one in inner if one is not types.NoneType]
        if value is None and len(rest) < len(inner):
            return None
        if len(rest) == 1:
            return _read(rest[0], value, place)
        outer, inner = Literal, tuple(known for one in rest for known in get_args(one))
    if outer is Literal:
        if value not in inner:
            expected = f"one of {', '.join(map(repr, inner))}"
            raise _misfit(place, expected, value)
        return value
    if outer in (list, tuple, frozenset) or (isinstance(kind, type) and issubclass(kind, tuple)):
        return _read_row(kind, outer, inner, value, place)
    if outer is dict:
        if not isinstance(value, Mapping):
            raise _misfit(place, "entries", value)
        return {str(k): _read(inner[1], v, f"{place}.{k}") for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_record(value, place)
    if hasattr(kind, "from_record"):
        try:
            return kind.from_record(value)
        except KeyError as err:
            inner_place = f"{place}.{err.args[0]}"
            raise _misfit(inner_place, "an entry", None) from err
    if isinstance(kind, type) and is_dataclass(kind):
        return _read_class(kind, value, place)
    return _read_scalar(kind, value, place)


def _read_row(kind: Any, outer: Any, inner: tuple[Any, ...], value: Any, place: str) -> Any:
    named = getattr(kind, "_fields", None)
    each = tuple(_types(kind)[name] for name in named) if named else inner
    many = outer in (list, frozenset) or each[1:] == (...,)
    if not isinstance(value, list | tuple) or not (many or len(value) == len(each)):
        raise _misfit(place, "a list" if many else f"a list of {len(each)}", value)
    read = [
        _read(each[0] if many else each[i], held, f"{place}[{i}]") for i, held in enumerate(value)
    ]
    return kind(*read) if named else (outer or list)(read)


def _read_scalar(kind: type, value: Any, place: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number and math.isfinite(float(value)):
        return float(value)
    if kind is int and number and value == int(value):
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    names = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text"}
    raise _misfit(place, names[kind], value)


def _misfit(place: str, expected: str, value: Any) -> ValueError:
    text = repr(value)
    shown = text if len(text) < 60 else f"{text[:56]} ..."
    return ValueError(f"expected {expected} for {place!r}, found {shown}")
