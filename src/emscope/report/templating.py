"""The pages' templates, compiled once per process."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from emscope.report import words


@cache
def environment() -> Environment:
    """Return where templates are found, with the filters that they use; a missing value is an error."""
    found = Environment(
        loader=PackageLoader("emscope.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {
        "interval": words.interval,
        "percent": words.percent,
        "number": words.number,
        "answer": words.answer,
        "marked": _marked,
    }
    return found


def _marked(sentence: str) -> Markup:
    """Return a sentence for the page, with the fields that it names in backticks marked as code."""
    return Markup(re.sub(r"`([^`<>]+)`", r"<code>\1</code>", str(escape(sentence))))  # noqa: S704  escaped before
