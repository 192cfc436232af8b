"""Results as plain values: the JSON object of a result has its fields, by name and in their order, and can be read back into the same class."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import ClassVar, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypeAliasType

from emscope.core.errors import InputError
from emscope.core.limits import TooMuch, check_size

Json = TypeAliasType("Json", "Sequence[Json] | Mapping[str, Json] | str | bool | int | float | None")
JsonObject = dict[str, Json]
Scalar = str | int | float
# metadata of fields
LEFT_OUT = {"left out": True}  # there is no key where it is None; without this None is null
NOT_WRITTEN = {"not written": True}  # the JSON does not have it
FLAT = {"flat": True}  # its keys are in the object itself; no keys where it is None

R = TypeVar("R", bound="Result")


class Opaque:
    """Annotation of a field that is not written, of whose type pydantic need know nothing."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.any_schema()


def named(key: str) -> dict[str, str]:
    """Return metadata of a field that the JSON calls `key`, because `key` is not a Python name or is a method's."""
    return {"key": key}


@dataclass(frozen=True, slots=True)
class Result:
    """Base of what one stage hands to the next and a report is written from.

    Attributes:
        schema: name and version of the documented shape, with which the JSON of a whole job begins.
    """

    schema: ClassVar[str | int | None] = None

    def to_json(self) -> JsonObject:
        """Return the documented JSON shape."""
        found: JsonObject = {} if self.schema is None else {"schema": self.schema}
        for f in fields(self):
            value, about = getattr(self, f.name), f.metadata
            if not about:
                found[f.name] = plain(value)
            elif "not written" in about or (value is None and ("left out" in about or "flat" in about)):
                continue
            elif "flat" in about:
                inside = plain(value)
                assert isinstance(inside, Mapping)
                found |= inside
            else:
                found[about.get("key", f.name)] = plain(value)
        return found

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the documented JSON shape, as plain values: a class whose `to_json` differs from them has its own."""
        names = {f.metadata["key"]: f.name for f in fields(cls) if "key" in f.metadata}
        found = {names.get(key, key): value for key, value in row.items()} if names else row
        flat = [f.name for f in fields(cls) if "flat" in f.metadata]
        if not flat:
            return found
        kinds = get_type_hints(cls)
        return {**found, **{name: _part(kinds[name], row) for name in flat}}

    @classmethod
    def shape_of(cls, shape: JsonSchemaValue) -> JsonSchemaValue:
        """Return the JSON Schema of the documented shape from that of the fields: a class whose `to_json` differs from them has its own."""
        return shape

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[object], handler: GetCoreSchemaHandler) -> CoreSchema:
        found = handler(source)
        of = handler.resolve_ref_schema(found)  # a class that is used several times is a reference from its second use on
        if isinstance(of, dict) and of["type"] == "dataclass" and of["schema"]["type"] == "dataclass-args":
            of["schema"] = core_schema.no_info_before_validator_function(_fields_of(cls), of["schema"])
        return found

    @classmethod
    def __get_pydantic_json_schema__(cls, source: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(source)
        written(cls, handler.resolve_ref_schema(found), handler.resolve_ref_schema)
        return found


def written(
    cls: type[Result], found: JsonSchemaValue, resolve: Callable[[JsonSchemaValue], JsonSchemaValue]
) -> JsonSchemaValue:
    """Turn the JSON Schema of a result's fields, where it is not yet, into that of what `to_json` writes, and return it.

    Args:
        resolve: from a reference to the schema that it names.
    """
    own, keys, required = found.get("properties", {}), {}, []
    kept = [f for f in fields(cls) if "not written" not in f.metadata]
    if any(f.name not in own for f in kept):
        return found  # a class that is used several times comes several times
    if cls.schema is not None:
        keys["schema"], required = {"const": cls.schema}, ["schema"]
    for f in kept:
        if "flat" in f.metadata:
            options = own[f.name].get("anyOf", [own[f.name]])
            inside = resolve(options[0])
            keys |= inside.get("properties", {})
            required += inside.get("required", []) if len(options) == 1 else []
        else:
            key = f.metadata.get("key", f.name)
            keys[key] = own[f.name]
            required += [] if "left out" in f.metadata else [key]
    found |= cls.shape_of({"properties": keys, "required": list(dict.fromkeys(required))})
    return found


def _fields_of(cls: type[Result]) -> Callable[[object], object]:
    return lambda row: cls.fields_of(row) if isinstance(row, Mapping) else row


def _part(kind: object, row: Mapping[str, Json]) -> JsonObject | None:
    """Return what a flat row holds of a field of this type; None where it holds nothing of it."""
    keys = _keys(kind)
    return {key: value for key, value in row.items() if key in keys} or None


def _keys(kind: object) -> set[str]:
    """Return the keys that a result or settings of this type write; `kind` may be one or None."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return set(kind.model_fields)
    if isinstance(kind, type) and issubclass(kind, Result):
        kinds = get_type_hints(kind)
        inside = [_keys(kinds[f.name]) if "flat" in f.metadata else {f.metadata.get("key", f.name)} for f in fields(kind)]
        return set().union(*inside)
    return set().union(*map(_keys, get_args(kind)))


def plain(value: object) -> Json:
    """Return a value as JSON has it: results and settings as objects, tuples as lists, members of an enum as their text."""
    if value is None or isinstance(value, Scalar):
        return str(value) if isinstance(value, StrEnum) else value
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
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
        found: Json = json.loads(path.read_text(encoding="utf-8"), parse_constant=_number, parse_float=_number)
        check_size(found)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror})", remedy) from None
    except (ValueError, RecursionError, TooMuch) as error:
        raise InputError(f"'{path}' is damaged ({error})", remedy) from None
    return found


def _number(text: str) -> float:
    """Return a number of a JSON file, which has neither NaN nor infinity."""
    if not isfinite(value := float(text)):
        raise ValueError(f"{text} is not a JSON number")
    return value


def finite(value: object) -> float | None:
    """Return a finite number, given as it is or as text; None for anything else.

    >>> finite("1e-3"), finite(True), finite("nan"), finite(10**400)
    (0.001, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
