"""Results as plain values: the JSON object of a result has its fields, by name and in their order, and is read back into the same class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic import JsonValue as Json
from pydantic_core import CoreSchema, core_schema

from emscope.core.errors import InputError

__all__ = ["LEFT_OUT", "Json", "Result", "from_json", "plain", "read_json"]

LEFT_OUT = {"left out": True}  # metadata of a field that has no key where it is None; else None is null

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """Base of what one stage hands to the next and a report is written from."""

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON shape."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        return {f.name: plain(value) for f, value in values if value is not None or "left out" not in f.metadata}

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the documented JSON shape, as plain values: a class whose `to_json` differs from them has its own."""
        return row

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_fields_of(cls), handler(source))


def _fields_of(cls: type[Result]) -> Any:
    return lambda row: cls.fields_of(row) if isinstance(row, Mapping) else row


def plain(value: Any) -> Any:
    """Return a value as JSON has it: results as objects, tuples as lists, members of an enum as their text."""
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value.to_json() if hasattr(value, "to_json") else value


def from_json(cls: type[T], value: Json, where: str, remedy: str) -> T:
    """Return the result that `to_json` wrote; keys that the class does not have are left out.

    Args:
        where: what it was read from, for the error.

    Raises:
        InputError: a value is missing or of another type.
    """
    try:
        return _reader(cls).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InputError(f"'{where}' is damaged ({place}: {first['msg'].lower()})", remedy) from None


def read_json(path: Path, remedy: str) -> Json:
    """Return the content of a JSON file.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    try:
        found: Json = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror})", remedy) from None
    except ValueError as error:
        raise InputError(f"'{path}' is damaged ({error})", remedy) from None
    return found


@cache
def _reader(cls: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(cls)
