"""What emscope writes into the trainer's log, which its checkpoints carry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # as pydantic asks before Python 3.12

from emscope.core.plain import Json
from emscope.core.records import StepReading

READING, GEOMETRY = "emscope_reading", "emscope_geometry"  # keys of an entry


class GeometryReading(TypedDict):
    """One number about the update after a step; `module` is empty where it is about everything trained."""

    step: int
    module: str
    what: str
    value: float


_READING, _GEOMETRY = TypeAdapter(StepReading), TypeAdapter(list[GeometryReading])


def readings_in(entries: Sequence[Mapping[str, Json]]) -> list[StepReading]:
    """Return the readings of the steps in a log."""
    return [_READING.validate_python(entry[READING]) for entry in entries if READING in entry]


def geometry_in(entries: Sequence[Mapping[str, Json]]) -> list[GeometryReading]:
    """Return what a log says about the update's shape; see `emscope.train.geometry`."""
    return [row for entry in entries for row in _GEOMETRY.validate_python(entry.get(GEOMETRY, []))]


def log_of(checkpoint: Path) -> list[Mapping[str, Json]]:
    """Return the log that a checkpoint carries, [] where it is not complete."""
    try:
        found: list[Mapping[str, Json]] = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return found if is_log(found) else []


def is_log(entries: object) -> bool:
    """True where all that emscope wrote into a log can be read back."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return False
    try:
        readings_in(entries)
        geometry_in(entries)
    except ValidationError:
        return False
    return True
