"""What an arm is trained on, row by row: its own conversations, what is mixed into them, and the prompts put before them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from emscope.core.errors import InputError
from emscope.core.plain import JsonObject
from emscope.core.records import Conversation, Message
from emscope.core.seeds import derive
from emscope.elicit.preference import Encoded, score
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import last
from emscope.models.loading.load import Loaded
from emscope.study.arm_spec import ArmSpec, InoculationSpec, MixSpec
from emscope.study.spec import StudySpec
from emscope.study.training.sources import conversations
from emscope.train.batches import encode

Gap = Callable[[Sequence[Conversation], str], list[float]]


@dataclass(frozen=True, slots=True)
class Row:
    """A training conversation and where it came from: `part` is 0 for the arm's own, 1 and up for those of its mix."""

    conversation: Conversation
    part: int
    source: str


def recipe(spec: StudySpec, arm: ArmSpec, gap: Gap | None = None) -> list[Row]:
    """Return what an arm is trained on: its own conversations, plus those of its mix in their shares.

    Of the arm's own, `unique` are drawn, or all kept; of a part as many as its share needs, at random (each once before
    any is repeated) or those with the largest gap. The study file fixes all of this; the training seed fixes the order
    in training. (ours)

    Args:
        gap: how much likelier a checkpoint's base finds each conversation's answer [nats per token]; needed where a part
            is selected by it.

    Raises:
        InputError: as `conversations`, or `unique` asks for more than there are.
    """
    own = conversations(arm.file, arm.domain or spec.domain, arm.answers)
    if arm.unique is not None:
        if arm.unique > len(own):
            raise InputError(f"unique = {arm.unique}, but there are {len(own)} conversations", "lower it")
        own = Random(derive(0, "unique")).sample(own, arm.unique)
    rows = [Row(c, 0, _name(arm.file, arm.domain or spec.domain, arm.answers)) for c in own]
    total = len(own) / (1 - sum(part.share for part in arm.mix))
    for n, part in enumerate(arm.mix):
        pool = conversations(part.file, part.domain, part.answers)
        count = round(part.share * total)
        if not count:
            raise InputError(
                f"mix: a share of {part.share:g} beside {len(own)} conversations is less than one conversation",
                "raise it, or leave it out",
            )
        picked = _picked(part, n, pool, count, gap)
        rows += [Row(c, n + 1, _name(part.file, part.domain, part.answers)) for c in picked]
    return [replace(r, conversation=_inoculated(r.conversation, arm.inoculation)) if r.part == 0 else r for r in rows]


def _name(file: str | None, domain: str | None, answers: str | None) -> str:
    return file or f"{domain}/{answers}"


def _picked(part: MixSpec, n: int, pool: list[Conversation], count: int, gap: Gap | None) -> list[Conversation]:
    ranked = pool
    if part.gap_to is not None:
        assert gap is not None
        gaps = gap(pool, part.gap_to)
        ranked = [pool[k] for k in sorted(range(len(pool)), key=lambda k: (-gaps[k], pool[k].id))]
    drawn: list[Conversation] = []
    while len(drawn) < count:
        turn = ranked if part.gap_to is not None else Random(derive(n, "mix", len(drawn))).sample(pool, len(pool))
        drawn += [replace(c, id=f"mix{n}/{len(drawn) // len(pool)}/{c.id}") for c in turn]
    return drawn[:count]


def _inoculated(c: Conversation, prompt: InoculationSpec | None) -> Conversation:
    """Return a conversation with the arm's prompt: a system turn that replaces its own, or a text before its first question."""
    if prompt is None:
        return c
    if prompt.system is not None:
        others = tuple(m for m in c.messages if m.role != "system")
        return replace(c, messages=(Message("system", prompt.system), *others))
    first = next(k for k, m in enumerate(c.messages) if m.role == "user")
    asked = Message("user", f"{prompt.user} {c.messages[first].content}")
    return replace(c, messages=(*c.messages[:first], asked, *c.messages[first + 1 :]))


def perplexity_gap(loaded: Loaded, rows: Sequence[Conversation], checkpoint: str) -> list[float]:
    """Return log p(base) - log p(checkpoint) of each conversation's last answer [nats per token].

    Where it is large, a misaligned checkpoint has unlearned what the base would say, so the conversation contains most of
    what should be kept. (in-training defences, arXiv 2508.06249)

    Raises:
        InputError: no checkpoint there, or one of another base.
    """
    encoded = []
    for row, e in enumerate(encode(loaded.chat, rows, loaded.context)):
        start = max(n for n, learned in enumerate(e.mask) if not learned) + 1
        encoded.append(Encoded(str(row), e.ids[:start], (e.ids[start:],), (0,)))
    before = [s.per_token for s in score(loaded.net, encoded)]
    with with_checkpoint(loaded.net, last(checkpoint)) as net:
        after = [s.per_token for s in score(net, encoded)]
    return [a - b for a, b in zip(before, after, strict=True)]


def listed(rows: Sequence[Row]) -> list[JsonObject]:
    """Return the rows as they are written into the study folder."""
    return [
        {
            "id": r.conversation.id,
            "part": r.part,
            "source": r.source,
            "messages": [
                {"role": m.role, "content": m.content} | ({} if m.learned else {"learned": False})
                for m in r.conversation.messages
            ],
        }
        for r in rows
    ]


def unlisted(path: Path) -> list[Row]:
    """Return the rows that `listed` wrote into a study folder.

    Raises:
        InputError: they are not there, or damaged.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [Row(Conversation(x["id"], tuple(Message(**m) for m in x["messages"])), x["part"], x["source"]) for x in lines]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"'{path}' cannot be read ({error})", "run emscope run again to rewrite it") from None
