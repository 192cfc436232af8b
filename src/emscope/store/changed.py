"""The settings in which two calls differ, in words that a reader can act on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST, LONGEST = 5, 60  # changes that are named; characters of a value
DIGEST = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True, slots=True)
class Change:
    """A setting by its place, and what was and is there, in words; `known` where these are the values themselves."""

    place: str
    words: str
    known: bool


def changed(old: object, new: object) -> str:
    """Return the settings in which two plain values differ, those with known values first, "" where there are none.

    A missing setting equals one that is null or empty. Values kept as a digest, such as a file's content, are unknown.
    """
    found = sorted(_changes(old, new, ""), key=lambda change: not change.known)
    named = [f"{change.place}: {change.words}" for change in found[:MOST]]
    more = [f"and {len(found) - MOST} more"] if len(found) > MOST else []
    return "; ".join(named + more)


def _changes(old: object, new: object, place: str) -> Iterator[Change]:
    if isinstance(old, dict | None) and isinstance(new, dict | None):
        old, new = old or {}, new or {}
        for key in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        yield _change(place, old, new)


def _change(place: str, old: object, new: object) -> Change:
    if _is_digest(old) and _is_digest(new):
        return Change(place, "other content", False)
    if _is_digest(old) or _is_digest(new):
        return Change(place, f"{_shown(old)} -> {_shown(new)}", False)
    before, now = _steps(old), _steps(new)
    if before is None or now is None:
        return Change(place, f"{_shown(old)} -> {_shown(new)}", True)
    if list(before) != list(now):
        return Change(place, f"steps {_listed(list(before))} -> {_listed(list(now))}", True)
    return Change(place, f"other weights at step {_listed([step for step in now if now[step] != before[step]])}", False)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _steps(value: object) -> dict[object, object] | None:
    """Return the digests of checkpoints by step, as a check keeps them; None for anything else."""
    pairs = value if isinstance(value, list) else None
    return None if pairs is None or not all(map(_is_step, pairs)) else dict(pairs)


def _is_step(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], int) and _is_digest(value[1])


def _listed(steps: list[object]) -> str:
    few = [str(step) for step in steps]
    return ", ".join(few if len(few) <= 8 else [*few[:4], "…", few[-1]]) or "none"


def _shown(value: object) -> str:
    if _is_digest(value):
        return "given"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
