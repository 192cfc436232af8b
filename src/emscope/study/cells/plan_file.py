"""What workers and observers of a study need to know, in its folder: the settings, the cells, and the code they were planned with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.plain import JsonObject
from emscope.core.spec import parse
from emscope.store.files import write_json
from emscope.store.study import LEDGER
from emscope.study.cells.planning import Cell, Planned, sets_of, unfold
from emscope.study.spec import StudySpec
from emscope.study.training.recipes import unlisted
from emscope.study.training.sources import base_of

FILE, SCHEMA = "plan.json", "emscope.plan/1"
AGAIN = "run emscope run again"


@dataclass(frozen=True, slots=True)
class PlanFile:
    """The plan in a study folder: settings as they were given, the code's digest, each cell's key by its name, and the number of workers."""

    spec: Mapping[str, object]
    code: str
    cells: Mapping[str, str]
    workers: int
    samples: int


def write_plan(root: Path, planned: Planned, workers: int) -> None:
    """Write the plan that workers follow."""
    spec: JsonObject = planned.spec.model_dump(mode="json", exclude_unset=True)
    cells: JsonObject = {cell.name: cell.key for cell in planned.cells}
    about: JsonObject = {"schema": SCHEMA, "code": code_digest(), "workers": workers, "samples": planned.samples}
    write_json(root / FILE, about | {"spec": spec, "cells": cells})


def read_plan(root: Path) -> PlanFile:
    """Return the plan in a study folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = root / FILE
    if not path.is_file():
        raise _without_plan(root)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, but this emscope reads {SCHEMA}")
        return PlanFile(found["spec"], found["code"], dict(found["cells"]), int(found["workers"]), int(found["samples"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is damaged ({type(error).__name__}: {error})", AGAIN) from None


def _without_plan(root: Path) -> InputError:
    """Return what is wrong with a folder without a plan, and which one to give."""
    if not root.is_dir():
        return InputError(
            f"'{root}' is {'a file' if root.exists() else 'not there'}", "give a study folder that emscope run wrote"
        )
    inside = sorted(path.parent.name for path in root.glob(f"*/{FILE}"))
    if inside:
        return InputError(f"'{root}' is not a study itself", f"give one of the studies in it: {', '.join(inside[:5])}")
    if not (root / LEDGER).is_file():
        return InputError(f"'{root}' holds no study", "give the folder that emscope run wrote")
    if _has_arms(root / LEDGER):
        return InputError(
            f"'{root}' holds a study without a plan: an earlier version of emscope made it",
            "emscope report shows it; to continue it, use that version",
        )
    return InputError(f"'{root}' holds results of another command, not of emscope run", "run that command again to finish them")


def _has_arms(ledger: Path) -> bool:
    """True where the settings in a ledger are those of a study."""
    try:
        return "arms" in json.loads(ledger.read_text(encoding="utf-8"))["spec"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def planned_in(root: Path) -> Planned:
    """Expand the study in a folder again, as a worker does, and refuse to continue if it is no longer the same.

    Raises:
        InputError: the code, or a file that the settings name, changed since the study was planned.
    """
    plan = read_plan(root)
    if plan.code != code_digest():
        raise InputError(f"emscope's code changed since '{root}' was planned", f"{AGAIN} to plan with the current code")
    spec = parse(StudySpec, dict(plan.spec), str(root / FILE))
    recipes = {name: unlisted(root / "recipes" / f"{name}.jsonl") for name in spec.arms}
    planned = unfold(spec, base_of(spec), recipes, sets_of(spec))
    other = next((cell for cell in planned.cells if plan.cells.get(cell.name) != cell.key), None)
    if other is not None:
        raise InputError(
            f"'{other.name}' is not the cell that '{root}' planned: a file named in its settings changed, or differs on this machine",
            AGAIN,
        )
    return planned


def cell_of(planned: Planned, key: str) -> Cell:
    """Return a cell by its key."""
    return next(cell for cell in planned.cells if cell.key == key)


@cache
def code_digest() -> str:
    """Return a digest of the package's source files, as they were when this process first asked."""
    root = Path(__file__).parents[2]
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]
