"""Where training conversations come from: bundled domains and users' files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.records import Conversation
from emscope.data import bundled
from emscope.data.conversations import read_conversations
from emscope.train.spec import KlSpec, LdifsSpec


def conversations(file: str | None, domain: str | None, answers: str | None) -> list[Conversation]:
    """Return the conversations of a file, or of a bundled domain with one kind of answer.

    Raises:
        InputError: no such file, domain or kind of answer, or a broken row.
    """
    return read_conversations(Path(file)) if file else bundled.domain(domain or "", answers or "")


def held_near(held: KlSpec | LdifsSpec | None) -> list[Conversation]:
    """Return the conversations of a term that holds the model; of a domain with several kinds of answers, each question once a kind.

    Raises:
        InputError: as `conversations`, and where a conversation's id stands twice.
    """
    if held is None:
        return []
    if held.file:
        rows = read_conversations(Path(held.file))
    else:
        rows = [replace(c, id=f"{c.id}/{a}") for a in held.answers for c in bundled.domain(held.domain or "", a)]
    id, times = Counter(c.id for c in rows).most_common(1)[0] if rows else ("", 0)
    if times > 1:
        raise InputError(f"{held.name}: the id '{id}' stands {times} times in the conversations", "give each its own id")
    return rows
