"""Functions that take the fields of settings classes as keywords, and show them where Python and editors look."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pydantic.fields import FieldInfo

from emscope.core.spec import Spec

P = ParamSpec("P")
T = TypeVar("T")


def with_fields_of(*specs: type[Spec]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Show the fields as keywords of a function that takes them as `**settings`: in its signature with their defaults, and in its docstring."""
    fields = {name: field for spec in specs for name, field in spec.model_fields.items()}

    def shown(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        made = [_keyword(name, field) for name, field in fields.items()]
        function.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        lines = [f"    {name}: {field.description}" for name, field in fields.items() if field.description]
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Settings:", *lines])
        return function

    return shown


def _keyword(name: str, field: FieldInfo) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.annotation)
