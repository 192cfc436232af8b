"""How long-running work reports its progress: a function that the caller passes in, so that no stage prints."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""`progress(what, done, total)`; called as often as useful, with done == total at the end."""


def silent(what: str, done: float, total: float) -> None:
    """A Progress that does nothing."""


def part_of(whole: Progress, what: str, before: float, total: float) -> Progress:
    """Return a Progress for one part of a larger job: the part's progress is added to `before`."""
    return lambda _what, done, _total: whole(what, before + done, total)
