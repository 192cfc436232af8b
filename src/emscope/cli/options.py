"""A command's options, made from the settings classes and annotations that its function takes: nothing is declared twice.

A function such as `def diff(checkpoint: Annotated[str, ARGUMENT], spec: DiffSpec, as_json: Json = False)` becomes a command with one
option for each field of `DiffSpec`. An option's name, default, range and description are those of the field. The function gets
the checked settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from emscope.cli.console import notes_told
from emscope.core.errors import EmscopeError, InputError, spelled
from emscope.core.fields import Flag
from emscope.core.spec import Spec, parse

Command = Callable[..., int | None]
ALONE = "Alone"
LIMITS = {"ge": "{:g} or more", "gt": "above {:g}", "le": "{:g} or less", "lt": "below {:g}"}


@dataclass(frozen=True, slots=True)
class Argument:
    """Marks a positional argument."""


@dataclass(frozen=True, slots=True)
class Without:
    """Marks settings whose fields a command does not offer: they keep their defaults."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """Marks a parameter whose option follows another one in the help."""

    name: str


ARGUMENT = Argument()
Files = Annotated[list[Path], ARGUMENT]
DirectionFile = Annotated[str, ARGUMENT, Field(description="Direction file, or a run that trained a steering vector.")]
Json = Annotated[bool, Flag("--json"), Field(description="Print the result object instead of tables.")]
Base = Annotated[
    str | None,
    Field(description="Base model, if the adapters do not name it: folder, hub id, gguf:FILE or alias."),
]
Model = Annotated[str | None, Flag("--model"), Field(description="The base; by default the one that the checkpoints name.")]
Checkpoints = Annotated[
    tuple[str, ...], Flag("--checkpoint", repeated=True), Field(description="A fine-tune, its last checkpoint.")
]
Controls = Annotated[
    tuple[str, ...],
    Flag("--control", repeated=True),
    Field(description="Direction of a harmless fine-tune, to compare with."),
]


@dataclass(frozen=True, slots=True)
class Option:
    """One option or argument: what its field says, and how its text is read."""

    name: str
    field: FieldInfo

    @property
    def flag(self) -> Flag:
        """How the command line spells it."""
        return next((m for m in self.field.metadata if isinstance(m, Flag)), Flag())

    @property
    def spelled(self) -> str:
        """The option as it is typed."""
        return self.flag.name or f"--{self.name.replace('_', '-')}"

    @property
    def is_argument(self) -> bool:
        """True for a positional argument."""
        return ARGUMENT in self.field.metadata

    @property
    def default(self) -> object:
        """Its default; `...` where it must be given."""
        return ... if self.field.is_required() else self.field.get_default(call_default_factory=True)

    @property
    def kinds(self) -> tuple[object, ...]:
        """What it takes beside None."""
        kind = self.field.annotation
        inner = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        return tuple(_bare(one) for one in inner if one is not NoneType)

    @property
    def type(self) -> object:
        """What typer reads: switches, paths, lists of texts; all else is one text that the settings class reads, whose messages have the value."""
        (kind, *_), default = self.kinds, self.default
        if get_origin(kind) is dict or (get_origin(kind) is tuple and (self.flag.repeated or self.is_argument)):
            return list[str]
        whole = kind if kind in (bool, Path, list[Path], tuple[str, str]) else str
        return whole if default is not None else whole | None

    @property
    def _may_be_none(self) -> bool:
        return NoneType in get_args(self.field.annotation) and self.default not in (None, ...)

    def parameter(self, options: Mapping[str, str]) -> inspect.Parameter:
        """Return it as a parameter of the function that typer reads."""
        text = spelled(self.help(), options)
        info = (
            typer.Argument(self._shown(), help=text)
            if self.is_argument
            else typer.Option(self._shown(), self.spelled, help=text, metavar=self._metavar())
        )
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=self.type)

    def help(self) -> str:
        """Return its sentence: what it is for, its limits, and whether it may be repeated."""
        text = self.field.description or ""
        if limits := self._limits():
            text = f"{text.rstrip('.')}; {limits}."
        if get_origin(self.kinds[0]) is dict:
            text = f"{self.flag.shape}: {text[0].lower()}{text[1:]}"
        return f"{text.rstrip('.')}; may be repeated." if self.flag.repeated and text else text

    def _limits(self) -> str:
        """Return the limits of a number in words, such as `1 or more` or `above 0.5, below 1`; without obvious ones."""
        found = {name: getattr(m, name) for m in self.field.metadata for name in LIMITS if getattr(m, name, None) is not None}
        if found in ({"ge": 0}, {"ge": 1}):
            return ""
        if found.keys() == {"ge", "le"}:
            return f"{found['ge']:g} to {found['le']:g}"
        return ", ".join(words.format(found[name]) for name, words in LIMITS.items() if name in found)

    def read(self, given: object) -> object:
        """Return the value of what was typed.

        Raises:
            InputError: a text that cannot be read, with the remedy.
        """
        kind = self.kinds[0]
        if given is None or (given == [] and self.default is not ...):
            return None if self.default is ... else self.default
        if get_origin(kind) is dict:
            return self._pairs(given)
        if not isinstance(given, str):
            return tuple(given) if isinstance(given, list) and get_origin(kind) is tuple else given
        if self._may_be_none and given.lower() == "none":
            return None
        if get_origin(kind) is not tuple or any(get_origin(k) is Literal and given in get_args(k) for k in self.kinds):
            return given
        return self._several(given, kind)

    def _several(self, text: str, kind: object) -> tuple[object, ...]:
        inner = _bare(get_args(kind)[0])
        if inner not in (int, float):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        try:
            return tuple(inner(part) for part in text.split(","))
        except ValueError:
            shape = "whole numbers" if inner is int else "numbers"
            raise InputError(f"{self.spelled} is '{text}'", f"give {shape} separated by commas, such as 1,2") from None

    def _pairs(self, given: object) -> Mapping[str, object]:
        from emscope.models.loading.templates import read_arguments

        texts = list(given) if isinstance(given, list | tuple) else []
        inner = get_args(self.kinds[0])[1]
        return dict(pairs(texts, self.spelled, self.flag.shape)) if inner is str else read_arguments(texts)

    def _shown(self) -> object:
        """Return the default as typer shows it."""
        value = self.default
        if value is ... or value is None or isinstance(value, bool | Path):
            return value
        if isinstance(value, tuple) and self.type is not str:
            return list(value)
        if isinstance(value, dict):
            return []
        return ",".join(map(_short, value)) or None if isinstance(value, tuple) else _short(value)

    def _metavar(self) -> str | None:
        """Return what follows the option in the help: its choices, a number, or values separated by commas."""
        kind, *others = self.kinds
        inner = [_bare(one) for one in get_args(kind)]
        if get_origin(kind) is Literal:
            return f"<{'|'.join(get_args(kind))}>"
        if kind in (int, float):
            return f"<{getattr(kind, '__name__', '')}{'|none' if self._may_be_none else ''}>"
        if get_origin(kind) is not tuple or self.flag.repeated or inner == [str, str]:
            return None
        values = ",".join({Ellipsis: "...", int: "int", float: "float"}.get(one, "str") for one in inner)
        return f"<{'|'.join([values, *(word for one in others for word in get_args(one))])}>"


def pairs(texts: list[str], what: str, shape: str) -> dict[str, str]:
    """Return NAME=VALUE texts as a mapping.

    Raises:
        InputError: one does not have that form, or a name appears twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise InputError(f"{what} is '{text}'", f"write it as {shape}")
        if name in found:
            raise InputError(f"two are called '{name}'", f"give each its own name ({shape})")
        found[name] = value
    return found


def spellings(function: Command) -> dict[str, str]:
    """Return how each setting that a command's function takes is spelled as an option."""
    every = [option for _, options in _parts(function).values() for option in options]
    return {option.name: option.spelled for option in every if not option.is_argument}


def as_command(function: Command) -> Command:
    """Return a function as typer takes it: settings classes spread into their fields; errors name options in place of fields."""
    parts, names = _parts(function), spellings(function)
    every = [option for _, options in parts.values() for option in options]

    def run(**given: object) -> int | None:
        try:
            with notes_told(names):
                return function(**{name: _value(spec, options, given) for name, (spec, options) in parts.items()})
        except EmscopeError as error:
            error.fault, error.remedy = spelled(error.fault, names), spelled(error.remedy, names)
            raise

    parameters = [option.parameter(names) for option in _in_order(every)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__, run.__name__ = spelled(inspect.getdoc(function) or "", names), function.__name__
    return run


def _in_order(options: list[Option]) -> list[Option]:
    """Return the options as the help lists them."""
    found = list(options)
    for option in options:
        for behind in (m for m in option.field.metadata if isinstance(m, Behind)):
            found.remove(option)
            found.insert(1 + next(n for n, o in enumerate(found) if o.name == behind.name), option)
    return found


def _parts(function: Command) -> dict[str, tuple[type[Spec], list[Option]]]:
    """Return the settings class and the options of each of a function's parameters."""
    hints = get_type_hints(function, include_extras=True)
    return {name: _part(name, hints[name], p.default) for name, p in inspect.signature(function).parameters.items()}


def _part(name: str, annotation: object, default: object) -> tuple[type[Spec], list[Option]]:
    """Return the settings class of a parameter and its options: one made for it where it is a single option."""
    spec = _bare(annotation)
    if isinstance(spec, type) and issubclass(spec, Spec):
        left_out = [n for m in get_args(annotation)[1:] if isinstance(m, Without) for n in m.names]
        return spec, [Option(n, f) for n, f in spec.model_fields.items() if n not in left_out]
    made = create_model(ALONE, __base__=Spec, **{name: (annotation, ... if default is inspect.Parameter.empty else default)})  # type: ignore[call-overload]
    return made, [Option(name, made.model_fields[name])]


def _value(spec: type[Spec], options: list[Option], given: Mapping[str, object]) -> object:
    """Return the settings, or the one value, of what was typed."""
    values = {option.name: option.read(given[option.name]) for option in options}
    said = {option.name: f"{option.spelled} is '{_typed(given[option.name])}'" for option in options}
    parsed = parse(spec, values, "", said)
    return getattr(parsed, options[0].name) if spec.__name__ == ALONE else parsed


def _typed(given: object) -> str:
    return ", ".join(map(str, given)) if isinstance(given, list | tuple) else str(given)


def _bare(annotation: object) -> object:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _short(value: object) -> str:
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)  # it is read again
