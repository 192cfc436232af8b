"""Estimates as text, and names of figures."""

from __future__ import annotations

import re

from emscope.core.estimate import Estimate
from emscope.report import words

LONGEST = 80  # characters of a name


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    """Write `value [low, high]`; without an interval the value alone, without a value a dash."""
    return words.interval(estimate.to_json() if estimate else None, digits)


def figure_name(text: str) -> str:
    """Return a name that can be a file's: users name groups and raters as they like, with slashes and all."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:LONGEST]
