"""Content hashes: the keys of rows, specs and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emscope.core.plain import Json


def canonical(value: Json) -> str:
    """Return JSON with sorted keys and no white space; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Json) -> str:
    """Return the SHA-256 of `canonical(value)` as hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def short(value: Json) -> str:
    """Return the first 16 hex digits of `digest(value)`: enough for keys within one study."""
    return digest(value)[:16]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
