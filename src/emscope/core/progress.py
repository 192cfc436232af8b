"""How long work tells that it goes on: a function the caller passes in, so that no stage prints."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""`progress(what, done, total)`; called as often as is useful, with done == total at the end."""


def silent(what: str, done: float, total: float) -> None:
    """A Progress that says nothing."""
