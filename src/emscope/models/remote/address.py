"""Addresses of servers, and texts that may hold a key: what is rejected, and what is removed before a text is shown or kept."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlsplit

from emscope.core.errors import InputError

KEY_VARIABLE = "EMSCOPE_API_KEY"
SECRET_NAMES = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # endings of variables whose values are removed
SHORTEST_SECRET = 6
LOOKS_SECRET = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)
IN_TEXT = re.compile(
    r"\b(sk|key|Bearer)[-_ ][A-Za-z0-9_*-]{6,}|(?<=://)[^/\s@]+@|(?<=[?&])[^=&\s]*(key|token|secret|passw)[^=&\s]*=[^&\s'\"]+",
    re.IGNORECASE,
)
STRUCK = "***"


def check_address(url: str, what: str = "the server's address") -> None:
    """Reject an invalid address, or one with a key or a password, which would appear in reports.

    Raises:
        InputError: without what is secret in it.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, fits = urlsplit(""), False
    if "@" in url or any(LOOKS_SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise InputError(f"{what} holds a key or a password", f"leave it out; a key goes into {KEY_VARIABLE}")
    if not fits or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise InputError(f"{what} is not of the form http://HOST:PORT/v1 ('{url}')", "give it as http://127.0.0.1:8000/v1")


def without_keys(text: str) -> str:
    """Return a text without the values of variables that hold keys: servers echo what they receive."""
    for name, value in os.environ.items():
        if name.endswith(SECRET_NAMES) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, STRUCK)
    return text


def scrubbed(text: str) -> str:
    """Return a message as `without_keys`, and without anything that looks like a key or a password."""
    return IN_TEXT.sub(STRUCK, without_keys(text))
