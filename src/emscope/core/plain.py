"""Results as plain values: the JSON object of a result has its fields, by name and in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

LEFT_OUT = {"left out": True}  # metadata of a field that has no key where it is None; else None is null


@dataclass(frozen=True, slots=True)
class Result:
    """Base of what one stage hands to the next and a report is written from."""

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON shape."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        return {f.name: plain(value) for f, value in values if value is not None or "left out" not in f.metadata}


def plain(value: Any) -> Any:
    """Return a value as JSON has it: results as objects, tuples as lists, members of an enum as their text."""
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value.to_json() if hasattr(value, "to_json") else value
