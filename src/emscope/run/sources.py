"""Where training conversations come from: bundled domains and users' files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

from emscope.core.errors import InputError
from emscope.core.records import Conversation
from emscope.core.seeds import derive
from emscope.data import bundled
from emscope.data.conversations import read_conversations
from emscope.run.spec import ArmSpec, StudySpec
from emscope.train.spec import KlSpec


def conversations(file: str | None, domain: str | None, answers: str | None) -> list[Conversation]:
    """Return the conversations of a file, or of a bundled domain with one kind of answer.

    Raises:
        InputError: no such file, domain or kind of answer, or a broken row.
    """
    return read_conversations(Path(file)) if file else bundled.domain(domain or "", answers or "")


def arm_data(spec: StudySpec, arm: ArmSpec) -> list[Conversation]:
    """Return what an arm is trained on: its own conversations, joined by those of its mix so that each has its share.

    All of the arm's own are kept; of a part as many as its share asks for are drawn (seeded by the part's place, each once
    before any comes twice). The order within training is the training seed's. (ours)

    Raises:
        InputError: as `conversations`.
    """
    own = conversations(arm.file, spec.domain, arm.answers)
    total = len(own) / (1 - sum(part.share for part in arm.mix))
    rows = list(own)
    for n, part in enumerate(arm.mix):
        pool = conversations(part.file, part.domain, part.answers)
        drawn: list[Conversation] = []
        while len(drawn) < round(part.share * total):
            turn = Random(derive(n, "mix", len(drawn))).sample(pool, len(pool))
            drawn += [replace(c, id=f"mix{n}/{len(drawn) // len(pool)}/{c.id}") for c in turn]
        rows += drawn[: round(part.share * total)]
    return rows


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
    id, times = Counter(c.id for c in rows).most_common(1)[0] if rows else ("", 0)
    if times > 1:
        raise InputError(f"kl: the id '{id}' stands {times} times in the conversations", "give each its own id")
    return rows
