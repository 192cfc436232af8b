"""Untrusted texts made safe to show and to keep: control characters, direction marks and half characters become visible escapes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emscope.core.plain import Json

BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{BIDI}\ud800-\udfff]")
HALF = re.compile("[\ud800-\udfff]")  # no text encoding holds one of these alone


def escaped(character: str) -> str:
    r"""Return a character as it is written in Python or JSON: `\x1b`, `\u202e`, `\ud800`."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown(text: str) -> str:
    """Return a text with terminal control characters escaped; line breaks and tabs stay."""
    return CONTROL.sub(lambda found: escaped(found.group()), text) if CONTROL.search(text) else text


def one_line(text: str) -> str:
    """Return a text as `shown`, its line breaks escaped too."""
    return shown(text).replace("\n", "\\n")


def whole(text: str) -> str:
    """Return a text that every encoding holds: half characters escaped."""
    return HALF.sub(lambda found: escaped(found.group()), text) if HALF.search(text) else text


def json_text(value: Json, *, indent: int | None = None) -> str:
    """Return JSON that reads the same everywhere: control characters and half characters as JSON escapes.

    Raises:
        ValueError: NaN or infinity.
    """
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    return CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text) if CONTROL.search(text) else text
