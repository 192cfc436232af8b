"""Write docs/cli.md from the program itself: the help of every command, and what a study file may say.

    python docs/make_cli.py

tests/test_docs.py fails where the file is not what this makes.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from emscope.cli.app import COMMANDS, app_for
from emscope.core.plain import Json
from emscope.core.spec import Spec

FILE = Path(__file__).with_name("cli.md")
WIDTH = 100
SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least"}
HEAD = """# Commands and study files

Made by `docs/make_cli.py` from the program (`make docs`). Do not edit it by hand.

What the numbers mean is in [concepts.md](concepts.md); how to check your own checkpoints is in [tutorial.md](tutorial.md).
"""
STUDY_INTRO = """## Study file

`emscope run STUDY.yaml` reads a YAML file with the keys below. A key that is not in the tables is refused, with the nearest known
name. A dash in the column "default" means that the key must be given. `null` means "not set". A dotted name is a key inside
another one: `lora.rank` is written as `lora: {rank: 32}`. A further key `small` holds settings that `--small` lays over the rest, to try
a study on a small machine.
"""
TRAIN_INTRO = """## Training file

`emscope train SPEC.yaml` reads a YAML file with these keys. The keys of `train` are those of [train](#train) above.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Yield (full name, command object) of the program and all its commands, groups before what they hold."""
    root = typer.main.get_command(app_for(COMMANDS))
    yield "emscope", root
    yield from _inside("emscope", root)


def _inside(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    for part, inner in sorted(getattr(command, "commands", {}).items()):
        yield f"{name} {part}", inner
        yield from _inside(f"{name} {part}", inner)


def help_text(name: str, command: Any) -> str:
    """Return a command's help page at a fixed width."""
    with command.make_context(
        name, [], resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH, color=False
    ) as context:
        return "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())


def kind(annotation: Any, many: str = "") -> str:
    """Return a type in words a YAML writer knows; `many` is put behind it for lists."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, UnionType):
        return " or ".join(kind(a) for a in inner if a is not NoneType)
    if origin is typing.Literal:
        return " or ".join(f"`{a}`" for a in inner)
    if origin is tuple and Ellipsis not in inner:
        return f"`[{', '.join(kind(a) for a in inner)}]` pair{many}"
    if origin is tuple:
        return f"list of {kind(inner[0], 's')}"
    if origin is typing.Annotated:
        return kind(inner[0], many)
    if annotation in (Any, object, Json):
        return "any value"
    if origin is dict:
        return f"name: {kind(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys, see below"
    return {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}[annotation] + many


def limits(field: FieldInfo) -> str:
    """Return a field's limits in words."""
    found = [f"{words} {getattr(m, name)}" for m in field.metadata for name, words in SIGNS.items() if hasattr(m, name)]
    return ", ".join(found)


def default(field: FieldInfo) -> str:
    """Return a field's default as YAML would show it; a dash where there is none."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "-"
    if isinstance(value, BaseModel):
        own = type(value)
        given = {k: v for k, v in value if own.model_fields[k].default != v}
        return f"`{{{', '.join(f'{k}: {v}' for k, v in given.items())}}}`" if given else "its own defaults"
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def table(spec: type[BaseModel]) -> str:
    """Return one settings class as a table, with its docstring above."""
    rows = ["| key | what it takes | default |", "|---|---|---|"]
    for name, field in spec.model_fields.items():
        notes = "; ".join(n for n in (kind(field.annotation), limits(field)) if n)
        if field.description:
            notes += f". {field.description[0].upper()}{field.description[1:]}"
        rows.append(f"| `{name}` | {notes} | {default(field)} |")
    shared = [base for base in spec.__mro__[1:] if issubclass(base, Spec) and base is not Spec]
    about = " ".join(" ".join(c.__doc__ or "" for c in (spec, *shared)).split())
    return "\n".join([about, "", *rows])


def nested(spec: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (dotted key, settings class) of every settings class inside `spec`, each once, in the order of the keys."""
    for name, field in spec.model_fields.items():
        for place, inner in _classes(field.annotation, f"{prefix}{name}"):
            yield place, inner
            yield from nested(inner, f"{place}.")


def _classes(annotation: Any, place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield place, annotation
    for inner in typing.get_args(annotation):
        yield from _classes(inner, f"{place}.NAME" if typing.get_origin(annotation) is dict else place)


def study_reference() -> str:
    """Return the reference of the study file and of the training file."""
    from emscope.study.spec import SingleSpec, StudySpec

    parts = [("top level", StudySpec), *nested(StudySpec)]
    study = [STUDY_INTRO, *(f"### {name}\n\n{table(spec)}\n" for name, spec in parts)]
    known = {spec for _, spec in parts}
    alone = [(name, spec) for name, spec in nested(SingleSpec) if spec not in known]
    return "\n".join([*study, TRAIN_INTRO, table(SingleSpec), *(f"\n### {name}\n\n{table(spec)}" for name, spec in alone), ""])


def document() -> str:
    """Return the whole of docs/cli.md."""
    pages = [f"## {name}\n\n```text\n{help_text(name, command)}\n```\n" for name, command in commands()]
    return "\n".join([HEAD, *pages, study_reference()])


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
