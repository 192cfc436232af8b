"""Results as plain values: the JSON object of a result has its fields, by name and in their order, and is read back into the same class."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypeAliasType

from emscope.core.errors import InputError

Json = TypeAliasType("Json", "Sequence[Json] | Mapping[str, Json] | str | bool | int | float | None")
JsonObject = dict[str, Json]
LEFT_OUT = {"left out": True}  # metadata of a field that has no key where it is None; else None is null
NOT_WRITTEN = {"not written": True}  # metadata of a field that the JSON does not have

R = TypeVar("R", bound="Result")


def named(key: str) -> dict[str, str]:
    """Return metadata of a field that the JSON calls `key`, which is no name of Python's or is a method's."""
    return {"key": key}


@dataclass(frozen=True, slots=True)
class Result:
    """Base of what one stage hands to the next and a report is written from."""

    def to_json(self) -> JsonObject:
        """Return the documented JSON shape."""
        values = ((f, getattr(self, f.name)) for f in fields(self) if "not written" not in f.metadata)
        kept = ((f, value) for f, value in values if value is not None or "left out" not in f.metadata)
        return {f.metadata.get("key", f.name): plain(value) for f, value in kept}

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the documented JSON shape, as plain values: a class whose `to_json` differs from them has its own."""
        names = {f.metadata["key"]: f.name for f in fields(cls) if "key" in f.metadata}
        return {names.get(key, key): value for key, value in row.items()} if names else row

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[object], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_fields_of(cls), handler(source))


def _fields_of(cls: type[Result]) -> Callable[[object], object]:
    return lambda row: cls.fields_of(row) if isinstance(row, Mapping) else row


def plain(value: object) -> Json:
    """Return a value as JSON has it: results and settings as objects, tuples as lists, members of an enum as their text."""
    if value is None or isinstance(value, str | bool | int | float):
        return str(value) if isinstance(value, StrEnum) else value
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "to_json"):
        return value.to_json()
    raise TypeError(f"{type(value).__name__} has no JSON")


def from_json(cls: type[R], value: Json, where: str, remedy: str) -> R:
    """Return the result that `to_json` wrote; keys that the class does not have are left out.

    Args:
        where: what it was read from, for the error.

    Raises:
        InputError: a value is missing or of another type.
    """
    try:
        return TypeAdapter(cls).validate_python(value)
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
