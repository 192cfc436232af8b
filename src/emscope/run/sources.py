"""Where training conversations come from: bundled domains and users' files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.records import Conversation
from emscope.data import bundled
from emscope.data.conversations import read_conversations
from emscope.train.spec import KlSpec


def conversations(file: str | None, domain: str | None, answers: str | None) -> list[Conversation]:
    """Return the conversations of a file, or of a bundled domain with one kind of answer.

    Raises:
        InputError: no such file, domain or kind of answer, or a broken row.
    """
    return read_conversations(Path(file)) if file else bundled.domain(domain or "", answers or "")


def held_near(kl: KlSpec | None) -> list[Conversation]:
    """Return the conversations of a KL term; of a domain with several kinds of answers, each question once a kind.

    Raises:
        InputError: as `conversations`, and where a conversation's id stands twice.
    """
    if kl is None:
        return []
    if kl.file:
        rows = read_conversations(Path(kl.file))
    else:
        rows = [replace(c, id=f"{c.id}/{a}") for a in kl.answers for c in bundled.domain(kl.domain or "", a)]
    twice = {c.id for c in rows if sum(d.id == c.id for d in rows) > 1} if len({c.id for c in rows}) < len(rows) else set()
    if twice:
        raise InputError(f"kl: the id '{sorted(twice)[0]}' stands twice in the conversations", "give each its own id")
    return rows
