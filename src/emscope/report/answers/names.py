"""Names of figures."""

from __future__ import annotations

import re

LONGEST = 80  # characters of a name


def figure_name(text: str) -> str:
    """Return a name that can be a file name: users name groups and raters as they like, even with slashes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:LONGEST]
