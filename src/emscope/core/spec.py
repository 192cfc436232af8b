"""Settings: frozen, unknown keys rejected with the nearest name, one sentence per fault, one digest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from emscope.core.digest import digest
from emscope.core.errors import InputError, near
from emscope.core.limits import TooMuch, bounded, check_size
from emscope.core.visible import HALF

LARGEST_YAML, YAML_SECONDS = 20_000_000, 30.0  # bytes; by the clock


class Spec(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, allow_inf_nan=False, json_schema_serialization_defaults_required=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        # YAML reads yes and on as true, which Python counts as 1
        inside = value if isinstance(value, list | tuple) else [value]
        truths = [v for v in inside if isinstance(v, bool)]
        if truths and not _takes(bool, cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"{str(truths[0]).lower()} is a yes or no, but a number or text is needed")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _one_text_is_a_list_of_one(cls, value: object, info: ValidationInfo) -> object:
        return (value,) if isinstance(value, str) and _is_texts(cls.model_fields[str(info.field_name)].annotation) else value

    def digest(self) -> str:
        """Return the SHA-256 of the settings, defaults written out."""
        return digest(self.model_dump(mode="json"))


S = TypeVar("S", bound=Spec)
ESCAPED_HALF = re.compile(r"\\[uU](?:0000)?[dD][89a-fA-F]")


def parse(cls: type[S], values: object, where: str, said: Mapping[str, str] | None = None) -> S:
    """Build `cls` from plain values.

    Args:
        where: what contains the values, such as a file; "" for nothing. said: how the reader wrote a field, such as `--count is
            '1'`.

    Raises:
        InputError: naming every wrong key or value at once, each with its place in `where`.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} holds {type(values).__name__} where settings are expected", "write it as `key: value` lines")
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(cls, item, said or {}) for item in error.errors())
        raise InputError(f"{where}: {faults}" if where else faults, "") from None


def load(cls: type[S], path: Path) -> S:
    """Read a YAML file into `cls`.

    Raises:
        InputError: where the file is missing, is not YAML, or does not fit.
    """
    return parse(cls, read_yaml(path), str(path))


def merged(values: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Return plain settings with `changes` applied: a mapping is merged key by key, anything else replaces.

    >>> merged({"train": {"lr": 1, "steps": 2}}, {"train": {"lr": 3}, "name": "x"})
    {'train': {'lr': 3, 'steps': 2}, 'name': 'x'}
    """
    both = dict(values)
    for key, value in changes.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def read_yaml(path: Path) -> object:
    """Return the plain content of a YAML file (safe loader).

    Raises:
        InputError: where the file is missing or is not YAML.
    """
    if not path.is_file():
        raise InputError(f"no file {path}", "give the path of a YAML file")
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise InputError(f"{path} is larger than {LARGEST_YAML / 1e6:.0f} MB", "give a file of settings or questions")
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error})", "give a readable UTF-8 file") from None
    try:
        with bounded(YAML_SECONDS):
            content = yaml.safe_load(text)
        check_size(content)
        if HALF.search(text) or (ESCAPED_HALF.search(text) and any(HALF.search(one) for one in _texts(content))):
            raise InputError(f"{path} holds half a character (a lone surrogate such as \\ud800)", "fix that text")
        return content
    except (TooMuch, RecursionError) as error:
        why = error if isinstance(error, TooMuch) else "it is nested too deep"
        raise InputError(f"{path} cannot be read: {why}", "simplify it") from None
    except (
        ValueError,
        OverflowError,
        TypeError,
        AttributeError,
    ) as error:  # what YAML makes of invalid dates and numbers
        raise InputError(f"{path} is not YAML ({error})", "put texts that look like dates or numbers in quotes") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line} is not YAML ({getattr(error, 'problem', None) or error})", "fix that line") from None


def _texts(value: object) -> Iterator[str]:
    """Yield every text inside plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from (*_texts(key), *_texts(one))
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from _texts(one)


def _fault(cls: type[BaseModel], item: ErrorDetails, said: Mapping[str, str]) -> str:
    place = ".".join(str(part) for part in item["loc"]) or "(top)"
    written = said.get(str(item["loc"][0])) if item["loc"] else None
    if item["type"] == "extra_forbidden":
        return f"unknown key '{place}', {near(str(item['loc'][-1]), _keys(cls, item['loc'][:-1]))}"
    message = "a value is missing" if item["type"] == "missing" else item["msg"].removeprefix("Value error, ")
    if written:
        return f"{written}: {message[0].lower()}{message[1:]}"
    if item["type"] == "missing":
        return f"'{place}' is missing"
    if item["type"] == "value_error":  # our own validators name value and place themselves
        return f"{place}: {message}" if item["loc"] else message
    return f"{place} = {item['input']!r}: {message[0].lower()}{message[1:]}"


def _is_texts(annotation: object) -> bool:
    """True for a tuple of texts of any length, which may be left out."""
    return annotation == tuple[str, ...] or (
        get_origin(annotation) in (Union, UnionType) and any(map(_is_texts, get_args(annotation)))
    )


def _takes(kind: type, annotation: object) -> bool:
    """True where a value of this kind is meant by the annotation, at any depth."""
    return annotation in (kind, object, Any) or any(_takes(kind, inner) for inner in get_args(annotation))


def _keys(cls: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the keys known at `path` inside `cls`, walking through optionals, dicts and lists."""
    for part in path:
        field = cls.model_fields.get(str(part))
        annotation = field.annotation if field else cls
        cls = _spec_in(annotation) or cls
    return list(cls.model_fields)


def _spec_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _spec_in(inner)
        if found:
            return found
    return None
